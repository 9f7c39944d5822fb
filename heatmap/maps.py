"""Heatmaps that never exist whole.

The map of a landmark is the inner product of its embedding with every pixel's features, so these
*are* the maps, and loss and decoding make a block of maps, use it and forget it. Training walks
over images and rows, decoding over images and landmarks, since it needs whole maps.

Shapes: B images, C feature channels, P landmarks, H x W heatmap pixels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from heatmap import codec, losses
from heatmap.runtime import compiling

# Heatmap values in one block: 2 MiB of them stay in a CPU's cache, a GPU wants fewer launches.
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**26}

# (prediction, target) -> (loss, slope), pixel by pixel; see `heatmap.losses`
Pointwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Maps(NamedTuple):
    """P heatmaps of B images: map[b, p, y, x] = embeddings[p] · features[b, :, y, x] + bias[p].

    features: (B, C, H, W), any float dtype; embeddings: (P, C); bias: (P,).
    """

    features: Tensor
    embeddings: Tensor
    bias: Tensor


class Targets(NamedTuple):
    """Target Gaussians of P maps of b images, and the weights of their pixels, as factors.

    along_y, wide_y: (b, P, H); along_x, wide_x: (b, P, W); the wide ones are dilated by a pixel.
    weights: (b, P), multiply the slope.
    weight_map: extra weight of pixels whose dilated target is at least `losses.FOREGROUND`.
    """

    along_y: Tensor
    along_x: Tensor
    wide_y: Tensor
    wide_x: Tensor
    weights: Tensor
    weight_map: float

    def tile(self, rows: slice, columns: slice) -> "Targets":
        """The targets of a part of the maps."""
        # as tensors of their own: views of other strides would be compiled anew
        along_y, along_x, wide_y, wide_x = (
            torch.narrow_copy(factor, -1, part.start, part.stop - part.start)
            for factor, part in zip(self[:4], (rows, columns, rows, columns), strict=True)
        )
        return Targets(along_y, along_x, wide_y, wide_x, self.weights, self.weight_map)


# (heights, targets, pointwise) -> (loss, slope); see `loss_of_block`
BlockLoss = Callable[[Tensor, Targets, Pointwise], tuple[Tensor, Tensor]]


def whole(maps: Maps) -> Tensor:
    """(B, P, H, W) all maps at once, for a few images."""
    features, embeddings, bias = _in_full_precision(maps)
    height = features.shape[2]
    return _heights(features.flatten(2), embeddings, bias).unflatten(2, (height, -1))


def loss_of_block(heights: Tensor, targets: Targets, pointwise: Pointwise) -> tuple[Tensor, Tensor]:
    """Loss and slope of a block of maps: all of the arithmetic between the two products.

    From heights (b, P, H W), which may be overwritten: loss (b, P) of each map, not multiplied by
    its weight, and the slope of the weighted loss (b, P, H W).
    """
    along_y, along_x, wide_y, wide_x, weights, weight_map = targets
    # rows and columns stay apart: an index that must be divided keeps a compiler from vectors
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
    """The weighted loss of the maps against Gaussians at the landmarks.

    The sum over all pixels is divided by B P H W whatever the weights are, so that a landmark of
    weight 0 changes no other's gradient, which is computed together with the loss.

    Args:
        points_heatmap: (B, P, 2) in heatmap pixels; those of weight 0 may be NaN.
        weights: (B, P) >= 0, multiply the loss; 0 for an unlabelled landmark.
        sigma: of the target Gaussians in heatmap pixels.
        weight_map: extra weight of pixels near a landmark; see `Targets`.
        block_loss: `loss_of_block` or `compiled_loss_of_block`.

    Returns:
        Scalar, float32 (float64 for float64 features), differentiable once in the maps.
    """
    arguments = points_heatmap, weights, sigma, weight_map, pointwise, block_loss
    return _BlockedLoss.apply(*maps, *arguments)


def targets_of(
    points_heatmap: Tensor,
    weights: Tensor,
    map_hw: tuple[int, int],
    sigma: float,
    weight_map: float,
) -> Targets:
    """The targets of (b, P, 2) points, of their dtype; those of weight 0 may be anything."""
    # 0 times NaN is not 0
    points_heatmap = torch.where(weights[..., None] > 0, points_heatmap, 0)
    height, width = map_hw
    along_y, along_x = codec.gaussian_factors(points_heatmap, height, width, sigma)
    wide = codec.dilated(along_y), codec.dilated(along_x)
    return Targets(along_y, along_x, *wide, weights.clone(), weight_map)


@torch.no_grad()
def decode(maps: Maps, sigma: float, decoder: str = "window") -> codec.Decoded:
    """`codec.decode` of all maps, (B, P, ...), block by block."""
    images, landmarks = _whole_block(maps)
    heads = [*zip(maps.embeddings.split(landmarks), maps.bias.split(landmarks), strict=True)]
    rows = []
    with torch.autocast(maps.features.device.type, enabled=False):
        for features in maps.features.split(images):
            parts = [codec.decode(whole(Maps(features, *head)), sigma, decoder) for head in heads]
            rows.append([torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)])
    return codec.Decoded(*(torch.cat(tensors) for tensors in zip(*rows, strict=True)))


def soft_argmax(maps: Maps, steepness: Tensor | float) -> tuple[Tensor, Tensor]:
    """`codec.soft_argmax` of all maps, with its gradient, and without any map.

    The mean under a softmax is attention: the query is the embedding, the keys are the pixels'
    features, the values their coordinates and the products of these. The bias falls out.

    Returns:
        points_heatmap (B, P, 2) and covariance (B, P, 2, 2) in square heatmap pixels, float32
        (float64 for float64 features).
    """
    with torch.autocast(maps.features.device.type, enabled=False):
        features, embeddings, _ = _in_full_precision(maps)
        images, channels, *map_hw = features.shape
        factor = torch.as_tensor(steepness, dtype=features.dtype, device=features.device)
        query = embeddings * factor.expand(images, len(embeddings))[..., None]
        key, value = features.flatten(2).mT, codec.pixel_moments(features)
        # one head size for all three, or torch chooses the road that makes every map
        size = 8 * math.ceil(max(channels, value.shape[1]) / 8)
        query, key, value = (
            functional.pad(t, (0, size - t.shape[-1])).unsqueeze(-3)
            for t in (query, key, value.expand(images, -1, -1))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return codec.mean_and_covariance(mixed.squeeze(-3)[..., :5], map_hw)


def divergence(
    maps: Maps, points_heatmap: Tensor, weights: Tensor, steepness: float, sigma: float
) -> Tensor:
    """The Jensen-Shannon divergence of every map's softmax from the Gaussian at its landmark.

    Blocks of maps are made anew for the gradient, so that only one is held.

    points_heatmap: (B, P, 2) in heatmap pixels, which may be NaN where weights (B, P) are 0;
    steepness: of the softmax; sigma: of the Gaussian in heatmap pixels.

    Returns:
        Scalar in nats (at most ln 2 for weights of 1), divided by images and landmarks, float32
        (float64 for float64 features).

    Source: Nibali et al. 2018, https://arxiv.org/abs/1801.07372.
    """
    with torch.autocast(maps.features.device.type, enabled=False):
        features, embeddings, bias = _in_full_precision(maps)
        images, landmarks = _whole_block(maps)
        points_heatmap = torch.where(weights[..., None] > 0, points_heatmap, 0).to(features)
        total = features.new_zeros(())
        heads = embeddings.split(landmarks), bias.split(landmarks)
        batches = (t.split(images) for t in (features, points_heatmap, weights.to(features)))
        for some, points, weighted in zip(*batches, strict=True):
            parts = (*heads, points.split(landmarks, 1), weighted.split(landmarks, 1))
            for rows, offsets, centres, factors in zip(*parts, strict=True):
                total = total + checkpoint(
                    _divergence_of_block, Maps(some, rows, offsets), centres, factors, steepness,
                    sigma, use_reentrant=False,
                )  # fmt: skip
        return total / weights.numel()


def _divergence_of_block(
    maps: Maps, points_heatmap: Tensor, weights: Tensor, steepness: float, sigma: float
) -> Tensor:
    height, width = maps.features.shape[-2:]
    found = (steepness * whole(maps)).flatten(2).log_softmax(-1)
    factors = codec.log_gaussian_factors(points_heatmap, height, width, sigma)
    y, x = (factor.log_softmax(-1) for factor in factors)
    target = (y[..., :, None] + x[..., None, :]).flatten(2)
    middle = torch.logaddexp(found, target) - math.log(2)
    terms = found.exp() * (found - middle) + target.exp() * (target - middle)
    return (0.5 * terms.sum(-1) * weights).sum()


class _BlockedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, embeddings: Tensor, bias: Tensor, *arguments: Any
    ) -> Tensor:
        maps = Maps(features, embeddings, bias)
        ctx.save_for_backward(*maps)
        ctx.arguments = arguments
        with torch.autocast(features.device.type, enabled=False):
            value, ctx.gradients = _loss_and_gradients(any(ctx.needs_input_grad), maps, *arguments)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # given away and scaled where they lie: a copy would double the features' gradient
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a retained graph, once more
            with torch.autocast(upstream[0].device.type, enabled=False):
                _, gradients = _loss_and_gradients(True, Maps(*ctx.saved_tensors), *ctx.arguments)
        return (*(g.mul_(upstream[0]) for g in gradients), *(None for _ in ctx.arguments))


def _loss_and_gradients(
    with_gradients: bool,
    maps: Maps,
    points_heatmap: Tensor,
    weights: Tensor,
    sigma: float,
    weight_map: float,
    pointwise: Pointwise,
    block_loss: BlockLoss,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    (images, channels, height, width), num_landmarks = maps.features.shape, len(maps.bias)
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    embeddings, bias = maps.embeddings.to(dtype), maps.bias.to(dtype)
    points_heatmap = points_heatmap.to(dtype)
    scaled = weights.to(dtype) / (images * num_landmarks * height * width)

    # several whole images a block, or some rows of one, or a part of a row
    most, depth = block_values(maps.features), max(num_landmarks, channels)
    tiles = [
        (rows, columns)
        for rows in _slices(height, most // (depth * width))
        for columns in _slices(width, most // depth)
    ]
    total = maps.features.new_zeros((), dtype=torch.float64)
    of_features = torch.empty_like(maps.features) if with_gradients else None
    of_embeddings, of_bias = torch.zeros_like(embeddings), torch.zeros_like(bias)
    for some in _slices(images, most // (depth * width * height)):
        targets = targets_of(points_heatmap[some], scaled[some], (height, width), sigma, weight_map)
        for rows, columns in tiles:
            tile = maps.features[some, :, rows, columns].to(dtype)  # (b, C, rows, columns)
            pixels = tile.flatten(2)
            heights = _heights(pixels, embeddings, bias)
            value, slope = block_loss(heights, targets.tile(rows, columns), pointwise)
            total += (value * targets.weights).sum(dtype=torch.float64)
            if of_features is not None:
                of_features[some, :, rows, columns] = (embeddings.T @ slope).view_as(tile)
                of_embeddings.addbmm_(slope, pixels.mT)
                of_bias += slope.sum((0, 2))
        del targets  # before the next ones are made
    gradients = () if of_features is None else (of_features, of_embeddings, of_bias)
    return total.to(dtype), tuple(g.to(t.dtype) for g, t in zip(gradients, maps, strict=False))


def _heights(features: Tensor, embeddings: Tensor, bias: Tensor) -> Tensor:
    """(b, P, n) from (b, C, n) features."""
    return torch.baddbmm(bias[:, None], embeddings.expand(features.shape[0], -1, -1), features)


def _whole_block(maps: Maps) -> tuple[int, int]:
    """How many images, and how many of their landmarks, a block of whole maps has."""
    height, width = maps.features.shape[-2:]
    most, num_landmarks = block_values(maps.features) // (height * width), len(maps.bias)
    return max(1, most // num_landmarks), max(1, min(most, num_landmarks))


def _slices(length: int, longest: int) -> list[slice]:
    """As few slices of 0 to `length` as the longest allows, and so equal that few shapes occur."""
    step = math.ceil(length / math.ceil(length / max(1, longest)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def block_values(features: Tensor) -> int:
    """Heatmap values in one block on the tensor's device."""
    return BLOCK_VALUES.get(features.device.type, BLOCK_VALUES["cuda"])


def _in_full_precision(maps: Maps) -> Maps:
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    return Maps(*(t.to(dtype) for t in maps))
