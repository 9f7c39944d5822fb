"""Compares runs with the first one, on the images that validated in all of them.

Intervals come from a cluster bootstrap, which draws people with replacement, each with all their
images. Source: Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from heatmap.data import contest
from heatmap.errors import UserError
from heatmap.evaluation.compare.runs import RunSummary
from heatmap.runtime.files import finite

RESAMPLES = 10_000
COVERAGE = 0.95
BLOCK = 1 << 22  # units drawn at once: 32 MiB
MIN_PEOPLE = 10  # a split by person needs as many
ALL = "all landmarks"
ON_OTHER_DATA = "(heatmap evaluate RUN --data DIR) and compare RUN/evaluation-DIR"

ErrorColumns = dict[str, np.ndarray]  # of per_image.csv, (N,) each


def compare_runs(runs: Sequence[RunSummary], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compares runs with the first one; the result is ready for JSON.

    Returns:
        runs: scores of each run, of its best epoch unless it is an evaluation.
        differences: as `differences` returns them.
        curves: lists of epoch, minutes and val/mse for each run.
        notes: missing or doubtful results.

        If every run has per-image errors, also:
        images: number of common images, and the units that are resampled.
        mse: px² on the common images by landmark group and run.
        nme_percent: by run.
        paired: for each other run and landmark group the difference in px² (positive if the run
            is better), its 95 % interval, and the shares of images where it is better and worse.

    Raises:
        UserError: no image validated in all runs, or they were scored on different labels.
    """
    comparison: dict[str, Any] = {
        "runs": {run.name: _scores(run) for run in runs},
        "differences": differences({run.name: run.settings for run in runs}),
        "curves": {run.name: _curve(run) for run in runs},
    }
    if missing := [run for run in runs if not run.images]:
        return comparison | {
            "notes": [
                f"{run.name} has no per-image errors, so the runs are not compared image by image; "
                f"to write them, run {_evaluate_command(run)}"
                for run in missing
            ]
        }
    _check_comparable(runs)
    names, errors = _common_errors(runs)
    unit, drawn, notes = _resampling_units(names, runs[0].person_pattern)
    groups = [group for group in runs[0].groups if all(group in run.groups for run in runs)]
    columns = {ALL: "mse"} | {group: f"mse {group}" for group in groups}
    return finite(
        comparison
        | {
            "notes": [*_warnings(runs), *notes],
            "images": {
                "common": len(names),
                "own": {run.name: len(run.images) for run in runs},
                "drawn": drawn,
                "units": int(unit.max()) + 1,
                "resamples": resamples,
            },
            "mse": {
                group: {run: _mean(values[column]) for run, values in errors.items()}
                for group, column in columns.items()
            },
            "nme_percent": {run: _mean(100 * values["nme"]) for run, values in errors.items()},
            "paired": _compare_pairs(errors, columns, unit, resamples),
        }
    )


def _compare_pairs(
    errors: Mapping[str, ErrorColumns], columns: Mapping[str, str], unit: np.ndarray, resamples: int
) -> list[dict[str, Any]]:
    """Compares every other run with the first, on every landmark group."""
    first, *others = errors
    pairs = list(product(others, columns))
    gains = np.stack([errors[first][columns[g]] - errors[run][columns[g]] for run, g in pairs], 1)
    ends = interval(bootstrap_means(gains, unit, resamples))
    return [
        {
            "run": run,
            "against": first,
            "landmarks": group,
            "difference": _mean(gain),
            "low": low,
            "high": high,
            "better_on": float((gain > 0).mean()),
            "worse_on": float((gain < 0).mean()),
        }
        for (run, group), gain, low, high in zip(pairs, gains.T, *ends, strict=True)
    ]


def _evaluate_command(run: RunSummary) -> str:
    return f"heatmap evaluate {run.folder}"


def _best_epoch(run: RunSummary) -> tuple[float, int] | tuple[None, None]:
    """The lowest MSE of the run's epochs, and the first epoch with it."""
    scored = [(mse, row["epoch"]) for row in run.rows if (mse := row.get("val/mse")) is not None]
    return min(scored, default=(None, None))


def _scores(run: RunSummary) -> dict[str, Any]:
    best_mse, best_epoch = _best_epoch(run)
    scores = run.evaluation or run.summary
    return {
        "folder": str(run.folder),
        "mse": run.evaluation["mse"] if run.evaluation else best_mse,
        "mean_shape_mse": scores["mean_shape_mse"] if scores else None,
        "best_epoch": best_epoch,
        "epochs": run.rows[-1]["epoch"] if run.rows else 0,
        "minutes": sum(row["time/seconds"] for row in run.rows) / 60,
        "finished": run.summary is not None,
    }


def _curve(run: RunSummary) -> dict[str, list[Any]]:
    return {
        "epoch": [row["epoch"] for row in run.rows],
        "minutes": np.cumsum([row["time/seconds"] / 60 for row in run.rows]).tolist(),
        "val/mse": [row.get("val/mse") for row in run.rows],
    }


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fields that differ between runs, or that a run lacks, with each run's value."""
    fields = list(dict.fromkeys(field for values in settings.values() for field in values))
    parts = list(dict.fromkeys(field.partition(".")[0] for field in fields))
    differing = {}
    for field in sorted(fields, key=lambda field: parts.index(field.partition(".")[0])):
        values = {name: fields[field] for name, fields in settings.items() if field in fields}
        first, *others = values.values()
        if len(values) < len(settings) or any(other != first for other in others):
            differing[field] = values
    return differing


def _check_comparable(runs: Sequence[RunSummary]) -> None:
    """Raises UserError if runs were scored on different labels or landmarks."""
    first = runs[0]
    for run in runs[1:]:
        both = f"{first.folder} and {run.folder}"
        if run.table and first.table and run.table != first.table:
            raise UserError(
                f"{both} were scored on different tables of landmarks; score them on the same "
                f"one {ON_OTHER_DATA}"
            )
        if run.groups and first.groups and run.groups != first.groups:
            groups = f"{', '.join(first.groups)} and {', '.join(run.groups)}"
            raise UserError(f"{both} predict different landmarks: {groups}")


def _common_errors(runs: Sequence[RunSummary]) -> tuple[list[str], dict[str, ErrorColumns]]:
    """Names of the N images scored in all runs, and each run's errors of them."""
    row_of = []
    for run in runs:
        labelled = np.flatnonzero(np.isfinite(run.errors["mse"]))
        row_of.append({run.images[row]: row for row in labelled})
    names = [name for name in row_of[0] if all(name in rows for rows in row_of)]
    if not names:
        counts = ", ".join(f"{run.folder} ({len(run.images)} images)" for run in runs)
        raise UserError(
            f"no image was validated in all of these runs: {counts}; train with the same split, "
            f"or score them on other data {ON_OTHER_DATA}"
        )
    errors: dict[str, ErrorColumns] = {}
    for run, rows_by_name in zip(runs, row_of, strict=True):
        rows = [rows_by_name[name] for name in names]
        errors[run.name] = {column: values[rows] for column, values in run.errors.items()}
        for side in ("width", "height"):
            differs = errors[runs[0].name][side] != errors[run.name][side]
            if differs.any():
                raise UserError(
                    f"{runs[0].folder} and {run.folder} were scored on different images: "
                    f"the {side} of {names[differs.argmax()]} differs"
                )
    return names, errors


def _warnings(runs: Sequence[RunSummary]) -> list[str]:
    """Notes on errors that may be outdated or incomplete."""
    warnings = []
    for run in runs:
        best, mean = _best_epoch(run)[0], float(np.nanmean(run.errors["mse"]))
        if not run.evaluation and best is not None and abs(mean - best) > 0.01 * best:
            warnings.append(
                f"{run.name}: per_image.csv (mean {mean:.3f} px²) does not match the best "
                f"epoch ({best:.3f} px²); to rewrite it, run {_evaluate_command(run)}"
            )
        if run.table is None:
            warnings.append(f"{run.name}: the labels it was scored on are unknown")
        if not run.groups:
            warnings.append(
                f"{run.name} has no errors by landmark group; to write them, run "
                f"{_evaluate_command(run)}"
            )
    return warnings


def _resampling_units(names: Sequence[str], pattern: str) -> tuple[np.ndarray, str, list[str]]:
    """The units that the bootstrap draws.

    Returns:
        (N,) number of each image's person, or of the image itself; "people" or "images"; notes.
    """
    people = contest.people_of(names, pattern)
    count = len(set(people))
    if None not in people and count >= MIN_PEOPLE:
        return np.unique(np.array(people, str), return_inverse=True)[1], "people", []
    note = (
        f"the common images show {count} people, too few to resample, so images are resampled; "
        "the interval is too narrow if images of one person are similar"
    )
    return np.arange(len(names)), "images", [note] if None not in people and count > 1 else []


def bootstrap_means(values: np.ndarray, unit: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Means over units drawn with replacement, as many as there are.

    Args:
        values: (N, C), NaN for missing values.
        unit: (N,) numbers of the units, from 0 without gaps.

    Returns:
        (resamples, C) float64; NaN if no unit with a value was drawn.
    """
    units, has_value = int(unit.max()) + 1, np.isfinite(values)
    sums, counts = np.zeros((2, units, values.shape[1]))
    np.add.at(sums, unit, np.where(has_value, values, 0))
    np.add.at(counts, unit, has_value)
    generator = np.random.default_rng(0)
    block = max(1, BLOCK // units)
    means = []
    starts = range(0, resamples, block)
    for start in tqdm(starts, desc="bootstrap", delay=1, leave=False, disable=None):
        size = min(block, resamples - start)
        drawn = generator.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        times = times.astype(np.float64)
        with np.errstate(invalid="ignore"):  # no unit with a value was drawn
            means.append((times @ sums) / (times @ counts))
    return np.concatenate(means)


def interval(means: np.ndarray) -> np.ndarray:
    """(2, C) ends of the middle 95 % of each column of (R, C); NaN where a column has NaN."""
    return np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
