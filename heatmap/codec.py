"""One representation of landmarks, both ways: points to target heatmaps, heatmaps to points.

A target is a Gaussian of height 1 round the unrounded landmark: a factor along y times one along x.
Landmarks outside the map are drawn, and decoded, at most `REACH` sigma beyond its outermost pixel
centres.

Shapes: H x W heatmap pixels; leading axes are free.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

REACH = 1.5
FAINT = 0.05  # the lowest peak that the global decoder's temperature follows


class Decoded(NamedTuple):
    """What a heatmap says of its landmark, in float32.

    points_heatmap: (..., 2), (x, y) in heatmap pixels; peak: (...), the map's highest value.
    covariance: (..., 2, 2), spread of the map round the point in square heatmap pixels: sigma² I
        for a target well inside the map, less where the border cuts the window.
    """

    points_heatmap: Tensor
    peak: Tensor
    covariance: Tensor


def gaussian_factors(
    points_heatmap: Tensor, height: int, width: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """The two factors of every target: target[..., y, x] = along_y[..., y] along_x[..., x].

    From (..., 2) finite points: along_y (..., H) and along_x (..., W), in [0, 1], of their dtype.
    """
    along_y, along_x = log_gaussian_factors(points_heatmap, height, width, sigma)
    return along_y.exp(), along_x.exp()


def log_gaussian_factors(
    points_heatmap: Tensor, height: int, width: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """The logarithms of `gaussian_factors`, which stay finite far from the landmark."""

    def factor(centre: Tensor, size: int) -> Tensor:
        centre = centre.clamp(-REACH * sigma, size - 1 + REACH * sigma)
        grid = torch.arange(size, dtype=centre.dtype, device=centre.device)
        return -0.5 * ((grid - centre[..., None]) / sigma).square()

    return factor(points_heatmap[..., 1], height), factor(points_heatmap[..., 0], width)


def dilated(factor: Tensor) -> Tensor:
    """(..., n): the maximum over each pixel and its two neighbours.

    The 3 x 3 grey dilation of a target is exactly the product of its two dilated factors.
    """
    flat = functional.max_pool1d(factor.reshape(-1, 1, factor.shape[-1]), 3, stride=1, padding=1)
    return flat.reshape(factor.shape)


def render(points_heatmap: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """(..., H, W) whole targets, to look at; training never makes them."""
    along_y, along_x = gaussian_factors(points_heatmap, height, width, sigma)
    return along_y[..., :, None] * along_x[..., None, :]


def decode(heatmaps: Tensor, sigma: float, decoder: str = "window") -> Decoded:
    """Landmarks of whole maps; `heatmap.maps.decode` does the same without ever having them whole.

    window: soft-argmax with the weights max(h, 0)² in a window round the peak. Along an axis on
        which the window leaves the map, the vertex of a parabola through the logarithms of three
        sums of the window takes the place of the biased mean.
    parabola: the vertex of a parabola through the logarithms of the peak and its two neighbours,
        along each axis. Exact for a Gaussian, cheapest, most sensitive to noise.
    global: `soft_argmax` over the whole map, with a steepness that follows the peak's height.
    softmax: the same with the steepness of a peak of height 1, as training through it expects.

    Window and parabola answer with the highest pixel where no value of a map is positive.

    Args:
        heatmaps: (..., H, W), any float dtype; computed in float32 or better. H, W >= 3.
        sigma: of the targets that the maps were trained on, in heatmap pixels.
    """
    leading, (height, width) = heatmaps.shape[:-2], heatmaps.shape[-2:]
    maps = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    maps = maps.reshape(-1, height, width)
    windows = _around_peaks(maps, window_radius(sigma, decoder))
    match decoder:
        case "window":
            decoded = _window_soft_argmax(windows, (height, width), sigma)
        case "parabola":
            decoded = _log_parabola(windows, (height, width), sigma)
        case "global":
            steepness = sharpness(height, width, sigma)
            points, covariance = soft_argmax(maps, steepness / windows.peak.clamp_min(FAINT))
            decoded = Decoded(points, windows.peak, steepness * covariance)
        case "softmax":
            points, covariance = soft_argmax(maps, sharpness(height, width, sigma))
            decoded = Decoded(points, windows.peak, covariance)
        case _:
            raise AssertionError(f"there is no decoder {decoder!r}")
    return Decoded(*(part.reshape(leading + part.shape[1:]) for part in decoded))


class _Windows(NamedTuple):
    """Heights (n, w, w) round the peaks of n maps, 0 beyond; the peaks' pixels and heights (n,)."""

    values: Tensor
    row: Tensor
    column: Tensor
    peak: Tensor


def window_radius(sigma: float, decoder: str) -> int:
    """Half width of the window that a decoder looks at, 0 for one that looks at none."""
    # at 2.5 sigma squared heights have fallen to 0.2 %; a parabola's pixels move in at the border
    return {"window": math.ceil(2.5 * sigma), "parabola": 2}.get(decoder, 0)


def _around_peaks(maps: Tensor, radius: int) -> _Windows:
    """The windows of (n, H, W) maps in float32 or float64; H, W >= 3."""
    height, width = maps.shape[1:]
    assert min(height, width) >= 3, f"a {height} x {width} map is too small to decode"
    each = torch.arange(maps.shape[0], device=maps.device)  # an export takes len for a constant
    # two stages: the maximum of every row is one fast reduction, what remains is small
    row = maps.amax(-1).argmax(-1)
    column = maps[each, row].argmax(-1)

    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    y, x = row[:, None] + offsets, column[:, None] + offsets  # (n, w) each
    start = y.clamp(0, height - 1) * width
    pixel = (start[:, :, None] + x.clamp(0, width - 1)[:, None, :]).flatten(1)
    values = maps.flatten(1).gather(1, pixel).unflatten(1, (len(offsets), -1))
    inside_y, inside_x = (y >= 0) & (y < height), (x >= 0) & (x < width)
    values.mul_(inside_y[:, :, None] & inside_x[:, None, :])
    return _Windows(values, row, column, maps[each, row, column])


def sharpness(height: int, width: int, sigma: float) -> float:
    """What a target's height is multiplied by before the global softmax.

    The background, H W pixels of weight 1, pulls the point to the map's middle against the peak's
    weight of about 2 pi sigma² exp(k) / k: at the answer k by 0.02 heatmap pixels at the border.
    """
    pull = height * width * max(height, width) / 2 / (0.02 * 2 * math.pi * sigma**2)
    steepness = math.log(pull)
    for _ in range(20):  # converges by a factor of k each time
        steepness = math.log(pull * steepness)
    return steepness


def soft_argmax(heatmaps: Tensor, steepness: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of softmax(steepness * heatmap) over all pixels, differentiable.

    steepness: a number, or (...) one for every map.

    Returns:
        points_heatmap (..., 2) and covariance (..., 2, 2) in square heatmap pixels.

    Source: Sun et al. 2018, https://arxiv.org/abs/1711.08229; covariance: Nibali et al. 2018,
    https://arxiv.org/abs/1801.07372.
    """
    factor = torch.as_tensor(steepness, dtype=heatmaps.dtype, device=heatmaps.device)
    share = (factor[..., None] * heatmaps.flatten(-2)).softmax(-1)
    return mean_and_covariance(share @ pixel_moments(heatmaps), heatmaps.shape[-2:])


def pixel_moments(heatmaps: Tensor) -> Tensor:
    """(H W, 5): x, y, x², xy, y² of every pixel of (..., H, W) maps, of their dtype.

    Measured from the map's middle, so that a variance is no difference of large numbers.
    """
    height, width = heatmaps.shape[-2:]
    y, x = (
        torch.arange(size, dtype=heatmaps.dtype, device=heatmaps.device) - (size - 1) / 2
        for size in (height, width)
    )
    y, x = y[:, None].expand(height, width), x.expand(height, width)
    return torch.stack([x, y, x * x, x * y, y * y], -1).flatten(0, 1)


def mean_and_covariance(moments: Tensor, map_hw: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(..., 2) and (..., 2, 2) from (..., 5) expected `pixel_moments`."""
    mean, (xx, xy, yy) = moments[..., :2], moments[..., 2:].unbind(-1)
    second = torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))
    middle = torch.tensor([map_hw[1] - 1, map_hw[0] - 1], device=moments.device) / 2
    return mean + middle, second - mean[..., :, None] * mean[..., None, :]


def _window_soft_argmax(windows: _Windows, map_hw: tuple[int, int], sigma: float) -> Decoded:
    values, row, column, peak = windows
    size = values.shape[-1]
    offsets = torch.arange(size, device=values.device) - size // 2
    weights = values.clamp_min(0).square()
    along_x, along_y = weights.sum(-2), weights.sum(-1)
    total = along_x.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)

    step = offsets.to(weights.dtype)
    x, y = along_x @ step / total, along_y @ step / total
    xx, yy = along_x @ step.square() / total, along_y @ step.square() / total
    xy = weights.flatten(1) @ (step[:, None] * step).flatten() / total
    second = torch.stack([xx - x * x, xy - x * y, xy - x * y, yy - y * y], -1)
    covariance = 2 * second.unflatten(-1, (2, 2))  # the square of a Gaussian is half as wide

    points, (height, width) = [], map_hw
    for profile, pixel, mean, length in ((along_x, column, x, width), (along_y, row, y, height)):
        vertex, curvature = _vertex(profile, pixel, length, sigma)
        cut = (pixel < size // 2) | (pixel >= length - size // 2)
        points.append(torch.where(cut & (curvature < 0), vertex, pixel + mean))
    return Decoded(torch.stack(points, -1), peak, covariance)


def _log_parabola(windows: _Windows, map_hw: tuple[int, int], sigma: float) -> Decoded:
    values, row, column, peak = windows
    middle, (height, width) = values.shape[-1] // 2, map_hw
    along_x, along_y = values[:, middle, :], values[:, :, middle]
    points, variances = [], []
    for profile, pixel, length in ((along_x, column, width), (along_y, row, height)):
        vertex, curvature = _vertex(profile, pixel, length, sigma)
        points.append(torch.where(curvature < 0, vertex, pixel.to(vertex.dtype)))
        variances.append(torch.where(curvature < 0, -1 / curvature, 0))
    return Decoded(torch.stack(points, -1), peak, torch.stack(variances, -1).diag_embed())


def _vertex(profile: Tensor, pixel: Tensor, length: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Where the parabola through the logarithms of three values has its top, and its curvature.

    profile: (n, w) along one axis of the map, its middle at `pixel` (n,) of `length`; the three are
    moved into the map at its border. The curvature is 0 at a valley and where one is not positive.
    """
    centre = pixel.clamp(1, length - 2)
    first = (centre - 1 - pixel + profile.shape[1] // 2)[:, None]
    three = profile.gather(1, first + torch.arange(3, device=profile.device))
    left, middle, right = three.clamp_min(torch.finfo(profile.dtype).tiny).log().unbind(1)
    curvature = (left + right - 2 * middle).clamp_max(0) * (three > 0).all(-1)
    vertex = centre + 0.5 * (left - right) / curvature
    return vertex.clamp(-REACH * sigma, length - 1 + REACH * sigma), curvature
