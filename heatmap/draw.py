"""Draws landmarks on images.

Sizes scale with the face, so that small and large images look alike. Lines and dots are
antialiased, placed to 1/16 pixel, and have a dark rim to stand out from bright skin.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, groupby

import cv2
import numpy as np
from numpy import ndarray

Colour = tuple[int, int, int]

# RGB, one per landmark group, bright on skin and on black
COLOURS: tuple[Colour, ...] = (
    (255, 214, 64), (255, 140, 60), (90, 220, 120), (60, 190, 230), (240, 120, 220),
    (120, 160, 255), (170, 110, 255), (255, 80, 80), (255, 255, 255),
)  # fmt: skip
TRUTH: Colour = (0, 255, 0)

_SUBPIXELS = 4  # fractional bits of a coordinate
_FARTHEST = 1e5  # px; landmarks farther away are outside every image
_MAX_ELLIPSES = 100


def draw_landmarks(
    image: ndarray,
    points_image: ndarray,
    groups: Mapping[str, range],
    colour: Colour | None = None,
    *,
    curves: Sequence[Sequence[int]] = (),
    covariance_image: ndarray | None = None,
) -> ndarray:
    """Returns a copy of the image with dots on the landmarks.

    Dots that would overlap their neighbours on a curve are left out.

    Args:
        image: (H, W, 3) uint8 RGB.
        points_image: (P, 2); NaN is not drawn.
        groups: landmark groups, each drawn in its own colour unless `colour` is given.
        curves: landmarks to join by lines, in order; each curve lies in one group.
        covariance_image: (P, 2, 2) in square pixels, drawn as ellipses of one standard deviation,
            of at most 100 landmarks.
    """
    points = np.where(np.abs(points_image) < _FARTHEST, points_image, np.nan)
    colours = dict.fromkeys(range(len(points)), colour or COLOURS[0])
    if colour is None:
        for members, group_colour in zip(groups.values(), cycle(COLOURS), strict=False):
            colours |= dict.fromkeys(members, group_colour)
    lines = [line for curve in curves for line in _visible_pieces(curve, points)]
    visible = np.flatnonzero(np.isfinite(points).all(-1)).tolist()
    face_size = np.ptp(points[visible], axis=0).max() if visible else 0
    unit = max(1.0, min(max(image.shape[:2]), face_size) / 400)  # px; the width of a line
    radius = 1.5 * unit
    steps = [np.median(np.linalg.norm(np.diff(points[line], axis=0), axis=-1)) for line in lines]
    crowded = {
        k for line, step in zip(lines, steps, strict=True) if step < 3 * radius for k in line
    }
    dots = [k for k in visible if k not in crowded]

    rim = image.copy()
    for line in lines:
        _line(rim, points[line], (0, 0, 0), unit + 2 * max(1, unit / 2))
    for k in dots:
        _dot(rim, points[k], (0, 0, 0), radius + max(1, unit / 2))
    drawn = cv2.addWeighted(rim, 0.4, image, 0.6, 0)
    if covariance_image is not None:
        for k in range(0, len(points), -(-len(points) // _MAX_ELLIPSES)):
            _ellipse(drawn, points[k], covariance_image[k], colours[k], unit)
    for line in lines:
        _line(drawn, points[line], colours[line[0]], unit)
    for k in dots:
        _dot(drawn, points[k], colours[k], radius)
    return drawn


def _visible_pieces(curve: Sequence[int], points: ndarray) -> list[list[int]]:
    """The curve, cut at landmarks that are not drawn."""
    runs = groupby(curve, lambda k: bool(np.isfinite(points[k]).all()))
    pieces = [list(piece) for is_visible, piece in runs if is_visible]
    return [piece for piece in pieces if len(piece) > 1]


def _fixed(numbers: ndarray | float) -> ndarray:
    """Fixed-point integers, as OpenCV takes subpixel coordinates."""
    return np.rint(np.asarray(numbers) * 2**_SUBPIXELS).astype(np.int32)


def _line(image: ndarray, points: ndarray, rgb: Colour, width: float) -> None:
    cv2.polylines(image, [_fixed(points)], False, rgb, round(width), cv2.LINE_AA, _SUBPIXELS)


def _dot(image: ndarray, point: ndarray, rgb: Colour, radius: float) -> None:
    centre, size = _fixed(point).tolist(), int(_fixed(radius))
    cv2.circle(image, centre, size, rgb, -1, cv2.LINE_AA, _SUBPIXELS)


def _ellipse(image: ndarray, point: ndarray, covariance: ndarray, rgb: Colour, unit: float) -> None:
    """Draws one standard deviation around the point, if the covariance is positive definite."""
    if not (np.isfinite(point).all() and np.isfinite(covariance).all()):
        return
    variances, ((_, x), (_, y)) = np.linalg.eigh(covariance)
    if variances[0] <= 0 or variances[1] >= _FARTHEST**2:
        return
    cv2.ellipse(
        image, _fixed(point).tolist(), _fixed(np.sqrt(variances[::-1])).tolist(),
        float(np.degrees(np.arctan2(y, x))), 0, 360, rgb,
        max(1, round(unit / 2)), cv2.LINE_AA, _SUBPIXELS,
    )  # fmt: skip


def sheet(images: Iterable[ndarray], columns: int, gap: int = 4) -> ndarray:
    """Returns the images in a grid of `columns`, its cells as large as the largest image."""
    tiles = list(images)
    height, width = np.max([tile.shape[:2] for tile in tiles], axis=0) + gap
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height - gap, columns * width - gap, 3), 24, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
