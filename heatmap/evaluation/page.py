"""Self-contained HTML pages from the templates in this folder: no script, nothing to fetch."""

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from heatmap.evaluation import charts

JPEG_QUALITY = 85


def render(template: str, **values: Any) -> str:
    """Fills in a template; text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    for size in ("WIDTH", "HEIGHT", "RIGHT", "TOP", "BOTTOM"):
        environment.globals[size] = getattr(charts, size)
    environment.filters |= {"fixed": fixed, "three_digits": charts.three_digits, "units": _units}
    return environment.get_template(template).render(values)


def fixed(value: float | None, decimals: int, unit: str = "") -> str:
    """Formats a number with its unit on the same line; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{decimals}f}" + unit.replace(" ", "\N{NO-BREAK SPACE}")


def _units(text: str) -> Markup:
    """Keeps numbers on one line with their units."""
    return Markup(re.sub(r"(\d) (%|px|ms)", "\\1\N{NO-BREAK SPACE}\\2", str(escape(text))))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A table for the templates; columns of numbers, with or without units, align right."""
    number = re.compile(r"([-+−–]?(\d[\d.,e+-]*)?( ?(%|px²?|ms|s))?)")
    is_number = [all(map(number.fullmatch, column)) for column in zip(*rows, strict=True)]
    return {"header": header, "rows": rows, "is_number": is_number}


def jpeg(image: np.ndarray) -> str:
    """Encodes a (H, W, 3) uint8 RGB image as a data URL."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def marked_image(
    image: np.ndarray, alt: str, truth: np.ndarray, predicted: np.ndarray
) -> dict[str, Any]:
    """An image for the templates, with true and predicted points and lines between the two.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth, predicted: (P, 2) in its pixels; NaN is not drawn.
    """
    height, width = image.shape[:2]
    has_both = np.isfinite(truth).all(1) & np.isfinite(predicted).all(1)
    lines = np.concatenate([truth, predicted], 1)[has_both].tolist()
    return {
        "source": jpeg(image),
        "alt": alt,
        "width": width,
        "height": height,
        "dot": min(6.0, max(2.5, 50 / math.sqrt(len(truth)))) * max(height, width) / 320,
        "errors": "".join(f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" for x, y, to_x, to_y in lines),
        "truth": _dots(truth),
        "predicted": _dots(predicted),
    }


def _dots(points: np.ndarray) -> str:
    known = points[np.isfinite(points).all(1)].tolist()
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in known)
