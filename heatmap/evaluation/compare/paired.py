"""Runs held against the first one, on the images that validated in all of them.

The intervals are those of the cluster bootstrap: people are drawn with replacement, each with all
their images. Source: Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x
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
FEWEST_PEOPLE = 10  # as many as a split by person needs
ALL = "all landmarks"
ELSEWHERE = "(tools/evaluate.py RUN --data DIR) and compare RUN/evaluation-DIR"


def compare_runs(runs: Sequence[RunSummary], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that is told of the runs, JSON-able; the others are held against the first.

    Returns:
        runs: scores by name, a run's by its best epoch; differences: as `differences`; curves: by
        name, lists of epoch, minutes and val/mse; notes: what could not be told, or should be
        known. With errors of single images also images: how many are common, and what was drawn;
        mse: px² on these by landmark group and name; nme_percent: by name; paired: one run against
        the first on one landmark group: difference in px² (positive where the run is better), ends
        of its 95 % interval, and shares of the images where it is better and worse.

    Raises:
        UserError: no image validated in all runs, or they were scored on different labels.
    """
    missing = [
        f"{run.name} has no errors of single images, so the runs are not compared image by "
        f"image: {_evaluate(run)} writes them"
        for run in runs
        if not run.images
    ]
    told: dict[str, Any] = {
        "runs": {run.name: _scores(run) for run in runs},
        "differences": differences({run.name: run.settings for run in runs}),
        "curves": {run.name: _curve(run) for run in runs},
        "notes": missing,
    }
    if missing:
        return told
    _check_comparable(runs)
    names, errors = _common(runs)
    unit, drawn, few = _units(names, runs[0].person)
    told["notes"] = [*_doubts(runs), *few]
    told["images"] = {
        "common": len(names),
        "own": {run.name: len(run.images) for run in runs},
        "drawn": drawn,
        "units": int(unit.max()) + 1,
        "resamples": resamples,
    }
    groups = [group for group in runs[0].groups if all(group in run.groups for run in runs)]
    columns = {ALL: "mse"} | {group: f"mse {group}" for group in groups}
    told["mse"] = {
        group: {run: _mean(own[column]) for run, own in errors.items()}
        for group, column in columns.items()
    }
    told["nme_percent"] = {run: _mean(100 * own["nme"]) for run, own in errors.items()}
    first, *others = errors
    pairs = list(product(others, columns))
    gains = np.stack([errors[first][columns[g]] - errors[run][columns[g]] for run, g in pairs], 1)
    ends = interval(bootstrap_means(gains, unit, resamples))
    told["paired"] = [
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
    return finite(told)


def _evaluate(run: RunSummary) -> str:
    return f"python tools/evaluate.py {run.folder}"


def _scores(run: RunSummary) -> dict[str, Any]:
    scored = [row for row in run.rows if row.get("val/mse") is not None]
    best = min(scored, key=lambda row: row["val/mse"], default={})
    scores = run.evaluation or {"mse": best.get("val/mse")} | run.summary
    return {
        "folder": str(run.folder),
        "mse": scores.get("mse"),
        "mean_shape_mse": scores.get("mean_shape_mse"),
        "best_epoch": best.get("epoch"),
        "epochs": run.rows[-1]["epoch"] if run.rows else 0,
        "minutes": sum(row["time/seconds"] for row in run.rows) / 60,
        "finished": bool(run.summary),
    }


def _curve(run: RunSummary) -> dict[str, list[Any]]:
    return {
        "epoch": [row["epoch"] for row in run.rows],
        "minutes": np.cumsum([row["time/seconds"] / 60 for row in run.rows]).tolist(),
        "val/mse": [row.get("val/mse") for row in run.rows],
    }


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fields that are not the same everywhere, with their values by run; settings: by run."""
    fields = list(dict.fromkeys(field for values in settings.values() for field in values))
    parts = list(dict.fromkeys(field.partition(".")[0] for field in fields))
    found = {}
    for field in sorted(fields, key=lambda field: parts.index(field.partition(".")[0])):
        values = {name: own[field] for name, own in settings.items() if field in own}
        one, *others = values.values()
        if len(values) < len(settings) or any(other != one for other in others):
            found[field] = values
    return found


def _check_comparable(runs: Sequence[RunSummary]) -> None:
    """Raises UserError where runs were scored on other labels or other landmarks."""
    first = runs[0]
    for run in runs[1:]:
        both = f"{first.folder} and {run.folder}"
        if run.table and first.table and run.table != first.table:
            problem = f"were scored on different tables of landmarks; score them on one {ELSEWHERE}"
            raise UserError(f"{both} {problem}")
        if run.groups and first.groups and run.groups != first.groups:
            groups = f"{', '.join(first.groups)} and {', '.join(run.groups)}"
            raise UserError(f"{both} predict different landmarks: {groups}")


def _common(runs: Sequence[RunSummary]) -> tuple[list[str], dict[str, dict[str, np.ndarray]]]:
    """The names of the N images that were scored in all runs, and by run its columns of them."""
    row_of = []
    for run in runs:
        labelled = np.flatnonzero(np.isfinite(run.errors["mse"]))
        row_of.append({run.images[row]: row for row in labelled})
    names = [name for name in row_of[0] if all(name in mine for mine in row_of)]
    if not names:
        found = ", ".join(f"{run.folder} ({len(run.images)} images)" for run in runs)
        raise UserError(
            f"no image was validated in all of these runs: {found}; train with the same split, "
            f"or score them on other data {ELSEWHERE}"
        )
    errors: dict[str, dict[str, np.ndarray]] = {}
    for run, mine in zip(runs, row_of, strict=True):
        rows = [mine[name] for name in names]
        errors[run.name] = {column: values[rows] for column, values in run.errors.items()}
        for side in ("width", "height"):
            other = errors[runs[0].name][side] != errors[run.name][side]
            if other.any():
                raise UserError(
                    f"{runs[0].folder} and {run.folder} were scored on different images: "
                    f"{names[other.argmax()]} has not the same {side} in both"
                )
    return names, errors


def _doubts(runs: Sequence[RunSummary]) -> list[str]:
    """What a reader should know of the errors before believing them."""
    doubts = []
    for run in runs:
        best, mean = _scores(run)["mse"], float(np.nanmean(run.errors["mse"]))
        if not run.evaluation and best is not None and abs(mean - best) > 0.01 * best:
            doubts.append(
                f"{run.name}: the errors of its images (mean {mean:.3f} px²) are not those of "
                f"its best epoch ({best:.3f}); {_evaluate(run)} writes them anew"
            )
        if run.table is None:
            doubts.append(f"{run.name} does not say which labels it was scored on")
        if not run.groups:
            told = f"{run.name} has no errors by landmark group; {_evaluate(run)} writes them"
            doubts.append(told)
    return doubts


def _units(names: Sequence[str], pattern: str) -> tuple[np.ndarray, str, list[str]]:
    """The (N,) number of each image's person, or of the image; which it is; and what to know."""
    people = contest.people_of(names, pattern)
    found = len(set(people))
    if None not in people and found >= FEWEST_PEOPLE:
        return np.unique(np.array(people, str), return_inverse=True)[1], "people", []
    few = (
        f"the common images show {found} people, too few to draw from; single images are "
        "drawn, which makes the interval too narrow where images of one person are alike"
    )
    return np.arange(len(names)), "images", [few] if None not in people and found > 1 else []


def bootstrap_means(values: np.ndarray, unit: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Means over the images of units that are drawn with replacement, as many as there are.

    Args:
        values: (N, C), NaN where there is no value; unit: (N,) numbers from 0, none left out.

    Returns:
        (resamples, C) float64; NaN where no unit with a value was drawn.
    """
    units, valued = int(unit.max()) + 1, np.isfinite(values)
    sums, counts = np.zeros((2, units, values.shape[1]))
    np.add.at(sums, unit, np.where(valued, values, 0))
    np.add.at(counts, unit, valued)
    generator = np.random.default_rng(0)
    block = max(1, BLOCK // units)
    means = []
    starts = range(0, resamples, block)
    for start in tqdm(starts, desc="bootstrap", delay=1, leave=False, disable=None):
        size = min(block, resamples - start)
        drawn = generator.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        times = times.astype(np.float64)
        with np.errstate(invalid="ignore"):  # nothing with a value was drawn
            means.append((times @ sums) / (times @ counts))
    return np.concatenate(means)


def interval(means: np.ndarray) -> np.ndarray:
    """(2, C) ends of the middle 95 % of each column of (R, C); NaN where a column has NaN."""
    return np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
