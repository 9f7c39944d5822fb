"""Parts of a page that a browser shows from disk: tables, charts and pictures, all in one file.

Everything is a piece of HTML in a string. Charts are SVG that takes its colours from the page, so
that they follow the reader's light or dark screen; nothing is fetched and no script runs. What a
caller gives as text is escaped.
"""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np

WIDTH, HEIGHT = 420, 260  # of a chart, in its own units: about a pixel at 400 px screen width
RIGHT, TOP, BOTTOM = 12, 12, 40  # what is beside the plotted area; on the left are numbers
DIGIT = 7.5  # the width of a character
NUM_COLOURS = 6
JPEG_QUALITY = 85

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6570; --line: #d9dee3; --paper: #fff;
  --card: #f5f7f9; --c0: #0969b8; --c1: #d1570a; --c2: #1a7f4b; --c3: #a33b8f; --c4: #8a6d00;
  --c5: #6750c9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #a0abb6; --line: #363d45;
  --paper: #14171a; --card: #1d2126; --c0: #5aaef5; --c1: #ff9a57; --c2: #58cc8f; --c3: #ee8ede;
  --c4: #e3c34f; --c5: #ab9cff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
section > * + * { margin-top: 1rem; }
p { max-width: 46rem; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.4; margin-top: .4rem; }
.columns { display: grid; gap: 1.5rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.tiles { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.wide { overflow-x: auto; background:
  linear-gradient(to left, var(--paper) 50%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) top right / 1.5rem calc(100% - 1px)
  no-repeat; }
.dots { background: #14181c; border-radius: 4px; }
.dots text { fill: #cfd6dd; }
.dots circle, .dots line { fill: currentColor; stroke: currentColor; }
.scale { display: flex; gap: .5rem; font-size: .875rem; align-items: center; max-width: 30rem; }
.scale i { flex: 1; height: .7rem; border-radius: 2px; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top;
  overflow-wrap: break-word;
  border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img, svg { display: block; width: 100%; height: auto; border-radius: 4px; }
svg.chart { max-width: 30rem; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.marked { position: relative; }
.marked svg { position: absolute; inset: 0; height: 100%; fill: none; stroke-linecap: round; }
.grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .875rem; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .6rem;
  align-items: center; font-size: .9rem; }
.bar { height: .9rem; min-width: 1px; border-radius: 2px; background: var(--c0); }
""" + "".join(
    f".c{k} {{ stroke: var(--c{k}); fill: var(--c{k}); color: var(--c{k}); }}\n"
    for k in range(NUM_COLOURS)
)  # fmt: skip


class Series(NamedTuple):
    """What a chart shows under one name: y over x; where either is not finite the line is broken.

    style: a line, a dashed one (for what it is compared with), or a line with a dot on each value.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: Literal["line", "dashed", "dots"] = "line"


def page(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    """The whole file: a heading over the pieces of every section; the first heading may be ""."""
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{''.join(pieces)}</section>\n"
        for heading, pieces in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{_together(text)}</p>"


def figure(piece: str, caption: str) -> str:
    """The piece with one sentence on what is seen there."""
    return f"<figure>{piece}<figcaption>{_together(caption)}</figcaption></figure>"


def _together(text: str) -> str:
    """Escaped, with numbers kept on one line with their units."""
    return re.sub(r"(\d) (%|px|ms)", "\\1\N{NO-BREAK SPACE}\\2", escape(text))


def columns(*pieces: str) -> str:
    """The pieces beside each other, as many as the screen has room for."""
    return f'<div class="columns">{"".join(pieces)}</div>'


def tiles(*pieces: str) -> str:
    """As `columns`, for small pieces."""
    return f'<div class="tiles">{"".join(pieces)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in which every cell is a number, with or without a unit, are set to the right."""
    kinds = [
        ' class="number"' if all(_is_number(row[column]) for row in rows) else ""
        for column in range(len(header))
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        filled = (
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(filled)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", header)}{body}</table></div>'


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+−–]?(\d[\d.,e+-]*)?( ?(%|px²?|ms|s))?", cell) is not None


def bars(values: Mapping[str, float], unit: str = "") -> str:
    """A horizontal bar for every name, from zero; longer is more. NaN has no bar."""
    most = max((value for value in values.values() if math.isfinite(value)), default=0) or 1
    lines = (
        f'<span>{escape(name)}</span><div class="bar" style="width:{100 * value / most:.1f}%">'
        f'</div><span class="number">{three_digits(value)}{escape(unit)}</span>'
        if math.isfinite(value)
        else f'<span>{escape(name)}</span><div></div><span class="number">–</span>'
        for name, value in values.items()
    )
    return f'<div class="bars">{"".join(lines)}</div>'


def three_digits(value: float) -> str:
    """The number to three digits, without an exponent: 0.0123, 5.00, 21.0, 1,110; 0 is "0"."""
    digits, exponent = f"{value:.2e}".split("e")
    decimals = max(0, 2 - int(exponent))
    return f"{float(f'{digits}e{exponent}'):,.{decimals}f}" if value else "0"


def picture(image: np.ndarray | bytes, alt: str) -> str:
    """A picture inside the page.

    Args:
        image: (H, W, 3) uint8 RGB, which becomes a JPEG; or the bytes of a PNG or JPEG file.
        alt: what is seen, for those who cannot see it.
    """
    if isinstance(image, np.ndarray):
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        image = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(image).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{escape(alt)}">'


def marked_picture(image: np.ndarray, alt: str, truth: np.ndarray, predicted: np.ndarray) -> str:
    """The picture with true points in green, predicted ones in orange, and lines between the two.

    Args:
        image: (H, W, 3) uint8 RGB; truth, predicted: (P, 2) in its pixels; NaN is not drawn.
    """
    height, width = image.shape[:2]
    size = min(6.0, max(2.5, 50 / math.sqrt(len(truth)))) * max(height, width) / 320
    both = np.isfinite(truth).all(1) & np.isfinite(predicted).all(1)
    lines = "".join(
        f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"
        for (x, y), (to_x, to_y) in zip(truth[both], predicted[both], strict=True)
    )
    marks = f'<path d="{lines}" stroke="#fff" stroke-width="{size / 3:.1f}"/>'
    for points, colour in ((truth, "#2ee66b"), (predicted, "#ff8c1a")):
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points[np.isfinite(points).all(1)])
        marks += f'<path d="{dots}" stroke="{colour}" stroke-width="{size:.1f}"/>'
    return (
        f'<div class="marked">{picture(image, alt)}'
        f'<svg viewBox="-0.5 -0.5 {width} {height}" aria-hidden="true">{marks}</svg></div>'
    )


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    y_ends: tuple[float, float] | None = None,
) -> str:
    """Curves over common axes, with their names below if there are several.

    Args:
        log_y: steps of equal factors are equally far apart; what is not positive is left out.
        y_ends: what the y axis reaches at least, if not only what is drawn.
    """
    points = [_finite(one, log_y) for one in series]
    everything = np.concatenate([*points, np.empty((0, 2))])
    everything = everything[np.isfinite(everything).all(1)]
    if len(everything) == 0:
        return paragraph("There is nothing to draw.")
    (x_low, y_low), (x_high, y_high) = everything.min(0), everything.max(0)
    if y_ends is not None:
        y_low, y_high = min(y_low, y_ends[0]), max(y_high, y_ends[1])
    whole_numbers = bool((everything[:, 0] % 1 == 0).all())
    x_ticks = _ticks(x_low, x_high, 1 if whole_numbers else 0)
    y_ticks = _log_ticks(y_low, y_high) if log_y else _ticks(y_low, y_high)
    x_low, x_high = min(x_low, x_ticks[0]), max(x_high, x_ticks[-1])
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    left = max(46, 26 + DIGIT * max(len(_told(y)) for y in y_ticks))

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT)

    def down(y: float) -> float:
        if log_y:
            share = math.log(y / y_low) / math.log(y_high / y_low)
        else:
            share = (y - y_low) / (y_high - y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" '
        f'y2="{down(y):.1f}"/><text x="{left - 6:.1f}" y="{down(y) + 4:.1f}" text-anchor="end">'
        f"{_told(y)}</text>"
        for y in y_ticks
    ]
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
        f"{_told(x)}</text>"
        for x in x_ticks
    ]
    parts.append(
        f'<text x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f'{escape(x_label)}</text><text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for number, (one, curve) in enumerate(zip(series, points, strict=True)):
        colour = f"c{number % NUM_COLOURS}"
        dashes = ' stroke-dasharray="6 4"' if one.style == "dashed" else ""
        path = " ".join(
            f"{'M' if starts else 'L'}{across(x):.1f} {down(y):.1f}"
            for starts, x, y in _strokes(curve)
        )
        parts.append(f'<path class="curve {colour}" style="fill:none" d="{path}"{dashes}/>')
        if one.style == "dots":
            parts += [
                f'<circle class="{colour}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5">'
                f"<title>{_told(x)}: {_told(y)}</title></circle>"
                for x, y in curve[np.isfinite(curve).all(1)].tolist()
            ]
    described = escape(f"{y_label} over {x_label}: {', '.join(one.name for one in series)}")
    chart = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">'
        f"{''.join(parts)}</svg>"
    )
    if len(series) == 1:
        return chart
    names = (
        f'<span><b class="c{number % NUM_COLOURS}">{"╌╌" if one.style == "dashed" else "━━"}</b> '
        f"{escape(one.name)}</span>"
        for number, one in enumerate(series)
    )
    return f'{chart}<div class="legend">{"".join(names)}</div>'


def dot_chart(
    points: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
    *,
    most: float,
    unit: str = "",
    arrows: np.ndarray | None = None,
) -> str:
    """Points where they lie, coloured by their values from 0 (dim) to `most` (bright).

    A pointer on a dot shows its name and value. Points without a value are grey.

    Args:
        points: (P, 2), x to the right and y downwards; NaN is not drawn.
        values: (P,), NaN for none.
        arrows: (P, 2), drawn from the points, the longest as an eighth of the picture's width.
    """
    there = np.isfinite(points).all(1)
    points, values = points[there], values[there]
    names = [name for name, drawn in zip(names, there, strict=True) if drawn]
    low, high = points.min(0), points.max(0)
    scale = (WIDTH - 60) / max(*(high - low), 1e-9)
    (x_middle, _), height = (low + high) / 2, 60 + scale * (high - low)[1]
    xs = WIDTH / 2 + scale * (points[:, 0] - x_middle)
    ys = 30 + scale * (points[:, 1] - low[1])
    radius = min(8.0, max(2.4, 60 / math.sqrt(len(points))))
    colours = _colours(values / most if most > 0 else 0 * values)
    parts = []
    if arrows is not None:
        arrows = np.nan_to_num(arrows[there])
        longest = np.linalg.norm(arrows, axis=1).max()
        ends = arrows * (WIDTH / 8 / longest if longest > 0 else 0)
        parts = [
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x + dx:.1f}" y2="{y + dy:.1f}" '
            f'stroke-width="{radius / 2:.1f}" color="#cfd6dd"/>'
            for x, y, (dx, dy) in zip(xs, ys, ends, strict=True)
        ]
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" color="{colour}">'
        f"<title>{escape(name)}: "
        f"{three_digits(value) + unit if math.isfinite(value) else '–'}</title></circle>"
        for x, y, colour, name, value in zip(xs, ys, colours, names, values, strict=True)
    ]
    return (
        f'<svg class="chart dots" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{len(points)} points coloured by value">{"".join(parts)}</svg>'
    )


def colour_scale(most: float, unit: str = "") -> str:
    """What the colours of `dot_chart` mean."""
    stops = ",".join(_colours(np.linspace(0, 1, 9)))
    return (
        f'<div class="scale"><span>0{escape(unit)}</span>'
        f'<i style="background:linear-gradient(to right,{stops})"></i>'
        f"<span>{three_digits(most)}{escape(unit)}</span></div>"
    )


def _colours(shares: np.ndarray) -> list[str]:
    """Of 0 to 1 the colours of viridis without its darkest tenth; grey for NaN."""
    levels = np.nan_to_num(25 + 230 * np.clip(shares, 0, 1)).round().astype(np.uint8)
    found = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].tolist()
    return [
        "#" + "".join(f"{part:02x}" for part in rgb) if math.isfinite(share) else "#666666"
        for rgb, share in zip(found, shares.tolist(), strict=True)
    ]


def _finite(series: Series, positive: bool) -> np.ndarray:
    """(N, 2) float64 x and y, both NaN where there is nothing to draw."""
    points = np.stack([np.asarray(series.x, float), np.asarray(series.y, float)], 1)
    drawn = np.isfinite(points).all(1) & (~positive | (points[:, 1] > 0))
    return np.where(drawn[:, None], points, np.nan)


def _strokes(curve: np.ndarray) -> list[tuple[bool, float, float]]:
    """The points that there are, and whether each starts a new stroke."""
    there = np.isfinite(curve).all(1)
    starts = there & ~np.concatenate([[False], there[:-1]])
    return [
        (start, x, y)
        for start, (x, y) in zip(starts[there].tolist(), curve[there].tolist(), strict=True)
    ]


def _ticks(low: float, high: float, finest: float = 0) -> list[float]:
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


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten round what is shown; powers of ten alone where it is wide.

    Where all values are alike they go from half of it to twice that.
    """
    if _alike(low, high):
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    candidates = [factor * 10.0**power for power in powers for factor in factors]
    inside = [a for a, b in pairwise([*candidates, math.inf]) if b > low and a < high]
    above = next((tick for tick in candidates if tick >= high), candidates[-1])
    return sorted({*inside, above})


def _alike(low: float, high: float) -> bool:
    """Too near each other for ticks between them to be told apart."""
    return high - low <= 1e-4 * max(abs(low), abs(high))


def _told(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
