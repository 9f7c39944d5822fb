"""How far heads are turned and tilted, told from their landmarks alone."""

import numpy as np

from heatmap import shape
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
    is_whole = np.zeros(len(found), bool)
    for some in shape.blocks(np.arange(len(found))):
        is_whole[some] = np.isfinite(points_image[some]).all((1, 2))
    whole = np.flatnonzero(is_whole)
    if len(whole) < 3:
        raise ValueError(
            f"{len(whole)} of {len(points_image)} faces have all their landmarks; their poses can "
            "be told of three at least"
        )
    shapes = shape.of(points_image[shape.sample(whole, MOST_FITTED)])
    mean = shape.mean_shape(shapes)
    rest = shape.real(shape.onto(shapes, mean) - mean)
    strengths, changes = np.linalg.eigh(rest.T @ rest)
    if strengths[-1] <= 1e-12 * len(rest):
        raise ValueError("all faces have the same shape, so there are no poses to tell apart")
    for some in shape.blocks(whole):
        lying = shape.onto(shape.of(points_image[some]), mean)
        found[some] = shape.real(lying - mean) @ changes[:, -1]
    return found


def rolls(points_image: np.ndarray | Points) -> np.ndarray:
    """(N,) float64: the tilt of every face in degrees, clockwise, against the mean of all.

    Args:
        points_image: (N, P, 2), in image pixels; faces with fewer than three landmarks get NaN.

    Raises:
        ValueError: no face has three landmarks.
    """
    rows = np.arange(len(points_image))
    mean = shape.mean_shape(shape.of(points_image[shape.sample(rows, MOST_FITTED)]))
    found = np.empty(len(rows))
    for some in shape.blocks(rows):
        factor, _ = shape.placement(shape.of(points_image[some]), mean)
        found[some] = -np.rad2deg(np.angle(factor[:, 0]))
    return found
