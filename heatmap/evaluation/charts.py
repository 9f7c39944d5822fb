"""Numbers -> where the parts of a chart lie, for the templates to draw.

Lengths are in a chart's own units, about a pixel each; y runs downwards, as in SVG.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

WIDTH, HEIGHT = 420, 260
RIGHT, TOP, BOTTOM = 12, 12, 40  # margins of a line chart; the left one depends on its numbers
DIGIT = 7.5  # the width of a character
GREY = "#666666"


class Series(NamedTuple):
    """One curve, y over x, broken where either is not finite; "dots" has one on each value."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: Literal["line", "dashed", "dots"] = "line"


class Curve(NamedTuple):
    """A series in a chart: the data of its SVG path, and x, y and text of its dots."""

    name: str
    style: str
    path: str
    dots: list[tuple[float, float, str]]


class LineChart(NamedTuple):
    """Curves over common axes. A tick is its place and its text."""

    x_label: str
    y_label: str
    left: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    y_ends: tuple[float, float] | None = None,
) -> LineChart | None:
    """The chart of the series; None where no value can be drawn.

    Args:
        log_y: the y axis is logarithmic; values that are not positive are left out.
        y_ends: the least range of the y axis.
    """
    curves = []  # (N, 2) each, NaN where there is nothing to draw
    for one in series:
        points = np.stack([np.asarray(one.x, float), np.asarray(one.y, float)], 1)
        drawable = np.isfinite(points).all(1) & (points[:, 1] > (0 if log_y else -np.inf))
        curves.append(np.where(drawable[:, None], points, np.nan))
    values = np.concatenate(curves)
    values = values[np.isfinite(values[:, 0])]
    if len(values) == 0:
        return None
    (x_low, y_low), (x_high, y_high) = values.min(0), values.max(0)
    if y_ends is not None:
        y_low, y_high = min(y_low, y_ends[0]), max(y_high, y_ends[1])
    x_ticks = ticks(x_low, x_high, finest=int((values[:, 0] % 1 == 0).all()))
    y_ticks = log_ticks(y_low, y_high) if log_y else ticks(y_low, y_high)
    left = max(46, 26 + DIGIT * max(len(_text(y)) for y in y_ticks))
    across = partial(_place, among=[x_low, x_high, *x_ticks], ends=(left, WIDTH - RIGHT))
    down = partial(_place, among=[y_low, y_high, *y_ticks], ends=(HEIGHT - BOTTOM, TOP), log=log_y)
    drawn = []
    for one, curve in zip(series, curves, strict=True):
        places = np.stack([across(curve[:, 0]), down(curve[:, 1])], 1)
        dots = [
            (*place, f"{_text(x)}: {_text(y)}")
            for place, (x, y) in zip(places.tolist(), curve.tolist(), strict=True)
            if one.style == "dots" and math.isfinite(y)
        ]
        drawn.append(Curve(one.name, one.style, _path(places), dots))
    x_marks = [(float(across(x)), _text(x)) for x in x_ticks]
    y_marks = [(float(down(y)), _text(y)) for y in y_ticks]
    return LineChart(x_label, y_label, left, x_marks, y_marks, drawn)


def _place(
    values: Any, among: Sequence[float], ends: tuple[float, float], log: bool = False
) -> np.ndarray:
    """Where values lie between the ends, if the least and the largest `among` lie there."""
    limits = np.array([min(among), max(among)])
    if log:
        values, limits = np.log(values), np.log(limits)
    return np.asarray(np.interp(values, limits, ends))


def _path(places: np.ndarray) -> str:
    """SVG path data through the (N, 2) places, broken where one is NaN."""
    steps, pen = [], "M"
    for x, y in places.tolist():
        if math.isfinite(y):
            steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if math.isfinite(y) else "M"
    return " ".join(steps)


def ticks(low: float, high: float, finest: float = 0) -> list[float]:
    """Round numbers, four to eight steps, the first at or below `low` and the last not far.

    Where all values are alike they go from zero to a little beyond.
    """
    if _alike(low, high):
        low, high = (min(0.0, 1.25 * low), max(0.0, 1.25 * high)) if low else (0.0, 1.0)
    wanted = max((high - low) / 5, finest, 1e-300)
    magnitude = 10 ** math.floor(math.log10(wanted))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten round the values; powers of ten alone where these are wide.

    Where all values are alike they go from half of it to twice that.
    """
    if _alike(low, high):
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    candidates = [factor * 10.0**power for power in powers for factor in factors]
    first = max(0, bisect_right(candidates, low) - 1)
    return candidates[first : bisect_left(candidates, high) + 1]


def _alike(low: float, high: float) -> bool:
    """Too near each other for ticks between them to be told apart."""
    return high - low <= 1e-4 * max(abs(low), abs(high))


def _text(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


class Bar(NamedTuple):
    """percent: its length, of the longest bar's; None without a value."""

    name: str
    percent: float | None
    text: str


def bars(values: Mapping[str, float | None], unit: str = "") -> list[Bar]:
    """A horizontal bar for every name, from zero; longer is more. None and NaN have no bar."""
    known = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
    most = max(known.values(), default=0) or 1
    drawn = {k: Bar(k, 100 * v / most, three_digits(v) + unit) for k, v in known.items()}
    return [drawn.get(name, Bar(name, None, "–")) for name in values]


def three_digits(value: float) -> str:
    """The number to three digits, without an exponent: 0.0123, 5.00, 21.0, 1,110; 0 is "0"."""
    rounded = f"{value:.2e}"
    decimals = max(0, 2 - int(rounded.partition("e")[2]))
    return f"{float(rounded):,.{decimals}f}" if value else "0"


class Dot(NamedTuple):
    x: float
    y: float
    arrow: tuple[float, float] | None
    colour: str
    text: str


class DotChart(NamedTuple):
    """Dots, the colours of the scale from 0 to `most`, and `most` as text."""

    height: float
    radius: float
    dots: list[Dot]
    colours: list[str]
    most: str


def dot_chart(
    points: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
    *,
    most: float,
    unit: str = "",
    arrows: np.ndarray | None = None,
) -> DotChart:
    """(P, 2) points, coloured by their (P,) values from 0 (dim) to `most` (bright), grey for NaN.

    Args:
        points: x to the right and y downwards; NaN is not drawn.
        arrows: (P, 2), drawn from the points, the longest as an eighth of the chart's width.
    """
    drawn = np.flatnonzero(np.isfinite(points).all(1))
    low, high = points[drawn].min(0), points[drawn].max(0)
    scale = (WIDTH - 60) / max(*(high - low), 1e-9)
    places = scale * (points - [(low + high)[0] / 2, low[1]]) + [WIDTH / 2, 30]
    ends: list[tuple[float, float] | None] = [None] * len(points)
    if arrows is not None:
        arrows = np.nan_to_num(arrows)
        longest = np.linalg.norm(arrows[drawn], axis=1).max()
        ends = [*map(tuple, arrows * (WIDTH / 8 / longest if longest > 0 else 0))]
    colours = _colours(values / most if most > 0 else 0 * values)
    dots = []
    for k in drawn.tolist():
        text = three_digits(values[k]) + unit if math.isfinite(values[k]) else "–"
        x, y = places[k]
        dots.append(Dot(x, y, ends[k], colours[k], f"{names[k]}: {text}"))
    height, radius = 60 + scale * (high - low)[1], min(8.0, max(2.4, 60 / math.sqrt(len(drawn))))
    return DotChart(height, radius, dots, _colours(np.linspace(0, 1, 9)), three_digits(most))


def _colours(shares: np.ndarray) -> list[str]:
    """Of 0 to 1 the colours of viridis without its darkest tenth; grey for NaN."""
    levels = np.nan_to_num(25 + 230 * np.clip(shares, 0, 1)).round().astype(np.uint8)
    found = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    hexes = ["#" + colour.tobytes().hex() for colour in found]
    return np.where(np.isfinite(shares), hexes, GREY).tolist()
