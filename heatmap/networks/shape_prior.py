"""Improves decoded landmarks by what is known of shapes.

The landmarks of a face are far from independent. A Gaussian model of the training shapes
(`heatmap.shape.ShapeModel`) and Gaussian errors of the decoded landmarks give a posterior mean, the
answer with the least squared error.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heatmap.networks.network import CropPrediction

MIN_DOUBT, MAX_DOUBT = -4.0, 12.0  # limits of the logarithm of a landmark's relative variance
SMALLEST = 1e-3  # lower limit of peaks, and of spreads in px, before logarithms
LARGEST_MOVE = 3.0  # standard deviations of its error by which a landmark may move


@dataclass(frozen=True)
class PriorValues:
    """The numbers of a shape prior of P landmarks with K components.

    The shape frame is upright and centred, with a root mean square radius of 1.
    """

    mean: Tensor  # (2, P) mean shape
    basis: Tensor  # (2, K, P) components times their standard deviations
    noise: Tensor  # (P,) variance of a landmark around the components, per axis
    error: Tensor  # (3, P) xx, xy, yy: squared error of a landmark of typical doubt, crop px²
    slopes: Tensor  # (3,) of the logarithm of the squared error in the signs of doubt
    typical: Tensor  # (P, 3) mean signs of doubt
    border: Tensor  # (5,) as for `signs_of_doubt`
    calibration: Tensor  # () factor of the posterior covariance that makes it the squared error


class Symmetric(NamedTuple):
    """Symmetric 2 x 2 matrices by their elements, tensors of one shape."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    def plus(self, diagonal: Tensor) -> "Symmetric":
        return Symmetric(self.xx + diagonal, self.xy, self.yy + diagonal)

    def times(self, factor: Tensor) -> "Symmetric":
        return Symmetric(*(element * factor for element in self))

    def inverse(self) -> "Symmetric":
        determinant = self.xx * self.yy - self.xy.square()
        return Symmetric(self.yy, -self.xy, self.xx).times(1 / determinant)

    def variance(self) -> Tensor:
        """The mean variance of both axes."""
        return (self.xx + self.yy) / 2

    def of_components(self) -> "Symmetric":
        """Elements (B, 1, P) from (B, P)."""
        return Symmetric(*(element[:, None] for element in self))

    def __matmul__(self, vectors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = vectors
        return self.xx * x + self.xy * y, self.xy * x + self.yy * y


class ShapePrior(nn.Module):
    """Moves landmarks to their posterior mean, in crop pixels.

    A landmark's error is its mean squared error on held-out images, times what three signs of doubt
    predict: a low peak, a wide heatmap, and a point beyond the border. An unknown similarity maps
    the shape to the crop; it is linearised at a weighted fit of the mean shape.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", 2.3.3 and 12.2 (linear Gaussian
    models and factor analysis).
    """

    mean: Tensor
    basis: Tensor
    noise: Tensor
    error: Tensor
    slopes: Tensor
    typical: Tensor
    border: Tensor
    calibration: Tensor

    def __init__(self, values: PriorValues) -> None:
        super().__init__()
        for field in dataclasses.fields(values):
            self.register_buffer(field.name, getattr(values, field.name).float(), persistent=False)
        x, y = self.mean
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        # size, tilt and position, whose standard deviations of 1 leave them practically free
        pose = torch.stack([torch.stack([x, -y, one, zero]), torch.stack([y, x, zero, one])])
        self.basis = torch.cat([pose, self.basis], 1)

    def forward(self, prediction: CropPrediction) -> CropPrediction:
        """Returns the posterior means and covariances of landmarks with peaks and spreads."""
        points, peak, spread = prediction
        assert peak is not None and spread is not None
        error = self.error_crop(points, peak, spread)  # elements (B, P), as all below
        factor, offset = self._placement(points, error.variance())
        mean = _times(factor, self.mean)
        residual = [points[..., axis] - mean[axis] - offset[axis] for axis in (0, 1)]
        noise = (factor[0].square() + factor[1].square()) * self.noise
        precision = error.plus(noise).inverse()

        # x and y of the components in the crop, (B, K, P) each; landmarks are last, for long loops
        basis = _times((factor[0][..., None], factor[1][..., None]), self.basis)
        weighted = precision.of_components() @ basis
        products = basis[0] @ weighted[0].mT + basis[1] @ weighted[1].mT
        covariance = inverse(products + _identity(products))  # (B, K, K), of the components
        amounts = sum(w @ r[..., None] for w, r in zip(weighted, residual, strict=True))
        amounts = (covariance @ amounts).mT  # (B, 1, K)
        rest_x, rest_y = (r - (amounts @ b)[:, 0] for r, b in zip(residual, basis, strict=True))
        # what the components leave is divided between noise and error
        kept = precision.times(noise)
        lost = Symmetric(1 - kept.xx, -kept.xy, 1 - kept.yy)
        move = torch.stack(lost @ (rest_x, rest_y), -1)
        limit = LARGEST_MOVE * error.variance().sqrt()
        length = move.square().sum(-1).clamp_min(1e-12).sqrt()
        move = -move * (limit / length).clamp_max(1)[..., None]

        x, y = lost.of_components() @ basis
        along_x, along_y = covariance @ x, covariance @ y
        explained = Symmetric((x * along_x).sum(1), (x * along_y).sum(1), (y * along_y).sum(1))
        left = lost.times(noise)  # by the components
        xx, xy, yy = (e + n for e, n in zip(explained, left, strict=True))
        posterior = torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))
        return CropPrediction(points + move, peak, self.calibration * posterior)

    def error_crop(self, points: Tensor, peak: Tensor, spread: Tensor) -> Symmetric:
        """Returns expected squared errors (B, P) in square crop pixels."""
        signs = signs_of_doubt(points, peak, spread, self.border)
        doubt = ((signs - self.typical) * self.slopes).sum(-1)
        factor = doubt.clamp(MIN_DOUBT, MAX_DOUBT).exp()
        return Symmetric(*self.error).times(factor)

    def _placement(
        self, points: Tensor, variance: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Complex factor and offset, (B, 1) each part, that map the mean shape to the points."""
        precision = 1 / variance
        # landmarks of very small error do not decide alone
        weight = precision / (precision + precision.mean(1, keepdim=True))
        weight = weight / weight.sum(1, keepdim=True)

        def average(values: Tensor) -> Tensor:
            return (weight * values).sum(1, keepdim=True)

        (x, y), (u, v) = points.unbind(-1), self.mean
        u, v, at_mean = u - average(u), v - average(v), (average(u), average(v))
        size = average(u.square() + v.square())
        factor = average(x * u + y * v) / size, average(y * u - x * v) / size
        turned = _times(factor, torch.stack(at_mean))
        return factor, (average(x) - turned[0], average(y) - turned[1])


def signs_of_doubt(points: Tensor, peak: Tensor, spread: Tensor, border: Tensor) -> Tensor:
    """Returns (B, P, 3): log peak, log spread, and the fraction of the reach beyond the border.

    Args:
        points: (B, P, 2) in crop pixels.
        peak: (B, P).
        spread: (B, P, 2, 2) in square crop pixels.
        border: (5,) left, top, right and bottom of the centres of the heatmap's pixels, and the
            decoder's reach beyond them, in crop pixels.
    """
    low, high, reach = border[:2], border[2:4], border[4]
    beyond = torch.maximum(low - points, points - high).amax(-1).clamp_min(0) / reach
    variance = (spread[..., 0, 0] + spread[..., 1, 1]) / 2
    width = variance.clamp_min(SMALLEST**2).log() / 2
    return torch.stack([peak.clamp_min(SMALLEST).log(), width, beyond.clamp_max(1)], -1)


def inverse(matrix: Tensor) -> Tensor:
    """Returns the inverse of symmetric positive definite matrices (B, K, K).

    Sweeps every row in turn; unlike torch.linalg.inv, this can be exported.

    Source: Goodnight 1979, "A Tutorial on the SWEEP Operator",
    https://doi.org/10.1080/00031305.1979.10482685.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()  # a unit diagonal keeps float32 accurate
    swept = scale[:, :, None] * matrix * scale[:, None]
    for row, unit in enumerate(_identity(matrix)):
        values = swept[:, row]
        changed = values - unit
        outer = changed[:, :, None] * (changed / values[:, row, None])[:, None]
        swept = swept - outer - 2 * unit[:, None] * unit
    return -scale[:, :, None] * swept * scale[:, None]


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _times(factor: tuple[Tensor, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Products of complex numbers; vectors has x and y in its first dimension."""
    (a, b), (x, y) = factor, vectors
    return a * x - b * y, a * y + b * x
