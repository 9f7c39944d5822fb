"""Scores of a network: the contest's MSE, NME and others, by image, landmark group and size."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from heatmap import codec, schemes
from heatmap.config import HeatmapDecoder
from heatmap.data import contest
from heatmap.data.samples import Samples
from heatmap.errors import UsageError, UserError
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
from heatmap.runtime.machine import chosen_device, describe, loader_processes, log_to_terminal
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.runtime.validate import one_of
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
    workers: int | None,
    weighted: bool = False,
    watch: Stopwatch | None = None,
) -> Errors | None:
    """Measures the errors of the merged views; returns None in all processes but the first.

    Args:
        views, rows, batch, workers, weighted, watch: as for `predict`.
        mean_shape_crop: (P, 2) mean training shape in the first view's crops.

    Raises:
        UserError: an image cannot be read, or the network predicts NaN.
    """
    rank, world = distributed.rank(), distributed.world()
    rows, samples = np.sort(rows), views[0].samples
    names = [field.name for field in fields(Errors) if field.type is np.ndarray]
    parts = {name: list[np.ndarray]() for name in names}
    hidden = rank > 0 or None  # None shows it on a terminal only
    with tqdm(total=len(rows), desc="evaluate", unit="img", leave=False, disable=hidden) as bar:
        for prediction in predict(
            views, rows, batch=batch, workers=workers, weighted=weighted, distribute=True,
            watch=watch,
        ):  # fmt: skip
            for name, values in _batch_errors(prediction, samples, mean_shape_crop).items():
                parts[name].append(values)
            bar.update(min(len(prediction.rows) * world, len(rows) - bar.n))
    arrays = {}
    for name in names:  # one by one, since all may be large
        joined = distributed.joined(parts.pop(name))
        if joined is not None:
            arrays[name] = joined
    if not arrays:
        return None
    assert np.array_equal(arrays["rows"], rows), "each row is counted once"
    labelled = np.isfinite(arrays["distance"]).sum(0)[:, None]
    total = arrays["bias"].sum(0)
    arrays["bias"] = np.where(labelled > 0, total / np.maximum(labelled, 1), np.nan)
    normaliser, _ = schemes.normaliser(samples.points_image[:1])
    groups = schemes.groups(samples.points_image.shape[1], views[0].scheme)
    return Errors(normaliser=normaliser, groups=groups, **arrays)


def _batch_errors(
    prediction: Prediction, samples: Samples, mean_shape_crop: torch.Tensor
) -> dict[str, np.ndarray]:
    """The arrays of `Errors` for a batch; bias is the (1, P, 2) sum of signed errors."""
    is_finite = np.isfinite(prediction.points_image).all((1, 2))
    if not is_finite.all():
        raise UserError(
            f"{samples.paths[prediction.rows[~is_finite][0]]}: the network predicts landmarks "
            "that are not finite because its training diverged; lower optimizer.lr or set "
            "optimizer.clip_norm"
        )
    truth = samples.points_image[prediction.rows].astype(np.float64)
    offset = prediction.points_image - truth
    distance = np.linalg.norm(offset, axis=-1)
    mean_shape = prediction.frame.to_image(mean_shape_crop).numpy()
    peak = prediction.peak
    return {
        "rows": prediction.rows,
        "mse": contest.squared_errors(prediction.points_image, truth),
        "nme": nanmean(distance, 1) / schemes.normaliser(truth)[1],
        "distance": distance.astype(np.float32),
        "peak": np.full_like(distance, np.nan) if peak is None else peak,
        "mean_shape_mse": contest.squared_errors(mean_shape, truth),
        "spread": spread_px(prediction).astype(np.float16),
        "image_hw": prediction.image_hw,
        "bias": np.nansum(offset, axis=0, keepdims=True),
    }


def spread_px(prediction: Prediction) -> np.ndarray:
    """(B, P) uncertainty in image pixels; NaN for a single view without heatmaps.

    The disagreement of several views, or else the heatmap's standard deviation along an axis.
    """
    if prediction.disagreement is not None:
        return prediction.disagreement
    if prediction.covariance_image is None:
        return np.full(prediction.points_image.shape[:2], np.nan)
    variance = prediction.covariance_image.trace(axis1=-2, axis2=-1) / 2
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def summary(errors: Errors) -> dict[str, Any]:
    """Returns the scores of all images, ready for JSON; None where nothing is labelled.

    mse is the contest's, in px². nme_percent is relative to the normaliser. failure_8 is the share
    of images with an NME above 8 %, auc_8 the area under the cumulative error curve up to there, as
    a share of the largest possible. groups and sizes hold px² by landmark group and image size.
    """
    nme, shorter = errors.nme[np.isfinite(errors.nme)], errors.image_hw.min(1)
    sizes = {}
    for name, (low, high) in SIZE_CLASSES.items():
        is_inside = (low <= shorter) & (shorter < high)
        if is_inside.any():
            sizes[name] = {"images": int(is_inside.sum()), "mse": _mean(errors.mse[is_inside])}
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
    """Formats the scores as aligned lines."""

    def show(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.3f}{unit}"

    rows = [
        ("images", str(scores["images"])),
        ("contest MSE", show(scores["mse"], " px²")),
        ("  of the mean shape", show(scores["mean_shape_mse"], " px²")),
        (f"NME ({scores['normaliser']})", show(scores["nme_percent"], " %")),
        *((f"failure rate at {p} %", show(scores[f"failure_{p}"])) for p in (8, 10)),
        *((f"AUC up to {p} %", show(scores[f"auc_{p}"])) for p in (8, 10)),
        ("MSE by landmark group", ""),
        *((f"  {name}", show(mse, " px²")) for name, mse in scores["groups"].items()),
        ("MSE by shorter side", ""),
    ]
    for name, size in scores["sizes"].items():
        rows.append((f"  {name} ({size['images']})", show(size["mse"], " px²")))
    return "\n".join(as_lines(rows))


Column = np.ndarray | list[str]


@dataclass(frozen=True)
class Evaluation:
    """Scores of an ensemble on a contest folder. Only the first process has errors and timing."""

    folder: Path  # holds the files written
    scores: dict[str, Any]  # as `summary` returns them, and "table": the labels' fingerprint
    ensemble: Ensemble
    device: torch.device
    data: contest.Folder
    labels: contest.LandmarkTable
    errors: Errors | None = None
    checked: calibration.CheckedCalibration | None = None  # None if none could be fitted
    timing: dict[str, Any] | None = None  # hardware and milliseconds_per_image

    def __repr__(self) -> str:
        images, mse = self.scores["images"], self.scores["mse"]
        return f"<Evaluation of {images} images: MSE {mse:.3f} px², in {self.folder}>"

    @property
    def per_image(self) -> dict[str, Column]:
        """The columns of per_image.csv; see `Errors.columns`. A DataFrame takes them."""
        assert self.errors, "only the first process has them"
        names = [self.labels.names[row] for row in self.errors.rows]
        return {"file_name": names, **self.errors.columns()}

    @property
    def per_landmark(self) -> dict[str, Column]:
        """The columns landmark, group, images, mse, distance, bias_x and bias_y, one row each.

        images counts those with a label. mse is in px²; distance, the mean point error, and the
        bias, the mean of predicted minus true, are in px; NaN where there is no label.
        """
        errors = self.errors
        assert errors, "only the first process has them"
        group_of = {index: name for name, part in errors.groups.items() for index in part}
        squares = np.square(errors.distance, dtype=np.float64)
        return {
            "landmark": np.arange(len(errors.bias)),
            "group": [group_of.get(index, "") for index in range(len(errors.bias))],
            "images": np.isfinite(errors.distance).sum(0),
            "mse": nanmean(squares, 0) / 2,
            "distance": nanmean(errors.distance, 0),
            "bias_x": errors.bias[:, 0],
            "bias_y": errors.bias[:, 1],
        }

    def write_report(self, folder: Path | str) -> Path:
        """Writes report.html into the folder and returns its path."""
        from heatmap.evaluation.report import write_report  # which imports this module

        return write_report(self.ensemble, self, Path(folder), self.device)


def evaluate(
    runs: Path | str | Sequence[Path | str],
    data: Path | str | None = None,
    *,
    decoder: codec.Decoder | None = None,
    tta: str = "none",
    weighted: bool = False,
    boxes: Path | str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Scores a run on its validation images, or merged runs on those that validate in all.

    Example:
        >>> evaluation = heatmap.evaluate("runs/unet")
        >>> evaluation.scores["mse"], evaluation.scores["nme_percent"]
        >>> pandas.DataFrame(evaluation.per_image), pandas.DataFrame(evaluation.per_landmark)

    Args:
        runs: run folder or checkpoint, or several with the same landmarks, which are merged.
        data: contest folder; by default the first run's. All labelled images of other data are
            scored.
        decoder: see `config.HeatmapModel`, or a function of heatmaps (N, H, W) and their sigma
            that returns a `codec.Decoded`; by default the run's own.
        tta: test-time augmentation: none, mirror, scale, or mirror,scale.
        weighted: weight every landmark by the inverse covariance of its heatmap.
        boxes: table of the images' boxes, for runs with crop.rule box; by default the runs' own.
        device: auto (the GPU if there is one), cpu or cuda.

    Returns:
        Scores and errors. The files are those of `evaluate_run`.

    Raises:
        UserError: see `Ensemble.load` and `evaluate_run`.
    """
    log_to_terminal()
    runs = [runs] if isinstance(runs, str | Path) else runs
    ensemble = Ensemble.load(
        map(Path, runs), tta=tta, weighted=weighted, boxes=None if boxes is None else Path(boxes)
    )
    torch_device = distributed.start(chosen_device(device))
    return evaluate_run(ensemble, None if data is None else Path(data), torch_device, decoder)


def evaluate_run(
    ensemble: Ensemble,
    data: Path | None,
    device: torch.device,
    decoder: codec.Decoder | None = None,
) -> Evaluation:
    """Scores a run, or several merged, on validation rows or on another contest's labelled rows.

    Writes evaluation.json, per_image.csv, errors.npz, calibration.json and timing.json into the
    first run's folder, or into evaluation-NAME inside it if data, views, decoder or checkpoint are
    not the run's own. The run's own scores also go to its model card.

    Args:
        data: contest folder; None for the first run's own. If runs were trained on its table, the
            rows that validate in all of them are scored.
        decoder: as in `config.HeatmapModel`; None for the run's own.

    Raises:
        UserError: the data has no labels or another number of landmarks, no row validates in
            all runs, the decoder is unknown or the network has no heatmaps for it, or the
            processes do not see the same files.
    """
    if decoder is not None:
        ensemble = _with_decoder(ensemble, decoder)
    first = ensemble.runs[0]
    train, settings = first.experiment.train, first.experiment.data
    root = data or settings.root
    folder = contest.find_folder(root)
    labels = _read_labels(ensemble, folder.train_table)
    rows = _rows_to_score(ensemble.runs, labels, root, is_own=data is None)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path, rows.tolist())
    watch = Stopwatch(device)
    errors = measure_errors(
        ensemble.views(paths, labels.points_image, device), rows, first.mean_shape_crop,
        batch=train.batch, workers=settings.workers, weighted=ensemble.weighted,
        watch=watch,
    )  # fmt: skip
    out = _output_folder(ensemble, labels, root, decoder)
    if errors is None:
        return Evaluation(out.path, distributed.from_first({}), ensemble, device, folder, labels)
    scores = summary(errors) | {"table": labels.fingerprint}
    num_images = len(rows) / distributed.world()  # per process
    milliseconds = {part: 1000 * seconds / num_images for part, seconds in watch.seconds().items()}
    timing = describe(device) | {"batch": train.batch}
    timing["workers"] = loader_processes(settings.workers)
    timing["milliseconds_per_image"] = milliseconds
    names = [labels.names[row] for row in errors.rows]
    fitted = half_to_fit(names, settings.person_pattern, errors.image_hw.min(1))
    checked = calibration.fit_and_check(errors.distance, errors.peak, errors.spread, fitted)
    write_json(out.scores, scores)
    write_per_image(out.per_image, names, errors.columns())
    write_errors(out.errors, errors)
    calibration.write(out.path, checked)
    write_json(out.timing, timing)
    if out.best == first.path and out.summary.exists():
        model_card.write(out.path, format_scores(scores))
    scores = distributed.from_first(scores)
    return Evaluation(out.path, scores, ensemble, device, folder, labels, errors, checked, timing)


def _with_decoder(ensemble: Ensemble, decoder: codec.Decoder) -> Ensemble:
    """The ensemble with copies of its networks that use another decoder."""
    if isinstance(decoder, str):
        one_of(get_args(HeatmapDecoder), decoder, "decoder")
    runs = []
    for run in ensemble.runs:
        network = copy.deepcopy(run.network)
        if not isinstance(network, HeatmapNetwork):
            raise UsageError(f"{run.path} has no heatmaps; omit --decoder")
        network.landmark_decoder = decoder
        runs.append(replace(run, network=network))
    return replace(ensemble, runs=tuple(runs))


def half_to_fit(names: Sequence[str], person_pattern: str, size: np.ndarray) -> np.ndarray:
    """Picks half of the images, (N,) bool, with whole people; `size` is as for `halves`."""
    people = contest.people_of(names, person_pattern)
    groups = [person or name for person, name in zip(people, names, strict=True)]
    return calibration.halves(groups, size)


def _read_labels(ensemble: Ensemble, path: Path) -> contest.LandmarkTable:
    """Reads a table and checks that it fits the ensemble and is the same in all processes."""
    first = ensemble.runs[0]
    cache, is_first = first.experiment.data.cache, distributed.rank() == 0
    labels = contest.read_landmarks(path, cache, progress=is_first)
    if labels.num_landmarks != ensemble.num_landmarks:
        predicted = f"{first.path} predicts {ensemble.num_landmarks}"
        raise UserError(f"{path} has {labels.num_landmarks} landmarks, but {predicted}")
    distributed.must_agree({str(path): labels.fingerprint} | ensemble.fingerprints())
    return labels


def _output_folder(
    ensemble: Ensemble, labels: contest.LandmarkTable, root: Path, decoder: codec.Decoder | None
) -> RunFolder:
    first = ensemble.runs[0]
    out = RunFolder(first.path.parent)
    if first.table_hash != labels.fingerprint:
        out = out.evaluation(root.resolve().name)
    checkpoint = "" if first.path.stem == "best" else first.path.stem
    decoder_name = codec.name_of(decoder) if decoder else ""
    name = "-".join(filter(None, (checkpoint, ensemble.name, decoder_name)))
    return out.evaluation(name) if name else out


def _rows_to_score(
    runs: Sequence[TrainedRun], labels: contest.LandmarkTable, root: Path, is_own: bool
) -> np.ndarray:
    """The rows that validate in every run trained on this table; all rows if there is no such run.

    With `is_own` the table is the first run's own, and every run must have been trained on it.
    """
    trained_on_it = [run for run in runs if run.table_hash == labels.fingerprint]
    trained_elsewhere = [run for run in runs if run.table_hash != labels.fingerprint]
    if is_own and trained_elsewhere:
        raise UserError(
            f"{trained_elsewhere[0].path} was trained on other labels than {labels.path}, so its "
            f"validation rows are unknown; to score all rows, use --data {root}"
        )
    if not trained_on_it:
        logger.info(
            f"{labels.path}: no run was trained on this table, so all rows are scored, even if "
            "their images were used for training under another table"
        )
        return np.arange(len(labels.names))
    for run in trained_on_it:
        run.check_rows(run.path, len(labels.names))
        if run.experiment.data.all_rows_train:
            raise UserError(
                f"{run.path}: the run has no validation rows (data.validation 0); use other data "
                "(--data)"
            )
    rows = reduce(np.intersect1d, [run.validation_rows.numpy() for run in trained_on_it])
    if len(rows) == 0:
        raise UserError(
            f"{labels.path}: no row validates in all of "
            f"{', '.join(str(run.path) for run in trained_on_it)}; score them together on other "
            "data (--data), or each alone"
        )
    return rows
