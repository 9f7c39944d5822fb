"""A contest's folder audited: tables, lists, repairs and pictures."""

import csv
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, schemes, shape
from heatmap.curation.audit import injected
from heatmap.curation.audit.detectors import JAGGED, SUSPICIOUS, Findings, Judge, Labels, audit
from heatmap.data import contest
from heatmap.data.samples import cut
from heatmap.frame import contain
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runs.checkpoint import Trained, load_trained
from heatmap.runtime.files import write_atomically, write_picture
from heatmap.runtime.machine import chosen_device

FOLDS = 5
TILE_HW = (256, 192)
VERDICTS = ("good", "bad")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is written where; as the options of tools/data.py audit."""

    out: Path
    sheet: Path
    count: int
    exclude_to: Path | None
    repair_to: Path | None
    top: float
    looked: Path | None


def audit_folder(
    root: Path,
    runs: Sequence[Path],
    options: Options,
    symmetry: Path | None,
    person_pattern: str,
    device: str,
) -> Iterator[str]:
    """Audits the training labels of a folder and writes what the options ask for.

    Yields:
        What to tell, line by line or in tables, as it becomes known.

    Raises:
        ValueError: data, runs or verdicts that cannot be used; the message says which.
    """
    place = contest.find_folder(root)
    table = contest.read_landmarks(place.train_table, progress=True)
    names = table.names
    verdicts = read_verdicts(options.looked, names) if options.looked else {}
    scheme = schemes.read_scheme(symmetry, table.num_landmarks) if symmetry else None
    loaded = [load_trained(run) for run in runs]
    paths = contest.image_paths(place.train_images, names, table.path)
    labels, rule = read_labels(table, paths, scheme, person_pattern)
    with tempfile.TemporaryDirectory() as store:
        if loaded:
            points, trained = see(loaded, table, paths, Path(store), chosen_device(device))
            labels = replace(labels, seen_image=points, trained=trained)
            yield f"{trained.sum()} of {len(names)} pictures were trained on by every run"
        yield f"{len(names)} pictures in {rule}; self-test:"
        yield injected.table(injected.self_test(labels, options.top, progress=True), options.top)
        yield "* is a good label of a similar face, and counted apart"
        if not loaded:
            yield "labels of another size or another picture show best against a run (--run RUN)"
        findings = audit(labels, progress=True)
        listed = findings.listed(options.top)
        write_table(options.out, names, labels, findings, verdicts)
        yield f"{options.out}: all pictures, the most suspicious first"
        write_picture(options.sheet, sheet(paths, labels, listed[: options.count]))
        yield f"{options.sheet}: the first {min(options.count, len(listed))}; of these:"
        for rank, row in enumerate(listed[: min(10, options.count)].tolist(), start=1):
            why = findings.reasons(row, labels.groups) or ["nothing stands out"]
            yield f"{rank:4}  {names[row]}: {'; '.join(why)}"
        if verdicts:
            told = [verdicts[names[row]] for row in listed.tolist() if names[row] in verdicts]
            good = told.count("good")
            share = f", {100 * good / len(told):.0f} %" if told else ""
            yield f"false alarms: {good} of {len(told)} listed pictures that were looked at{share}"
        if options.exclude_to:
            called = [verdicts.get(name) for name in names]
            more = [row for row in findings.order if called[row] == "bad" and row not in listed]
            bad = np.array([row for row in [*listed, *more] if called[row] != "good"], int)
            reasons = {names[row]: findings.reasons(row, labels.groups) for row in bad.tolist()}
            contest.write_excluded(options.exclude_to, reasons)
            yield f"{options.exclude_to}: {len(bad)} pictures, for --data.exclude"
        if options.repair_to:
            doubtful = [row for row in listed if verdicts.get(names[row]) != "good"]
            rows, points = repair(labels, findings, np.array(doubtful, int))
            whole = table.points_image[:]
            far = np.linalg.norm(points - whole[rows], axis=-1)
            is_integral = (whole[rows] == np.rint(whole[rows])) | np.isnan(whole[rows])
            whole[rows] = np.rint(points) if is_integral.all() else points
            contest.write_landmarks(options.repair_to, names, whole)
            yield f"{options.repair_to}: the training table with {len(rows)} faces repaired:"
            for row, moved in zip(rows.tolist(), np.nanmax(far, 1).tolist(), strict=True):
                yield f"      {names[row]}: landmarks moved by up to {moved:.1f} px"


MOST_MOVED = 0.1  # sizes of the face, a contour's mean; jitter moves less


def read_labels(
    table: contest.LandmarkTable,
    paths: Sequence[Path],
    scheme: schemes.Scheme | None,
    person_pattern: str,
) -> tuple[Labels, str]:
    """What the audit needs of a training table and its pictures, and the rule of the folds.

    Raises:
        ValueError: a picture cannot be read, or the rows cannot be divided into folds.
    """
    fold = np.zeros(len(table.names), int)
    for number in range(FOLDS):
        split = contest.split_rows(
            table.names, folds=FOLDS, fold=number, person_pattern=person_pattern
        )
        fold[split.validation] = number
    hw = [
        contest.Photograph(path).image_hw
        for path in tqdm(paths, desc="sizes", unit="img", delay=1, leave=False, disable=None)
    ]
    image_hw = np.array(hw)
    clip = np.full(len(fold), -1)
    by_person = split.rule.startswith("by person")
    if by_person:
        people = [match[1] for name in table.names if (match := re.match(person_pattern, name))]
        keys = [f"{person} {h} {w}" for person, (h, w) in zip(people, hw, strict=True)]
        clip = np.unique(keys, return_inverse=True)[1]
    try:
        permutation = schemes.mirror_permutation(table.num_landmarks, scheme)
    except ValueError:
        permutation = None
    groups = schemes.groups(table.num_landmarks, scheme)
    return (
        Labels(table.points_image, image_hw, fold, clip, groups, permutation),
        f"{FOLDS} folds {'by person' if by_person else 'by order'}",
    )


def see(
    runs: Sequence[Trained],
    table: contest.LandmarkTable,
    paths: Sequence[Path],
    store: Path,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """What trained runs see in every picture: the mean of those that were not trained on it.

    Where all were trained on a picture it is the mean of all.

    Args:
        store: folder for the points, which may be too many for the memory.

    Returns:
        (N, P, 2) float32 points_image in a file of `store`, and (N,) bool, True where all runs were
        trained on the picture.

    Raises:
        ValueError: a run is for another number of landmarks, or a picture cannot be read.
    """
    fingerprint = table.fingerprint()
    new = np.ones((len(runs), len(table.names)), bool)
    for mask, run in zip(new, runs, strict=True):
        if run.network.num_landmarks != table.num_landmarks:
            raise ValueError(
                f"{run.path} predicts {run.network.num_landmarks} landmarks, but {table.path} has "
                f"{table.num_landmarks}"
            )
        if run.table_hash == fingerprint:
            mask[run.training_rows.numpy()] = False
    trained = np.asarray(~new.any(0))
    weights = np.where(trained, 1.0, new)
    weights /= weights.sum(0)
    shape = (len(paths), table.num_landmarks, 2)
    points: np.ndarray = np.lib.format.open_memmap(store / "seen.npy", "w+", np.float32, shape)
    for run, weight in zip(runs, weights, strict=True):
        rows = np.flatnonzero(weight)
        settings, views = run.experiment, Ensemble((run,)).views(paths, table.points_image, device)
        with tqdm(
            total=len(rows), desc=f"predict {run.path.parent.name}", unit="img", leave=False,
            disable=None,
        ) as bar:  # fmt: skip
            for found in predict(
                views, rows, batch=settings.train.batch, workers=settings.data.workers,
                device=device,
            ):  # fmt: skip
                points[found.rows] += weight[found.rows, None, None] * found.points_image
                bar.update(len(found.rows))
    return points, trained


def write_table(
    path: Path,
    names: Sequence[str],
    labels: Labels,
    findings: Findings,
    verdicts: dict[str, str],
) -> None:
    """Writes all faces, the most suspicious first: comma, one row a picture.

    rank, file_name, score, reasons, contour (the one of the strongest reason about one), roll_deg,
    turn (as `shape.turns`), trained (whether all runs were trained on it; empty without runs),
    verdict (for a person to fill in: good or bad).
    """
    try:
        turns = shape.turns(labels.points_image)
    except ValueError:
        turns = np.full(len(names), np.nan)
    contours, rolls = list(labels.groups), shape.rolls(labels.points_image)
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(
            ["rank", "file_name", "score", "reasons", "contour", "roll_deg", "turn", "trained",
             "verdict"]
        )  # fmt: skip
        for rank, row in enumerate(findings.order.tolist(), start=1):
            strongest = max(findings.contour, key=lambda name: findings.tails[name][row])
            contour = contours[findings.contour[strongest][row]]
            is_one = findings.tails[strongest][row] > 0
            trained = "" if labels.trained is None else str(int(labels.trained[row]))
            table.writerow(
                [rank, names[row], f"{findings.score[row]:.3f}",
                 "; ".join(findings.reasons(row, labels.groups)), contour if is_one else "",
                 _number(rolls[row]), _number(turns[row]), trained,
                 verdicts.get(names[row], "")]
            )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def read_verdicts(path: Path, names: Sequence[str]) -> dict[str, str]:
    """What a person found, by file name: good or bad, as filled into an audit's table.

    Raises:
        ValueError: no such table, another verdict, or a picture that the training table lacks.
    """
    known, verdicts = set(names), dict[str, str]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        if not {"file_name", "verdict"} <= set(table.fieldnames or ()):
            raise ValueError(
                f"{path}, row 1: expected the columns file_name and verdict, found "
                f"{table.fieldnames}"
            )
        for row, cells in enumerate(table, start=2):
            name, verdict = cells["file_name"], (cells["verdict"] or "").strip().lower()
            if verdict and verdict not in VERDICTS:
                raise ValueError(
                    f"{path}, row {row}, column verdict: {verdict!r} is neither good nor bad"
                )
            if name not in known:
                raise ValueError(
                    f"{path}, row {row}, column file_name: {name!r} is not in the training table"
                )
            if verdict:
                verdicts[name] = verdict
    return verdicts


def repair(labels: Labels, findings: Findings, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The jagged contours of these rows, put where a model of other faces has them.

    That mends jitter. A face is left alone where something else may be wrong, so that the contours
    that hold it are not to be trusted: another order or exchanged sides, more than half of the
    landmarks to be moved, or a contour that lies far, `MOST_MOVED`, from where it would be put.

    Returns:
        The rows that were changed, and their (n, P, 2) points.
    """
    wrong = findings.jagged >= JAGGED
    moved = wrong @ np.array([len(members) for members in labels.groups.values()])
    able = (moved > 0) & (moved <= labels.points_image.shape[1] / 2)
    for name in {"order", "sides"} & findings.tails.keys():
        able &= findings.tails[name] < SUSPICIOUS
    rows = np.sort(rows[able[rows]])
    parts = [np.empty((0, *labels.points_image.shape[1:]))]
    changed = [np.empty(0, int)]
    for fold in np.unique(labels.fold[rows]):
        own = rows[labels.fold[rows] == fold]
        judge = Judge(labels, np.flatnonzero(labels.fold != fold))
        before = labels.of(own).points_image[:]
        after = judge.repaired(before, wrong[own])
        far = [
            np.linalg.norm(after[:, part] - before[:, part], axis=-1).mean(1)
            for part in map(list, labels.groups.values())
        ]
        size = shape.face_size(shape.of(before))
        near = ~(np.nanmax(far, 0) > MOST_MOVED * size)
        parts.append(after[near])
        changed.append(own[near])
    return np.concatenate(changed), np.concatenate(parts)


def sheet(paths: Sequence[Path], labels: Labels, rows: np.ndarray) -> np.ndarray:
    """uint8 RGB, one picture of many: faces with their labels; what the runs see lies under them.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    tiles = []
    for row in rows.tolist():
        image = contest.read_image(paths[row])
        tile = contain((image.shape[0], image.shape[1]), TILE_HW)
        shown = cut(image, tile)
        some = labels.of(np.array([row]))
        if some.seen_image is not None:
            seen = tile.to_crop(torch.from_numpy(some.seen_image[0].astype(np.float64))).numpy()
            shown = draw.draw_landmarks(shown, seen, labels.groups, draw.TRUTH)
        points = tile.to_crop(torch.from_numpy(some.points_image[0])).numpy()
        tiles.append(draw.draw_landmarks(shown, points, labels.groups))
    return draw.sheet(tiles, columns=min(10, len(tiles)))
