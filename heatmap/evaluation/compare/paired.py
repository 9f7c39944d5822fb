"""Runs held against the first one, on the pictures that validated in all of them.

How far chance reaches is told by the cluster bootstrap (Field and Welsh, Bootstrapping clustered
data, J. R. Statist. Soc. B 69, 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x): people are
drawn with replacement, each with all their pictures, since pictures of one person are not
independent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from heatmap.data import contest
from heatmap.evaluation.compare.runs import RunSummary
from heatmap.runtime.files import finite

RESAMPLES = 10_000
COVERAGE = 0.95
BLOCK = 1 << 22  # units drawn at once: 32 MiB
FEWEST_PEOPLE = 10  # as many as a split by person needs
ALL = "all landmarks"
ELSEWHERE = "(tools/evaluate.py RUN --data DIR) and compare RUN/evaluation-DIR"


def compare(runs: Sequence[RunSummary], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that is told of the runs, JSON-able; the others are held against the first.

    Returns:
        runs: scores by name, a run's by its best epoch; differences: as `differences`; curves: by
        name, a list each for epoch, minutes and val/mse; pictures: how many are common, and what
        was drawn; mse: px² on these by landmark group and name; nme_percent: by name; paired: one
        run against the first on one landmark group: difference in px² (positive where the run is
        better), ends of its 95 % interval, and shares of the pictures where it is better and worse;
        notes: what could not be told, or should be known. Without errors of single pictures only
        the first three and notes are there.

    Raises:
        ValueError: no picture validated in all runs, or they were scored on different labels.
    """
    told: dict[str, Any] = {
        "runs": {run.name: _scores(run) for run in runs},
        "differences": differences({run.name: run.settings for run in runs}),
        "curves": {run.name: _curve(run) for run in runs},
        "notes": [
            f"{run.name} has no errors of single pictures, so that the runs are not compared "
            f"picture by picture: {_evaluate(run)} writes them"
            for run in runs
            if not run.pictures
        ],
    }
    if told["notes"]:
        return told
    _check_comparable(runs)
    names, errors = _common(runs)
    unit, drawn, few = _units(names, runs[0].person)
    told["notes"] = [*_doubts(runs), *few]
    told["pictures"] = {
        "common": len(names),
        "own": {run.name: len(run.pictures) for run in runs},
        "drawn": drawn,
        "units": int(unit.max()) + 1,
        "resamples": resamples,
    }
    columns = {ALL: "mse"} | {
        group: f"mse {group}"
        for group in runs[0].groups
        if all(group in run.groups for run in runs)
    }
    told["mse"] = {
        group: {run.name: _mean(errors[run.name][column]) for run in runs}
        for group, column in columns.items()
    }
    told["nme_percent"] = {run.name: _mean(100 * errors[run.name]["nme"]) for run in runs}
    first, *others = runs
    pairs = [(run, group) for run in others for group in columns]
    gains = np.stack(
        [
            errors[first.name][columns[group]] - errors[run.name][columns[group]]
            for run, group in pairs
        ],
        axis=1,
    )
    low, high = interval(bootstrap_means(gains, unit, resamples))
    told["paired"] = [
        {
            "run": run.name,
            "against": first.name,
            "landmarks": group,
            "difference": _mean(gains[:, k]),
            "low": low[k],
            "high": high[k],
            "better_on": float((gains[:, k] > 0).mean()),
            "worse_on": float((gains[:, k] < 0).mean()),
        }
        for k, (run, group) in enumerate(pairs)
    ]
    return finite(told)


def _evaluate(run: RunSummary) -> str:
    return f"python tools/evaluate.py {run.folder}"


def _scores(run: RunSummary) -> dict[str, Any]:
    scored = [row for row in run.rows if row.get("val/mse") is not None]
    best = min(scored, key=lambda row: row["val/mse"], default={})
    scores = run.evaluation or {
        "mse": best.get("val/mse"),
        "mean_shape_mse": run.summary.get("mean_shape_mse"),
    }
    return {
        "folder": str(run.folder),
        "mse": scores.get("mse"),
        "mean_shape_mse": scores.get("mean_shape_mse"),
        "best_epoch": best.get("epoch"),
        "epochs": run.rows[-1]["epoch"] if run.rows else 0,
        "minutes": sum(row["time/seconds"] for row in run.rows) / 60,
        "finished": bool(run.summary),
    }


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fields that are not the same everywhere: their values by name, where they are.

    Args:
        settings: by name.
    """
    fields = list(dict.fromkeys(field for values in settings.values() for field in values))
    parts = list(dict.fromkeys(field.partition(".")[0] for field in fields))
    found = {}
    for field in sorted(fields, key=lambda field: parts.index(field.partition(".")[0])):
        values = {name: own[field] for name, own in settings.items() if field in own}
        one, *others = values.values()
        if len(values) < len(settings) or any(other != one for other in others):
            found[field] = values
    return found


def _curve(run: RunSummary) -> dict[str, list[Any]]:
    return {
        "epoch": [row["epoch"] for row in run.rows],
        "minutes": np.cumsum([row["time/seconds"] / 60 for row in run.rows]).tolist(),
        "val/mse": [row.get("val/mse") for row in run.rows],
    }


def _check_comparable(runs: Sequence[RunSummary]) -> None:
    """Raises ValueError where runs were scored on other labels or other landmarks."""
    first = runs[0]
    for run in runs[1:]:
        if run.table and first.table and run.table != first.table:
            raise ValueError(
                f"{first.folder} and {run.folder} were scored on different tables of landmarks, so "
                f"that their errors do not compare; score both on one {ELSEWHERE}"
            )
        if run.groups and first.groups and run.groups != first.groups:
            raise ValueError(
                f"{first.folder} and {run.folder} predict different landmarks: "
                f"{', '.join(first.groups)} and {', '.join(run.groups)}"
            )


def _common(runs: Sequence[RunSummary]) -> tuple[list[str], dict[str, dict[str, np.ndarray]]]:
    """The names of the N pictures that were scored in all runs, and by run its columns of them.

    Raises:
        ValueError: there is none, or pictures of one name have different sizes.
    """
    row_of = [
        {run.pictures[row]: row for row in np.flatnonzero(np.isfinite(run.errors["mse"]))}
        for run in runs
    ]
    names = [name for name in row_of[0] if all(name in mine for mine in row_of)]
    if not names:
        raise ValueError(
            "no picture was validated in all of these runs, so that they cannot be compared: "
            + ", ".join(f"{run.folder} ({len(run.pictures)} pictures)" for run in runs)
            + f"; train with the same split, or score them on other data {ELSEWHERE}"
        )
    errors = {}
    for run, mine in zip(runs, row_of, strict=True):
        rows = [mine[name] for name in names]
        errors[run.name] = {column: values[rows] for column, values in run.errors.items()}
        for side in ("width", "height"):
            other = errors[runs[0].name][side] != errors[run.name][side]
            if other.any():
                raise ValueError(
                    f"{runs[0].folder} and {run.folder} were scored on different pictures: "
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
                f"{run.name}: the errors of its pictures (mean {mean:.3f} px²) are not those of "
                f"its best epoch ({best:.3f}); {_evaluate(run)} writes them anew"
            )
        if run.table is None:
            doubts.append(
                f"{run.name} does not say which labels it was scored on: that they are the others' "
                "is taken for granted"
            )
        if not run.groups:
            doubts.append(
                f"{run.name} has no errors by landmark group; {_evaluate(run)} writes them"
            )
    return doubts


def _units(names: Sequence[str], pattern: str) -> tuple[np.ndarray, str, list[str]]:
    """What is drawn: the (N,) number of each picture's person, or of the picture.

    Returns:
        These, which of the two they are, and what should be known of it.
    """
    people = contest.people_of(names, pattern)
    found = len(set(people))
    if None not in people and found >= FEWEST_PEOPLE:
        return np.unique(np.array(people, str), return_inverse=True)[1], "people", []
    few = []
    if None not in people and found > 1:
        few.append(
            f"the common pictures show {found} people, too few to draw from; single pictures are "
            "drawn, which makes the interval too narrow where pictures of one person are alike"
        )
    return np.arange(len(names)), "pictures", few


def bootstrap_means(
    values: np.ndarray, unit: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means over the pictures of units that are drawn with replacement, as many as there are.

    Args:
        values: (N, C), NaN where there is no value; unit: (N,) from 0 on, every number up to the
            last.

    Returns:
        (resamples, C) float64; NaN where no unit with a value was drawn.
    """
    units, valued = int(unit.max()) + 1, np.isfinite(values)
    sums, counts = np.zeros((2, units, values.shape[1]))
    np.add.at(sums, unit, np.where(valued, values, 0))
    np.add.at(counts, unit, valued)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // units)
    means = []
    with tqdm(total=resamples, desc="bootstrap", delay=1, leave=False, disable=None) as bar:
        for start in range(0, resamples, block):
            size = min(block, resamples - start)
            drawn = generator.integers(units, size=(size, units))
            drawn += units * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
            times = times.astype(np.float64)
            with np.errstate(invalid="ignore"):  # nothing with a value was drawn
                means.append((times @ sums) / (times @ counts))
            bar.update(size)
    return np.concatenate(means)


def interval(means: np.ndarray) -> np.ndarray:
    """(2, C) ends of the middle 95 % of each column of (R, C); NaN where a column has NaN."""
    return np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
