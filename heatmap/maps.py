"""Loss and decoding of heatmaps that are never all in memory at once.

The map of a landmark is the inner product of its embedding with every pixel's features. Loss and
decoding compute one block of maps at a time: the loss in blocks of images and rows, decoding in
blocks of images and landmarks, since it needs whole maps.

Shapes: B images, C feature channels, P landmarks, H x W heatmap pixels.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from heatmap import codec, losses
from heatmap.losses import Pointwise
from heatmap.runtime import compiling

# Heatmap values per block: 2 MiB fit in a CPU's cache; a GPU needs fewer launches.
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**26}


class Maps(NamedTuple):
    """P heatmaps of B images: map[b, p, y, x] = embeddings[p] · features[b, :, y, x] + bias[p]."""

    features: Tensor  # (B, C, H, W), any float dtype
    embeddings: Tensor  # (P, C)
    bias: Tensor  # (P,)


class Targets(NamedTuple):
    """Target Gaussians of P maps of b images as factors, and the weights of their pixels."""

    along_y: Tensor  # (b, P, H)
    along_x: Tensor  # (b, P, W)
    wide_y: Tensor  # the same, dilated by a pixel
    wide_x: Tensor
    weights: Tensor  # (b, P), multiply the slope
    weight_map: float  # extra weight of pixels with a dilated target >= losses.FOREGROUND

    def tile(self, rows: slice, columns: slice) -> "Targets":
        """Returns the targets of a slice of rows and columns."""
        # copies, since views with other strides would trigger a recompilation
        y, x, wide_y, wide_x = (
            torch.narrow_copy(factor, -1, part.start, part.stop - part.start)
            for factor, part in zip(self[:4], (rows, columns) * 2, strict=True)
        )
        return Targets(y, x, wide_y, wide_x, self.weights, self.weight_map)


# (heights, targets, pointwise) -> (loss, slope), as `loss_of_block`
BlockLoss = Callable[[Tensor, Targets, Pointwise], tuple[Tensor, Tensor]]


def whole(maps: Maps) -> Tensor:
    """Returns all maps (B, P, H, W); only for a few images."""
    features, embeddings, bias = _to_full_precision(maps)
    return _heights(features.flatten(2), embeddings, bias).unflatten(2, features.shape[2:])


def loss_of_block(heights: Tensor, targets: Targets, pointwise: Pointwise) -> tuple[Tensor, Tensor]:
    """Returns loss and slope of a block of maps: the arithmetic between the two matrix products.

    Args:
        heights: (b, P, H W); may be overwritten.

    Returns:
        Loss (b, P) of each map without its weight, and slope (b, P, H W) of the weighted loss.
    """
    along_y, along_x, wide_y, wide_x, weights, weight_map = targets
    # the compiler vectorises separate axes for rows and columns: no index needs a division
    heights = heights.view(*along_y.shape, along_x.shape[-1])
    loss, slope = pointwise(heights, along_y[..., :, None] * along_x[..., None, :])
    if weight_map:
        near = wide_y[..., :, None] * wide_x[..., None, :] >= losses.FOREGROUND
        emphasis = near.to(loss.dtype).mul_(weight_map).add_(1)
        loss, slope = loss.mul_(emphasis), slope.mul_(emphasis)
    return loss.sum((2, 3)), slope.mul_(weights[..., None, None]).flatten(2)


compiled_loss_of_block = compiling.compiled(loss_of_block)


def loss(
    maps: Maps,
    points_heatmap: Tensor,
    weights: Tensor,
    *,
    sigma: float,
    weight_map: float = 0.0,
    pointwise: Pointwise = losses.adaptive_wing,
    block_loss: BlockLoss = loss_of_block,
) -> Tensor:
    """Returns the weighted loss of the maps against Gaussians at the landmarks.

    The sum over all pixels is divided by B P H W whatever the weights, so that a landmark of weight
    0 does not change the gradient of others. The gradient is computed along with the loss.

    Args:
        points_heatmap: (B, P, 2) in heatmap pixels; may be NaN where the weight is 0.
        weights: (B, P) >= 0, multiply the loss; 0 for an unlabelled landmark.
        sigma: standard deviation of the target Gaussians in heatmap pixels.
        weight_map: extra weight of pixels near a landmark; see `Targets`.
        block_loss: `loss_of_block` or `compiled_loss_of_block`.

    Returns:
        Scalar, float32 (float64 for float64 features), differentiable once in the maps.
    """
    map_hw = maps.features.shape[2:]
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    points_heatmap = points_heatmap.to(dtype)
    weights = weights.to(dtype) / (weights.numel() * math.prod(map_hw))

    def targets_in(images: slice) -> Targets:
        return targets_of(points_heatmap[images], weights[images], map_hw, sigma, weight_map)

    def loss_and_slope(heights: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        return block_loss(heights, targets, pointwise)

    with torch.autocast(maps.features.device.type, enabled=False):
        return _BlockedLoss.apply(*maps, targets_in, loss_and_slope)


def targets_of(
    points_heatmap: Tensor, weights: Tensor, map_hw: Sequence[int], sigma: float, weight_map: float
) -> Targets:
    """Returns the targets of points (b, P, 2) in their dtype; points of weight 0 are ignored."""
    # 0 times NaN is not 0
    points_heatmap = torch.where(weights[..., None] > 0, points_heatmap, 0)
    height, width = map_hw
    factors = codec.log_gaussian_factors(points_heatmap, height, width, sigma)
    along_y, along_x = (factor.exp() for factor in factors)
    wide = codec.dilated(along_y), codec.dilated(along_x)
    return Targets(along_y, along_x, *wide, weights.clone(), weight_map)


@torch.no_grad()
def decode(maps: Maps, sigma: float, decoder: codec.Decoder = "window") -> codec.Decoded:
    """Returns `codec.decode` of all maps (B, P, ...), computed block by block."""
    (num_images, _, *map_hw), num_landmarks = maps.features.shape, len(maps.bias)
    # a block is read only twice, so larger ones pay off even if they exceed the cache
    images, landmarks = _whole_block(maps, 2 * block_values(maps.features))
    heads = [*zip(maps.embeddings.split(landmarks), maps.bias.split(landmarks), strict=True)]
    blocks = [Maps(part, *head) for part in maps.features.split(images) for head in heads]
    radius = codec.window_radius(sigma, decoder)
    # decodes the windows of many blocks at once: small operations are mostly overhead on a CPU
    at_once = max(1, math.prod(map_hw) // (2 * radius + 1) ** 2) if radius else 1
    parts = []
    with torch.autocast(maps.features.device.type, enabled=False):
        for start in range(0, len(blocks), at_once):
            if radius:
                windows = [_windows(block, radius) for block in blocks[start : start + at_once]]
                joined = codec.Windows(*(_cat(part, -1) for part in zip(*windows, strict=True)))
                parts.append(codec.decode_windows(joined, map_hw, sigma, decoder))
            else:
                parts.append(codec.decode(whole(blocks[start]).flatten(0, 1), sigma, decoder))
    decoded = (_cat(tensors, 0) for tensors in zip(*parts, strict=True))
    return codec.Decoded(*(t.unflatten(0, (num_images, num_landmarks)) for t in decoded))


def _windows(maps: Maps, radius: int) -> codec.Windows:
    """`codec.windows_at_peaks` of all maps; adds the bias only to the windows."""
    features, embeddings, bias = _to_full_precision(maps)
    heights = embeddings.expand(len(features), -1, -1) @ features.flatten(2)
    heights = heights.unflatten(2, features.shape[2:]).flatten(0, 1)
    values, pixel = codec.windows_at_peaks(heights, radius)
    values.unflatten(1, (len(features), -1)).add_(bias)
    return codec.Windows(values, pixel)


def _cat(tensors: tuple[Tensor, ...], dim: int) -> Tensor:
    """torch.cat without copying a single tensor."""
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


def soft_argmax(maps: Maps, steepness: Tensor | float) -> tuple[Tensor, Tensor]:
    """Returns `codec.soft_argmax` of all maps without computing any map; differentiable.

    The mean under a softmax is attention: queries are the embeddings, keys the pixels' features,
    values the pixels' coordinates and their products. The bias cancels.

    Returns:
        points_heatmap (B, P, 2) and covariance (B, P, 2, 2), in float32 or better.
    """
    with torch.autocast(maps.features.device.type, enabled=False):
        features, embeddings, _ = _to_full_precision(maps)
        images, channels, *map_hw = features.shape
        factor = steepness[..., None].to(features) if isinstance(steepness, Tensor) else steepness
        query = embeddings.expand(images, -1, -1) * factor
        key, value = features.flatten(2).mT, codec.pixel_moments(features)
        # with different head sizes, torch falls back to a kernel that holds every map
        size = 8 * math.ceil(max(channels, value.shape[1]) / 8)
        query, key, value = (
            torch.nn.functional.pad(t, (0, size - t.shape[-1])).unsqueeze(-3)
            for t in (query, key, value.expand(images, -1, -1))
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return codec.mean_and_covariance(mixed.squeeze(-3)[..., :5], map_hw)


def divergence(
    maps: Maps, points_heatmap: Tensor, weights: Tensor, steepness: float, sigma: float
) -> Tensor:
    """Returns the Jensen-Shannon divergence of the maps' softmax from Gaussians at the landmarks.

    The backward pass recomputes the blocks, so that only one is held at a time.

    Args:
        points_heatmap: (B, P, 2) in heatmap pixels; may be NaN where the weight is 0.
        weights: (B, P) >= 0.
        steepness: factor of the maps before the softmax.
        sigma: standard deviation of the Gaussians in heatmap pixels.

    Returns:
        Scalar in nats: the weighted sum divided by B P (at most ln 2 for weights of 1).

    Source: Nibali et al. 2018, https://arxiv.org/abs/1801.07372.
    """
    with torch.autocast(maps.features.device.type, enabled=False):
        features, embeddings, bias = _to_full_precision(maps)
        points_heatmap = torch.where(weights[..., None] > 0, points_heatmap, 0).to(features)
        weights, total = weights.to(features), features.new_zeros(())
        images, landmarks = _whole_block(maps, block_values(maps.features))
        starts = range(0, len(features), images), range(0, len(bias), landmarks)
        for image, landmark in itertools.product(*starts):
            b, p = slice(image, image + images), slice(landmark, landmark + landmarks)
            total = total + checkpoint(
                _divergence_of_block, Maps(features[b], embeddings[p], bias[p]),
                points_heatmap[b, p], weights[b, p], steepness, sigma, use_reentrant=False,
                preserve_rng_state=False,
            )  # fmt: skip
        return total / weights.numel()


def _divergence_of_block(
    maps: Maps, points_heatmap: Tensor, weights: Tensor, steepness: float, sigma: float
) -> Tensor:
    height, width = maps.features.shape[-2:]
    log_p = (steepness * whole(maps)).flatten(2).log_softmax(-1)
    factors = codec.log_gaussian_factors(points_heatmap, height, width, sigma)
    y, x = (factor.log_softmax(-1) for factor in factors)
    log_q = (y[..., :, None] + x[..., None, :]).flatten(2)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
    return (0.5 * terms.sum(-1) * weights).sum()


class _BlockedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.targets_in, ctx.loss_and_slope = arguments
        ctx.save_for_backward(*tensors)
        loss, ctx.gradients = _loss_and_gradients(
            Maps(*tensors), ctx.targets_in, ctx.loss_and_slope, any(ctx.needs_input_grad)
        )
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # scaled in place, since a copy would double the memory of the features' gradient
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # second backward pass through a retained graph
            maps, functions = Maps(*ctx.saved_tensors), (ctx.targets_in, ctx.loss_and_slope)
            with torch.autocast(upstream[0].device.type, enabled=False):
                _, gradients = _loss_and_gradients(maps, *functions, with_gradients=True)
        return *(gradient.mul_(upstream[0]) for gradient in gradients), None, None


def _loss_and_gradients(
    maps: Maps,
    targets_in: Callable[[slice], Targets],
    loss_and_slope: Callable[[Tensor, Targets], tuple[Tensor, Tensor]],
    with_gradients: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    (images, channels, height, width), num_landmarks = maps.features.shape, len(maps.bias)
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    embeddings, bias = maps.embeddings.to(dtype), maps.bias.to(dtype)

    # a block is several whole images, or some rows of one, or part of a row
    max_values, depth = block_values(maps.features), max(num_landmarks, channels)
    row_slices = _slices(height, max_values // (depth * width))
    tiles = [*itertools.product(row_slices, _slices(width, max_values // depth))]
    total = maps.features.new_zeros((), dtype=torch.float64)
    grad_features = torch.empty_like(maps.features) if with_gradients else None
    grad_embeddings, grad_bias = torch.zeros_like(embeddings), torch.zeros_like(bias)
    for b in _slices(images, max_values // (depth * width * height)):
        targets = targets_in(b)
        for rows, columns in tiles:
            tile = maps.features[b, :, rows, columns].to(dtype)  # (b, C, rows, columns)
            pixels = tile.flatten(2)
            with _rounded_products(pixels):
                heights = _heights(pixels, embeddings, bias)
            loss, slope = loss_and_slope(heights, targets.tile(rows, columns))
            total += (loss * targets.weights).sum(dtype=torch.float64)
            if grad_features is not None:
                with _rounded_products(pixels):
                    grad_features[b, :, rows, columns] = (embeddings.T @ slope).view_as(tile)
                    _add_products(grad_embeddings, slope, pixels.mT)
                grad_bias += slope.sum((0, 2))
        del targets  # free them before the next ones are computed
    gradients = () if grad_features is None else (grad_features, grad_embeddings, grad_bias)
    return total.to(dtype), tuple(g.to(t.dtype) for g, t in zip(gradients, maps, strict=False))


@contextmanager
def _rounded_products(features: Tensor) -> Iterator[None]:
    """On a GPU, rounds the factors of float32 products to 10 bits (TF32), for 5 times the speed.

    This moves a landmark by about 0.001 pixels. Decoding does not round.
    """
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32 if features.is_cuda else False
    if features.is_cuda:
        settings.allow_tf32 = True
    try:
        yield
    finally:
        if features.is_cuda:
            settings.allow_tf32 = before


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds the sum of (b, ...) matrix products to `total`."""
    if total.is_cuda:  # where addbmm_ multiplies one pair at a time
        total += torch.bmm(left, right).sum(0)
    else:
        total.addbmm_(left, right)


def _heights(features: Tensor, embeddings: Tensor, bias: Tensor) -> Tensor:
    """(b, P, n) from (b, C, n) features."""
    return torch.baddbmm(bias[:, None], embeddings.expand(features.shape[0], -1, -1), features)


def _whole_block(maps: Maps, num_values: int) -> tuple[int, int]:
    """The numbers of images and of landmarks in a block of whole maps."""
    height, width = maps.features.shape[-2:]
    max_maps, num_landmarks = num_values // (height * width), len(maps.bias)
    return max(1, max_maps // num_landmarks), max(1, min(max_maps, num_landmarks))


def _slices(length: int, longest: int) -> list[slice]:
    """Splits 0 to `length` into as few slices as possible, of equal size so that shapes repeat."""
    step = math.ceil(length / math.ceil(length / max(1, longest)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def block_values(features: Tensor) -> int:
    """Returns the number of heatmap values per block on the tensor's device."""
    return BLOCK_VALUES.get(features.device.type, BLOCK_VALUES["cuda"])


def _to_full_precision(maps: Maps) -> Maps:
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    return Maps(*(t.to(dtype) for t in maps))
