"""Landmarks to target heatmaps, and heatmaps to landmarks.

A target is a Gaussian of height 1 at the unrounded landmark, the product of a factor along y and
one along x. Both directions clamp landmarks to `REACH` sigma beyond the outermost pixel centres.

Heatmaps are (..., H, W).
"""

import math
from collections.abc import Callable, Sequence
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


# a name of `decode`, or a function of whole maps (n, H, W) and sigma
Decoder = str | Callable[[Tensor, float], Decoded]


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


def decode(heatmaps: Tensor, sigma: float, decoder: Decoder = "window") -> Decoded:
    """Decodes whole heatmaps; `heatmap.maps.decode` does the same without holding them all.

    window: soft-argmax with weights max(h, 0)² in a window around the peak. Where the border cuts
        the window, a parabola through the logarithms of three row or column sums is used instead.
    parabola: the vertex of a parabola through the logarithms of the peak and its two neighbours,
        along each axis. Exact for a Gaussian, fastest, most sensitive to noise.
    global: `soft_argmax` over the whole map, its steepness inversely proportional to the peak.
    softmax: the same, with the steepness for a peak of height 1, as used in training.

    If no value of a map is positive, window and parabola return its highest pixel.

    Args:
        heatmaps: (..., H, W), any float dtype; computed in float32 or better. H, W >= 3.
        sigma: standard deviation of the training targets in heatmap pixels.
    """
    leading, (height, width) = heatmaps.shape[:-2], heatmaps.shape[-2:]
    maps = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    maps = maps.reshape(-1, height, width)
    match decoder:
        case "window" | "parabola":
            windows = windows_at_peaks(maps, window_radius(sigma, decoder))
            decoded = decode_windows(windows, (height, width), sigma, decoder)
        case "global":
            peak, steepness = maps.amax((1, 2)), softmax_steepness(height, width, sigma)
            points, covariance = soft_argmax(maps, steepness / peak.clamp_min(MIN_PEAK))
            decoded = Decoded(points, peak, steepness * covariance)
        case "softmax":
            points, covariance = soft_argmax(maps, softmax_steepness(height, width, sigma))
            decoded = Decoded(points, maps.amax((1, 2)), covariance)
        case str():
            raise AssertionError(f"unknown decoder {decoder!r}")
        case _:
            decoded = decoder(maps, sigma)
    return Decoded(*(part.reshape(leading + part.shape[1:]) for part in decoded))


def name_of(decoder: Decoder) -> str:
    """Returns the name of a decoder, also of a function."""
    return decoder if isinstance(decoder, str) else getattr(decoder, "__name__", "function")


class Windows(NamedTuple):
    """Windows of w x w pixels around the peaks of n maps; n is last, for long inner loops."""

    values: Tensor  # (w w, n), arbitrary outside the map
    pixel: Tensor  # (n,) int64, W row + column of the peak


def window_radius(sigma: float, decoder: Decoder) -> int:
    """Returns the half width in pixels of a decoder's window, 0 if it reads whole maps."""
    # a squared target falls to 0.2 % at 2.5 sigma; at the border the parabola moves inwards by one
    return {"window": math.ceil(2.5 * sigma), "parabola": 2}.get(str(decoder), 0)


def windows_at_peaks(maps: Tensor, radius: int) -> Windows:
    """Returns the windows of 2 radius + 1 pixels around the highest pixels of (n, H, W) maps."""
    height, width = maps.shape[1:]
    assert min(height, width) >= 3, f"a {height} x {width} map is too small to decode"
    # len() would be constant in an export
    first = height * width * torch.arange(maps.shape[0], device=maps.device)
    if maps.is_cuda:  # one pass: maxima of short rows are slow
        pixel = maps.flatten(1).argmax(1)
    else:  # two stages: argmax of long rows is slow
        row = maps.amax(-1).argmax(-1)
        peak_rows = maps.flatten(0, 1).index_select(0, first // width + row)
        pixel = width * row + peak_rows.argmax(-1)
    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    offsets = (width * offsets[:, None] + offsets).flatten()
    pixels = (pixel + offsets[:, None]).clamp_(0, height * width - 1).add_(first)
    return Windows(maps.flatten().index_select(0, pixels.flatten()).view(pixels.shape), pixel)


def decode_windows(
    windows: Windows, map_hw: Sequence[int], sigma: float, decoder: Decoder = "window"
) -> Decoded:
    """Decodes n windows of `window_radius`; see `decode` for the decoders window and parabola."""
    size, (height, width) = math.isqrt(windows.values.shape[0]), map_hw
    values = windows.values.unflatten(0, (size, size))
    row, column = windows.pixel // width, windows.pixel % width
    # both axes at once, x first: on a GPU, every operation costs a launch
    before = torch.stack([column, row])  # (2, n), pixels between the peak and the borders
    after = torch.stack([width - 1 - column, height - 1 - row])
    if decoder == "window":
        points, covariance = _window_soft_argmax(values, before, after, sigma)
    else:
        points, covariance = _log_parabola(values, before, after, sigma)
    peak = values[size // 2, size // 2].clone()  # a view would keep all windows alive
    return Decoded(points.T, peak, covariance)


def second_peak(heatmaps: Tensor, sigma: float) -> Tensor:
    """Returns (...): each map's highest value further than 3 sigma from its peak along x or y."""
    maps = heatmaps.flatten(0, -3)
    height, width = maps.shape[1:]
    pixel = maps.flatten(1).argmax(1)[:, None]
    y, x = (torch.arange(size, device=maps.device) for size in (height, width))
    near_y, near_x = (y - pixel // width).abs() <= 3 * sigma, (x - pixel % width).abs() <= 3 * sigma
    is_near = near_y[:, :, None] & near_x[:, None]
    return maps.masked_fill(is_near, 0).amax((1, 2)).view(heatmaps.shape[:-2])


def softmax_steepness(height: int, width: int, sigma: float) -> float:
    """Returns k, the factor of the heatmap before a softmax over the whole map.

    The background, H W pixels of weight 1, pulls the point towards the map's centre against the
    peak's weight of about 2 pi sigma² exp(k) / k. This k limits the pull to about 0.02 pixels for a
    sigma of 3 and more; for a sigma of 1 it reaches 0.3.
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


def _window_soft_argmax(
    values: Tensor, before: Tensor, after: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """points (2, n) and covariance (n, 2, 2) from windows (w, w, n)."""
    radius = len(values) // 2
    offsets = torch.arange(-radius, radius + 1, device=values.device)
    margin = torch.minimum(before[:, None] + offsets[:, None], after[:, None] - offsets[:, None])
    inside_x, inside_y = (margin >= 0).to(values.dtype)  # (w, n) each
    weights = values.clamp_min(0).square_().mul_(inside_y[:, None]).mul_(inside_x)
    profiles = torch.stack([weights.sum(0), weights.sum(1)])  # (2, w, n)

    offsets = offsets.to(weights.dtype)
    powers = torch.stack([offsets, offsets.square()])
    total = profiles[0].sum(0).clamp_min(torch.finfo(weights.dtype).tiny)
    mean, second = ((powers @ profiles) / total).unbind(1)  # (2, n) each
    xx, yy = torch.addcmul(second, mean, mean, value=-1)
    xy = (offsets[:, None] * offsets).flatten() @ weights.flatten(0, 1) / total - mean[0] * mean[1]
    # the square of a Gaussian has half its variance
    covariance = 2 * torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))

    vertex, curvature = _vertex(profiles, before, after, sigma)
    is_cut = torch.minimum(before, after) < radius
    return torch.where(is_cut & (curvature < 0), vertex, before + mean), covariance


def _log_parabola(
    values: Tensor, before: Tensor, after: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """points (2, n) and covariance (n, 2, 2) from windows (w, w, n)."""
    profiles = torch.stack([values[len(values) // 2], values[:, len(values) // 2]])
    vertex, curvature = _vertex(profiles, before, after, sigma)
    points = torch.where(curvature < 0, vertex, before.to(vertex.dtype))
    return points, torch.where(curvature < 0, -1 / curvature, 0).T.diag_embed()


def _vertex(profiles: Tensor, before: Tensor, after: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Vertex (2, n) and curvature (2, n) of the parabola through the logarithms of three values.

    profiles (2, w, n) are centred at the peak. The values are their middle three, or at the border
    the nearest three inside the map. The curvature is 0 at a valley or if a value is not positive.
    """
    shift = after.clamp_max(1) - before.clamp_max(1)  # 1 at the first pixel, -1 at the last
    middle_three = torch.arange(3, device=profiles.device)[:, None] + profiles.shape[1] // 2 - 1
    left, middle, right = profiles.gather(1, shift[:, None] + middle_three).log().unbind(1)
    curvature = (left + right - 2 * middle).nan_to_num(0, 0, 0).clamp_max(0)
    vertex = before + shift + 0.5 * (left - right) / curvature
    reach = REACH * sigma
    return torch.minimum(vertex.clamp_min(-reach), before + after + reach), curvature
