"""How good a network is: the contest's score, NME and the rest, per picture, group and size."""

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from heatmap import schemes
from heatmap.data import contest
from heatmap.data.samples import Samples, load
from heatmap.evaluation import calibration
from heatmap.frame import Frame
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import Landmarks, View, predict
from heatmap.networks import HeatmapNetwork
from heatmap.runs import model_card
from heatmap.runs.checkpoint import Trained, load_trained
from heatmap.runs.per_image import write_per_image
from heatmap.runtime import distributed
from heatmap.runtime.columns import as_lines
from heatmap.runtime.files import write_atomically, write_json
from heatmap.runtime.machine import describe
from heatmap.runtime.stopwatch import Stopwatch

logger = logging.getLogger("heatmap")

# Shorter side of the picture in pixels: the upper ends of the size classes.
SIZE_CLASSES = (125, 175, 250, 350)


@dataclass(frozen=True)
class Errors:
    """What a network got wrong, one row a picture, in the order of the table's rows.

    Of 100,000 pictures with 971 landmarks it takes 1 GB; so signed errors are kept as their mean.

    rows: (N,); mse: (N,) float64 mean squared error over labelled coordinates, px² of the picture;
    nme: (N,) mean point error over the normaliser; normaliser: its name; distance: (N, P) float32
    point errors in px, NaN where unlabelled; peak: (N, P) heights of the heatmap peaks, NaN on the
    direct road; spread: (N, P) float16 how far apart the views' points are in px, as
    `predict.Landmarks.disagreement`, or of a single view the standard deviation of the heatmap
    along an axis, NaN on the direct road; mean_shape_mse: (N,) as mse, for the mean training shape;
    image_hw: (N, 2); bias: (P, 2) mean of predicted minus true landmark, px, NaN where no picture
    has it labelled; groups: of the landmarks, by name.
    """

    rows: np.ndarray
    mse: np.ndarray
    nme: np.ndarray
    normaliser: str
    distance: np.ndarray
    peak: np.ndarray
    spread: np.ndarray
    mean_shape_mse: np.ndarray
    image_hw: np.ndarray
    bias: np.ndarray
    groups: dict[str, range]


def measure(
    views: Sequence[View],
    rows: np.ndarray,
    mean_shape_crop: torch.Tensor,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    weighted: bool = False,
    watch: Stopwatch | None = None,
) -> Errors | None:
    """The errors of the merged views on the rows, each counted once by however many processes.

    Of several processes the first gets them, the others None.

    Args:
        views, weighted: as `predict` takes them.
        mean_shape_crop: (P, 2), in the first view's crops.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    rank, world = distributed.rank(), distributed.world()
    rows = np.sort(rows)
    labels = views[0].samples.points_image
    parts = {field.name: list[np.ndarray]() for field in fields(Errors)}
    del parts["normaliser"], parts["groups"]
    hidden = None if rank == 0 else True
    bar = tqdm(total=len(rows), desc="evaluate", unit="img", leave=False, disable=hidden)
    with bar:
        for found in predict(
            views, rows, batch=batch, workers=workers, device=device, weighted=weighted,
            rank=rank, world=world, watch=watch,
        ):  # fmt: skip
            _check_finite(found, views[0].samples)
            truth = labels[found.rows].astype(np.float64)
            offset = found.points_image - truth
            distance = np.linalg.norm(offset, axis=-1)
            mean_shape = found.frame.to_image(mean_shape_crop).numpy()
            name, length = schemes.normaliser(truth)
            errors = {
                "rows": found.rows,
                "mse": contest.squared_errors(found.points_image, truth),
                "nme": nanmean(distance, 1) / length,
                "distance": distance.astype(np.float32),
                "peak": np.full_like(distance, np.nan) if found.peak is None else found.peak,
                "mean_shape_mse": contest.squared_errors(mean_shape, truth),
                "spread": _spread(found).astype(np.float16),
                "image_hw": found.image_hw,
                "bias": np.nansum(offset, axis=0, keepdims=True),
            }
            for name, values in errors.items():
                parts[name].append(values)
            bar.update(min(len(found.rows) * world, len(rows) - bar.n))
    whole = {}
    for name in list(parts):
        joined = distributed.joined(parts.pop(name))
        if joined is not None:
            whole[name] = joined
    if not whole:
        return None
    assert np.array_equal(whole["rows"], rows), "each row is counted once"
    labelled = np.isfinite(whole["distance"]).sum(0)[:, None]
    total = whole["bias"].sum(0)
    whole["bias"] = np.where(labelled > 0, total / np.maximum(labelled, 1), np.nan)
    name, _ = schemes.normaliser(labels[:1])
    groups = schemes.groups(labels.shape[1], views[0].scheme)
    return Errors(normaliser=name, groups=groups, **whole)


def _spread(found: Landmarks) -> np.ndarray:
    """(B, P) px, as in `Errors`."""
    if found.disagreement is not None:
        return found.disagreement
    if found.covariance_image is None:
        return np.full(found.points_image.shape[:2], np.nan)
    variance = found.covariance_image.trace(axis1=-2, axis2=-1) / 2
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def _check_finite(found: Landmarks, samples: Samples) -> None:
    finite = np.isfinite(found.points_image).all((1, 2))
    if not finite.all():
        raise ValueError(
            f"the network predicts landmarks that are not finite, as for "
            f"{samples.paths[found.rows[~finite][0]]}: its training diverged; lower optimizer.lr "
            "or set optimizer.clip_norm"
        )


def summary(errors: Errors) -> dict[str, Any]:
    """The scores of a whole set: JSON-able, None where nothing is labelled.

    mse: the contest's, px²; nme: in percent of the normaliser; failure_8, auc_8: share of pictures
    whose NME is above 8 %, and area under the cumulative error curve up to there as a share of the
    best; groups and sizes: mean squared error of each landmark group and picture size class.
    """
    nme = errors.nme[np.isfinite(errors.nme)]
    shorter = errors.image_hw.min(1)
    edges = (0, *SIZE_CLASSES, np.inf)
    sizes = {}
    for low, high in pairwise(edges):
        chosen = (shorter >= low) & (shorter < high)
        name = (
            f"under {high} px"
            if low == 0
            else f"{low} px and over"
            if high == np.inf
            else f"{low} to {high - 1} px"
        )
        if chosen.any():
            sizes[name] = {
                "pictures": int(chosen.sum()),
                "mse": _number(nanmean(errors.mse[chosen], 0)),
            }
    return {
        "pictures": len(errors.rows),
        "mse": _number(contest.contest_mse(errors.mse)),
        "mean_shape_mse": _number(contest.contest_mse(errors.mean_shape_mse)),
        "normaliser": errors.normaliser,
        "nme_percent": _number(100 * nme.mean()) if len(nme) else None,
        **{f"failure_{p}": _number((nme > p / 100).mean()) if len(nme) else None for p in (8, 10)},
        **{f"auc_{p}": _number(_auc(nme, p / 100)) if len(nme) else None for p in (8, 10)},
        "mean_peak": _number(nanmean(errors.peak, None)),
        "groups": {
            name: _number(nanmean(_group_mse(errors.distance[:, members.start : members.stop]), 0))
            for name, members in errors.groups.items()
        },
        "sizes": sizes,
    }


def _group_mse(distance: np.ndarray) -> np.ndarray:
    """(N,) px² of every picture; of one group at a time, since all in float64 would be large."""
    return nanmean(distance.astype(np.float64) ** 2 / 2, 1)  # the mean over x and y


def _auc(nme: np.ndarray, limit: float) -> float:
    """Area under the share of pictures with an NME below x, for x from 0 to limit, over limit."""
    return float(np.clip(limit - nme, 0, None).mean() / limit)


def nanmean(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Mean of the finite values; NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _number(value: float | np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def write(folder: Path, errors: Errors, names: Sequence[str], scores: dict[str, Any]) -> None:
    """Writes evaluation.json, per_image.csv and errors.npz into the folder, each atomically."""
    write_json(folder / "evaluation.json", scores)
    scored = [names[row] for row in errors.rows]
    write_per_image(folder / "per_image.csv", scored, per_picture(errors))
    with (
        write_atomically(folder / "errors.npz") as temporary,
        temporary.open("wb") as binary,
    ):
        groups = {name: [part.start, part.stop] for name, part in errors.groups.items()}
        np.savez_compressed(binary, **vars(errors) | {"groups": json.dumps(groups)})


def read(folder: Path) -> Errors:
    """The errors that `write` wrote into the folder.

    Raises:
        ValueError: there are none, or the file is damaged or lacks something.
    """
    path = folder / "errors.npz"
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            values = {field.name: arrays[field.name] for field in fields(Errors)}
            groups = json.loads(str(values["groups"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a readable file of errors ({error}); tools/evaluate.py writes it anew"
        ) from None
    values["groups"] = {name: range(*bounds) for name, bounds in groups.items()}
    return Errors(**values | {"normaliser": str(values["normaliser"])})


def per_picture(errors: Errors) -> dict[str, np.ndarray]:
    """The columns of per_image.csv, (N,) each; no groups where there is only one."""
    groups = errors.groups
    return {
        "mse": errors.mse,
        "nme": errors.nme,
        "mean_shape_mse": errors.mean_shape_mse,
        "mean_peak": nanmean(errors.peak, 1),
        "width": errors.image_hw[:, 1],
        "height": errors.image_hw[:, 0],
        **{
            f"mse {name}": _group_mse(errors.distance[:, members.start : members.stop])
            for name, members in groups.items()
            if len(groups) > 1
        },
    }


def table(scores: dict[str, Any]) -> str:
    """The scores as lines that line up, for people."""

    def show(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.3f}{unit}"

    rows = [
        ("pictures", str(scores["pictures"])),
        ("contest MSE", show(scores["mse"], " px²")),
        ("  of the mean shape", show(scores["mean_shape_mse"], " px²")),
        (f"NME ({scores['normaliser']})", show(scores["nme_percent"], " %")),
        *((f"failure rate at {p} %", show(scores[f"failure_{p}"])) for p in (8, 10)),
        *((f"AUC to {p} %", show(scores[f"auc_{p}"])) for p in (8, 10)),
        ("MSE by landmark group", ""),
        *((f"  {name}", show(mse, " px²")) for name, mse in scores["groups"].items()),
        ("MSE by shorter side", ""),
        *(
            (f"  {name} ({size['pictures']})", show(size["mse"], " px²"))
            for name, size in scores["sizes"].items()
        ),
    ]
    return "\n".join(as_lines(rows))


def evaluate_run(
    ensemble: Ensemble, data: Path | None, device: torch.device, decoder: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Scores a run, or several as one, on validation rows or on another contest's labelled rows.

    Writes evaluation.json, per_image.csv, errors.npz, calibration.json (how far off a landmark is
    expected to be, where the networks tell how sure they are) and timing.json into the first run's
    folder; for other data, for anything but the best checkpoint alone, or another decoder, into
    evaluation-NAME inside it. The scores of
    the run as it is enter its model card, too. Of several processes each predicts its part, and the
    first writes.

    Args:
        data: contest folder, None for the first run's own. Of a table that runs were trained on
            the rows are scored that validate in all of these.
        decoder: as in `config.HeatmapModel`; None for the run's own.

    Returns:
        The scores, as `summary` gives them, with the fingerprint of the labels' table; and the
        folder that holds them.

    Raises:
        ValueError: no labelled data, another number of landmarks, a run without validation rows on
            its own data, no row that validates in all runs, a decoder for a network without
            heatmaps, or processes that do not see the same files.
    """
    if decoder is not None:
        for run in ensemble.runs:
            if not isinstance(run.network, HeatmapNetwork):
                raise ValueError(
                    f"{run.path} is of a network without heatmaps; it needs no --decoder"
                )
            run.network.landmark_decoder = decoder
    trained = ensemble.runs[0]
    experiment = trained.experiment
    root = data or experiment.data.root
    folder = contest.find_folder(root)
    labels = contest.read_landmarks(
        folder.train_table, experiment.data.cache, progress=distributed.rank() == 0
    )
    if labels.num_landmarks != ensemble.num_landmarks:
        raise ValueError(
            f"{labels.path} has {labels.num_landmarks} landmarks, the network of {trained.path} "
            f"predicts {ensemble.num_landmarks}"
        )
    fingerprint = labels.fingerprint()
    distributed.must_agree({str(labels.path): fingerprint} | ensemble.fingerprints())
    others = [run for run in ensemble.runs if run.table_hash != fingerprint]
    if others and data is None:
        raise ValueError(
            f"{labels.path} is not the table that {others[0].path} was trained on, so its "
            f"validation rows are not known; to score it all the same, name it: --data {root}"
        )
    out = trained.path.parent
    if trained.table_hash != fingerprint:
        out = out / f"evaluation-{root.resolve().name}"
    checkpoint = "" if trained.path.stem == "best" else trained.path.stem
    if name := "-".join(filter(None, (checkpoint, ensemble.name, decoder))):
        out = out / f"evaluation-{name}"
    rows = _rows_to_score(ensemble.runs, labels)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path, rows.tolist())
    watch = Stopwatch(device)
    errors = measure(
        ensemble.views(paths, labels.points_image, device), rows,
        trained.mean_shape_crop, batch=experiment.train.batch, workers=experiment.data.workers,
        device=device, weighted=ensemble.weighted, watch=watch,
    )  # fmt: skip
    scores = distributed.from_first(summary(errors) | {"table": fingerprint} if errors else {})
    if errors:
        write(out, errors, labels.names, scores)
        calibration.write(out, _calibrated(errors, labels.names, experiment.data.person_pattern))
        pictures = len(rows) / distributed.world()
        milliseconds = {part: 1000 * s / pictures for part, s in watch.seconds().items()}
        write_json(
            out / "timing.json",
            describe(device)
            | {"batch": experiment.train.batch, "workers": experiment.data.workers}
            | {"milliseconds_a_picture": milliseconds},
        )
        if out / "best.pt" == trained.path and (out / "summary.json").exists():
            model_card.write(out, table(scores))
    return scores, out


def _calibrated(
    errors: Errors, names: Sequence[str], person_pattern: str
) -> calibration.Checked | None:
    """Fitted on half of the people, or of the pictures where names tell no people."""
    names = [names[row] for row in errors.rows]
    people = contest.people_of(names, person_pattern)
    groups = [person or name for person, name in zip(people, names, strict=True)]
    first = calibration.halves(groups, errors.image_hw.min(1))
    return calibration.fit_and_check(errors.distance, errors.peak, errors.spread, first)


def _validation_rows(trained: Trained) -> np.ndarray:
    if trained.experiment.data.all_rows_train:
        raise ValueError(
            f"{trained.path}: the run has no validation rows, since it was trained on all rows "
            "(data.validation 0); name other data with --data"
        )
    return trained.validation_rows.numpy()


def _rows_to_score(runs: Sequence[Trained], labels: contest.LandmarkTable) -> np.ndarray:
    """The rows that validate in every run that was trained on this table; all if none was."""
    fingerprint = labels.fingerprint()
    own = [run for run in runs if run.table_hash == fingerprint]
    if not own:
        logger.info(
            f"{labels.path} is not what was trained on: all its rows are scored, also pictures "
            "that were trained on"
        )
        return np.arange(len(labels.names))
    rows = reduce(np.intersect1d, [_validation_rows(run) for run in own])
    if len(rows) == 0:
        raise ValueError(
            f"no row of {labels.path} validates in all of "
            f"{', '.join(str(run.path) for run in own)}, so that none is new to all of them; score "
            "them together on other data (--data), or each alone"
        )
    return rows


def nearest_picture_mse(path: Path) -> float:
    """The contest's score on a run's validation rows for an answer that looks nothing but alike.

    Every picture gets the landmarks, placed as in its crop, of the training picture whose crop is
    nearest in 16 x 16 pixels. A network that learned something must be well below.

    Raises:
        ValueError: no checkpoint, or the run has no validation rows.
    """
    trained = load_trained(path)
    validation = _validation_rows(trained)
    folder = contest.find_folder(trained.experiment.data.root)
    labels = contest.read_landmarks(folder.train_table, trained.experiment.data.cache)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path)
    samples = Samples.of(trained.experiment, paths, labels.points_image)
    batches = [[row] for row in range(len(paths))]
    thumbnails, frames = [], []
    reading = load(samples, batches, trained.experiment.data.workers, torch.device("cpu"))
    for sample in tqdm(reading, total=len(paths), desc="nearest", leave=False, disable=None):
        small = torch.nn.functional.interpolate(sample.crop.float(), (16, 16), mode="area")
        thumbnails.append(small.flatten())
        frames.append(Frame(sample.image_from_crop[0], *sample.crop.shape[-2:]))
    candidates = trained.training_rows
    pixels = torch.stack(thumbnails)
    nearest = candidates[torch.cdist(pixels[validation], pixels[candidates]).argmin(1)]
    predicted = []
    for row, other in zip(validation.tolist(), nearest.tolist(), strict=True):
        points_crop = frames[other].to_crop(torch.from_numpy(labels.points_image[other]))
        predicted.append(frames[row].to_image(points_crop).numpy())
    truth = labels.points_image[validation].astype(np.float64)
    return contest.contest_mse(contest.squared_errors(np.stack(predicted), truth))
