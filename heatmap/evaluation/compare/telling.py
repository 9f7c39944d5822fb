"""A comparison for people: as text for a terminal, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from heatmap.evaluation import html
from heatmap.evaluation.compare.paired import ALL
from heatmap.runtime.columns import as_lines

CAPTIONS = {
    "epoch": "After as many passes over the training pictures.",
    "minutes": "After as many minutes of training and validation; machines may differ.",
}


def sentence(pair: Mapping[str, Any]) -> str:
    """ "b is better than a by 0.120 px² (95 %: 0.060 to 0.190), on 61 % of pictures"."""
    gain, low, high = pair["difference"], pair["low"], pair["high"]
    word, share = "better", pair["better_on"]
    if gain < 0:
        gain, low, high = -gain, -high, -low
        word, share = "worse", pair["worse_on"]
    by = f"by {gain:.3f} px² (95 %: {low:.3f} to {high:.3f}), on {100 * share:.0f} % of pictures"
    if low > 0:
        return f"{pair['run']} is {word} than {pair['against']} {by}"
    both = f"{pair['run']} and {pair['against']}"
    return f"{both} cannot be told apart: {pair['run']} is {word} {by}"


def text(told: Mapping[str, Any]) -> str:
    """The comparison for a terminal: tables that line up, then the findings as sentences."""
    tables = {**_tables(told), "Learning curves: val MSE, px², by epoch": _sampled_curves(told)}
    parts = ["\n".join([title, *as_lines(table)]) for title, table in tables.items() if table]
    return "\n\n".join([*parts, "\n".join(_findings(told))])


def page(told: Mapping[str, Any]) -> str:
    """The comparison as one HTML file."""
    charts = []
    for axis in CAPTIONS:
        series = [
            html.Series(name, curve[axis], [y or np.nan for y in curve["val/mse"]])
            for name, curve in told["curves"].items()
        ]
        chart = html.line_chart(series, axis, "validation MSE, px²", log_y=True)
        charts.append(html.figure(chart, CAPTIONS[axis]))
    first, *others = told["runs"]
    sections = {
        "": [html.paragraph(line) for line in _findings(told)],
        "Learning curves": [html.columns(*charts)],
    }
    for title, (header, *rows) in _tables(told).items():
        sections[title] = [html.table(header, rows)]
    return html.page(f"{', '.join(others)} against {first}", sections)


def _findings(told: Mapping[str, Any]) -> list[str]:
    lines = list(told["notes"])
    if "paired" in told:
        pictures = told["pictures"]
        lines += [sentence(pair) for pair in told["paired"] if pair["landmarks"] == ALL]
        own = ", ".join(f"{number} of {name}" for name, number in pictures["own"].items())
        lines.append(
            f"compared on the {pictures['common']} pictures that validated in every run ({own}); "
            f"95 % of {pictures['resamples']:,} resamples of {pictures['units']} "
            f"{pictures['drawn']}"
        )
    return lines


def _tables(told: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """By title, the first row of each with the names of its columns."""
    names = list(told["runs"])
    header = ["", "MSE, px²", "mean shape, px²", "best epoch", "epochs", "minutes", "state"]
    tables = {
        "Runs": [
            header,
            *(
                [
                    name,
                    _shown(run["mse"], ".3f"),
                    _shown(run["mean_shape_mse"], ".3f"),
                    _shown(run["best_epoch"]),
                    _shown(run["epochs"]),
                    _shown(run["minutes"], ".1f"),
                    "finished" if run["finished"] else "not finished",
                ]
                for name, run in told["runs"].items()
            ),
        ]
    }
    if "paired" in told:
        tables["MSE on the common pictures, px²"] = [
            ["", *names],
            *(
                [group, *(_shown(values[name], ".3f") for name in names)]
                for group, values in told["mse"].items()
            ),
        ]
        gains = {(pair["landmarks"], pair["run"]): pair for pair in told["paired"]}
        tables[f"px² better than {names[0]} (95 %)"] = [
            ["", *names[1:]],
            *([group, *(_gain(gains[group, name]) for name in names[1:])] for group in told["mse"]),
        ]
    if told["differences"]:
        tables["What differs"] = [["", *names]]
        for field, values in told["differences"].items():
            cells = [_setting(values[name]) if name in values else "" for name in names]
            tables["What differs"].append([field, *cells])
    return tables


def _gain(pair: Mapping[str, Any]) -> str:
    if pair["difference"] is None or pair["low"] is None:
        return "-"
    return f"{pair['difference']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f})"


def _sampled_curves(told: Mapping[str, Any]) -> list[list[str]]:
    """The curves at some epochs, near each other where they fall steeply."""
    scores = {
        name: dict(zip(curve["epoch"], curve["val/mse"], strict=True))
        for name, curve in told["curves"].items()
    }
    last = max((epoch for curve in scores.values() for epoch in curve), default=0)
    if last == 0:
        return []
    epochs = np.unique(np.geomspace(1, last, 9).round().astype(int)).tolist()
    return [
        ["", *map(str, epochs)],
        *(
            [name, *(_shown(curve.get(epoch), ".2f") for epoch in epochs)]
            for name, curve in scores.items()
        ),
    ]


def _shown(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _setting(value: Any) -> str:
    match value:
        case None | []:
            return "none"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(_setting, value))
        case _:
            return str(value)
