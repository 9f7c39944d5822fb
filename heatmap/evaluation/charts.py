"""Chart geometry: turns numbers into coordinates, paths and labels for the templates to draw.

Lengths are in a chart's own units, about one pixel each; y points down, as in SVG.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

WIDTH, HEIGHT = 420, 260
RIGHT, TOP, BOTTOM = 12, 12, 40  # margins of a line chart; the left one depends on its labels
DIGIT = 7.5  # width of a character
GREY = "#666666"


class Series(NamedTuple):
    """A curve of y over x, broken where either is not finite; "dots" also marks each value."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: Literal["line", "dashed", "dots"] = "line"


class Curve(NamedTuple):
    """A series as drawn in a chart."""

    name: str
    style: str
    path: str  # SVG path data
    dots: list[tuple[float, float, str]]  # x, y, text


class LineChart(NamedTuple):
    """Curves over common axes; a tick is its position and its text."""

    x_label: str
    y_label: str
    left: float  # margin
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]


class Axis(NamedTuple):
    """Maps values linearly, or by their logarithms, from `limits` to the positions `ends`."""

    limits: tuple[float, float]
    ends: tuple[float, float]
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        limits = np.array(self.limits)
        if self.log:
            values, limits = np.log(values), np.log(limits)
        return np.asarray(np.interp(values, limits, self.ends))

    def marks(self, ticks: Sequence[float]) -> list[tuple[float, str]]:
        return [(float(self(np.array(tick))), _format_tick(tick)) for tick in ticks]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    y_ends: tuple[float, float] | None = None,
) -> LineChart | None:
    """Draws the series in one chart; returns None if there is no value to draw.

    Args:
        log_y: makes the y axis logarithmic and leaves out values that are not positive.
        y_ends: values that the y axis always shows.
    """
    curves = [_drawable_points(one, log_y) for one in series]
    values = np.concatenate(curves)
    values = values[np.isfinite(values[:, 0])]
    if len(values) == 0:
        return None
    (x_low, y_low), (x_high, y_high) = values.min(0), values.max(0)
    if y_ends is not None:
        y_low, y_high = min(y_low, y_ends[0]), max(y_high, y_ends[1])
    x_ticks = ticks(x_low, x_high, finest=int((values[:, 0] % 1 == 0).all()))
    y_ticks = log_ticks(y_low, y_high) if log_y else ticks(y_low, y_high)
    left = max(46, 26 + DIGIT * max(len(_format_tick(y)) for y in y_ticks))
    x_limits = min(x_low, x_ticks[0]), max(x_high, x_ticks[-1])
    y_limits = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])
    x_axis = Axis(x_limits, (left, WIDTH - RIGHT))
    y_axis = Axis(y_limits, (HEIGHT - BOTTOM, TOP), log_y)
    drawn = [
        _curve(one, points, np.stack([x_axis(points[:, 0]), y_axis(points[:, 1])], 1))
        for one, points in zip(series, curves, strict=True)
    ]
    return LineChart(x_label, y_label, left, x_axis.marks(x_ticks), y_axis.marks(y_ticks), drawn)


def _drawable_points(series: Series, log_y: bool) -> np.ndarray:
    """(N, 2) points, NaN where there is nothing to draw."""
    points = np.stack([np.asarray(series.x, float), np.asarray(series.y, float)], 1)
    is_drawable = np.isfinite(points).all(1) & (points[:, 1] > (0 if log_y else -np.inf))
    return np.where(is_drawable[:, None], points, np.nan)


def _curve(series: Series, points: np.ndarray, positions: np.ndarray) -> Curve:
    """Draws (N, 2) points at their (N, 2) positions in the chart."""
    steps, dots, pen = [], [], "M"
    for (x, y), (value_x, value_y) in zip(positions.tolist(), points.tolist(), strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
        if series.style == "dots":
            dots.append((x, y, f"{_format_tick(value_x)}: {_format_tick(value_y)}"))
    return Curve(series.name, series.style, " ".join(steps), dots)


def ticks(low: float, high: float, finest: float = 0) -> list[float]:
    """Round numbers in four to eight steps of at least `finest` that enclose the range.

    If all values are equal, the ticks go from zero to a little beyond.
    """
    if _is_narrow(low, high):
        low, high = (min(0.0, 1.25 * low), max(0.0, 1.25 * high)) if low else (0.0, 1.0)
    wanted = max((high - low) / 5, finest, 1e-300)
    magnitude = 10 ** math.floor(math.log10(wanted))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose the range, or just powers of ten if it is wide.

    If all values are equal, the ticks go from half the value to twice the value.
    """
    if _is_narrow(low, high):
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    candidates = [factor * 10.0**power for power in powers for factor in factors]
    first = max(0, bisect_right(candidates, low) - 1)
    return candidates[first : bisect_left(candidates, high) + 1]


def _is_narrow(low: float, high: float) -> bool:
    """Whether ticks between the two would read the same."""
    return high - low <= 1e-4 * max(abs(low), abs(high))


def _format_tick(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


class Bar(NamedTuple):
    name: str
    percent: float | None  # of the longest bar
    text: str


def bars(values: Mapping[str, float | None], unit: str = "") -> list[Bar]:
    """A horizontal bar from zero for every name; None and NaN get no bar."""
    known = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
    longest = max(known.values(), default=0) or 1
    drawn = {k: Bar(k, 100 * v / longest, three_digits(v) + unit) for k, v in known.items()}
    return [drawn.get(name, Bar(name, None, "–")) for name in values]


def three_digits(value: float) -> str:
    """Formats to three significant digits, no exponent: 0.0123, 5.00, 21.0, 1,110; zero is "0"."""
    rounded = f"{value:.2e}"
    decimals = max(0, 2 - int(rounded.partition("e")[2]))
    return f"{float(rounded):,.{decimals}f}" if value else "0"


class Dot(NamedTuple):
    x: float
    y: float
    arrow: tuple[float, float] | None  # from the dot
    colour: str
    text: str


class DotChart(NamedTuple):
    height: float
    radius: float  # of a dot
    dots: list[Dot]
    colours: list[str]  # of the scale from 0 to `highest`
    highest: str


def dot_chart(
    points: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
    *,
    highest: float,
    arrows: np.ndarray | None = None,
) -> DotChart:
    """Draws P dots coloured by value in px, from 0 (dim) to `highest` (bright); NaN is grey.

    Args:
        points: (P, 2), y down; NaN is not drawn.
        values: (P,).
        arrows: (P, 2) offsets, scaled so that the longest spans an eighth of the chart's width.
    """
    drawn = np.flatnonzero(np.isfinite(points).all(1))
    low, high = points[drawn].min(0), points[drawn].max(0)
    scale = (WIDTH - 60) / max(*(high - low), 1e-9)
    positions = scale * (points - [(low + high)[0] / 2, low[1]]) + [WIDTH / 2, 30]
    offsets: list[tuple[float, float] | None] = [None] * len(points)
    if arrows is not None:
        arrows = np.nan_to_num(arrows)
        longest = np.linalg.norm(arrows[drawn], axis=1).max()
        offsets = [*map(tuple, arrows * (WIDTH / 8 / longest if longest > 0 else 0))]
    colours = _viridis(values / highest if highest > 0 else 0 * values)
    dots = []
    for k in drawn.tolist():
        text = f"{three_digits(values[k])} px" if math.isfinite(values[k]) else "–"
        x, y = positions[k]
        dots.append(Dot(x, y, offsets[k], colours[k], f"{names[k]}: {text}"))
    height, radius = 60 + scale * (high - low)[1], min(8.0, max(2.4, 60 / math.sqrt(len(drawn))))
    return DotChart(height, radius, dots, _viridis(np.linspace(0, 1, 9)), three_digits(highest))


def _viridis(shares: np.ndarray) -> list[str]:
    """Colours of viridis for 0 to 1, without its darkest tenth; grey for NaN."""
    levels = np.nan_to_num(25 + 230 * np.clip(shares, 0, 1)).round().astype(np.uint8)
    colours = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    hexes = ["#" + colour.tobytes().hex() for colour in colours]
    return np.where(np.isfinite(shares), hexes, GREY).tolist()
