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
    windows = windows_at_peaks(maps, window_radius(sigma, decoder))
    match decoder:
        case "window" | "parabola":
            decoded = decode_windows(windows, (height, width), sigma, decoder)
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


class Windows(NamedTuple):
    """Windows of w x w pixels around the peaks of n maps; n is last: short inner loops are slow."""

    values: Tensor  # (w w, n), arbitrary outside the map
    row: Tensor  # (n,) int64, the peaks' pixels
    column: Tensor
    peak: Tensor  # (n,)


def window_radius(sigma: float, decoder: str) -> int:
    """Returns the half width in pixels of the window that a decoder reads, 0 if it reads maps."""
    # a squared target falls to 0.2 % at 2.5 sigma; at the border the parabola moves inwards by one
    return {"window": math.ceil(2.5 * sigma), "parabola": 2}.get(decoder, 0)


def windows_at_peaks(maps: Tensor, radius: int) -> Windows:
    """Returns the windows of 2 radius + 1 pixels around the highest pixels of (n, H, W) maps."""
    height, width = maps.shape[1:]
    assert min(height, width) >= 3, f"a {height} x {width} map is too small to decode"
    flat = maps.flatten()
    first = height * width * torch.arange(maps.shape[0], device=maps.device)  # len(): see export
    if maps.is_cuda:  # one pass, where the maximum of short rows is slow
        pixel = maps.flatten(1).argmax(1)
        row, column = pixel // width, pixel % width
    else:  # in two stages, where the index of a long maximum is slow
        row = maps.amax(-1).argmax(-1)
        column = maps.flatten(0, 1).index_select(0, first // width + row).argmax(-1)
        pixel = width * row + column
    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    offsets = (width * offsets[:, None] + offsets).flatten()
    pixels = (pixel + offsets[:, None]).clamp_(0, height * width - 1).add_(first)
    values = flat.index_select(0, pixels.flatten()).view(pixels.shape)
    return Windows(values, row, column, values[len(offsets) // 2])


def decode_windows(
    windows: Windows, map_hw: Sequence[int], sigma: float, decoder: str = "window"
) -> Decoded:
    """Decodes n windows of `window_radius`; see `decode` for the decoders window and parabola."""
    by_decoder = {"window": _window_soft_argmax, "parabola": _log_parabola}
    return by_decoder[decoder](windows, map_hw, sigma)


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


def _window_soft_argmax(windows: Windows, map_hw: Sequence[int], sigma: float) -> Decoded:
    (values, row, column, peak), (height, width) = windows, map_hw
    size = math.isqrt(values.shape[0])
    offsets = torch.arange(size, device=values.device) - size // 2
    y, x = row + offsets[:, None], column + offsets[:, None]  # (w, n) each
    inside_y, inside_x = (
        ((pixel >= 0) & (pixel < length)).to(values.dtype)
        for pixel, length in ((y, height), (x, width))
    )
    weights = values.clamp_min(0).square_().unflatten(0, (size, size))
    weights.mul_(inside_y[:, None]).mul_(inside_x)
    along_x, along_y = weights.sum(0), weights.sum(1)
    total = along_x.sum(0).clamp_min(torch.finfo(weights.dtype).tiny)

    step = offsets.to(weights.dtype)
    powers = torch.stack([step, step.square()])
    (x, xx), (y, yy) = powers @ along_x / total, powers @ along_y / total
    xy = (step[:, None] * step).flatten() @ weights.flatten(0, 1) / total
    second = torch.stack([xx - x * x, xy - x * y, xy - x * y, yy - y * y], -1)
    covariance = 2 * second.unflatten(-1, (2, 2))  # the square of a Gaussian is half as wide

    points = []
    for profile, pixel, mean, length in ((along_x, column, x, width), (along_y, row, y, height)):
        vertex, curvature = _vertex(profile, pixel, length, sigma)
        is_cut = (pixel < size // 2) | (pixel >= length - size // 2)
        points.append(torch.where(is_cut & (curvature < 0), vertex, pixel + mean))
    return Decoded(torch.stack(points, -1), peak, covariance)


def _log_parabola(windows: Windows, map_hw: Sequence[int], sigma: float) -> Decoded:
    (values, row, column, peak), (height, width) = windows, map_hw
    size = math.isqrt(values.shape[0])
    values = values.unflatten(0, (size, size))
    along_x, along_y = values[size // 2], values[:, size // 2]
    points, variances = [], []
    for profile, pixel, length in ((along_x, column, width), (along_y, row, height)):
        vertex, curvature = _vertex(profile, pixel, length, sigma)
        points.append(torch.where(curvature < 0, vertex, pixel.to(vertex.dtype)))
        variances.append(torch.where(curvature < 0, -1 / curvature, 0))
    return Decoded(torch.stack(points, -1), peak, torch.stack(variances, -1).diag_embed())


def _vertex(profile: Tensor, pixel: Tensor, length: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Vertex (n,) and curvature (n,) of the parabola through the logarithms of three values.

    profile (w, n) is centred at `pixel` (n,). The values are its middle three, or at the border
    the nearest three inside the map. The curvature is 0 at a valley or if a value is not positive.
    """
    centre = pixel.clamp(1, length - 2)
    first = centre - 1 - pixel + profile.shape[0] // 2
    three = profile.gather(0, first + torch.arange(3, device=profile.device)[:, None])
    left, middle, right = three.clamp_min(torch.finfo(profile.dtype).tiny).log().unbind(0)
    curvature = (left + right - 2 * middle).clamp_max(0) * (three > 0).all(0)
    vertex = centre + 0.5 * (left - right) / curvature
    return vertex.clamp(-REACH * sigma, length - 1 + REACH * sigma), curvature
