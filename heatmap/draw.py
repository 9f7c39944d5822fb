"""Landmarks on pictures -> uint8 arrays; knows neither screens nor files."""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

# RGB, one a landmark group, bright on skin and on black
COLOURS = (
    (255, 214, 64), (255, 140, 60), (90, 220, 120), (60, 190, 230), (240, 120, 220),
    (120, 160, 255), (170, 110, 255), (255, 80, 80), (255, 255, 255),
)  # fmt: skip
TRUTH = (0, 255, 0)


def draw_landmarks(
    image: np.ndarray,
    points_image: np.ndarray,
    groups: Mapping[str, range],
    colour: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """A copy of the picture with a dot on every landmark, coloured by group or in one colour.

    Args:
        image: (H, W, 3) uint8 RGB; points_image: (P, 2), NaN is not drawn.
    """
    drawn = image.copy()
    radius = max(1.0, max(image.shape[:2]) / 400)
    for index, members in enumerate(groups.values()):
        rgb = colour or COLOURS[index % len(COLOURS)]
        for x, y in points_image[members.start : members.stop]:
            if np.isfinite(x) and np.isfinite(y):
                centre = round(x * 16), round(y * 16)  # 4 fractional bits
                cv2.circle(drawn, centre, round(radius * 16), rgb, -1, cv2.LINE_AA, 4)
    return drawn


def sheet(images: Iterable[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """One picture of many: rows of `columns`, each cell as large as the largest picture."""
    tiles: Sequence[np.ndarray] = list(images)
    height = max(tile.shape[0] for tile in tiles) + gap
    width = max(tile.shape[1] for tile in tiles) + gap
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height - gap, columns * width - gap, 3), 24, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
