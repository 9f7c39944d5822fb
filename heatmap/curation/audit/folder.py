"""A contest's folder audited: predictions, tables and the sheet."""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, schemes, shape
from heatmap.curation.audit import injected
from heatmap.curation.audit.residuals import AuditData, Findings, audit
from heatmap.data import contest
from heatmap.data.contest.small_tables import read_rows, write_rows
from heatmap.data.samples import cut, evenly_spaced
from heatmap.errors import UserError
from heatmap.evaluation import calibration
from heatmap.evaluation.metrics import spread_px
from heatmap.frame import contain
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runtime.files import write_image

TILE_HW = (256, 192)
SMALLEST = 0.01  # px; no residual is expected to be smaller
COLUMNS = (
    "rank", "file_name", "score", "reasons", "contour", "roll_deg", "turn", "trained", "verdict"
)  # fmt: skip


def audit_folder(
    root: Path,
    runs: Sequence[Path],
    *,
    out: Path,
    sheet: Path,
    count: int,
    exclude_to: Path | None,
    top: float,
    looked: Path | None,
    symmetry: Path | None,
    person_pattern: str,
    device: torch.device,
) -> Iterator[str]:
    """Audits the training labels of a folder; the options are those of tools/data.py audit.

    Yields:
        What to tell, as it becomes known.

    Raises:
        UserError: data, runs or verdicts that cannot be used.
    """
    place = contest.find_folder(root)
    table = contest.read_landmarks(place.train_table, progress=True)
    names = table.names
    verdicts = read_verdicts(looked, set(names)) if looked else {}
    if looked is None and out.exists() and read_verdicts(out):
        raise UserError(
            f"{out} holds verdicts, which would be lost; read them with --looked {out}, or write "
            "another table with --out"
        )
    scheme = schemes.read_scheme(symmetry, table.num_landmarks) if symmetry else None
    ensemble = Ensemble.load(runs)
    paths = contest.image_paths(place.train_images, names, table.path)
    half = contest.split_rows(names, folds=2, person_pattern=person_pattern).validation
    labels = look(ensemble, table, paths, half, scheme, device)
    yield (
        f"{labels.trained.sum()} of {len(names)} images were trained on by every run; their "
        "residuals are too small, and compared with one another only"
    )
    yield injected.format_recalls(injected.self_test(labels, top), top)
    findings = audit(labels)
    listed = findings.listed(top)
    reasons = [findings.reasons(row, labels.groups) for row in range(len(names))]
    write_table(out, names, labels, findings, reasons, verdicts)
    yield f"{out}: all images, the most suspicious first"
    write_image(sheet, draw_sheet(paths, labels, listed[:count]))
    yield f"{sheet}: the first {min(count, len(listed))}; of these:"
    for rank, row in enumerate(listed[: min(10, count)].tolist(), start=1):
        yield f"{rank:4}  {names[row]}: {'; '.join(reasons[row]) or 'nothing stands out'}"
    if verdicts:
        told = [verdicts[names[row]] for row in listed if names[row] in verdicts]
        good = told.count("good")
        share = f", {100 * good / len(told):.0f} %" if told else ""
        yield f"false alarms: {good} of {len(told)} listed images that were looked at{share}"
    if exclude_to:
        called_bad = [row for row in findings.order if verdicts.get(names[row]) == "bad"]
        doubtful = dict.fromkeys([*listed.tolist(), *called_bad])  # each once, in this order
        excluded = {
            names[row]: reasons[row] for row in doubtful if verdicts.get(names[row]) != "good"
        }
        contest.write_excluded(exclude_to, excluded)
        yield f"{exclude_to}: {len(excluded)} images, for --data.exclude"


def look(
    ensemble: Ensemble,
    table: contest.LandmarkTable,
    paths: Sequence[Path],
    half: np.ndarray,
    scheme: schemes.Scheme | None,
    device: torch.device,
) -> AuditData:
    """The labels, and what those runs see that were not trained on them, or all if every one was.

    Raises:
        UserError: the runs are for another number of landmarks, or an image cannot be read.
    """
    if ensemble.num_landmarks != table.num_landmarks:
        raise UserError(
            f"{ensemble.runs[0].path} predicts {ensemble.num_landmarks} landmarks, but "
            f"{table.path} has {table.num_landmarks}"
        )
    judges = np.ones((len(ensemble.runs), len(paths)), bool)
    for judged, run in zip(judges, ensemble.runs, strict=True):
        if run.table_hash == table.fingerprint:
            judged[run.training_rows.numpy()] = False
    trained = np.asarray(~judges.any(0))
    judges[:, trained] = True
    try:
        permutation = schemes.mirror_permutation(table.num_landmarks, scheme)
    except UserError:
        permutation = None
    size = len(paths), table.num_landmarks
    labels = AuditData(
        points_image=table.points_image,
        seen_image=_on_disk(*size, 2),
        expected_px=_on_disk(*size),
        apart_px=np.full(len(paths), np.nan),
        trained=trained,
        half=half,
        groups=schemes.groups(table.num_landmarks, scheme),
        permutation=permutation,
    )
    for members in np.unique(judges, axis=1).T:
        rows = np.flatnonzero((judges == members[:, None]).all(0))
        _fill(labels, Ensemble(tuple(compress(ensemble.runs, members))), rows, paths, device)
    return labels


def _on_disk(*shape: int) -> np.ndarray:
    """Zeros that may be too many for the memory, in a file that goes with them."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _fill(
    labels: AuditData, runs: Ensemble, rows: np.ndarray, paths: Sequence[Path], device: torch.device
) -> None:
    """Writes into some rows of the labels what the runs see there, and the errors to expect.

    These are told by the calibration of a single run, or by one on the rows that are new to the
    runs; where neither tells, by a landmark's median residual in sizes of the face.
    """
    views, settings = runs.views(paths, labels.points_image, device), runs.runs[0].experiment
    peak, spread = np.full((2, len(rows), labels.seen_image.shape[1]), np.nan, np.float32)
    with tqdm(total=len(rows), desc="predict", unit="img", leave=False, disable=None) as bar:
        for found in predict(
            views, rows, batch=settings.train.batch, workers=settings.data.workers, device=device
        ):
            own = np.searchsorted(rows, found.rows)
            labels.seen_image[found.rows] = found.points_image
            spread[own] = spread_px(found)
            if found.peak is not None:
                peak[own] = found.peak
            if found.disagreement is not None:
                labels.apart_px[found.rows] = np.sqrt((found.disagreement**2).mean(1))
            bar.update(len(own))

    trained = labels.trained[rows]
    some = np.flatnonzero(trained == trained.all())  # those that are new, if any are
    some = evenly_spaced(some, calibration.MOST_FITTED // spread.shape[1])
    known, seen = labels.of(rows[some]), shape.of(labels.seen_image[rows[some]])
    residual = np.abs(shape.of(known.points_image) - seen)
    usual = np.nanmedian(residual / shape.face_size(seen)[:, None], 0)
    checked = calibration.read(runs.runs[0].path.parent) if len(runs.runs) == 1 else None
    fitted = checked.calibration if checked else calibration.fit(residual, peak[some], spread[some])
    for part in shape.blocks(np.arange(len(rows))):
        size = shape.face_size(shape.of(labels.seen_image[rows[part]]))
        expected = size[:, None] * usual
        if fitted:
            told = fitted.expected_error(peak[part], spread[part])
            expected = np.where(np.isfinite(told), told, expected)
        labels.expected_px[rows[part]] = np.fmax(expected, SMALLEST)


def write_table(
    path: Path,
    names: Sequence[str],
    labels: AuditData,
    findings: Findings,
    reasons: Sequence[Sequence[str]],
    verdicts: dict[str, str],
) -> None:
    """Writes all faces, the most suspicious first, one row an image.

    contour is the landmark group that stands out most; trained, whether all runs were trained on
    the image; verdict is for a person to fill in: good or bad.
    """
    rolls, contours = shape.rolls(labels.points_image), list(labels.groups)
    try:
        turns = shape.turns(labels.points_image)
    except UserError:
        turns = np.full(len(names), np.nan)
    rows = []
    for rank, row in enumerate(findings.order.tolist(), start=1):
        strongest = max(findings.group, key=lambda name: findings.tails[name][row])
        is_told = findings.tails[strongest][row] > 0
        contour = contours[findings.group[strongest][row]] if is_told else ""
        pose = (f"{value:.4g}" if np.isfinite(value) else "" for value in (rolls[row], turns[row]))
        rows.append(
            (rank, names[row], f"{findings.score[row]:.3f}", "; ".join(reasons[row]), contour,
             *pose, int(labels.trained[row]), verdicts.get(names[row], ""))
        )  # fmt: skip
    write_rows(path, COLUMNS, rows)


def read_verdicts(path: Path, known: set[str] | None = None) -> dict[str, str]:
    """What a person found, good or bad, by file name; an audit's table with verdicts filled in.

    Raises:
        UserError: no such table, another verdict, or a file name that is not among those known.
    """
    verdicts = {}
    for where, (name, verdict) in read_rows(path, ["file_name", "verdict"]):
        if known is not None and name not in known:
            raise UserError(f"{where}: {name!r} is not in the training table")
        if verdict.lower() not in ("good", "bad", ""):
            raise UserError(f"{where}: the verdict {verdict!r} is neither good nor bad")
        if verdict:
            verdicts[name] = verdict.lower()
    return verdicts


def draw_sheet(paths: Sequence[Path], labels: AuditData, rows: np.ndarray) -> np.ndarray:
    """uint8 RGB, one image of many: faces with their labels; what the runs see lies under them."""
    tiles = []
    for row in rows.tolist():
        image = contest.read_image(paths[row])
        tile = contain((image.shape[0], image.shape[1]), TILE_HW)
        seen, points = (
            tile.to_crop(torch.from_numpy(some[row].astype(np.float64))).numpy()
            for some in (labels.seen_image, labels.points_image)
        )
        shown = draw.draw_landmarks(cut(image, tile), seen, labels.groups, draw.TRUTH)
        tiles.append(draw.draw_landmarks(shown, points, labels.groups))
    return draw.sheet(tiles, columns=min(10, len(tiles)))
