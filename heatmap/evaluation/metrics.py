"""How good a network is: the contest's score, NME and the rest, per picture, group and size."""

import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
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
from heatmap.data.samples import Samples
from heatmap.evaluation import calibration
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import Landmarks, View, predict
from heatmap.networks import HeatmapNetwork
from heatmap.runs import model_card
from heatmap.runs.checkpoint import Trained
from heatmap.runs.folder import RunFolder
from heatmap.runs.per_image import write_per_image
from heatmap.runtime import distributed
from heatmap.runtime.columns import as_lines
from heatmap.runtime.files import finite, write_atomically, write_json
from heatmap.runtime.machine import describe
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.shape import nanmean

logger = logging.getLogger("heatmap")

# Shorter side of the picture in pixels: the upper ends of the size classes.
SIZE_CLASSES = (125, 175, 250, 350)


@dataclass(frozen=True)
class Errors:
    """What a network got wrong, one row an image, in the order of the table's rows.

    Of 100,000 images with 971 landmarks it takes 1 GB; so signed errors are kept as their mean.

    rows: (N,); mse: (N,) float64 mean squared error over labelled coordinates, px² of the image;
    nme: (N,) mean point error over the normaliser; normaliser: its name; distance: (N, P) float32
    point errors in px, NaN where unlabelled; peak: (N, P) heights of the heatmap peaks, NaN on the
    direct road; spread: (N, P) float16 how far apart the views' points are in px, as
    `predict.Landmarks.disagreement`, or of a single view the standard deviation of the heatmap
    along an axis, NaN on the direct road; mean_shape_mse: (N,) as mse, for the mean training shape;
    image_hw: (N, 2); bias: (P, 2) mean of predicted minus true landmark, px, NaN where no image
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
    rows, samples = np.sort(rows), views[0].samples
    parts = {field.name: list[np.ndarray]() for field in fields(Errors)}
    del parts["normaliser"], parts["groups"]
    hidden = None if rank == 0 else True
    with tqdm(total=len(rows), desc="evaluate", unit="img", leave=False, disable=hidden) as bar:
        for found in predict(
            views, rows, batch=batch, workers=workers, device=device, weighted=weighted,
            rank=rank, world=world, watch=watch,
        ):  # fmt: skip
            for name, values in _of_batch(found, samples, mean_shape_crop).items():
                parts[name].append(values)
            bar.update(min(len(found.rows) * world, len(rows) - bar.n))
    whole = {}
    for name in list(parts):  # one by one, since all may be large
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
    found: Landmarks, samples: Samples, mean_shape_crop: torch.Tensor
) -> dict[str, np.ndarray]:
    """The arrays of `Errors` for some pictures; bias is the (1, P, 2) sum of signed errors."""
    finite_rows = np.isfinite(found.points_image).all((1, 2))
    if not finite_rows.all():
        raise ValueError(
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


def spread_px(found: Landmarks) -> np.ndarray:
    """(B, P) px, as in `Errors`."""
    if found.disagreement is not None:
        return found.disagreement
    if found.covariance_image is None:
        return np.full(found.points_image.shape[:2], np.nan)
    variance = found.covariance_image.trace(axis1=-2, axis2=-1) / 2
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def summary(errors: Errors) -> dict[str, Any]:
    """The scores of a whole set: JSON-able, None where nothing is labelled.

    mse: the contest's, px²; nme: in percent of the normaliser; failure_8, auc_8: share of pictures
    whose NME is above 8 %, and area under the cumulative error curve up to there as a share of the
    best; groups and sizes: mean squared error of each landmark group and picture size class.
    """
    nme = errors.nme[np.isfinite(errors.nme)]
    sizes = {}
    for name, chosen in _size_classes(errors.image_hw.min(1)):
        sizes[name] = {"pictures": int(chosen.sum()), "mse": _mean(errors.mse[chosen])}
    scores = {
        "pictures": len(errors.rows),
        "mse": contest.contest_mse(errors.mse),
        "mean_shape_mse": contest.contest_mse(errors.mean_shape_mse),
        "normaliser": errors.normaliser,
        "nme_percent": 100 * _mean(nme),
        **{f"failure_{p}": _mean(nme > p / 100) for p in (8, 10)},
        **{f"auc_{p}": _mean(np.clip(p / 100 - nme, 0, None)) / (p / 100) for p in (8, 10)},
        "mean_peak": float(nanmean(errors.peak, None)),
        "groups": {name: _mean(mse) for name, mse in _group_mse(errors).items()},
        "sizes": sizes,
    }
    return finite(scores)


def _size_classes(shorter: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The size classes that have images: the name, and (N,) bool which images these are."""
    for low, high in pairwise((0, *SIZE_CLASSES, np.inf)):
        name = f"{low} to {high - 1} px"
        if low == 0:
            name = f"under {high} px"
        elif high == np.inf:
            name = f"{low} px and over"
        chosen = (shorter >= low) & (shorter < high)
        if chosen.any():
            yield name, chosen


def _group_mse(errors: Errors) -> dict[str, np.ndarray]:
    """By group the (N,) px² of every picture; one by one, since all in float64 would be large."""
    return {
        name: nanmean(errors.distance[:, part.start : part.stop].astype(np.float64) ** 2 / 2, 1)
        for name, part in errors.groups.items()
    }


def _mean(values: np.ndarray) -> float:
    return float(nanmean(values, 0))


def write(folder: Path, errors: Errors, names: Sequence[str], scores: dict[str, Any]) -> None:
    """Writes evaluation.json, per_image.csv and errors.npz into the folder, each atomically."""
    files = RunFolder(folder)
    write_json(files.scores, scores)
    write_per_image(files.per_image, [names[row] for row in errors.rows], per_picture(errors))
    groups = {name: [part.start, part.stop] for name, part in errors.groups.items()}
    with write_atomically(files.errors) as temporary, temporary.open("wb") as binary:
        np.savez_compressed(binary, **vars(errors) | {"groups": json.dumps(groups)})


def read(folder: Path) -> Errors:
    """The errors that `write` wrote into the folder.

    Raises:
        ValueError: there are none, or the file is damaged or lacks something.
    """
    path = RunFolder(folder).errors
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
    groups = _group_mse(errors) if len(errors.groups) > 1 else {}
    return {
        "mse": errors.mse,
        "nme": errors.nme,
        "mean_shape_mse": errors.mean_shape_mse,
        "mean_peak": nanmean(errors.peak, 1),
        "width": errors.image_hw[:, 1],
        "height": errors.image_hw[:, 0],
        **{f"mse {name}": mse for name, mse in groups.items()},
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
    ]
    rows += [(f"failure rate at {p} %", show(scores[f"failure_{p}"])) for p in (8, 10)]
    rows += [(f"AUC to {p} %", show(scores[f"auc_{p}"])) for p in (8, 10)]
    rows += [("MSE by landmark group", "")]
    rows += [(f"  {name}", show(mse, " px²")) for name, mse in scores["groups"].items()]
    rows += [("MSE by shorter side", "")]
    for name, size in scores["sizes"].items():
        rows.append((f"  {name} ({size['pictures']})", show(size["mse"], " px²")))
    return "\n".join(as_lines(rows))


def evaluate_run(
    ensemble: Ensemble, data: Path | None, device: torch.device, decoder: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Scores a run, or several as one, on validation rows or on another contest's labelled rows.

    Writes evaluation.json, per_image.csv, errors.npz, calibration.json and timing.json into the
    first run's folder; for other data, for anything but the best checkpoint alone, or another
    decoder, into evaluation-NAME inside it. The scores of the run as it is enter its model card,
    too. Of several processes each predicts its part, and the first writes.

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
        _use_decoder(ensemble.runs, decoder)
    first = ensemble.runs[0]
    train, workers = first.experiment.train, first.experiment.data.workers
    root = data or first.experiment.data.root
    folder = contest.find_folder(root)
    labels = _labels(ensemble, folder.train_table)
    rows = _rows_to_score(ensemble.runs, labels, root, is_own=data is None)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path, rows.tolist())
    watch = Stopwatch(device)
    errors = measure(
        ensemble.views(paths, labels.points_image, device), rows, first.mean_shape_crop,
        batch=train.batch, workers=workers, device=device, weighted=ensemble.weighted, watch=watch,
    )  # fmt: skip
    out = _folder_of(ensemble, labels, root, decoder)
    scores = summary(errors) | {"table": labels.fingerprint()} if errors else {}
    if errors:
        write(out.path, errors, labels.names, scores)
        person_pattern = first.experiment.data.person_pattern
        calibration.write(out.path, _calibrated(errors, labels.names, person_pattern))
        pictures = len(rows) / distributed.world()
        milliseconds = {part: 1000 * s / pictures for part, s in watch.seconds().items()}
        settings = {"batch": train.batch, "workers": workers}
        timing = {**describe(device), **settings, "milliseconds_a_picture": milliseconds}
        write_json(out.timing, timing)
        if out.best == first.path and out.summary.exists():
            model_card.write(out.path, table(scores))
    return distributed.from_first(scores), out.path


def _use_decoder(runs: Sequence[Trained], decoder: str) -> None:
    for run in runs:
        if not isinstance(run.network, HeatmapNetwork):
            raise ValueError(f"{run.path} is of a network without heatmaps; it needs no --decoder")
        run.network.landmark_decoder = decoder


def _labels(ensemble: Ensemble, path: Path) -> contest.LandmarkTable:
    """The labels in a file, which all processes see alike."""
    first = ensemble.runs[0]
    labels = contest.read_landmarks(
        path, first.experiment.data.cache, progress=distributed.rank() == 0
    )
    if labels.num_landmarks != ensemble.num_landmarks:
        raise ValueError(
            f"{path} has {labels.num_landmarks} landmarks, the network of {first.path} predicts "
            f"{ensemble.num_landmarks}"
        )
    distributed.must_agree({str(path): labels.fingerprint()} | ensemble.fingerprints())
    return labels


def _trained_on(run: Trained, labels: contest.LandmarkTable) -> bool:
    return run.table_hash == labels.fingerprint()


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
    runs: Sequence[Trained], labels: contest.LandmarkTable, root: Path, is_own: bool
) -> np.ndarray:
    """The rows that validate in every run that was trained on this table; all if none was.

    Args:
        is_own: whether all runs must have been trained on it.
    """
    own = [run for run in runs if _trained_on(run, labels)]
    others = [run for run in runs if not _trained_on(run, labels)]
    if others and is_own:
        raise ValueError(
            f"{labels.path} is not the table that {others[0].path} was trained on, so its "
            f"validation rows are not known; to score it all the same, name it: --data {root}"
        )
    if not own:
        logger.info(
            f"{labels.path} is not what was trained on: all its rows are scored, also pictures "
            "that were trained on"
        )
        return np.arange(len(labels.names))
    for run in own:
        if run.experiment.data.all_rows_train:
            raise ValueError(
                f"{run.path}: the run has no validation rows, since it was trained on all rows "
                "(data.validation 0); name other data with --data"
            )
    rows = reduce(np.intersect1d, [run.validation_rows.numpy() for run in own])
    if len(rows) == 0:
        raise ValueError(
            f"no row of {labels.path} validates in all of "
            f"{', '.join(str(run.path) for run in own)}, so that none is new to all of them; score "
            "them together on other data (--data), or each alone"
        )
    return rows


def _calibrated(
    errors: Errors, names: Sequence[str], person_pattern: str
) -> calibration.Checked | None:
    """Fitted on half of the people, or of the pictures where names tell no people."""
    names = [names[row] for row in errors.rows]
    people = contest.people_of(names, person_pattern)
    groups = [person or name for person, name in zip(people, names, strict=True)]
    first = calibration.halves(groups, errors.image_hw.min(1))
    return calibration.fit_and_check(errors.distance, errors.peak, errors.spread, first)
