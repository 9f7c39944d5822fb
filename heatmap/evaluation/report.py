"""The report of an evaluation: the values for its template, `report.html.jinja`."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heatmap import frame
from heatmap.config import HeatmapModel
from heatmap.data import contest
from heatmap.data.samples import cut, evenly_spaced
from heatmap.errors import UserError
from heatmap.evaluation import calibration, page
from heatmap.evaluation.charts import Bar, LineChart, Series, bars, dot_chart, line_chart
from heatmap.evaluation.metrics import Evaluation
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runs.folder import RunFolder
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import Errors
from heatmap.runtime.files import write_text
from heatmap.shape import MAX_POSED, blocks, nanmean, turns

NUM_WORST, NUM_TYPICAL = 8, 4
TILE = 320  # px, the side of a face tile
ENLARGED = 1.25  # side of a face tile, relative to the box around the landmarks
MIDDLE_FIFTHS = ("second", "third", "fourth")
CURVES = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/mse": "validation MSE, px²",
    "lr": "learning rate",
}


def write_report(
    ensemble: Ensemble, evaluation: Evaluation, out: Path, device: torch.device
) -> Path:
    """Writes OUT/report.html for an evaluation, in the first process, and returns its path.

    Args:
        device: where to predict the faces in the report.

    Raises:
        UserError: a run's ledger is damaged, or an image cannot be read.
    """
    errors, checked = evaluation.errors, evaluation.checked
    assert errors is not None and evaluation.timing is not None, "only the first process has them"
    subject = "this run" if len(ensemble.runs) == 1 else "these runs together"
    text = page.render(
        "report.html.jinja",
        title=title(ensemble, evaluation.data.root),
        **_runs(ensemble),
        **_scores(errors, evaluation.scores, subject),
        root=evaluation.data.root,
        curves=_learning_curves(ensemble),
        face=_mean_face(errors, ensemble.runs[0].mean_shape_crop),
        classes=_classes(evaluation, errors),
        checked=checked,
        confidence=_confidence(checked, ensemble, subject) if checked else None,
        **_face_tiles(ensemble, evaluation, errors, device),
        **_timing(evaluation.timing),
    )
    write_text(out / "report.html", text)
    return out / "report.html"


def title(ensemble: Ensemble, root: Path) -> str:
    """Names the runs, the data, and the options that differ from the runs' training."""
    *others, last = ensemble.run_names
    runs = f"{', '.join(others)} and {last}" if others else last
    options = f", {ensemble.options}" if ensemble.options else ""
    return f"Report of {runs} on {root.resolve().name}{options}"


def _runs(ensemble: Ensemble) -> dict[str, Any]:
    lines = []
    for run in ensemble.runs:
        model, crop = run.experiment.model, run.experiment.crop
        network = f"{type(model).__name__} on {model.encoder}, {ensemble.num_landmarks} landmarks"
        lines.append(f"{network}, crops of {crop.height} × {crop.width} px; {run.path}")
    has_heatmaps = isinstance(ensemble.runs[0].experiment.model, HeatmapModel)
    return {
        "runs": lines,
        "weighted": ensemble.weighted,
        "has_doubt": len(lines) > 1 or bool(ensemble.tta) or has_heatmaps,
        "min_fitted": calibration.MIN_FITTED,
    }


def _scores(errors: Errors, scores: dict[str, Any], subject: str) -> dict[str, Any]:
    mse, mean_shape, normaliser = scores["mse"], scores["mean_shape_mse"], scores["normaliser"]
    nme = np.sort(100 * errors.nme[np.isfinite(errors.nme)])
    limits = np.linspace(0, 10, 201)
    share = 100 * np.searchsorted(nme, limits, side="right") / (len(nme) or np.nan)
    cumulative = [Series(subject, limits, share)]
    length = "the face's size" if normaliser == "box" else f"the distance between the {normaliser}"
    return {
        "scores": scores,
        "mse_bars": bars({"mean shape": mean_shape, subject: mse, "perfect": 0.0}, " px²"),
        "percent_removed": 100 * (1 - mse / mean_shape) if mean_shape else math.nan,
        "length": length,
        "failures": {limit: 100 * np.float64(scores[f"failure_{limit}"]) for limit in (8, 10)},
        "nme_chart": line_chart(cumulative, "NME, %", "images, %", y_ends=(0, 100)),
        "median_nme": np.median(nme) if len(nme) else None,
    }


def _learning_curves(ensemble: Ensemble) -> dict[str, LineChart | None]:
    """A chart for each column of the ledger, with a curve for each run that has a ledger."""
    folders = list(dict.fromkeys(run.path.resolve().parent for run in ensemble.runs))
    are_unique = len({folder.name for folder in folders}) == len(folders)
    ledgers = {
        folder.name if are_unique else str(folder): read_metrics(folder)
        for folder in folders
        if RunFolder(folder).metrics.exists()
    }
    charts = {}
    for key, label in CURVES.items():
        series = []
        for name, rows in ledgers.items():
            shown = [row for row in rows if key in row]
            x, y = [row["epoch"] for row in shown], [row.get(key) for row in shown]
            series.append(Series(name, x, np.array(y, float), "dots" if len(x) <= 30 else "line"))
        if any(len(one.x) for one in series):
            charts[key] = line_chart(series, "epoch", label, log_y=key != "lr")
    return charts


def _mean_face(errors: Errors, mean_shape: Tensor) -> dict[str, Any]:
    """Error, bias and spread of every landmark, drawn on the mean face."""
    squares, count = np.zeros(errors.distance.shape[1]), np.isfinite(errors.distance).sum(0)
    for distance in blocks(errors.distance):
        squares += np.nansum(np.square(distance, dtype=np.float64), axis=0)
    rms = np.sqrt(np.where(count > 0, squares / np.maximum(count, 1), np.nan))
    bias = np.linalg.norm(errors.bias, axis=1)
    spread = np.sqrt(np.maximum(rms**2 - bias**2, 0))
    highest = float(np.nanmax(rms))
    names = [f"landmark {k} ({group})" for group, members in errors.groups.items() for k in members]

    def chart(values: np.ndarray, arrows: np.ndarray | None = None) -> Any:
        points = mean_shape.numpy()
        return dot_chart(points, values, names, highest=highest, arrows=arrows)

    return {
        "error": chart(rms),
        "bias": chart(bias, errors.bias),
        "spread": chart(spread),
        "worst": [names[k] for k in np.argsort(np.nan_to_num(-rms))[:3]],
        "longest_bias": np.nanmax(bias),
        "bias_percent": 100 * np.nansum(bias**2) / np.nansum(rms**2),
    }


def _classes(evaluation: Evaluation, errors: Errors) -> dict[str, Any]:
    """Bars by region, size, turn and doubt; if turns are unknown, the reason."""
    scores, nme = evaluation.scores, 100 * errors.nme
    posed = evenly_spaced(np.arange(len(errors.rows)), MAX_POSED)
    turn_bars: list[Bar] | str
    try:
        turn = turns(evaluation.labels.points_image[errors.rows[posed]])
    except UserError as error:
        turn_bars = str(error)
    else:
        away = np.abs(turn - np.nanmedian(turn))
        turn_bars = fifths(away, nme[posed], "most frontal fifth", "most turned fifth")
    doubt_bars = None
    if evaluation.checked is not None:
        expected = expected_nme(errors, evaluation.checked.calibration)
        doubt_bars = fifths(expected, nme, "surest fifth", "least sure fifth")
    sizes = {f"{name} ({size['images']:,})": size["mse"] for name, size in scores["sizes"].items()}
    return {
        "groups": bars(scores["groups"], " px²"),
        "sizes": bars(sizes, " px²"),
        "turns": turn_bars,
        "doubts": doubt_bars,
    }


def expected_nme(errors: Errors, fitted: calibration.Calibration) -> np.ndarray:
    """(N,) mean expected error over the image's normaliser; NaN if unknown."""
    parts = []
    for rows in blocks(np.arange(len(errors.rows))):
        expected_px = nanmean(fitted.expected_error(errors.peak[rows], errors.spread[rows]), 1)
        mean_px = nanmean(errors.distance[rows], 1)
        # the normaliser is mean_px / nme
        parts.append(errors.nme[rows] * expected_px / np.where(mean_px > 0, mean_px, np.nan))
    return np.concatenate(parts)


def fifths(by: np.ndarray, values: np.ndarray, first: str, last: str) -> list[Bar]:
    """Bars of mean values, %, over five parts of about the same size, in the order of `by`."""
    is_known = np.isfinite(by) & np.isfinite(values)
    parts = np.array_split(values[is_known][np.argsort(by[is_known], kind="stable")], 5)
    means = [float(part.mean()) if len(part) else math.nan for part in parts]
    return bars(dict(zip((first, *MIDDLE_FIFTHS, last), means, strict=True)), " %")


def _confidence(
    checked: calibration.CheckedCalibration, ensemble: Ensemble, subject: str
) -> dict[str, Any]:
    """The calibration's indicators, and its expected errors next to the observed ones."""
    peak, spread = "the height of the heatmap's peak", "how wide the heatmap is"
    if len(ensemble.runs) > 1 or ensemble.tta:
        views = "runs" if len(ensemble.runs) > 1 else "views"
        peak, spread = "the heights of the heatmaps' peaks", f"how far the {views} disagree"
    weights = {peak: checked.calibration.peak_weight, spread: checked.calibration.spread_weight}
    expected, observed = np.array([decile[1:] for decile in checked.deciles]).T
    off = 100 * (expected / np.where(observed > 0, observed, np.nan) - 1)
    ends = [0, max(*expected, *observed)]
    series = [Series(subject, expected, observed, "dots"), Series("ideal", ends, ends, "dashed")]
    return {
        "indicators": " and ".join(name for name, weight in weights.items() if weight),
        "worst": np.abs(off).max(),
        "chart": line_chart(series, "expected error, px", "actual error, px"),
        "tenths": list(zip(checked.deciles, off, strict=True)),
    }


def _face_tiles(
    ensemble: Ensemble, evaluation: Evaluation, errors: Errors, device: torch.device
) -> dict[str, Any]:
    """The faces with the largest errors, and those in the middle of the ranking."""
    labels, rows = evaluation.labels, errors.rows.tolist()
    paths = contest.image_paths(evaluation.data.train_images, labels.names, labels.path, rows)
    labelled = np.flatnonzero(np.isfinite(errors.mse))
    ranked = labelled[np.argsort(errors.mse[labelled], kind="stable")].tolist()
    middle = max(0, (len(ranked) - NUM_TYPICAL) // 2)
    worst, typical = ranked[: -NUM_WORST - 1 : -1], ranked[middle : middle + NUM_TYPICAL]
    indices = np.unique([*worst, *typical])
    predictions = predict(
        ensemble.views(paths, labels.points_image, device), errors.rows[indices],
        batch=ensemble.runs[0].experiment.train.batch, workers=0, weighted=ensemble.weighted,
    )  # fmt: skip
    predicted = (points for prediction in predictions for points in prediction.points_image)
    faces = {}
    for index, points in zip(indices.tolist(), predicted, strict=True):
        row = rows[index]
        faces[index] = {
            "name": labels.names[row],
            "mse": errors.mse[index],
            "image": _tile(paths[row], labels.names[row], labels.points_image[row], points),
            **_worst_group(errors, index),
        }
    return {"worst": [faces[k] for k in worst], "typical": [faces[k] for k in typical]}


def _tile(path: Path, name: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Cuts out a face with its true and predicted landmarks, (P, 2) in image pixels."""
    points = np.concatenate([truth, predicted])
    points = points[np.isfinite(points).all(1)]
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    tile = frame.around((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), (TILE, TILE), ENLARGED)
    truth, predicted = (tile.to_crop(torch.from_numpy(p)).numpy() for p in (truth, predicted))
    image = cut(contest.read_image(path), tile)
    return page.marked_image(image, f"{name} with its landmarks", truth, predicted)


def _worst_group(errors: Errors, index: int) -> dict[str, Any]:
    """The landmark group with the largest mean error in an image; None if there is one group."""
    groups = errors.groups if len(errors.groups) > 1 else {}
    means = {name: nanmean(errors.distance[index, members], 0) for name, members in groups.items()}
    known = {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}
    name = max(known, key=known.__getitem__, default=None)
    return {"worst_group": name, "worst_px": known[name] if name else None}


def _timing(timing: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, float] = timing["milliseconds_per_image"]
    names = {"data": "waiting for images", "network": "network", "decode": "decoding"}
    time_bars = bars({names.get(part, part): ms for part, ms in parts.items()}, " ms")
    return {"timing": timing, "time_bars": time_bars, "total_ms": sum(parts.values())}
