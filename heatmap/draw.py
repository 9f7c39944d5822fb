"""Landmarks on images -> uint8 arrays.

Sizes follow the face, so a face looks alike in a small image and in a large one. Lines and dots are
antialiased, placed to 1/16 pixel, and have a dark rim that lifts them off bright skin.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, groupby

import cv2
import numpy as np

Colour = tuple[int, int, int]

# RGB, one a landmark group, bright on skin and on black
COLOURS: tuple[Colour, ...] = (
    (255, 214, 64), (255, 140, 60), (90, 220, 120), (60, 190, 230), (240, 120, 220),
    (120, 160, 255), (170, 110, 255), (255, 80, 80), (255, 255, 255),
)  # fmt: skip
TRUTH: Colour = (0, 255, 0)

_SUBPIXELS = 4  # fractional bits of a coordinate
_FARTHEST = 1e5  # px; what is farther off is in no image
_MOST_ELLIPSES = 100


def draw_landmarks(
    image: np.ndarray,
    points_image: np.ndarray,
    groups: Mapping[str, range],
    colour: Colour | None = None,
    *,
    curves: Sequence[Sequence[int]] = (),
    covariance_image: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with dots on the landmarks, coloured by group or in one colour.

    Dots that would run into their neighbours on a curve are left out.

    Args:
        image: (H, W, 3) uint8 RGB.
        points_image: (P, 2); NaN is not drawn.
        curves: landmarks that are joined by lines, in order; each curve lies in one group.
        covariance_image: (P, 2, 2) in square pixels, drawn as ellipses of one standard deviation;
            of many landmarks, round every few.
    """
    points = np.where(np.abs(points_image) < _FARTHEST, points_image, np.nan)
    colours = dict.fromkeys(range(len(points)), colour or COLOURS[0])
    if colour is None:
        for members, own in zip(groups.values(), cycle(COLOURS), strict=False):
            colours |= dict.fromkeys(members, own)
    runs = [run for curve in curves for run in _unbroken(curve, points)]
    visible = np.flatnonzero(np.isfinite(points).all(-1)).tolist()
    face = np.ptp(points[visible], axis=0).max() if visible else 0
    unit = max(1.0, min(max(image.shape[:2]), face) / 400)  # px; the width of a line
    radius = 1.5 * unit
    steps = [np.median(np.linalg.norm(np.diff(points[run], axis=0), axis=-1)) for run in runs]
    crowded = {k for run, step in zip(runs, steps, strict=True) if step < 3 * radius for k in run}
    dots = [k for k in visible if k not in crowded]

    rim = image.copy()
    for run in runs:
        _line(rim, points[run], (0, 0, 0), unit + 2 * max(1, unit / 2))
    for k in dots:
        _dot(rim, points[k], (0, 0, 0), radius + max(1, unit / 2))
    drawn = cv2.addWeighted(rim, 0.4, image, 0.6, 0)
    if covariance_image is not None:
        for k in range(0, len(points), -(-len(points) // _MOST_ELLIPSES)):
            _ellipse(drawn, points[k], covariance_image[k], colours[k], unit)
    for run in runs:
        _line(drawn, points[run], colours[run[0]], unit)
    for k in dots:
        _dot(drawn, points[k], colours[k], radius)
    return drawn


def _unbroken(curve: Sequence[int], points: np.ndarray) -> list[list[int]]:
    """The pieces of a curve between landmarks that are not drawn."""
    drawn = groupby(curve, lambda k: bool(np.isfinite(points[k]).all()))
    pieces = [list(piece) for is_drawn, piece in drawn if is_drawn]
    return [piece for piece in pieces if len(piece) > 1]


def _fixed(numbers: np.ndarray | float) -> np.ndarray:
    """As the integers that OpenCV takes for coordinates with a fraction."""
    return np.rint(np.asarray(numbers) * 2**_SUBPIXELS).astype(np.int32)


def _line(image: np.ndarray, points: np.ndarray, rgb: Colour, width: float) -> None:
    cv2.polylines(image, [_fixed(points)], False, rgb, round(width), cv2.LINE_AA, _SUBPIXELS)


def _dot(image: np.ndarray, point: np.ndarray, rgb: Colour, radius: float) -> None:
    centre, size = _fixed(point).tolist(), int(_fixed(radius))
    cv2.circle(image, centre, size, rgb, -1, cv2.LINE_AA, _SUBPIXELS)


def _ellipse(
    image: np.ndarray, point: np.ndarray, covariance: np.ndarray, rgb: Colour, width: float
) -> None:
    """One standard deviation round the point; nothing where the covariance is no ellipse."""
    if not (np.isfinite(point).all() and np.isfinite(covariance).all()):
        return
    variances, axes = np.linalg.eigh(covariance)
    if variances[0] <= 0 or variances[1] >= _FARTHEST**2:
        return
    along_x, along_y = axes[:, 1]
    cv2.ellipse(
        image, _fixed(point).tolist(), _fixed(np.sqrt(variances[::-1])).tolist(),
        float(np.degrees(np.arctan2(along_y, along_x))), 0, 360, rgb,
        max(1, round(width / 2)), cv2.LINE_AA, _SUBPIXELS,
    )  # fmt: skip


def sheet(images: Iterable[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """One image of many: rows of `columns`, each cell as large as the largest image."""
    tiles = list(images)
    height, width = np.max([tile.shape[:2] for tile in tiles], axis=0) + gap
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height - gap, columns * width - gap, 3), 24, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
