"""The one place that defines where pixels are.

Integer coordinates are pixel centres: an image covers [-0.5, width - 0.5] along x. So scaling by f
is `(x + 0.5) f - 0.5`, the grid of a stride-s heatmap `h = (x + 0.5) / s - 0.5`, a mirrored image
`width - 1 - x`, and its middle `(width - 1) / 2`.

Three frames carry points: image (its own pixels), crop (the network's input) and heatmap (its
output grid). Affines are (..., 3, 3) float64 matrices on homogeneous (x, y, 1), named destination
first: in `image_from_crop @ crop_from_heatmap` the inner names match.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heatmap.errors import UserError


@dataclass(frozen=True)
class Frame:
    """Where crops of height x width pixels sit in images: an invertible (..., 3, 3) affine."""

    image_from_crop: Tensor
    height: int
    width: int

    def to_image(self, points_crop: Tensor) -> Tensor:
        """(..., P, 2) float64 points in the image's pixels."""
        return apply(self.image_from_crop, points_crop)

    def to_crop(self, points_image: Tensor) -> Tensor:
        """(..., P, 2) float64 points in crop pixels."""
        return apply(torch.linalg.inv(self.image_from_crop), points_image)

    def covariance_to_image(self, covariance_crop: Tensor) -> Tensor:
        """(..., P, 2, 2) float64 covariances in square pixels of the image."""
        linear = self.image_from_crop[..., None, :2, :2]
        return linear @ covariance_crop.to(linear) @ linear.mT

    def pixel_area(self) -> Tensor:
        """(...) float64 square pixels of the image that a crop pixel covers."""
        return torch.linalg.det(self.image_from_crop[..., :2, :2]).abs()

    def padded(self, margin: int) -> "Frame":
        """The crop with `margin` pixels more on every side, at the same scale."""
        image_from_padded = self.image_from_crop @ translation(-margin, -margin)
        return Frame(image_from_padded, self.height + 2 * margin, self.width + 2 * margin)

    def zoomed(self, zoom: float) -> "Frame":
        """The crop about the same middle that shows everything `zoom` times as large."""
        x, y = _middle((self.height, self.width))
        crop_from_zoomed = translation(x, y) @ scaling(1 / zoom) @ translation(-x, -y)
        return self._seen_from(crop_from_zoomed)

    def reduced(self, reduction: int) -> "Frame":
        """The same crop in the image at 1/reduction of its size.

        A pixel there stands for a block counted from the top left, an incomplete one at the other
        sides, too: x = reduction x_reduced + (reduction - 1) / 2.
        """
        reduced_from_image = _reduced_from_image(reduction).to(self.image_from_crop)
        return Frame(reduced_from_image @ self.image_from_crop, self.height, self.width)

    def mirrored(self) -> "Frame":
        """The crop seen in a mirror: x -> width - 1 - x."""
        return self._seen_from(_matrix([[-1, 0, self.width - 1], [0, 1, 0], [0, 0, 1]]))

    def _seen_from(self, crop_from_new: Tensor) -> "Frame":
        image_from_new = self.image_from_crop @ crop_from_new.to(self.image_from_crop)
        return Frame(image_from_new, self.height, self.width)


def cover(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> Frame:
    """The centre crop that the image fills: scaled to cover the crop, long ends cut off."""
    factor = max(crop_hw[0] / image_hw[0], crop_hw[1] / image_hw[1])
    return _centred(_middle(image_hw), crop_hw, factor)


def contain(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> Frame:
    """The centre crop that holds the whole image, with something else beside it."""
    factor = min(crop_hw[0] / image_hw[0], crop_hw[1] / image_hw[1])
    return _centred(_middle(image_hw), crop_hw, factor)


def around(
    box_image: tuple[float, float, float, float], crop_hw: tuple[int, int], enlarged: float = 1.0
) -> Frame:
    """The crop that holds the whole box in its middle, with what is beside it.

    box_image: x0, y0, x1, y1 in image pixels; enlarged: factor of its size about its middle.
    """
    x0, y0, x1, y1 = box_image
    factor = min(crop_hw[0] / (y1 - y0), crop_hw[1] / (x1 - x0)) / enlarged
    return _centred(((x0 + x1) / 2, (y0 + y1) / 2), crop_hw, factor)


def matching(points_image: Tensor, points_crop: Tensor, crop_hw: tuple[int, int]) -> Frame:
    """The crop that shows (P, 2) points of the image where those of the crop are (least squares).

    Raises:
        UserError: no shift and scale does so: the points are turned round, or in one place.
    """
    points_image, points_crop = points_image.double(), points_crop.double()
    middle_image, middle_crop = points_image.mean(0), points_crop.mean(0)
    offsets = points_crop - middle_crop
    shrink = ((offsets * (points_image - middle_image)).sum() / offsets.square().sum()).item()
    if not 0 < shrink < math.inf:
        raise UserError("no shift and scale brings these points to those of the crop")
    x, y = (middle_image - shrink * middle_crop).tolist()
    return _shrunk(shrink, x, y, crop_hw)


@functools.cache
def _reduced_from_image(reduction: int) -> Tensor:
    return scaling(1 / reduction, offset=(1 / reduction - 1) / 2)


def _middle(size_hw: tuple[int, int]) -> tuple[float, float]:
    return (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2


def _centred(middle: tuple[float, float], crop_hw: tuple[int, int], factor: float) -> Frame:
    """The crop with this image point in its middle, `factor` crop pixels per image pixel."""
    (x, y), shrink = _middle(crop_hw), 1 / factor
    return _shrunk(shrink, middle[0] - shrink * x, middle[1] - shrink * y, crop_hw)


def _shrunk(shrink: float, x: float, y: float, crop_hw: tuple[int, int]) -> Frame:
    return Frame(_matrix([[shrink, 0, x], [0, shrink, y], [0, 0, 1]]), *crop_hw)


def crop_from_heatmap(stride: int) -> Tensor:
    """(3, 3) float64: x = stride h + (stride - 1) / 2."""
    return scaling(stride, offset=(stride - 1) / 2)


def translation(x: float, y: float) -> Tensor:
    """(3, 3) float64 shift by (x, y) pixels."""
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def scaling(factor: float, offset: float = 0.0) -> Tensor:
    """(3, 3) float64: x -> factor x + offset along both axes."""
    return _matrix([[factor, 0, offset], [0, factor, offset], [0, 0, 1]])


def resizing(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """(3, 3) float64: where the pixels of an image go when it is resized."""
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return _matrix([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    """(..., P, 2): the (..., 3, 3) affine applied to (..., P, 2) points, in the affine's dtype."""
    # no matmul: GPUs may round the factors of a float32 one to 10 bits, which is pixels here
    products = matrix[..., None, :2, :2] * points.to(matrix)[..., None, :]
    return products.sum(-1) + matrix[..., None, :2, 2]


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
