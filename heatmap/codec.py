"""One representation of landmarks, both ways: points to target heatmaps, heatmaps to points.

A target is a Gaussian of height 1 round the exact, unrounded landmark. It is the product of one
factor along y and one along x, so that it need not be made to be used.

What lies outside the map: a landmark is drawn where it is up to `REACH` sigma beyond the outermost
pixel centres, so that its tail is seen, and at that distance when it is farther off. The decoder
reads positions from such tails by the same rule, so it answers up to `REACH` sigma outside, too.

Shapes: H x W heatmap pixels; leading axes are free.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

REACH = 1.5


class Decoded(NamedTuple):
    """What a heatmap says of its landmark.

    points_heatmap: (..., 2) float32, (x, y) in heatmap pixels.
    peak: (...) float32, the map's highest value.
    covariance: (..., 2, 2) float32, spread of the map round the point in square heatmap pixels;
        sigma² I for a target well inside the map, wider for an unsure map, smaller where the
        window is cut by the border.
    """

    points_heatmap: Tensor
    peak: Tensor
    covariance: Tensor


def gaussian_factors(
    points_heatmap: Tensor, height: int, width: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """The two factors of every target: target[..., y, x] = along_y[..., y] along_x[..., x].

    Args:
        points_heatmap: (..., 2) finite heatmap pixels; moved to within `REACH` sigma of the map.
        sigma: in heatmap pixels.

    Returns:
        along_y (..., H) and along_x (..., W), in [0, 1], of the points' dtype.
    """

    def factor(centre: Tensor, size: int) -> Tensor:
        centre = centre.clamp(-REACH * sigma, size - 1 + REACH * sigma)
        grid = torch.arange(size, dtype=centre.dtype, device=centre.device)
        return torch.exp(-0.5 * ((grid - centre[..., None]) / sigma).square())

    return factor(points_heatmap[..., 1], height), factor(points_heatmap[..., 0], width)


def dilated(factor: Tensor) -> Tensor:
    """(..., n): the maximum over each pixel and its two neighbours.

    Since factors are not negative, the 3 x 3 grey dilation of a target is the product of its two
    dilated factors, exactly.
    """
    flat = functional.max_pool1d(factor.reshape(-1, 1, factor.shape[-1]), 3, stride=1, padding=1)
    return flat.reshape(factor.shape)


def render(points_heatmap: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """(..., H, W) whole targets, for looking at them; training never makes them."""
    along_y, along_x = gaussian_factors(points_heatmap, height, width, sigma)
    return along_y[..., :, None] * along_x[..., None, :]


def window_radius(sigma: float) -> int:
    """Half width of the decoder's window: 2.5 sigma, where squared heights have fallen to 0.2 %."""
    return math.ceil(2.5 * sigma)


def decode(heatmaps: Tensor, sigma: float) -> Decoded:
    """Landmarks by soft-argmax within a window round each map's peak.

    The softmax is taken of 2 log h, that is, the weights are max(h, 0)². The answer does not depend
    on the peak's height, there is no temperature to choose, and what lies outside the window cannot
    pull the point to the middle. Along an axis on which the window leaves the map its mean would be
    biased; there the vertex of a parabola through the logarithms of three neighbouring sums of the
    window is taken, which is exact for a Gaussian and reaches `REACH` sigma beyond the border.
    A map without any positive value has its peak pixel as its point.

    Args:
        heatmaps: (..., H, W), any float dtype; computed in float32 or better. H, W >= 3.
        sigma: of the targets that the maps were trained on, in heatmap pixels.
    """
    maps = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    leading, (height, width) = maps.shape[:-2], maps.shape[-2:]
    assert min(height, width) >= 3, f"a {height} x {width} map is too small to decode"
    maps = maps.reshape(-1, height, width)
    each = torch.arange(len(maps), device=maps.device)

    # two stages: the maximum of every row is one fast reduction, what remains is small
    row = maps.amax(-1).argmax(-1)
    column = maps[each, row].argmax(-1)
    peak = maps[each, row, column]

    offsets = torch.arange(-window_radius(sigma), window_radius(sigma) + 1, device=maps.device)
    y, x = row[:, None] + offsets, column[:, None] + offsets  # (n, window) each
    inside = _inside(y, height)[:, :, None] & _inside(x, width)[:, None, :]
    window = maps[
        each[:, None, None], y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]
    ]
    weights = window.clamp_min(0).square() * inside  # (n, window, window)
    total = weights.sum((-2, -1)).clamp_min(torch.finfo(weights.dtype).tiny)

    def mean(marginal: Tensor) -> Tensor:
        return marginal @ offsets.to(marginal.dtype) / total

    along_x, along_y = weights.sum(-2), weights.sum(-1)
    offset_x, offset_y = mean(along_x), mean(along_y)
    from_mean_x = offsets - offset_x[:, None]
    from_mean_y = offsets - offset_y[:, None]
    variance_x = (along_x * from_mean_x.square()).sum(-1)
    variance_y = (along_y * from_mean_y.square()).sum(-1)
    shared = torch.einsum("nyx,ny,nx->n", weights, from_mean_y, from_mean_x)
    second = torch.stack([variance_x, shared, shared, variance_y], -1).unflatten(-1, (2, 2))
    covariance = 2 * second / total[:, None, None]  # the square of a Gaussian is half as wide

    point_x = _at_border(along_x, x, width, sigma, column + offset_x)
    point_y = _at_border(along_y, y, height, sigma, row + offset_y)
    points = torch.stack([point_x, point_y], -1)
    return Decoded(
        points.reshape(*leading, 2), peak.reshape(leading), covariance.reshape(*leading, 2, 2)
    )


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _at_border(marginal: Tensor, index: Tensor, size: int, sigma: float, mean: Tensor) -> Tensor:
    """`mean` (n,), but the log-parabola's vertex where the window (n, window) leaves the map."""
    middle = index[:, index.shape[1] // 2].clamp(1, size - 2)
    first = (middle - 1 - index[:, 0])[:, None]
    three = marginal.gather(1, first + torch.arange(3, device=marginal.device))
    left, centre, right = three.clamp_min(torch.finfo(marginal.dtype).tiny).log().unbind(1)
    curvature = left + right - 2 * centre
    vertex = middle + 0.5 * (left - right) / curvature
    vertex = vertex.clamp(-REACH * sigma, size - 1 + REACH * sigma)
    cut = ~_inside(index, size).all(-1) & (curvature < 0) & (three > 0).all(-1)
    return torch.where(cut, vertex, mean)
