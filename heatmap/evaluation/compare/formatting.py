"""Formats a comparison for a terminal, or as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from heatmap.evaluation.charts import Series, line_chart
from heatmap.evaluation.compare.paired import ALL
from heatmap.evaluation.page import render, table
from heatmap.runtime.columns import as_lines

Rows = list[list[str]]


def sentence(pair: Mapping[str, Any]) -> str:
    """ "b is better than a by 0.120 px² (95 %: 0.060 to 0.190), on 61 % of images"."""
    gain, low, high = pair["difference"], pair["low"], pair["high"]
    word, share = "better", pair["better_on"]
    if gain < 0:
        gain, low, high = -gain, -high, -low
        word, share = "worse", pair["worse_on"]
    by = f"by {gain:.3f} px² (95 %: {low:.3f} to {high:.3f}), on {100 * share:.0f} % of images"
    if low > 0:
        return f"{pair['run']} is {word} than {pair['against']} {by}"
    both = f"{pair['run']} and {pair['against']}"
    return f"{both} do not differ significantly: {pair['run']} is {word} {by}"


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """Formats a comparison as aligned tables, then the findings as sentences."""
    curves = _sampled_curves(comparison)
    tables = {**_tables(comparison), "Learning curves: val MSE, px², by epoch": curves}
    parts = ["\n".join([title, *as_lines(rows)]) for title, rows in tables.items() if rows]
    return "\n\n".join([*parts, "\n".join(_findings(comparison))])


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Formats a comparison as one HTML file."""
    curves = {}
    for axis in ("epoch", "minutes"):
        series = []
        for name, curve in comparison["curves"].items():
            series.append(Series(name, curve[axis], np.array(curve["val/mse"], float)))
        curves[axis] = line_chart(series, axis, "validation MSE, px²", log_y=True)
    first, *others = comparison["runs"]
    tables = _tables(comparison)
    return render(
        "comparison.html.jinja",
        title=f"{', '.join(others)} against {first}",
        findings=_findings(comparison),
        curves=curves,
        tables={title: table(header, rows) for title, (header, *rows) in tables.items()},
    )


def _findings(comparison: Mapping[str, Any]) -> list[str]:
    lines = list(comparison["notes"])
    if "paired" in comparison:
        images = comparison["images"]
        lines += [sentence(pair) for pair in comparison["paired"] if pair["landmarks"] == ALL]
        counts = ", ".join(f"{count} of {name}" for name, count in images["own"].items())
        units = f"{images['units']} {images['drawn']}"
        lines.append(
            f"compared on the {images['common']} images that validated in every run ({counts}); "
            f"95 % intervals from {images['resamples']:,} resamples of {units}"
        )
    return lines


def _tables(comparison: Mapping[str, Any]) -> dict[str, Rows]:
    """Tables by title; the first row is the header."""
    names = list(comparison["runs"])
    runs = [["", "MSE, px²", "mean shape, px²", "best epoch", "epochs", "minutes", "state"]]
    for name, run in comparison["runs"].items():
        scores = [_cell(run[key], ".3f") for key in ("mse", "mean_shape_mse")]
        epochs = [_cell(run[key]) for key in ("best_epoch", "epochs")]
        state = "finished" if run["finished"] else "not finished"
        runs.append([name, *scores, *epochs, _cell(run["minutes"], ".1f"), state])
    tables = {"Runs": runs}
    if "paired" in comparison:
        mse, gains = [["", *names]], [["", *names[1:]]]
        pairs = {(pair["landmarks"], pair["run"]): pair for pair in comparison["paired"]}
        for group, values in comparison["mse"].items():
            mse.append([group, *(_cell(values[name], ".3f") for name in names)])
            gains.append([group, *(_gain(pairs[group, name]) for name in names[1:])])
        tables["MSE on the common images, px²"] = mse
        tables[f"px² better than {names[0]} (95 %)"] = gains
    if comparison["differences"]:
        tables["Differences"] = [["", *names]] + [
            [field, *(_setting(values[n]) if n in values else "" for n in names)]
            for field, values in comparison["differences"].items()
        ]
    return tables


def _gain(pair: Mapping[str, Any]) -> str:
    if pair["difference"] is None or pair["low"] is None:
        return "-"
    return f"{pair['difference']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f})"


def _sampled_curves(comparison: Mapping[str, Any]) -> Rows:
    """The learning curves at a few epochs, closer together at the start, where they are steep."""
    curves = comparison["curves"]
    last = max((epoch for curve in curves.values() for epoch in curve["epoch"]), default=0)
    if last == 0:
        return []
    epochs = np.unique(np.geomspace(1, last, 9).round().astype(int)).tolist()
    rows = [["", *map(str, epochs)]]
    for name, curve in curves.items():
        scores = dict(zip(curve["epoch"], curve["val/mse"], strict=True))
        rows.append([name, *(_cell(scores.get(epoch), ".2f") for epoch in epochs)])
    return rows


def _cell(value: float | None, spec: str = "") -> str:
    return "-" if value is None else format(value, spec)


def _setting(value: Any) -> str:
    match value:
        case None | []:
            return "none"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(_setting, value))
    return str(value)
