"""How good a network is: the contest's score, NME and the rest, by image, group and size."""

import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from heatmap import schemes
from heatmap.data import contest
from heatmap.data.samples import Samples
from heatmap.errors import UserError
from heatmap.evaluation import calibration
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import Prediction, View, predict
from heatmap.networks import HeatmapNetwork
from heatmap.runs import model_card
from heatmap.runs.checkpoint import TrainedRun
from heatmap.runs.folder import RunFolder
from heatmap.runs.per_image import Errors, write_errors, write_per_image
from heatmap.runtime import distributed
from heatmap.runtime.columns import as_lines
from heatmap.runtime.files import finite, write_json
from heatmap.runtime.machine import describe
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.shape import nanmean

logger = logging.getLogger("heatmap")

# The image's shorter side in px: from the first number to below the second.
SIZE_CLASSES = {
    "under 125 px": (0, 125),
    "125 to 174 px": (125, 175),
    "175 to 249 px": (175, 250),
    "250 to 349 px": (250, 350),
    "350 px and over": (350, np.inf),
}


def measure_errors(
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
    """The errors of the merged views on the rows; of several processes the others get None.

    Args:
        views, weighted: as `predict` takes them.
        mean_shape_crop: (P, 2), in the first view's crops.

    Raises:
        UserError: an image cannot be read; the message names it.
    """
    rank, world = distributed.rank(), distributed.world()
    rows, samples = np.sort(rows), views[0].samples
    names = [field.name for field in fields(Errors) if field.type is np.ndarray]
    parts = {name: list[np.ndarray]() for name in names}
    off = rank > 0 or None  # None: where there is no terminal
    with tqdm(total=len(rows), desc="evaluate", unit="img", leave=False, disable=off) as bar:
        for found in predict(
            views, rows, batch=batch, workers=workers, device=device, weighted=weighted,
            rank=rank, world=world, watch=watch,
        ):  # fmt: skip
            for name, values in _of_batch(found, samples, mean_shape_crop).items():
                parts[name].append(values)
            bar.update(min(len(found.rows) * world, len(rows) - bar.n))
    whole = {}
    for name in names:  # one by one, since all may be large
        joined = distributed.joined(parts.pop(name))
        if joined is not None:
            whole[name] = joined
    if not whole:
        return None
    assert np.array_equal(whole["rows"], rows), "each row is counted once"
    labelled = np.isfinite(whole["distance"]).sum(0)[:, None]
    total = whole["bias"].sum(0)
    whole["bias"] = np.where(labelled > 0, total / np.maximum(labelled, 1), np.nan)
    normaliser, _ = schemes.normaliser(samples.points_image[:1])
    groups = schemes.groups(samples.points_image.shape[1], views[0].scheme)
    return Errors(normaliser=normaliser, groups=groups, **whole)


def _of_batch(
    found: Prediction, samples: Samples, mean_shape_crop: torch.Tensor
) -> dict[str, np.ndarray]:
    """The arrays of `Errors` for some images; bias is the (1, P, 2) sum of signed errors."""
    finite_rows = np.isfinite(found.points_image).all((1, 2))
    if not finite_rows.all():
        raise UserError(
            f"the network predicts landmarks that are not finite, as for "
            f"{samples.paths[found.rows[~finite_rows][0]]}: its training diverged; lower "
            "optimizer.lr or set optimizer.clip_norm"
        )
    truth = samples.points_image[found.rows].astype(np.float64)
    offset = found.points_image - truth
    distance = np.linalg.norm(offset, axis=-1)
    mean_shape = found.frame.to_image(mean_shape_crop).numpy()
    return {
        "rows": found.rows,
        "mse": contest.squared_errors(found.points_image, truth),
        "nme": nanmean(distance, 1) / schemes.normaliser(truth)[1],
        "distance": distance.astype(np.float32),
        "peak": np.full_like(distance, np.nan) if found.peak is None else found.peak,
        "mean_shape_mse": contest.squared_errors(mean_shape, truth),
        "spread": spread_px(found).astype(np.float16),
        "image_hw": found.image_hw,
        "bias": np.nansum(offset, axis=0, keepdims=True),
    }


def spread_px(found: Prediction) -> np.ndarray:
    """(B, P) px: `Prediction.disagreement` of several views, of one the heatmap's deviation.

    That is the standard deviation along an axis; NaN on the direct road.
    """
    if found.disagreement is not None:
        return found.disagreement
    if found.covariance_image is None:
        return np.full(found.points_image.shape[:2], np.nan)
    variance = found.covariance_image.trace(axis1=-2, axis2=-1) / 2
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def summary(errors: Errors) -> dict[str, Any]:
    """The scores of a whole set: JSON-able, None where nothing is labelled.

    mse: the contest's, px²; nme_percent: of the normaliser; failure_8, auc_8: share of images
    whose NME is above 8 %, and area under the cumulative error curve up to there as a share of the
    best; groups and sizes: px² of each landmark group and class of image sizes.
    """
    nme, shorter = errors.nme[np.isfinite(errors.nme)], errors.image_hw.min(1)
    sizes = {}
    for name, (low, high) in SIZE_CLASSES.items():
        chosen = (low <= shorter) & (shorter < high)
        if chosen.any():
            sizes[name] = {"images": int(chosen.sum()), "mse": _mean(errors.mse[chosen])}
    scores = {
        "images": len(errors.rows),
        "mse": contest.contest_mse(errors.mse),
        "mean_shape_mse": contest.contest_mse(errors.mean_shape_mse),
        "normaliser": errors.normaliser,
        "nme_percent": 100 * _mean(nme),
        **{f"failure_{p}": _mean(nme > p / 100) for p in (8, 10)},
        **{f"auc_{p}": _mean(np.clip(p / 100 - nme, 0, None)) / (p / 100) for p in (8, 10)},
        "mean_peak": _mean(errors.peak),
        "groups": {name: _mean(mse) for name, mse in errors.group_mse().items()},
        "sizes": sizes,
    }
    return finite(scores)


def _mean(values: np.ndarray) -> float:
    return float(nanmean(values, None))


def format_scores(scores: dict[str, Any]) -> str:
    """The scores as lines that line up, for people."""

    def show(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.3f}{unit}"

    rows = [
        ("images", str(scores["images"])),
        ("contest MSE", show(scores["mse"], " px²")),
        ("  of the mean shape", show(scores["mean_shape_mse"], " px²")),
        (f"NME ({scores['normaliser']})", show(scores["nme_percent"], " %")),
        *((f"failure rate at {p} %", show(scores[f"failure_{p}"])) for p in (8, 10)),
        *((f"AUC to {p} %", show(scores[f"auc_{p}"])) for p in (8, 10)),
        ("MSE by landmark group", ""),
        *((f"  {name}", show(mse, " px²")) for name, mse in scores["groups"].items()),
        ("MSE by shorter side", ""),
    ]
    for name, size in scores["sizes"].items():
        rows.append((f"  {name} ({size['images']})", show(size["mse"], " px²")))
    return "\n".join(as_lines(rows))


def evaluate_run(
    ensemble: Ensemble, data: Path | None, device: torch.device, decoder: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Scores a run, or several as one, on validation rows or on another contest's labelled rows.

    Writes evaluation.json, per_image.csv, errors.npz, calibration.json and timing.json into the
    first run's folder; for other data, for anything but the best checkpoint alone, or another
    decoder, into evaluation-NAME inside it. The scores of the run as it is enter its model card.

    Args:
        data: contest folder, None for the first run's own. Of a table that runs were trained on
            the rows are scored that validate in all of these.
        decoder: as in `config.HeatmapModel`; None for the run's own.

    Returns:
        The scores, as `summary` gives them, with the fingerprint of the labels' table; and the
        folder that holds them.

    Raises:
        UserError: no labelled data, another number of landmarks, a run without validation rows on
            its own data, no row that validates in all runs, a decoder for a network without
            heatmaps, or processes that do not see the same files.
    """
    if decoder is not None:
        for run in ensemble.runs:
            if not isinstance(run.network, HeatmapNetwork):
                raise UserError(f"{run.path} has no heatmaps; it needs no --decoder")
            run.network.landmark_decoder = decoder
    first = ensemble.runs[0]
    train, settings = first.experiment.train, first.experiment.data
    root = data or settings.root
    folder = contest.find_folder(root)
    labels = _labels(ensemble, folder.train_table)
    rows = _rows_to_score(ensemble.runs, labels, root, is_own=data is None)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path, rows.tolist())
    watch = Stopwatch(device)
    errors = measure_errors(
        ensemble.views(paths, labels.points_image, device), rows, first.mean_shape_crop,
        batch=train.batch, workers=settings.workers, device=device, weighted=ensemble.weighted,
        watch=watch,
    )  # fmt: skip
    out = _folder_of(ensemble, labels, root, decoder)
    if errors is None:
        return distributed.from_first({}), out.path
    scores = summary(errors) | {"table": labels.fingerprint}
    names = [labels.names[row] for row in errors.rows]
    write_json(out.scores, scores)
    write_per_image(out.per_image, names, errors.columns())
    write_errors(out.errors, errors)
    people = contest.people_of(names, settings.person_pattern)
    groups = [person or name for person, name in zip(people, names, strict=True)]
    half = calibration.halves(groups, errors.image_hw.min(1))
    checked = calibration.fit_and_check(errors.distance, errors.peak, errors.spread, half)
    calibration.write(out.path, checked)
    images = len(rows) / distributed.world()
    timing = describe(device) | {"batch": train.batch, "workers": settings.workers}
    milliseconds = {part: 1000 * seconds / images for part, seconds in watch.seconds().items()}
    write_json(out.timing, timing | {"milliseconds_per_image": milliseconds})
    if out.best == first.path and out.summary.exists():
        model_card.write(out.path, format_scores(scores))
    return distributed.from_first(scores), out.path


def _labels(ensemble: Ensemble, path: Path) -> contest.LandmarkTable:
    """The labels in a file, which all processes see alike."""
    first = ensemble.runs[0]
    cache, is_first = first.experiment.data.cache, distributed.rank() == 0
    labels = contest.read_landmarks(path, cache, progress=is_first)
    if labels.num_landmarks != ensemble.num_landmarks:
        theirs = f"the network of {first.path} predicts {ensemble.num_landmarks}"
        raise UserError(f"{path} has {labels.num_landmarks} landmarks, {theirs}")
    distributed.must_agree({str(path): labels.fingerprint} | ensemble.fingerprints())
    return labels


def _trained_on(run: TrainedRun, labels: contest.LandmarkTable) -> bool:
    return run.table_hash == labels.fingerprint


def _folder_of(
    ensemble: Ensemble, labels: contest.LandmarkTable, root: Path, decoder: str | None
) -> RunFolder:
    """Where the evaluation is written."""
    first = ensemble.runs[0]
    out = RunFolder(first.path.parent)
    if not _trained_on(first, labels):
        out = out.evaluation(root.resolve().name)
    checkpoint = "" if first.path.stem == "best" else first.path.stem
    name = "-".join(filter(None, (checkpoint, ensemble.name, decoder)))
    return out.evaluation(name) if name else out


def _rows_to_score(
    runs: Sequence[TrainedRun], labels: contest.LandmarkTable, root: Path, is_own: bool
) -> np.ndarray:
    """The rows that validate in every run that was trained on this table (`is_own`: all must be).

    Where none was trained on it, these are all rows.
    """
    own = [run for run in runs if _trained_on(run, labels)]
    others = [run for run in runs if not _trained_on(run, labels)]
    if others and is_own:
        raise UserError(
            f"{labels.path} is not the table that {others[0].path} was trained on, so its "
            f"validation rows are not known; to score it all the same, name it: --data {root}"
        )
    if not own:
        logger.info(
            f"{labels.path} is not what was trained on: all its rows are scored, also images "
            "that were trained on"
        )
        return np.arange(len(labels.names))
    for run in own:
        if run.experiment.data.all_rows_train:
            raise UserError(
                f"{run.path}: the run has no validation rows (data.validation 0); name other data "
                "with --data"
            )
    rows = reduce(np.intersect1d, [run.validation_rows.numpy() for run in own])
    if len(rows) == 0:
        raise UserError(
            f"no row of {labels.path} validates in all of {', '.join(str(run.path) for run in own)}"
            "; score them together on other data (--data), or each alone"
        )
    return rows
