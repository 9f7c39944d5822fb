"""Shapes: landmarks free of place, size and tilt, and a linear model of how they vary.

A shape is a row of P complex numbers x + iy, NaN where a landmark is unlabelled. In complex numbers
a similarity is one product and one sum: a face lies on a shape as `factor * face + offset`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from heatmap.errors import UserError

BLOCK = 1_000  # faces that are worked on together
MOST_POSED = 10_000  # faces that the mean pose is of
MOST_FITTED = 4_000  # faces; more make a model slower and no better
FAR = 3.0  # usual deviations; what is further off counts as if it were this far


class AnyPoints(Protocol):
    """(N, P, 2) points: an array, or a table of which an index gives an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def of(points: AnyPoints) -> np.ndarray:
    """(N, P) complex128 of (N, P, 2) points in any frame."""
    return points[..., 0].astype(np.float64) + 1j * points[..., 1]


def points(shapes: np.ndarray) -> np.ndarray:
    """(..., P, 2) float64 of (..., P) shapes."""
    return np.stack([shapes.real, shapes.imag], -1)


def real(shapes: np.ndarray) -> np.ndarray:
    """(..., 2P) float64 of (..., P) shapes: all x, then all y."""
    return np.concatenate([shapes.real, shapes.imag], -1)


def from_real(reals: np.ndarray) -> np.ndarray:
    """(..., P) shapes of (..., 2P), as `real` orders them."""
    x, y = np.split(reals, 2, -1)
    return x + 1j * y


def face_size(shapes: np.ndarray) -> np.ndarray:
    """(...) the square root of the area of the box round the labelled landmarks."""
    x, y = (np.nanmax(part, -1) - np.nanmin(part, -1) for part in (shapes.real, shapes.imag))
    return np.sqrt(x * y)


def sample(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, `BLOCK` at a time, so that what is computed of them fits into memory."""
    for begin in range(0, len(rows), BLOCK):
        yield rows[begin : begin + BLOCK]


def placement(shapes: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity that lays every shape onto the mean: `factor * shape + offset`.

    A shape gets the middle and the size (root of the summed squares) of the mean's landmarks that
    it has, then the best turn (Procrustes analysis).

    Args:
        shapes: (N, P); mean: (P,), or (N, P) for one of each shape's own.

    Returns:
        (N, 1) complex factors and offsets; NaN where fewer than three landmarks are labelled.
    """
    common = np.isfinite(shapes) & np.isfinite(mean)
    count = common.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.where(count >= 3, count, np.nan)
        own, other = np.where(common, shapes, 0), np.where(common, mean, 0)
        own_middle, other_middle = (part.sum(1, keepdims=True) / count for part in (own, other))
        own -= np.where(common, own_middle, 0)
        other -= np.where(common, other_middle, 0)
        turn = np.angle((own * other.conj()).sum(1, keepdims=True))
        size = np.linalg.norm(other, axis=1) / np.maximum(np.linalg.norm(own, axis=1), 1e-12)
        factor = np.where(count >= 3, size[:, None] * np.exp(-1j * turn), np.nan)
        return factor, other_middle - factor * own_middle


def onto(shapes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(N, P) the shapes, each laid onto the mean by its `placement`."""
    factor, offset = placement(shapes, mean)
    return factor * shapes + offset


def mean_shape(shapes: np.ndarray) -> np.ndarray:
    """(P,) complex mean of (N, P) shapes, about its middle, of unit size, upright as they are.

    Shapes far from the mean count for less. A landmark that no shape has is NaN.

    Raises:
        UserError: no shape has three labelled landmarks.

    Source: Gower 1975, "Generalized Procrustes analysis", https://doi.org/10.1007/BF02291478.
    """
    labelled = np.isfinite(shapes).sum(1)
    if labelled.max(initial=0) < 3:
        raise UserError("no face has three labelled landmarks, so there is no mean shape")
    mean = _unit(shapes[labelled.argmax()])
    for _ in range(6):
        lying = onto(shapes, mean)
        distance = distances(lying, mean)
        far = FAR * max(np.nanmedian(distance), 1e-12)
        weight = np.nan_to_num(np.minimum(1, far / np.maximum(distance, 1e-12)) ** 2)
        has = np.isfinite(lying)
        total = (weight[:, None] * has).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = _unit((weight[:, None] * np.where(has, lying, 0)).sum(0) / total)
    factor, _ = placement(shapes, mean)
    usual_turn = np.angle(np.exp(1j * np.angle(factor[np.isfinite(factor)])).sum())
    return mean * np.exp(-1j * usual_turn)


def _unit(shape: np.ndarray) -> np.ndarray:
    shape = shape - np.nanmean(shape)
    return shape / max(np.sqrt(np.nansum(np.abs(shape) ** 2)), 1e-12)


def nanmean(values: np.ndarray, axis: int | None) -> np.ndarray:
    """The mean of the finite values, in double precision; NaN, without a warning, where none is."""
    has = np.isfinite(values)
    count = has.sum(axis)
    total = np.where(has, values, 0).sum(axis, dtype=np.result_type(values, np.float64))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def distances(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) root mean square distance between landmarks that both have; NaN where there are none."""
    return np.sqrt(nanmean(np.abs(shapes - others) ** 2, -1))


class Seen(NamedTuple):
    """N faces as a model explains them, in the model's frame.

    lying: (N, P) complex, the faces laid onto what explains them, NaN where unlabelled. explained:
    (N, P) complex, the model's face for each, also where it is unlabelled. coefficients: (N, K) of
    the changes, in standard deviations.
    """

    lying: np.ndarray
    explained: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True)
class ShapeModel:
    """A Gaussian of aligned shapes: a mean, a few changes of it, and noise of every landmark.

    mean: (P,) complex, of unit size, upright. changes: (K, 2P) orthonormal, the strongest first, as
    `real` orders them. spread: (K,) standard deviations along them. noise: (P,) standard deviation,
    along one axis, of a landmark from what the changes explain.
    """

    mean: np.ndarray
    changes: np.ndarray
    spread: np.ndarray
    noise: np.ndarray

    def see(self, shapes: np.ndarray) -> Seen:
        """The faces as the model explains them; a landmark far off pulls no more than a near one.

        What lies further than `FAR` times the noise from what is explained is brought that near, an
        unlabelled landmark is put onto it, and placement and fit are repeated. Changes are shrunk
        by their spread against the noise.

        Source: Huber 1981, "Robust Statistics", 7.8 (modified residuals).
        """
        variance = self.spread**2
        held = variance / (variance + np.mean(self.noise**2))
        factor, offset = placement(shapes, self.mean)
        explained = np.broadcast_to(self.mean, shapes.shape)
        for turn in range(6):
            lying = factor * shapes + offset
            pseudo = np.where(np.isfinite(lying), lying, explained)
            if turn > 0:
                pseudo = self._near(pseudo, explained)
                more, shift = placement(pseudo, explained)
                factor, offset, pseudo = factor * more, offset * more + shift, pseudo * more + shift
            found = real(pseudo - self.mean) @ self.changes.T * held
            explained = self.mean + from_real(found @ self.changes)
        return Seen(factor * shapes + offset, explained, found / self.spread)

    def _near(self, shapes: np.ndarray, explained: np.ndarray) -> np.ndarray:
        """The shapes, with landmarks that lie far off brought near."""
        rest = shapes - explained
        return explained + rest * np.minimum(1, FAR * self.noise / np.maximum(np.abs(rest), 1e-12))


def fit(points_image: AnyPoints, share: float = 0.98) -> ShapeModel:
    """The model of these faces; outliers among faces and landmarks hardly change it.

    It starts from the directions of change alone (spherical principal components), then refits to
    the faces that it explains.

    Args:
        points_image: (N, P, 2), NaN where unlabelled; at most `MOST_FITTED`, evenly spaced, count.
        share: of the variance, that the changes explain.

    Raises:
        UserError: fewer than three faces have most of their landmarks, a landmark is labelled in
            none of these, or all faces are alike.

    Source: Locantore et al. 1999, "Robust principal component analysis for functional data",
    https://doi.org/10.1007/BF02595862.
    """
    shapes = of(points_image[sample(np.arange(len(points_image)), MOST_FITTED)])
    shapes = shapes[np.isfinite(shapes).mean(1) > 0.5]
    if len(shapes) < 3:
        told = f"{len(shapes)} of {len(points_image)} faces have most of their landmarks"
        raise UserError(f"{told}; the shapes of three at least are needed")
    mean = mean_shape(shapes)
    lost = np.flatnonzero(~np.isfinite(mean))
    if len(lost):
        raise UserError(f"landmark {lost[0]} is labelled in no face with most of its landmarks")
    distance = distances(onto(shapes, mean), mean)
    shapes = shapes[distance <= FAR * np.median(distance)]  # faces never are further
    rest = onto(shapes, mean) - mean
    rest = real(np.where(np.isfinite(rest), rest, 0))
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    if np.median(length) < 1e-6:
        raise UserError("all faces have the same shape, so there is nothing to tell apart")
    model = _model(mean, rest, rest / np.maximum(length, 1e-12) * np.median(length), share)
    for _ in range(3):
        seen = model.see(shapes)
        distance = distances(seen.lying, seen.explained)
        good = distance <= FAR * np.nanmedian(distance)
        lying, explained = seen.lying[good], seen.explained[good]
        filled = np.where(np.isfinite(lying), lying, explained)
        near = model._near(filled, explained)
        mean = _unit(near.mean(0))
        factor, offset = placement(near, mean)
        rest = real(factor * near + offset - mean)
        model = _model(mean, real(factor * filled + offset - mean), rest, share)
    return model


def _model(mean: np.ndarray, rest: np.ndarray, robust: np.ndarray, share: float) -> ShapeModel:
    """The principal changes of the robust deviations, and the noise that all deviations have."""
    num_faces, freedom = robust.shape
    if num_faces < freedom:  # of the two matrices the smaller has all that is not zero
        strengths, mixes = np.linalg.eigh(robust @ robust.T)
        changes = (robust.T @ mixes / np.sqrt(np.maximum(strengths, 1e-30))).T
    else:
        strengths, columns = np.linalg.eigh(robust.T @ robust)
        changes = columns.T
    strengths, changes = np.maximum(strengths[::-1], 0), changes[::-1]
    explained = np.cumsum(strengths) / strengths.sum()
    # four degrees of freedom are place, size and tilt; half of the others must be left to check
    most = max(1, min((freedom - 4) // 2, num_faces // 4))
    kept = min(int(np.searchsorted(explained, share)) + 1, most)
    changes, strengths = changes[:kept], strengths[:kept]
    off = np.abs(from_real(rest - rest @ changes.T @ changes))
    noise = np.median(off, 0) / np.sqrt(2 * np.log(2))  # the median of a Rayleigh distribution
    noise = np.maximum(noise, max(0.1 * np.median(noise), 1e-6))
    return ShapeModel(mean, changes, np.sqrt(strengths / num_faces), noise)


def turns(points_image: AnyPoints) -> np.ndarray:
    """(N,) float64: the turn of every head against the mean of all, about -0.5 to 0.5.

    The face's part in the first principal component of the shapes, each laid onto their mean, which
    has unit size. In images of people that is the turn to the side; which side is positive is
    not known.

    Args:
        points_image: (N, P, 2), in image pixels; faces with an unlabelled landmark get NaN.

    Raises:
        UserError: fewer than three faces have all their landmarks, or all of them are alike.
    """
    found = np.full(len(points_image), np.nan)
    is_whole = np.zeros(len(found), bool)
    for some in blocks(np.arange(len(found))):
        is_whole[some] = np.isfinite(points_image[some]).all((1, 2))
    whole = np.flatnonzero(is_whole)
    if len(whole) < 3:
        told = f"{len(whole)} of {len(points_image)} faces have all their landmarks"
        raise UserError(f"{told}; their poses can be told of three at least")
    shapes = of(points_image[sample(whole, MOST_POSED)])
    mean = mean_shape(shapes)
    rest = real(onto(shapes, mean) - mean)
    strengths, changes = np.linalg.eigh(rest.T @ rest)
    if strengths[-1] <= 1e-12 * len(rest):
        raise UserError("all faces have the same shape, so there are no poses to tell apart")
    for some in blocks(whole):
        lying = onto(of(points_image[some]), mean)
        found[some] = real(lying - mean) @ changes[:, -1]
    return found


def rolls(points_image: AnyPoints) -> np.ndarray:
    """(N,) float64: the tilt of every face in degrees, clockwise, against the mean of all.

    Args:
        points_image: (N, P, 2), in image pixels; faces with fewer than three landmarks get NaN.

    Raises:
        UserError: no face has three landmarks.
    """
    rows = np.arange(len(points_image))
    mean = mean_shape(of(points_image[sample(rows, MOST_POSED)]))
    found = np.empty(len(rows))
    for some in blocks(rows):
        factor, _ = placement(of(points_image[some]), mean)
        found[some] = -np.rad2deg(np.angle(factor[:, 0]))
    return found
