"""A canvas of floats, on which polygons and lines are painted without steps at their borders."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from heatmap.data.synthetic.face import Colour

Polygons = Sequence[np.ndarray]
Paint = Colour | np.ndarray  # RGB, or a whole (3, H, W) layer to show through


class Canvas:
    """An image to paint on.

    planes: (3, H, W) float32 RGB, 0 to 1. unit: canvas pixels per unit of the head frame.
    Polygons and lines are (N, 2) arrays in canvas pixels; widths and softness are in head units.
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
        soft: float = 0.0,
        inside: Polygons = (),
        line_width: float | None = None,
    ) -> None:
        """Paints the union of `polygons`, only where it lies `inside` other polygons if given.

        soft: standard deviation of the blurred border.
        line_width: paint the open lines, this wide, instead of what they enclose.
        """
        soft_px, line_px = soft * self.unit, None if line_width is None else line_width * self.unit
        margin = 2 + 3 * soft_px + (line_px or 0)
        corners = np.concatenate(polygons)
        low = np.maximum(corners.min(0) - margin, 0).astype(int)
        high = np.minimum(corners.max(0) + margin + 2, (self.width, self.height)).astype(int)
        if (high <= low).any():
            return
        cover = _cover(polygons, low, high, line_px, 1 if soft_px > 2 else 3)
        if soft_px > 0.3:
            cover = cv2.GaussianBlur(cover, (0, 0), soft_px)
        if inside:
            cover *= _cover(inside, low, high, None, 3)
        cover *= np.float32(opacity)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        for plane, paint in zip(self.planes, colour, strict=True):
            ground = plane[window]
            ground += cover * ((paint[window] if np.ndim(paint) else np.float32(paint)) - ground)

    def stroke(self, lines: Polygons, colour: Paint, width: float, **options: Any) -> None:
        """Paints open `lines`, all `width` wide; `options` are those of `fill`."""
        self.fill(lines, colour, line_width=width, **options)

    def noise(self, rng: np.random.Generator, cell: float) -> np.ndarray:
        """(H, W) float32 smooth noise, bumps `cell` head units apart."""
        return noise(rng, self.height, self.width, cell * self.unit)


def _cover(
    polygons: Polygons, low: np.ndarray, high: np.ndarray, line_px: float | None, finer: int
) -> np.ndarray:
    """(h, w) float32, the share of each pixel in the window from `low` to `high` that is covered.

    Counted on a finer grid: OpenCV's own antialiasing makes polygons 0.6 px too large.
    """
    width, height = high - low
    fine = np.zeros((height * finer, width * finer), np.uint8)
    corners = ((np.concatenate(polygons) - low + 0.5) * finer - 0.5) * 2**4
    ends = np.cumsum([len(polygon) for polygon in polygons[:-1]])
    fine_polygons = np.split(np.round(corners).astype(np.int32), ends)
    if line_px is None:
        for polygon in fine_polygons:  # one by one: together, overlaps would be holes
            cv2.fillPoly(fine, [polygon], 255, shift=4)
    else:
        cv2.polylines(fine, fine_polygons, False, 255, max(1, round(line_px * finer)), shift=4)
    cover = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    return cover * np.float32(1 / 255)


def noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> np.ndarray:
    """(height, width) float32 smooth noise of about unit deviation."""
    rows, columns = max(2, round(height / cell_px)), max(2, round(width / cell_px))
    coarse = rng.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def tinted(values: np.ndarray, colour: Colour | np.ndarray) -> np.ndarray:
    """(3, H, W) float32 layer of one colour, brighter and darker by (H, W) `values`."""
    return np.asarray(colour, np.float32)[:, None, None] * values
