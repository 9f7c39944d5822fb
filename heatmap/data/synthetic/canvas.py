"""A float image to paint antialiased polygons and lines on."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from heatmap.data.synthetic.face import Colour

Polygons = Sequence[np.ndarray]
Paint = Colour | np.ndarray  # RGB, or a (3, H, W) layer painted through the shape


class Canvas:
    """An image to paint on.

    Polygons and lines are (N, 2) arrays in canvas pixels; widths and blurs are in head units.

    Attributes:
        planes: (3, H, W) float32 RGB, 0 to 1.
        unit: canvas pixels per unit of the head frame.
    """

    def __init__(self, height: int, width: int, unit: float) -> None:
        self.height, self.width, self.unit = height, width, unit
        self.planes = np.zeros((3, height, width), np.float32)

    def fill(
        self,
        polygons: Polygons,
        colour: Paint,
        *,
        opacity: float = 1.0,
        blur: float = 0.0,
        inside: Polygons = (),
        line_width: float | None = None,
    ) -> None:
        """Paints the union of `polygons`.

        Args:
            blur: standard deviation of the blurred edge.
            inside: polygons outside of which nothing is painted.
            line_width: width of open lines to paint instead of filled polygons.
        """
        blur_px, line_px = blur * self.unit, None if line_width is None else line_width * self.unit
        margin = 2 + 3 * blur_px + (line_px or 0)
        corners = np.concatenate(polygons)
        low = np.maximum(corners.min(0) - margin, 0).astype(int)
        high = np.minimum(corners.max(0) + margin + 2, (self.width, self.height)).astype(int)
        if (high <= low).any():
            return
        coverage = _coverage(polygons, low, high, line_px, 1 if blur_px > 2 else 3)
        if blur_px > 0.3:
            coverage = cv2.GaussianBlur(coverage, (0, 0), blur_px)
        if inside:
            coverage *= _coverage(inside, low, high, None, 3)
        coverage *= np.float32(opacity)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        for plane, paint in zip(self.planes, colour, strict=True):
            region = plane[window]
            region += coverage * ((paint[window] if np.ndim(paint) else np.float32(paint)) - region)

    def stroke(self, lines: Polygons, colour: Paint, width: float, **options: Any) -> None:
        """Paints open lines; `options` as in `fill`."""
        self.fill(lines, colour, line_width=width, **options)

    def noise(self, rng: np.random.Generator, cell: float) -> np.ndarray:
        """Returns (H, W) float32 smooth noise with bumps `cell` head units apart."""
        return noise(rng, self.height, self.width, cell * self.unit)


def _coverage(
    polygons: Polygons, low: np.ndarray, high: np.ndarray, line_px: float | None, scale: int
) -> np.ndarray:
    """(h, w) float32 covered share of each pixel in the window from `low` to `high`.

    Counted on a `scale` times finer grid: OpenCV's own antialiasing enlarges polygons by 0.6 px.
    """
    width, height = high - low
    fine = np.zeros((height * scale, width * scale), np.uint8)
    corners = ((np.concatenate(polygons) - low + 0.5) * scale - 0.5) * 2**4
    ends = np.cumsum([len(polygon) for polygon in polygons[:-1]])
    fine_polygons = np.split(np.round(corners).astype(np.int32), ends)
    if line_px is None:
        for polygon in fine_polygons:  # one by one, because fillPoly leaves overlaps unfilled
            cv2.fillPoly(fine, [polygon], 255, shift=4)
    else:
        cv2.polylines(fine, fine_polygons, False, 255, max(1, round(line_px * scale)), shift=4)
    coverage = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    return coverage * np.float32(1 / 255)


def noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> np.ndarray:
    """Returns (height, width) float32 smooth noise with a standard deviation of about 1."""
    rows, columns = max(2, round(height / cell_px)), max(2, round(width / cell_px))
    coarse = rng.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def tinted(brightness: np.ndarray, colour: Colour | np.ndarray) -> np.ndarray:
    """Returns a (3, H, W) float32 layer: the colour times (H, W) `brightness`."""
    return np.asarray(colour, np.float32)[:, None, None] * brightness
