"""Loss functions without masking or averaging, and a table of them by name.

A heatmap loss also returns its slope, because `heatmap.maps` sums the gradient block by block.
`with_slope` adds it to a function without one.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from heatmap.errors import UserError
from heatmap.runtime.functions import imported

OMEGA, THETA, EPSILON, ALPHA = 14.0, 0.5, 1.0, 2.1  # as in the adaptive wing paper
WING_WIDTH, WING_EPSILON = 10.0, 2.0  # in crop pixels
FOREGROUND = 0.2  # the weight map covers pixels whose dilated target is at least this

# (prediction, target) -> (loss, slope), for each pixel
Pointwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# (prediction, target) -> loss of each pixel, or (points, truth) -> (..., P)
Plain = Callable[[Tensor, Tensor], Tensor]


def adaptive_wing(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the adaptive wing loss of every pixel and its slope.

    With d = |prediction - target|, q = alpha - target, c = min(d, theta) and t = (c / epsilon)^q it
    is omega log(1 + t) + slope (d - c), slope = omega q t / (c (1 + t)): a tangent above theta.

    Args:
        prediction: heatmap values, any shape and float dtype; target: the same shape, in [0, 1].

    Returns:
        Loss (>= 0 up to rounding) and d loss / d prediction, in float32 or float64.

    Source: Wang, Bo, Fuxin 2019, https://arxiv.org/abs/1904.07399.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    target = target.to(dtype)
    residual = prediction.to(dtype) - target
    distance = residual.abs()
    power = ALPHA - target
    near = distance.clamp(1e-12, THETA)
    # in place from here: on a CPU, allocating a block costs more than the arithmetic
    t = torch.log2(near / EPSILON).mul_(power).exp2_()
    slope = power.mul_(OMEGA).mul_(t).div_((t + 1).mul_(near))
    loss = t.log1p_().mul_(OMEGA).addcmul_(distance.sub_(near), slope)
    # sign, not copysign: the loss has slope 0 at distance 0, but the clamped expression does not
    return loss, residual.sign_().mul_(slope)


def squared(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the squared error of every pixel and its slope; arguments as `adaptive_wing`."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    residual = prediction.to(dtype) - target.to(dtype)
    return residual.square(), residual.mul_(2)


def squared_error(points: Tensor, truth: Tensor) -> Tensor:
    """Returns (..., P): mean of the squared x and y distances, in square pixels."""
    return (points - truth).square().mean(-1)


def absolute_error(points: Tensor, truth: Tensor) -> Tensor:
    """Returns (..., P): mean of the x and y distances in pixels."""
    return (points - truth).abs().mean(-1)


def smooth_absolute_error(points: Tensor, truth: Tensor) -> Tensor:
    """Returns (..., P): mean over x and y of d² / 2 below d = 1 pixel and d - 1/2 above.

    Source: Girshick 2015 (smooth L1), https://arxiv.org/abs/1504.08083.
    """
    return functional.smooth_l1_loss(points, truth, reduction="none").mean(-1)


def wing(points: Tensor, truth: Tensor) -> Tensor:
    """Returns (..., P): mean over x and y of 10 ln(1 + d / 2) below d = 10 pixels, d - C above.

    Source: Feng et al. 2018, https://arxiv.org/abs/1711.06753.
    """
    distance = (points - truth).abs()
    near = WING_WIDTH * torch.log1p(distance / WING_EPSILON)
    offset = WING_WIDTH - WING_WIDTH * math.log1p(WING_WIDTH / WING_EPSILON)
    return torch.where(distance < WING_WIDTH, near, distance - offset).mean(-1)


class Loss(NamedTuple):
    """A loss; its functions are None where it does not apply."""

    of_heatmaps: Pointwise | None = None
    of_points: Plain | None = None
    grows_with: Literal["distance", "square"] = "square"  # order of growth of the loss


LOSSES = {
    "adaptive_wing": Loss(of_heatmaps=adaptive_wing),
    "mse": Loss(of_heatmaps=squared, of_points=squared_error),
    "mae": Loss(of_points=absolute_error, grows_with="distance"),
    "smooth_l1": Loss(of_points=smooth_absolute_error, grows_with="distance"),
    "wing": Loss(of_points=wing, grows_with="distance"),
}


@functools.cache  # a new object would be compiled anew
def of_heatmaps(name: str) -> Pointwise:
    """Returns the heatmap loss of that name: in `LOSSES`, or a function to import.

    Raises:
        UserError: the function cannot be imported, or does not return a value per pixel.
    """
    if name not in LOSSES:
        return with_slope(_checked(name, (2, 3, 4, 5), (2, 3, 4, 5)))
    pointwise = LOSSES[name].of_heatmaps
    assert pointwise
    return pointwise


@functools.cache
def of_points(name: str) -> Loss:
    """Returns the point loss of that name: in `LOSSES`, or a function to import.

    Raises:
        UserError: the function cannot be imported, or does not return a value per point.
    """
    return LOSSES.get(name) or Loss(of_points=_checked(name, (4, 3, 2), (4, 3)))


def _checked(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> Plain:
    loss: Plain = imported(name)
    actual = tuple(getattr(loss(torch.full(shape, 0.5), torch.zeros(shape)), "shape", ()))
    if actual != expected:
        raise UserError(
            f"the function {name} must return a loss of shape {expected} for two tensors of shape "
            f"{shape}, not {actual}; it must not average"
        )
    return loss


def with_slope(loss: Plain) -> Pointwise:
    """Returns the loss of each pixel with its slope, which automatic differentiation computes."""

    def pointwise(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        def total(heights: Tensor) -> tuple[Tensor, Tensor]:
            values = loss(heights, target)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(prediction)
        return values, slope

    return pointwise


def in_image_pixels(weights: Tensor, pixel_area: Tensor, grows_with: str) -> Tensor:
    """Scales weights (B, P) so that errors in crop pixels count as in image pixels.

    pixel_area: (B,) area of a crop pixel in square image pixels; its root scales a "distance" loss.
    """
    area = pixel_area.to(weights)
    scale = area.sqrt() if grows_with == "distance" else area
    return weights * scale[:, None]
