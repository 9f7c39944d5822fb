"""Shapes: landmarks without position, size and tilt, and a linear model of how they vary.

A shape is a row of P complex numbers x + iy, NaN where a landmark is unlabelled. In complex numbers
a similarity transform is `factor * shape + offset`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from heatmap.errors import UserError

BLOCK = 1_000  # faces processed at once
MAX_POSED = 10_000  # faces that define the mean pose
MAX_FITTED = 4_000  # faces to fit a model to; more make it slower and no better
FAR = 3.0  # deviations are clipped to this many times the typical one


class AnyPoints(Protocol):
    """Points (N, P, 2): an array, or a table that returns arrays when indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def of(points: AnyPoints) -> np.ndarray:
    """Returns points (N, P, 2) as shapes (N, P), complex128."""
    return points[..., 0].astype(np.float64) + 1j * points[..., 1]


def points(shapes: np.ndarray) -> np.ndarray:
    """Returns shapes (..., P) as points (..., P, 2), float64."""
    return np.stack([shapes.real, shapes.imag], -1)


def real(shapes: np.ndarray) -> np.ndarray:
    """Returns shapes (..., P) as vectors (..., 2P), float64: all x, then all y."""
    return np.concatenate([shapes.real, shapes.imag], -1)


def from_real(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors (..., 2P), ordered as by `real`, as shapes (..., P)."""
    x, y = np.split(vectors, 2, -1)
    return x + 1j * y


def face_size(shapes: np.ndarray) -> np.ndarray:
    """Returns (...): the square root of the area of the labelled landmarks' bounding box."""
    x, y = (np.nanmax(part, -1) - np.nanmin(part, -1) for part in (shapes.real, shapes.imag))
    return np.sqrt(x * y)


def sample(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Returns at most `max_rows` of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), max_rows)).astype(int)]


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields `BLOCK` rows at a time, so that intermediate results fit in memory."""
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def placement(shapes: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the similarity that aligns every shape with the mean: `factor * shape + offset`.

    Matches centre and size (root of the summed squares) of the common landmarks, then finds the
    best rotation (Procrustes analysis).

    Args:
        shapes: (N, P).
        mean: (P,), or one mean per shape (N, P).

    Returns:
        Complex factors and offsets (N, 1), NaN with fewer than three common landmarks.
    """
    is_common = np.isfinite(shapes) & np.isfinite(mean)
    count = is_common.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.where(count >= 3, count, np.nan)
        source, target = np.where(is_common, shapes, 0), np.where(is_common, mean, 0)
        centre, target_centre = (part.sum(1, keepdims=True) / count for part in (source, target))
        source -= np.where(is_common, centre, 0)
        target -= np.where(is_common, target_centre, 0)
        angle = np.angle((source * target.conj()).sum(1, keepdims=True))
        size = np.linalg.norm(target, axis=1) / np.maximum(np.linalg.norm(source, axis=1), 1e-12)
        factor = np.where(count >= 3, size[:, None] * np.exp(-1j * angle), np.nan)
        return factor, target_centre - factor * centre


def onto(shapes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns the shapes (N, P), each aligned with the mean by its `placement`."""
    factor, offset = placement(shapes, mean)
    return factor * shapes + offset


def mean_shape(shapes: np.ndarray) -> np.ndarray:
    """Returns the mean (P,) of shapes (N, P): centred, of unit size, upright on average.

    Shapes far from the mean count less. A landmark that no shape has is NaN.

    Raises:
        UserError: no shape has three labelled landmarks.

    Source: Gower 1975, "Generalized Procrustes analysis", https://doi.org/10.1007/BF02291478.
    """
    labelled = np.isfinite(shapes).sum(1)
    if labelled.max(initial=0) < 3:
        raise UserError("no face has three labelled landmarks, so there is no mean shape")
    mean = _unit(shapes[labelled.argmax()])
    for _ in range(6):
        aligned = onto(shapes, mean)
        distance = distances(aligned, mean)
        far = FAR * max(np.nanmedian(distance), 1e-12)
        weight = np.nan_to_num(np.minimum(1, far / np.maximum(distance, 1e-12)) ** 2)
        is_labelled = np.isfinite(aligned)
        total = (weight[:, None] * is_labelled).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = _unit((weight[:, None] * np.where(is_labelled, aligned, 0)).sum(0) / total)
    factor, _ = placement(shapes, mean)
    mean_angle = np.angle(np.exp(1j * np.angle(factor[np.isfinite(factor)])).sum())
    return mean * np.exp(-1j * mean_angle)


def _unit(shape: np.ndarray) -> np.ndarray:
    shape = shape - np.nanmean(shape)
    return shape / max(np.sqrt(np.nansum(np.abs(shape) ** 2)), 1e-12)


def nanmean(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Returns the mean of the finite values in double precision; NaN without warning if none is."""
    is_finite = np.isfinite(values)
    count = is_finite.sum(axis)
    total = np.where(is_finite, values, 0).sum(axis, dtype=np.result_type(values, np.float64))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def distances(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns (N,): root mean square distance of the common landmarks; NaN if there are none."""
    return np.sqrt(nanmean(np.abs(shapes - others) ** 2, -1))


class Reconstruction(NamedTuple):
    """N faces and their reconstructions, in the model's frame."""

    aligned: np.ndarray  # (N, P) complex, aligned with the reconstruction; NaN where unlabelled
    reconstructed: np.ndarray  # (N, P) complex, also where unlabelled
    coefficients: np.ndarray  # (N, K) of the components, in standard deviations


@dataclass(frozen=True)
class ShapeModel:
    """A Gaussian of aligned shapes: a mean, a few principal components, and noise."""

    mean: np.ndarray  # (P,) complex, of unit size, upright
    components: np.ndarray  # (K, 2P) orthonormal, ordered as by `real`, the strongest first
    spread: np.ndarray  # (K,) standard deviations along the components
    noise: np.ndarray  # (P,) standard deviation of a landmark from its reconstruction, per axis

    def reconstruct(self, shapes: np.ndarray) -> Reconstruction:
        """Reconstructs shapes (N, P); outlying landmarks hardly affect the others.

        Landmarks further than `FAR` times the noise from the reconstruction are moved to that
        distance, unlabelled ones onto it, and placement and fit are repeated. Coefficients shrink
        by the ratio of spread to noise.

        Source: Huber 1981, "Robust Statistics", 7.8 (modified residuals).
        """
        variance = self.spread**2
        shrinkage = variance / (variance + np.mean(self.noise**2))
        factor, offset = placement(shapes, self.mean)
        reconstructed = np.broadcast_to(self.mean, shapes.shape)
        for iteration in range(6):
            aligned = factor * shapes + offset
            filled = np.where(np.isfinite(aligned), aligned, reconstructed)
            if iteration > 0:
                filled = self._clipped(filled, reconstructed)
                more, shift = placement(filled, reconstructed)
                factor, offset, filled = factor * more, offset * more + shift, filled * more + shift
            amounts = real(filled - self.mean) @ self.components.T * shrinkage
            reconstructed = self.mean + from_real(amounts @ self.components)
        return Reconstruction(factor * shapes + offset, reconstructed, amounts / self.spread)

    def _clipped(self, shapes: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
        """The shapes with far landmarks moved to `FAR` times the noise from the reconstruction."""
        residual, far = shapes - reconstructed, FAR * self.noise
        return reconstructed + residual * np.minimum(1, far / np.maximum(np.abs(residual), 1e-12))


def fit(points_image: AnyPoints, share: float = 0.98) -> ShapeModel:
    """Fits a model; outliers among faces and landmarks hardly change it.

    The first fit uses only the directions of the deviations (spherical principal components). Then
    the model is refitted to the faces that it reconstructs well.

    Args:
        points_image: (N, P, 2), NaN where unlabelled. `MAX_FITTED` evenly spaced rows are used.
        share: fraction of the variance that the components explain.

    Raises:
        UserError: fewer than three faces have most of their landmarks, one landmark is unlabelled
            in all of these, or all faces have the same shape.

    Source: Locantore et al. 1999, "Robust principal component analysis for functional data",
    https://doi.org/10.1007/BF02595862.
    """
    shapes = of(points_image[sample(np.arange(len(points_image)), MAX_FITTED)])
    shapes = shapes[np.isfinite(shapes).mean(1) > 0.5]
    if len(shapes) < 3:
        count = f"{len(shapes)} of {len(points_image)} faces"
        raise UserError(f"{count} have most of their landmarks; at least three are needed")
    mean = mean_shape(shapes)
    never_labelled = np.flatnonzero(~np.isfinite(mean))
    if len(never_labelled):
        raise UserError(f"no face with most of its landmarks has landmark {never_labelled[0]}")
    distance = distances(onto(shapes, mean), mean)
    shapes = shapes[distance <= FAR * np.median(distance)]  # no real face is further
    deviation = onto(shapes, mean) - mean
    deviation = real(np.where(np.isfinite(deviation), deviation, 0))
    length = np.linalg.norm(deviation, axis=1, keepdims=True)
    if np.median(length) < 1e-6:
        raise UserError("all faces have the same shape; a shape model needs different ones")
    direction = deviation / np.maximum(length, 1e-12)
    model = _model(mean, deviation, direction * np.median(length), share)
    for _ in range(3):
        aligned, reconstructed, _ = model.reconstruct(shapes)
        distance = distances(aligned, reconstructed)
        good = distance <= FAR * np.nanmedian(distance)
        aligned, reconstructed = aligned[good], reconstructed[good]
        filled = np.where(np.isfinite(aligned), aligned, reconstructed)
        clipped = model._clipped(filled, reconstructed)
        mean = _unit(clipped.mean(0))
        factor, offset = placement(clipped, mean)
        deviation, robust = (real(factor * part + offset - mean) for part in (filled, clipped))
        model = _model(mean, deviation, robust, share)
    return model


def _model(mean: np.ndarray, deviation: np.ndarray, robust: np.ndarray, share: float) -> ShapeModel:
    """Takes components from `robust` and noise from `deviation`, both (N, 2P)."""
    num_faces, freedom = robust.shape
    if num_faces < freedom:  # the smaller of the two matrices has all nonzero eigenvalues
        energies, vectors = np.linalg.eigh(robust @ robust.T)
        components = (robust.T @ vectors / np.sqrt(np.maximum(energies, 1e-30))).T
    else:
        energies, vectors = np.linalg.eigh(robust.T @ robust)
        components = vectors.T
    energies, components = np.maximum(energies[::-1], 0), components[::-1]
    explained = np.cumsum(energies) / energies.sum()
    # position, size and tilt take four degrees of freedom; half of the others are left for noise
    max_kept = max(1, min((freedom - 4) // 2, num_faces // 4))
    kept = min(int(np.searchsorted(explained, share)) + 1, max_kept)
    components, energies = components[:kept], energies[:kept]
    residual = np.abs(from_real(deviation - deviation @ components.T @ components))
    noise = np.median(residual, 0) / np.sqrt(2 * np.log(2))  # median of a Rayleigh distribution
    noise = np.maximum(noise, max(0.1 * np.median(noise), 1e-6))
    return ShapeModel(mean, components, np.sqrt(energies / num_faces), noise)


def turns(points_image: AnyPoints) -> np.ndarray:
    """Returns (N,) float64: the yaw of every head relative to the mean, about -0.5 to 0.5.

    It is the first principal component of the aligned shapes, which are of unit size. Its sign is
    arbitrary.

    Args:
        points_image: (N, P, 2) in image pixels; faces with an unlabelled landmark get NaN.

    Raises:
        UserError: fewer than three faces have all their landmarks, or all have the same shape.
    """
    yaw = np.full(len(points_image), np.nan)
    is_complete = np.zeros(len(yaw), bool)
    for rows in blocks(np.arange(len(yaw))):
        is_complete[rows] = np.isfinite(points_image[rows]).all((1, 2))
    complete = np.flatnonzero(is_complete)
    if len(complete) < 3:
        count = f"{len(complete)} of {len(points_image)} faces"
        raise UserError(f"{count} have all their landmarks; poses need at least three")
    shapes = of(points_image[sample(complete, MAX_POSED)])
    mean = mean_shape(shapes)
    deviation = real(onto(shapes, mean) - mean)
    energies, vectors = np.linalg.eigh(deviation.T @ deviation)
    if energies[-1] <= 1e-12 * len(deviation):
        raise UserError("all faces have the same shape; poses need different ones")
    for rows in blocks(complete):
        yaw[rows] = real(onto(of(points_image[rows]), mean) - mean) @ vectors[:, -1]
    return yaw


def rolls(points_image: AnyPoints) -> np.ndarray:
    """Returns (N,) float64: the tilt of every face in degrees, clockwise, relative to the mean.

    Args:
        points_image: (N, P, 2) in image pixels; faces with fewer than three landmarks get NaN.

    Raises:
        UserError: no face has three landmarks.
    """
    all_rows = np.arange(len(points_image))
    mean = mean_shape(of(points_image[sample(all_rows, MAX_POSED)]))
    roll = np.empty(len(all_rows))
    for rows in blocks(all_rows):
        factor, _ = placement(of(points_image[rows]), mean)
        roll[rows] = -np.rad2deg(np.angle(factor[:, 0]))
    return roll
