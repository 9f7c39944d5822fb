"""Heatmaps that never exist whole.

The last layer of a heatmap network is a 1 x 1 convolution: the map of a landmark is the inner
product of its embedding with every pixel's features. So the features and embeddings *are* the maps,
and loss and decoding walk over blocks of them: make a block of maps, use it, forget it. Training
walks over pictures and rows, decoding over pictures and landmarks (it needs whole maps).

Shapes: B pictures, C feature channels, P landmarks, H x W heatmap pixels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heatmap import codec, losses

# Heatmap values in one block: 4 MiB of them stay in a CPU's cache, a GPU wants fewer launches.
BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**26}


class Maps(NamedTuple):
    """P heatmaps of each of B pictures:
    map[b, p, y, x] = embeddings[p] · features[b, :, y, x] + bias[p].

    features: (B, C, H, W), any float dtype; embeddings: (P, C); bias: (P,).
    """

    features: Tensor
    embeddings: Tensor
    bias: Tensor


def whole(maps: Maps) -> Tensor:
    """(B, P, H, W) all maps at once, for pictures of a few of them."""
    features, embeddings, bias = _in_full_precision(maps)
    return torch.einsum("pc,bchw->bphw", embeddings, features) + bias[:, None, None]


def adaptive_wing_loss(
    maps: Maps, points_heatmap: Tensor, weights: Tensor, *, sigma: float, weight_map: float
) -> Tensor:
    """The weighted adaptive wing loss of the maps against Gaussians at the landmarks.

    The sum over all pixels is divided by B P H W whatever the weights are, so that a landmark of
    weight 0 changes no other landmark's gradient. The gradient is computed together with the loss.

    Args:
        points_heatmap: (B, P, 2) in heatmap pixels; those of weight 0 may be NaN.
        weights: (B, P) >= 0, multiply the loss; 0 for an unlabelled landmark.
        sigma: of the target Gaussians in heatmap pixels.
        weight_map: extra weight of pixels where the target, dilated by one pixel, is at least 0.2.

    Returns:
        Scalar, float32 (float64 for float64 features), differentiable once in the maps.

    Source: Wang, Bo, Fuxin 2019, https://arxiv.org/abs/1904.07399.
    """
    arguments = (*maps, points_heatmap, weights, sigma, weight_map)
    return _BlockedLoss.apply(*arguments)


@torch.no_grad()
def decode(maps: Maps, sigma: float) -> codec.Decoded:
    """`codec.decode` of all maps, (B, P, ...), block by block."""
    features, embeddings, bias = maps
    num_landmarks, (height, width) = len(bias), features.shape[-2:]
    block_landmarks = max(1, min(num_landmarks, _block_values(features) // (height * width)))
    block_pictures = max(1, _block_values(features) // (height * width * num_landmarks))
    rows = []
    for some in features.split(block_pictures):
        parts = [
            codec.decode(whole(Maps(some, *part)), sigma)
            for part in zip(
                embeddings.split(block_landmarks), bias.split(block_landmarks), strict=True
            )
        ]
        rows.append([torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)])
    return codec.Decoded(*(torch.cat(tensors) for tensors in zip(*rows, strict=True)))


class _BlockedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        embeddings: Tensor,
        bias: Tensor,
        points_heatmap: Tensor,
        weights: Tensor,
        sigma: float,
        weight_map: float,
    ) -> Tensor:
        maps = Maps(features, embeddings, bias)
        with torch.autocast(features.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(
                maps, points_heatmap, weights, sigma, weight_map, any(ctx.needs_input_grad)
            )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*(upstream[0].to(g.dtype) * g for g in ctx.saved_tensors), None, None, None, None)


def _loss_and_gradients(
    maps: Maps,
    points_heatmap: Tensor,
    weights: Tensor,
    sigma: float,
    weight_map: float,
    with_gradients: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    (pictures, _, height, width), num_landmarks = maps.features.shape, len(maps.bias)
    features, embeddings, bias = maps
    dtype = torch.promote_types(features.dtype, torch.float32)
    embeddings, bias, weights = embeddings.to(dtype), bias.to(dtype), weights.to(dtype)
    # a point of weight 0 may be NaN, and 0 times NaN is not 0
    points_heatmap = torch.where(weights[..., None] > 0, points_heatmap, 0).to(dtype)
    along_y, along_x = codec.gaussian_factors(points_heatmap, height, width, sigma)
    wide_y, wide_x = codec.dilated(along_y), codec.dilated(along_x)
    scale = 1 / (pictures * num_landmarks * height * width)

    loss = torch.zeros((), dtype=torch.float64, device=features.device)
    gradients = tuple(torch.zeros_like(t, dtype=dtype) for t in maps) if with_gradients else ()
    for some, rows in _blocks(pictures, height, num_landmarks * width, _block_values(features)):
        block = features[some, :, rows].to(dtype).flatten(2)  # (b, C, pixels)
        prediction = torch.baddbmm(bias[:, None], embeddings.expand(len(block), -1, -1), block)
        target = along_y[some, :, rows, None] * along_x[some, :, None]  # (b, P, rows, W)
        value, slope = losses.adaptive_wing(prediction, target.flatten(2))
        near = (wide_y[some, :, rows, None] * wide_x[some, :, None]).ge_(losses.FOREGROUND)
        weight = near.mul_(weight_map).add_(1).flatten(2) * (weights[some, :, None] * scale)
        loss += value.mul_(weight).sum()
        if with_gradients:
            slope *= weight
            gradients[0][some, :, rows] = (embeddings.T @ slope).unflatten(2, (-1, width))
            gradients[1].add_(torch.einsum("bpn,bcn->pc", slope, block))
            gradients[2].add_(slope.sum((0, 2)))
    return loss.to(dtype), tuple(g.to(t.dtype) for g, t in zip(gradients, maps, strict=False))


def _blocks(
    pictures: int, height: int, values_per_row: int, block_values: int
) -> Iterator[tuple[slice, slice]]:
    """Slices of pictures and of map rows: several whole pictures, or some rows of one."""
    block_pictures = max(1, block_values // (values_per_row * height))
    block_rows = min(height, max(1, block_values // values_per_row))
    for picture in range(0, pictures, block_pictures):
        for row in range(0, height, block_rows):
            yield slice(picture, picture + block_pictures), slice(row, row + block_rows)


def _block_values(features: Tensor) -> int:
    return BLOCK_VALUES.get(features.device.type, BLOCK_VALUES["cuda"])


def _in_full_precision(maps: Maps) -> Maps:
    dtype = torch.promote_types(maps.features.dtype, torch.float32)
    return Maps(*(t.to(dtype) for t in maps))
