"""A page on what a run does well and badly: one file that any browser opens from disk."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heatmap import frame
from heatmap.config import HeatmapModel
from heatmap.data import contest
from heatmap.data.samples import cut
from heatmap.evaluation import calibration, html
from heatmap.evaluation.html import Series
from heatmap.evaluation.metrics import Errors, nanmean, read, summary
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runs.ledger import read_metrics
from heatmap.runtime.files import read_json, write_atomically
from heatmap.shape import turns

NUM_WORST, NUM_TYPICAL = 8, 4
TILE = 320  # px, the side of a picture on the page
ENLARGED = 1.25  # what it shows, to the box round the landmarks
MOST_POSED = 10_000  # faces whose turn is told
MOST_STEPS = 200  # of the cumulative error curve
CLASSES = ("first fifth", "second", "third", "fourth", "last fifth")


def write_report(
    ensemble: Ensemble, data: Path | None, folder: Path, out: Path, device: torch.device
) -> Path:
    """Writes OUT/report.html on an evaluation: scores, curves, where errors lie, pictures.

    Args:
        ensemble, data: as `evaluate.evaluate_run` was given them.
        folder: of the files that it wrote.
        device: where the networks predict the pictures that are shown.

    Returns:
        The file's path.

    Raises:
        ValueError: a file of the evaluation or of a run is damaged, or a picture cannot be read.
    """
    first = ensemble.runs[0]
    errors, checked = read(folder), calibration.read(folder)
    found = contest.find_folder(data or first.experiment.data.root)
    labels = contest.read_landmarks(found.train_table, first.experiment.data.cache)
    paths = contest.image_paths(found.train_images, labels.names, labels.path, errors.rows.tolist())
    labelled = np.flatnonzero(np.isfinite(errors.mse))
    ranked = errors.rows[labelled[np.argsort(errors.mse[labelled], kind="stable")]].tolist()
    worst, middle = ranked[: -NUM_WORST - 1 : -1], max(0, (len(ranked) - NUM_TYPICAL) // 2)
    typical = ranked[middle : middle + NUM_TYPICAL]
    shown = np.unique([*worst, *typical])
    tiles = {
        row: html.figure(
            _marked(paths[row], labels.names[row], labels.points_image[row], points),
            f"{labels.names[row]}: {errors.mse[index]:.1f} px²"
            + _worst_group(errors.distance[index], errors.groups),
        )
        for index, (row, points) in zip(
            np.searchsorted(errors.rows, shown),
            _predicted(ensemble, paths, labels.points_image, shown, device),
            strict=True,
        )
    }
    scores = summary(errors)
    text = html.page(
        _title(ensemble, found.root),
        {
            "": _scores(errors, scores, ensemble, found.root),
            "How it learned": _learning(ensemble),
            "Which landmarks are wrong": _face(errors, first.mean_shape_crop),
            "Where the errors are": _classes(errors, scores, checked, labels.points_image),
            "Does it know how wrong it is?": _confidence(checked, ensemble),
            "The worst pictures": [
                html.paragraph(
                    "The pictures with the largest squared errors. True landmarks are green, "
                    "predicted ones orange; lines show which belong together."
                ),
                html.tiles(*(tiles[row] for row in worst)),
            ],
            "Typical pictures": [
                html.paragraph("As many pictures are better than these as are worse."),
                html.tiles(*(tiles[row] for row in typical)),
            ],
            "How long a picture takes": _timing(folder),
        },
    )
    with write_atomically(out / "report.html") as temporary:
        temporary.write_text(text, "utf-8")
    return out / "report.html"


def _title(ensemble: Ensemble, root: Path) -> str:
    """Which runs are told of, what is not as in their training, and on which data."""
    *others, last = ensemble.run_names
    runs = f"{', '.join(others)} and {last}" if others else last
    options = f", {ensemble.options}" if ensemble.options else ""
    return f"Report of {runs} on {root.resolve().name}{options}"


def _runs(ensemble: Ensemble) -> list[str]:
    """A line on every run, and how they answer together."""
    lines = [
        f"{type(run.experiment.model).__name__} on {run.experiment.model.encoder}, "
        f"{ensemble.num_landmarks} landmarks, crops of {run.experiment.crop.height} × "
        f"{run.experiment.crop.width} px; {run.path}"
        for run in ensemble.runs
    ]
    if len(ensemble.runs) > 1:
        weights = ", weighted by how sharp the heatmaps are" if ensemble.weighted else ""
        lines += [f"They are scored as one answer: the mean of their landmarks{weights}."]
    return [html.paragraph(line) for line in lines]


def _answer(ensemble: Ensemble) -> str:
    return "this run" if len(ensemble.runs) == 1 else "these runs together"


def _scores(errors: Errors, scores: dict[str, Any], ensemble: Ensemble, root: Path) -> list[str]:
    mse, mean_shape = scores["mse"], scores["mean_shape_mse"]
    if mse > mean_shape:
        way = "The mean face, which looks at no picture, does better than this."
    else:
        share = f"{100 * (1 - mse / mean_shape):.1f} %" if mean_shape else "–"
        way = (
            f"From the mean face, which looks at no picture, it has come {share} of the way to a "
            "perfect answer."
        )
    normaliser = scores["normaliser"]
    length = "the face's size" if normaliser == "box" else f"that between the {normaliser}"
    rows = [
        ("contest MSE", f"{mse:.3f} px²", "mean squared error of a coordinate; what the contest "
         "judges by"),
        ("NME", _percent(scores["nme_percent"]), f"mean distance, in percent of {length}"),
        ("failures at 8 %", _percent(scores["failure_8"], 100), "pictures with a larger NME"),
        ("failures at 10 %", _percent(scores["failure_10"], 100), "pictures with a larger NME"),
        ("AUC to 8 %", _number(scores["auc_8"]), "1 if every picture were perfect"),
        ("pictures", f"{scores['pictures']:,}", f"scored, of {root}"),
    ]  # fmt: skip
    return [
        *_runs(ensemble),
        html.columns(
            html.figure(
                html.bars(
                    {"mean shape": mean_shape, _answer(ensemble): mse, "perfect": 0.0}, " px²"
                ),
                f"Mean squared error; shorter is better. {way}",
            ),
            _cumulative(errors, scores, _answer(ensemble)),
        ),
        html.table(["score", "value", "what it is"], rows),
    ]


def _learning(ensemble: Ensemble) -> list[str]:
    """Curves of every run that has a ledger."""
    folders = list(dict.fromkeys(run.path.resolve().parent for run in ensemble.runs))
    alike = len({folder.name for folder in folders}) < len(folders)
    ledgers = {
        str(folder) if alike else folder.name: [
            row for row in read_metrics(folder) if "epoch" in row
        ]
        for folder in folders
        if (folder / "metrics.jsonl").exists()
    }
    if not any(ledgers.values()):
        return [html.paragraph("The run's folder holds no metrics.jsonl.")]
    charts = (
        ("train/loss", "training loss", True, "What training makes small; it should fall and then "
         "level out."),
        ("val/loss", "validation loss", True, "The same on pictures it was not trained on."),
        ("val/mse", "validation MSE, px²", True, "The contest's error on pictures it was not "
         "trained on; where this rises while the loss still falls, it learns by heart."),
        ("lr", "learning rate", False, "How large the steps of training were."),
    )  # fmt: skip
    figures = []
    for key, label, log_y, caption in charts:
        series = [
            Series(
                name,
                [row["epoch"] for row in rows if key in row],
                [_or_nan(row[key]) for row in rows if key in row],
                "dots" if len(rows) <= 30 else "line",
            )
            for name, rows in ledgers.items()
        ]
        if any(len(one.x) for one in series):
            figures.append(
                html.figure(html.line_chart(series, "epoch", label, log_y=log_y), caption)
            )
    return [html.columns(*figures)]


def _cumulative(errors: Errors, scores: dict[str, Any], name: str) -> str:
    nme = np.sort(100 * errors.nme[np.isfinite(errors.nme)])
    if len(nme) == 0:
        return html.paragraph("No picture has a length that its errors could be compared with.")
    limits = np.linspace(0, 10, MOST_STEPS + 1)
    share = 100 * np.searchsorted(nme, limits, side="right") / len(nme)
    return html.figure(
        html.line_chart([Series(name, limits, share)], "NME, %", "pictures, %", y_ends=(0, 100)),
        f"How many pictures have at most that error: half of them up to {np.median(nme):.1f} %. "
        f"The area under the curve up to 8 % is {scores['auc_8']:.3f} of the largest possible "
        "(AUC); the farther to the top left, the better.",
    )


def _face(errors: Errors, mean_shape: Tensor) -> list[str]:
    rms, bias = _rms(errors.distance), np.linalg.norm(errors.bias, axis=1)
    spread = np.sqrt(np.maximum(rms**2 - bias**2, 0))
    points, most = mean_shape.numpy(), float(np.nanmax(rms))
    names = [f"landmark {k} ({group})" for group, members in errors.groups.items() for k in members]
    share = 100 * np.nansum(bias**2) / np.nansum(rms**2)
    worst = [names[k] for k in np.argsort(np.nan_to_num(-rms))[:3]]
    longest = float(np.nanmax(bias))
    maps = (
        (rms, None, f"Error of every landmark (root of the mean square, px); the brighter, the "
         f"worse. Worst: {', '.join(worst)}."),
        (bias, errors.bias, "Bias: what is wrong in the same way in all pictures. Lines show where "
         f"predictions lie from the truth, enlarged; the longest is {longest:.2f} px. Bias makes "
         f"{share:.1f} % of the squared error."),
        (spread, None, "Spread: what is wrong in another way in every picture, once the bias is "
         "taken off."),
    )  # fmt: skip
    return [
        html.columns(
            *(
                html.figure(
                    html.dot_chart(points, values, names, most=most, unit=" px", arrows=arrows)
                    + html.colour_scale(most, " px"),
                    caption,
                )
                for values, arrows, caption in maps
            )
        )
    ]


def _rms(distance: np.ndarray) -> np.ndarray:
    """(P,) px, of the pictures that have the landmark; block by block, since all may be large."""
    total, count = np.zeros(distance.shape[1]), np.zeros(distance.shape[1])
    for block in np.array_split(distance, math.ceil(len(distance) / 4096)):
        total += np.nansum(np.square(block, dtype=np.float64), axis=0)
        count += np.isfinite(block).sum(0)
    return np.sqrt(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _classes(
    errors: Errors,
    scores: dict[str, Any],
    checked: calibration.Checked | None,
    truth_image: np.ndarray | contest.Points,
) -> list[str]:
    groups = {name: _or_nan(mse) for name, mse in scores["groups"].items()}
    sizes = {
        f"{name} ({size['pictures']:,})": _or_nan(size["mse"])
        for name, size in scores["sizes"].items()
    }
    figures = [
        html.figure(html.bars(groups, " px²"), "Mean squared error of each region of the face."),
        html.figure(
            html.bars(sizes, " px²"),
            "Mean squared error by the picture's shorter side (pictures): the same slip counts "
            "for more pixels in a large picture.",
        ),
    ]
    some = np.linspace(0, len(errors.rows) - 1, min(len(errors.rows), MOST_POSED)).astype(int)
    try:
        turn = turns(truth_image[errors.rows[some]])
    except ValueError as error:
        figures.append(html.paragraph(f"How far heads are turned is not known: {error}."))
    else:
        away = np.abs(turn - np.nanmedian(turn))
        names = ("straightest fifth", *CLASSES[1:-1], "most turned fifth")
        figures.append(
            html.figure(
                html.bars(_fifths(away, 100 * errors.nme[some], names), " %"),
                "NME by how far the head is turned to the side, as its true landmarks tell.",
            )
        )
    if checked is not None:
        names = ("surest fifth", *CLASSES[1:-1], "least sure fifth")
        expected = _expected_nme(errors, checked.calibration)
        figures.append(
            html.figure(
                html.bars(_fifths(expected, 100 * errors.nme, names), " %"),
                "NME by how sure the network is of the picture: by the mean of its landmarks' "
                "expected errors, as a share of the length that its NME is a share of.",
            )
        )
    return [html.columns(*figures)]


def _expected_nme(errors: Errors, told: calibration.Calibration) -> np.ndarray:
    """(N,) mean expected error over each picture's own length, so that its size counts for nothing.

    NaN where a picture has no such length.
    """
    blocks = math.ceil(len(errors.rows) / 4096)
    signs = (np.array_split(some, blocks) for some in (errors.peak, errors.spread))
    expected_px = np.concatenate(
        [nanmean(told.expected_error(*block), 1) for block in zip(*signs, strict=True)]
    )
    distances = np.array_split(errors.distance, blocks)
    mean_px = np.concatenate([nanmean(distance, 1) for distance in distances])
    return np.divide(  # the length is mean_px / nme
        expected_px * errors.nme, mean_px, out=np.full(len(mean_px), np.nan), where=mean_px > 0
    )


def _fifths(by: np.ndarray, values: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The means of the values in five parts of about the same size, in the order of `by`."""
    known = np.isfinite(by) & np.isfinite(values)
    parts = np.array_split(values[known][np.argsort(by[known], kind="stable")], len(names))
    return {
        name: float(part.mean()) if len(part) else math.nan
        for name, part in zip(names, parts, strict=True)
    }


def _confidence(checked: calibration.Checked | None, ensemble: Ensemble) -> list[str]:
    several = len(ensemble.runs) > 1 or bool(ensemble.tta)
    if checked is None:
        if several or isinstance(ensemble.runs[0].experiment.model, HeatmapModel):
            unknown = (
                f"Not known: an expected error needs {calibration.FEWEST_FITTED} labelled "
                "landmarks in each half of the pictures, and errors that grow with the signs of "
                "doubt."
            )
        else:
            unknown = (
                "No. A direct network gives coordinates and nothing that tells how sure it is of "
                "them; several runs, or several views of the pictures (--tta), tell it by how far "
                "they disagree."
            )
        return [html.paragraph(unknown)]
    peak, spread = "the height of the heatmap's peak", "how wide the heatmap is"
    if several:
        who = "runs" if len(ensemble.runs) > 1 else "views"
        peak, spread = "the heights of the heatmaps' peaks", f"how far the {who} disagree"
    weights = {peak: checked.calibration.peak_weight, spread: checked.calibration.spread_weight}
    signs = " and ".join(sign for sign, weight in weights.items() if weight)
    expected = [one.expected_px for one in checked.deciles]
    observed = [one.observed_px for one in checked.deciles]
    ends = [0, max(*expected, *observed)]
    chart = html.line_chart(
        [
            Series(_answer(ensemble), expected, observed, "dots"),
            Series("ideal", ends, ends, "dashed"),
        ],
        "expected error, px", "actual error, px",
    )  # fmt: skip
    off = [e / o - 1 if o > 0 else math.nan for e, o in zip(expected, observed, strict=True)]
    rows = [
        (f"{k}", f"{one.expected_px:.2f}", f"{one.observed_px:.2f}",
         f"{100 * ratio:+.1f} %".replace("-", "−"))
        for k, (one, ratio) in enumerate(zip(checked.deciles, off, strict=True), start=1)
    ]  # fmt: skip
    worst = 100 * max(map(abs, off))
    return [
        html.paragraph(
            f"The expected error of a landmark, in px of the photograph, is told from {signs}. The "
            f"map that tells it was fitted on {checked.fitted_pictures:,} pictures and is checked "
            f"here on {checked.checked_pictures:,} others, of other people where file "
            f"names tell them apart. In the tenth that it fits worst it is off by {worst:.1f} %. "
            "It is kept in calibration.json."
        ),
        html.columns(
            html.figure(
                chart,
                "Each dot is a tenth of the landmarks, from the surest to the least sure; on the "
                "dashed line errors are as large as expected, above it they are larger.",
            ),
            html.figure(
                html.table(["tenth", "expected, px", "actual, px", "off"], rows),
                "The same in numbers: mean distances from the true landmark.",
            ),
        ),
    ]


def _timing(folder: Path) -> list[str]:
    timing = read_json(folder / "timing.json")
    parts: Mapping[str, float] = timing["milliseconds_a_picture"]
    names = {"data": "wait for the picture", "network": "network", "decode": "landmarks from it"}
    total = sum(parts.values())
    return [
        html.columns(
            html.figure(
                html.bars({names.get(part, part): ms for part, ms in parts.items()}, " ms"),
                f"{html.three_digits(total)} ms a picture in batches of {timing['batch']} on "
                f"{timing['device']} ({timing['processor']}, {timing['cpu_cores']} cores, "
                f"{timing['threads']} threads), with {timing['workers']} processes that read "
                f"ahead; measured during the evaluation on {timing['date']}, commit "
                f"{timing['commit'] or '–'}.",
            )
        )
    ]


def _predicted(
    ensemble: Ensemble,
    paths: Sequence[Path],
    truth_image: np.ndarray | contest.Points,
    rows: np.ndarray,
    device: torch.device,
) -> Iterator[tuple[int, np.ndarray]]:
    """Every row with its (P, 2) points in image pixels."""
    views = ensemble.views(paths, truth_image, device)
    batch = ensemble.runs[0].experiment.train.batch
    for found in predict(
        views, rows, batch=batch, workers=0, device=device, weighted=ensemble.weighted
    ):
        yield from zip(found.rows.tolist(), found.points_image, strict=True)


def _marked(path: Path, name: str, truth: np.ndarray, points: np.ndarray) -> str:
    """The face with its true and its predicted landmarks, (P, 2) in image pixels."""
    everything = np.concatenate([truth, points])
    everything = everything[np.isfinite(everything).all(1)]
    (x0, y0), (x1, y1) = everything.min(0), everything.max(0)
    tile = frame.around((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), (TILE, TILE), ENLARGED)
    truth, points = (tile.to_crop(torch.from_numpy(some)).numpy() for some in (truth, points))
    shown = cut(contest.read_image(path), tile)
    return html.marked_picture(shown, f"{name} with its landmarks", truth, points)


def _worst_group(distance: np.ndarray, groups: dict[str, range]) -> str:
    """Of a picture's (P,) distances."""
    means = {name: nanmean(distance[members], 0) for name, members in groups.items()}
    known = {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}
    name = max(known, key=known.__getitem__)
    return f"; {known[name]:.1f} px off at the {name}" if len(groups) > 1 else ""


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None, factor: float = 1) -> str:
    return "–" if value is None else f"{factor * value:.2f} %"
