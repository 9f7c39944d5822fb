"""Landmarks to target heatmaps, and heatmaps to landmarks.

A target is a Gaussian of height 1 at the unrounded landmark, the product of a factor along y and
one along x. Both directions clamp landmarks to `REACH` sigma beyond the outermost pixel centres.

Heatmaps are (..., H, W).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

REACH = 1.5
MIN_PEAK = 0.05  # the global decoder treats lower peaks as this high


class Decoded(NamedTuple):
    """Landmarks decoded from heatmaps, in float32 or better."""

    points_heatmap: Tensor  # (..., 2), (x, y) in heatmap pixels
    peak: Tensor  # (...), the map's highest value
    # (..., 2, 2), spread around the point in square heatmap pixels: sigma² I for a target, less
    # where the border cuts the window
    covariance: Tensor


def log_gaussian_factors(
    points_heatmap: Tensor, height: int, width: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """Returns the logarithms of each target's factors, finite even far from the landmark.

    target[..., y, x] = exp(along_y[..., y]) exp(along_x[..., x]). For finite points (..., 2),
    along_y is (..., H) and along_x (..., W), in the points' dtype.
    """

    def factor(centre: Tensor, size: int) -> Tensor:
        centre = centre.clamp(-REACH * sigma, size - 1 + REACH * sigma)
        grid = torch.arange(size, dtype=centre.dtype, device=centre.device)
        return -0.5 * ((grid - centre[..., None]) / sigma).square()

    return factor(points_heatmap[..., 1], height), factor(points_heatmap[..., 0], width)


def dilated(factor: Tensor) -> Tensor:
    """Returns (..., n): the maximum over each pixel and its two neighbours.

    The product of a target's two dilated factors is exactly its 3 x 3 grey dilation.
    """
    flat = functional.max_pool1d(factor.reshape(-1, 1, factor.shape[-1]), 3, stride=1, padding=1)
    return flat.reshape(factor.shape)


def render(points_heatmap: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Returns full targets (..., H, W). Training uses only their factors."""
    along_y, along_x = log_gaussian_factors(points_heatmap, height, width, sigma)
    return along_y.exp()[..., :, None] * along_x.exp()[..., None, :]


def decode(heatmaps: Tensor, sigma: float, decoder: str = "window") -> Decoded:
    """Decodes whole heatmaps; `heatmap.maps.decode` does the same without holding them all.

    window: soft-argmax with weights max(h, 0)² in a window around the peak. Where the border cuts
        the window, a parabola through the logarithms of three of its sums replaces the biased mean.
    parabola: the vertex of a parabola through the logarithms of the peak and its two neighbours,
        along each axis. Exact for a Gaussian, fastest, most sensitive to noise.
    global: `soft_argmax` over the whole map, its steepness inverse to the peak's height.
    softmax: the same, with the steepness for a peak of height 1, as used in training.

    If no value of a map is positive, window and parabola return its highest pixel.

    Args:
        heatmaps: (..., H, W), any float dtype; computed in float32 or better. H, W >= 3.
        sigma: of the training targets, in heatmap pixels.
    """
    leading, (height, width) = heatmaps.shape[:-2], heatmaps.shape[-2:]
    maps = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    maps = maps.reshape(-1, height, width)
    windows = _windows_at_peaks(maps, window_radius(sigma, decoder))
    match decoder:
        case "window":
            decoded = _window_soft_argmax(windows, (height, width), sigma)
        case "parabola":
            decoded = _log_parabola(windows, (height, width), sigma)
        case "global":
            steepness = softmax_steepness(height, width, sigma)
            points, covariance = soft_argmax(maps, steepness / windows.peak.clamp_min(MIN_PEAK))
            decoded = Decoded(points, windows.peak, steepness * covariance)
        case "softmax":
            points, covariance = soft_argmax(maps, softmax_steepness(height, width, sigma))
            decoded = Decoded(points, windows.peak, covariance)
        case _:
            raise AssertionError(f"unknown decoder {decoder!r}")
    return Decoded(*(part.reshape(leading + part.shape[1:]) for part in decoded))


class _Windows(NamedTuple):
    values: Tensor  # (n, w, w) around the peaks of n maps, 0 outside the map
    row: Tensor  # (n,) int64, the peaks' pixels
    column: Tensor
    peak: Tensor  # (n,)


def window_radius(sigma: float, decoder: str) -> int:
    """Returns the half width in pixels of the window that a decoder reads around the peak."""
    # a squared target falls to 0.2 % at 2.5 sigma; at the border the parabola moves inwards by one
    return {"window": math.ceil(2.5 * sigma), "parabola": 2}.get(decoder, 0)


def _windows_at_peaks(maps: Tensor, radius: int) -> _Windows:
    height, width = maps.shape[1:]
    assert min(height, width) >= 3, f"a {height} x {width} map is too small to decode"
    index = torch.arange(maps.shape[0], device=maps.device)  # len() would be constant in an export
    # in two stages, since the maximum of every row is one fast reduction
    row = maps.amax(-1).argmax(-1)
    column = maps[index, row].argmax(-1)

    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    y, x = row[:, None] + offsets, column[:, None] + offsets  # (n, w) each
    start = y.clamp(0, height - 1) * width
    pixel = (start[:, :, None] + x.clamp(0, width - 1)[:, None, :]).flatten(1)
    values = maps.flatten(1).gather(1, pixel).unflatten(1, (len(offsets), -1))
    inside_y, inside_x = (y >= 0) & (y < height), (x >= 0) & (x < width)
    values.mul_(inside_y[:, :, None] & inside_x[:, None, :])
    return _Windows(values, row, column, maps[index, row, column])


def softmax_steepness(height: int, width: int, sigma: float) -> float:
    """Returns k, the factor of the heatmap before a softmax over the whole map.

    The background, H W pixels of weight 1, pulls the point towards the map's centre against the
    peak's weight of about 2 pi sigma² exp(k) / k. This k limits the pull to 0.02 pixels.
    """
    pull = height * width * max(height, width) / 2 / (0.02 * 2 * math.pi * sigma**2)
    steepness = math.log(pull)
    for _ in range(20):  # the error shrinks by a factor of k each time
        steepness = math.log(pull * steepness)
    return steepness


def soft_argmax(heatmaps: Tensor, steepness: Tensor | float) -> tuple[Tensor, Tensor]:
    """Returns mean and covariance of softmax(steepness * heatmap) over all pixels; differentiable.

    Args:
        steepness: a number, or (...) for one per map.

    Returns:
        points_heatmap (..., 2), and covariance (..., 2, 2) in square heatmap pixels.

    Source: Sun et al. 2018, https://arxiv.org/abs/1711.08229; covariance: Nibali et al. 2018,
    https://arxiv.org/abs/1801.07372.
    """
    factor = steepness[..., None].to(heatmaps) if isinstance(steepness, Tensor) else steepness
    probability = (factor * heatmaps.flatten(-2)).softmax(-1)
    return mean_and_covariance(probability @ pixel_moments(heatmaps), heatmaps.shape[-2:])


def pixel_moments(heatmaps: Tensor) -> Tensor:
    """Returns (H W, 5): x, y, x², xy, y² of every pixel of (..., H, W) maps, in their dtype.

    Relative to the map's centre, to avoid cancellation in the variances.
    """
    height, width = heatmaps.shape[-2:]
    y, x = (
        torch.arange(size, dtype=heatmaps.dtype, device=heatmaps.device) - (size - 1) / 2
        for size in (height, width)
    )
    y, x = y[:, None].expand(height, width), x.expand(height, width)
    return torch.stack([x, y, x * x, x * y, y * y], -1).flatten(0, 1)


def mean_and_covariance(moments: Tensor, map_hw: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Converts mean `pixel_moments` (..., 5) to a mean (..., 2) and covariance (..., 2, 2)."""
    mean, (xx, xy, yy) = moments[..., :2], moments[..., 2:].unbind(-1)
    second = torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))
    (x, y), (height, width) = mean.unbind(-1), map_hw
    points = torch.stack([x + (width - 1) / 2, y + (height - 1) / 2], -1)
    return points, second - mean[..., :, None] * mean[..., None, :]


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
        is_cut = (pixel < size // 2) | (pixel >= length - size // 2)
        points.append(torch.where(is_cut & (curvature < 0), vertex, pixel + mean))
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
    """Vertex (n,) and curvature (n,) of the parabola through the logarithms of three values.

    profile (n, w) is centred at `pixel` (n,). The values are its middle three, or at the border
    the nearest three inside the map. The curvature is 0 at a valley or if a value is not positive.
    """
    centre = pixel.clamp(1, length - 2)
    first = (centre - 1 - pixel + profile.shape[1] // 2)[:, None]
    three = profile.gather(1, first + torch.arange(3, device=profile.device))
    left, middle, right = three.clamp_min(torch.finfo(profile.dtype).tiny).log().unbind(1)
    curvature = (left + right - 2 * middle).clamp_max(0) * (three > 0).all(-1)
    vertex = centre + 0.5 * (left - right) / curvature
    return vertex.clamp(-REACH * sigma, length - 1 + REACH * sigma), curvature
