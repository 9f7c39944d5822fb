"""How far heads are turned, told from their landmarks alone."""

import math

import numpy as np

from heatmap.contest import Points

MOST_FITTED = 10_000


def turns(points_image: np.ndarray | Points) -> np.ndarray:
    """(N,) float64: the turn of every head against the mean of all, about -0.5 to 0.5.

    Faces are moved, scaled to unit size (the root of the summed squared distances from the middle)
    and rotated onto their mean (Procrustes analysis); the turn is a face's share of the strongest
    change of shape that is left, their first principal component. In photographs of people that is
    the turn to the side. Which side is positive is not known.

    Args:
        points_image: (N, P, 2), in image pixels; faces with an unlabelled landmark get NaN.

    Raises:
        ValueError: fewer than three faces have all their landmarks, or all of them are alike.

    Source: Gower 1975, "Generalized Procrustes analysis",
    https://doi.org/10.1007/BF02291478.
    """
    found = np.full(len(points_image), np.nan)
    is_whole = [
        np.isfinite(points_image[some]).all((1, 2)) for some in _blocks(np.arange(len(found)))
    ]
    whole = np.flatnonzero(np.concatenate(is_whole))
    if len(whole) < 3:
        raise ValueError(
            f"{len(whole)} of {len(points_image)} faces have all their landmarks; their poses can "
            "be told of three at least"
        )
    fitted = whole[np.linspace(0, len(whole) - 1, min(len(whole), MOST_FITTED)).astype(int)]
    shapes = _unit_shapes(points_image[fitted])
    mean = shapes[0]
    for _ in range(5):
        mean = _rotated(shapes, mean).mean(0)
        mean /= np.linalg.norm(mean)
    rest = _real(_rotated(shapes, mean) - mean)
    strengths, changes = np.linalg.eigh(rest.T @ rest)
    if strengths[-1] <= 1e-12 * len(rest):
        raise ValueError("all faces have the same shape, so there are no poses to tell apart")
    for some in _blocks(whole):
        shape = _rotated(_unit_shapes(points_image[some]), mean)
        found[some] = _real(shape - mean) @ changes[:, -1]
    return found


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, math.ceil(len(rows) / MOST_FITTED)))


def _unit_shapes(points: np.ndarray) -> np.ndarray:
    """(N, P) complex x + iy, about the middle and of unit size."""
    shapes = points[..., 0].astype(np.float64) + 1j * points[..., 1]
    shapes -= shapes.mean(1, keepdims=True)
    return shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-12)


def _rotated(shapes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The shapes, each turned to lie on the mean as well as it can."""
    return shapes * np.exp(-1j * np.angle(shapes @ mean.conj()))[:, None]


def _real(shapes: np.ndarray) -> np.ndarray:
    return np.concatenate([shapes.real, shapes.imag], 1)
