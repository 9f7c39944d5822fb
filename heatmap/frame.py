"""Coordinate frames and the pixel convention; no other module defines either.

Integer coordinates are pixel centres: an image covers [-0.5, width - 0.5] along x. So scaling by f
is `(x + 0.5) f - 0.5`, the grid of a stride-s heatmap is `h = (x + 0.5) / s - 0.5`, and a mirrored
image is `width - 1 - x`.

Points are in one of three frames: image, crop (the network's input) or heatmap (its output grid).
Affines are (..., 3, 3) float64 matrices on homogeneous (x, y, 1), named destination first: in
`image_from_crop @ crop_from_heatmap` the inner names match.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heatmap.errors import UserError

Point = Sequence[float]  # x, y


@dataclass(frozen=True)
class Frame:
    """The position of a crop, or of a batch of crops, in its image."""

    image_from_crop: Tensor  # (..., 3, 3), invertible
    height: int  # of the crop in pixels
    width: int

    def to_image(self, points_crop: Tensor) -> Tensor:
        """Maps (..., P, 2) points to image pixels, in float64."""
        return apply(self.image_from_crop, points_crop)

    def to_crop(self, points_image: Tensor) -> Tensor:
        """Maps (..., P, 2) points to crop pixels, in float64."""
        # inv_ex, since inv waits for a GPU to check that the matrices are invertible
        return apply(torch.linalg.inv_ex(self.image_from_crop).inverse, points_image)

    def covariance_to_image(self, covariance_crop: Tensor) -> Tensor:
        """Maps (..., P, 2, 2) covariances to square image pixels, in float64."""
        linear = self.image_from_crop[..., None, :2, :2]
        return linear @ covariance_crop.to(linear) @ linear.mT

    def pixel_area(self) -> Tensor:
        """Returns the area (...) of a crop pixel in square image pixels."""
        return torch.linalg.det(self.image_from_crop[..., :2, :2]).abs()

    def padded(self, margin: int) -> "Frame":
        """Returns the crop with `margin` more pixels on every side, at the same scale."""
        image_from_padded = self.image_from_crop @ translation(-margin, -margin)
        return Frame(image_from_padded, self.height + 2 * margin, self.width + 2 * margin)

    def zoomed(self, zoom: float) -> "Frame":
        """Returns the crop that shows everything `zoom` times larger, about the same centre."""
        x, y = _centre((self.height, self.width))
        return self._with(translation(x, y) @ scaling(1 / zoom) @ translation(-x, -y))

    def reduced(self, reduction: int) -> "Frame":
        """Returns the same crop in the image reduced to 1/reduction of its size.

        A reduced pixel covers a block of pixels, counted from the top left:
        x = reduction x_reduced + (reduction - 1) / 2.
        """
        reduced_from_image = _reduced_from_image(reduction).to(self.image_from_crop)
        return Frame(reduced_from_image @ self.image_from_crop, self.height, self.width)

    def mirrored(self) -> "Frame":
        """Returns the mirrored crop: x -> width - 1 - x."""
        return self._with(_matrix([[-1, 0, self.width - 1], [0, 1, 0], [0, 0, 1]]))

    def _with(self, crop_from_new: Tensor) -> "Frame":
        image_from_new = self.image_from_crop @ crop_from_new.to(self.image_from_crop)
        return Frame(image_from_new, self.height, self.width)


def cover(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> Frame:
    """Returns the centre crop that the image fills; its long ends are cut off."""
    scale = max(crop_hw[0] / image_hw[0], crop_hw[1] / image_hw[1])
    return _placed(1 / scale, _centre(image_hw), _centre(crop_hw), crop_hw)


def contain(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> Frame:
    """Returns the centre crop that holds the whole image, padded on two sides."""
    scale = min(crop_hw[0] / image_hw[0], crop_hw[1] / image_hw[1])
    return _placed(1 / scale, _centre(image_hw), _centre(crop_hw), crop_hw)


def around(
    box_image: tuple[float, float, float, float], crop_hw: tuple[int, int], enlarged: float = 1.0
) -> Frame:
    """Returns the crop that holds the whole box at its centre.

    Args:
        box_image: x0, y0, x1, y1 in image pixels.
        enlarged: factor that enlarges the box about its centre.
    """
    x0, y0, x1, y1 = box_image
    scale = min(crop_hw[0] / (y1 - y0), crop_hw[1] / (x1 - x0)) / enlarged
    return _placed(1 / scale, ((x0 + x1) / 2, (y0 + y1) / 2), _centre(crop_hw), crop_hw)


def matching(points_image: Tensor, points_crop: Tensor, crop_hw: tuple[int, int]) -> Frame:
    """Returns the crop that shows (P, 2) image points at the crop points (least squares).

    Raises:
        UserError: no shift and positive scale fit: the points are upside down or coincide.
    """
    points_image, points_crop = points_image.double(), points_crop.double()
    centre_image, centre_crop = points_image.mean(0), points_crop.mean(0)
    offsets = points_crop - centre_crop
    shrink = ((offsets * (points_image - centre_image)).sum() / offsets.square().sum()).item()
    if not 0 < shrink < math.inf:
        raise UserError("no shift and scale maps the image points to the crop points")
    return _placed(shrink, centre_image.tolist(), centre_crop.tolist(), crop_hw)


@functools.cache
def _reduced_from_image(reduction: int) -> Tensor:
    return scaling(1 / reduction, offset=(1 / reduction - 1) / 2)


def _centre(size_hw: tuple[int, int]) -> tuple[float, float]:
    return (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2


def _placed(shrink: float, at_image: Point, at_crop: Point, crop_hw: tuple[int, int]) -> Frame:
    """The crop that shows an image point at a crop point, `shrink` image pixels per crop pixel."""
    x, y = (image - shrink * crop for image, crop in zip(at_image, at_crop, strict=True))
    return Frame(_matrix([[shrink, 0, x], [0, shrink, y], [0, 0, 1]]), *crop_hw)


def crop_from_heatmap(stride: int) -> Tensor:
    """Returns (3, 3): x = stride h + (stride - 1) / 2."""
    return scaling(stride, offset=(stride - 1) / 2)


def to_heatmap(points_crop: Tensor, stride: int) -> Tensor:
    """Maps crop pixels to heatmap pixels, in the points' dtype."""
    return (points_crop - (stride - 1) / 2) / stride


def from_heatmap(points_heatmap: Tensor, stride: int) -> Tensor:
    """Maps heatmap pixels to crop pixels, in the points' dtype."""
    return stride * points_heatmap + (stride - 1) / 2


def translation(x: float, y: float) -> Tensor:
    """Returns (3, 3): a shift by (x, y) pixels."""
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def scaling(factor: float, offset: float = 0.0) -> Tensor:
    """Returns (3, 3): x -> factor x + offset along both axes."""
    return _matrix([[factor, 0, offset], [0, factor, offset], [0, 0, 1]])


def resizing(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Returns (3, 3): from image pixels to pixels of the resized image."""
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return _matrix([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Applies (..., 3, 3) affines to (..., P, 2) points, in the affines' dtype."""
    # no matmul: a GPU may round its float32 inputs to 10 bits (TF32), an error of whole pixels
    products = matrix[..., None, :2, :2] * points.to(matrix)[..., None, :]
    return products.sum(-1) + matrix[..., None, :2, 2]


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
