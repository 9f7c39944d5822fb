"""Decoders and losses on heatmaps, and losses that never store the heatmaps."""

from collections.abc import Callable, Iterator
from functools import partial

import kornia
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.measuring import LIMIT, OURS, PEER, Contender, Result, Settings, race, size_of
from heatmap import codec, losses, maps
from heatmap.maps import Maps

try:
    import dsntnn
except ImportError:
    dsntnn = None

SIGMA, WEIGHT_MAP = 1.5, 10.0
BETA = 20.0  # of the peers' softmax: lower is biased to the centre, higher to the pixel grid


def decode(settings: Settings) -> Iterator[list[Result]]:
    """Heatmaps (peak 0.8, noise 0.03) to points; the error is the mean distance to the truth."""
    device, size = settings.device, settings.size
    generator = torch.Generator(device).manual_seed(0)
    shape = settings.batch, settings.landmarks, size, size
    truth = 4 + (size - 9) * torch.rand(*shape[:2], 2, generator=generator, device=device)
    heatmaps = torch.randn(shape, generator=generator, device=device).mul_(0.03)
    for heatmap, points in zip(heatmaps, truth, strict=True):
        heatmap += 0.8 * codec.render(points, size, size, SIGMA)

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        return Contender(
            name, kind, action, lambda points: ((points - truth).norm(dim=-1).mean().item(), "px")
        )

    def ours(decoder: str) -> Callable[[], Tensor]:
        images = max(1, maps.block_values(heatmaps) // heatmaps[0].numel())
        return lambda: torch.cat(
            [codec.decode(b, SIGMA, decoder).points_heatmap for b in heatmaps.split(images)]
        )

    temperature = torch.tensor(1 / BETA, device=device)
    contenders = [
        with_error("window soft-argmax", OURS, ours("window")),
        with_error("log-parabola", OURS, ours("parabola")),
        with_error("global soft-argmax", OURS, ours("global")),
        with_error(
            "kornia spatial_soft_argmax2d",
            PEER,
            lambda: kornia.geometry.subpix.spatial_soft_argmax2d(heatmaps, temperature, False),
        ),
        Contender("reading the heatmaps (amax)", LIMIT, lambda: heatmaps.amax(-1)),
    ]
    if dsntnn is not None:

        def by_dsntnn() -> Tensor:
            # dsntnn's coordinates span [-1, 1] from edge to edge, not from centre to centre.
            square = dsntnn.dsnt(dsntnn.flat_softmax(heatmaps * BETA))
            return square * size / 2 + (size - 1) / 2

        contenders.insert(4, with_error("dsntnn flat_softmax + dsnt", PEER, by_dsntnn))
    yield race(f"decode {size_of(settings)}", contenders, settings)


def loss(settings: Settings) -> Iterator[list[Result]]:
    """Adaptive wing with weight map and target, forward and backward.

    On stored heatmaps, then with the head's 1 x 1 convolution. The error is the gradient's
    largest error, relative to its largest value.
    """
    device = settings.device
    generator = torch.Generator(device).manual_seed(0)
    shape = settings.batch, settings.landmarks
    points = settings.size * torch.rand(*shape, 2, generator=generator, device=device)
    weights = torch.ones(shape, device=device)
    yield _stored(settings, points, weights)
    for channels in (32, 128):
        yield _fused(settings, channels, points, weights)


def _stored(settings: Settings, points: Tensor, weights: Tensor) -> list[Result]:
    size, device = settings.size, settings.device
    generator = torch.Generator(device).manual_seed(1)
    heatmaps = torch.rand(*points.shape[:2], size, size, generator=generator, device=device)
    gradient = torch.empty_like(heatmaps)

    def ours(block_loss: maps.BlockLoss) -> Callable[[], Tensor]:
        def action() -> Tensor:
            images = max(1, maps.block_values(heatmaps) // heatmaps[0].numel())
            for start in range(0, len(heatmaps), images):
                block = slice(start, start + images)
                scale = weights[block] / heatmaps.numel()
                targets = maps.targets_of(points[block], scale, (size, size), SIGMA, WEIGHT_MAP)
                _, slope = block_loss(heatmaps[block].flatten(2), targets, losses.adaptive_wing)
                gradient[block] = slope.view_as(gradient[block])
            return gradient

        return action

    def as_in_paper() -> Tensor:
        leaf = heatmaps.detach().requires_grad_()
        return torch.autograd.grad(paper_loss(leaf, points), leaf)[0]

    exact = heatmaps[:1].double().requires_grad_()
    error_of = _gradient_error(paper_loss(exact, points[:1].double()), exact)
    contenders = [
        Contender("closed form, compiled", OURS, ours(maps.compiled_loss_of_block), error_of),
        Contender("closed form, eager", OURS, ours(maps.loss_of_block), error_of),
        Contender("PyTorch as in the paper", PEER, as_in_paper, error_of),
        Contender("copying the heatmaps", LIMIT, lambda: gradient.copy_(heatmaps)),
    ]
    return race(f"adaptive wing {size_of(settings)}", contenders, settings)


def _fused(settings: Settings, channels: int, points: Tensor, weights: Tensor) -> list[Result]:
    size, device = settings.size, settings.device
    generator = torch.Generator(device).manual_seed(1)
    shape = settings.batch, channels, size, size
    features = torch.randn(shape, generator=generator, device=device)
    features = features.contiguous(memory_format=torch.channels_last)
    embeddings = torch.randn(settings.landmarks, channels, generator=generator, device=device)
    embeddings /= channels
    bias = torch.zeros(settings.landmarks, device=device)
    leaves = Maps(*(t.requires_grad_() for t in (features, embeddings, bias)))

    def ours(
        block_loss: maps.BlockLoss, pointwise: losses.Pointwise = losses.adaptive_wing
    ) -> Callable[[], Tensor]:
        loss = partial(
            maps.loss, sigma=SIGMA, weight_map=WEIGHT_MAP, pointwise=pointwise,
            block_loss=block_loss,
        )  # fmt: skip
        return lambda: torch.autograd.grad(loss(leaves, points, weights), leaves)[0]

    def head() -> Tensor:
        return functional.conv2d(features, embeddings[:, :, None, None], bias)

    def as_in_paper() -> Tensor:
        return torch.autograd.grad(paper_loss(head(), points), leaves)[0]

    def products() -> None:
        with torch.no_grad():
            for pixels in features.flatten(2):
                heatmaps = embeddings @ pixels
                embeddings.T @ heatmaps
                heatmaps @ pixels.T

    exact = Maps(
        *(t.detach()[: 1 if t is features else None].double().requires_grad_() for t in leaves)
    )
    heatmaps = functional.conv2d(exact.features, exact.embeddings[:, :, None, None], exact.bias)
    error_of = _gradient_error(paper_loss(heatmaps, points[:1].double()), exact.features)
    contenders = [
        Contender("fused, compiled", OURS, ours(maps.compiled_loss_of_block), error_of),
        Contender("fused, eager", OURS, ours(maps.loss_of_block), error_of),
        Contender(
            "fused, compiled, slope by autograd",
            OURS,
            ours(maps.compiled_loss_of_block, losses.with_slope(plain_wing)),
            error_of,
        ),
        Contender("1×1 convolution + loss as in the paper", PEER, as_in_paper, error_of),
        Contender(
            "1×1 convolution with a mean", LIMIT, lambda: torch.autograd.grad(head().mean(), leaves)
        ),
        Contender("matrix products alone", "part", products),
    ]
    return race(f"head of {channels} and adaptive wing {size_of(settings)}", contenders, settings)


def _gradient_error(loss: Tensor, leaf: Tensor) -> Callable[[Tensor], tuple[float, str]]:
    """Compares a batch's gradient with the exact `loss` of its first image, which is `leaf`."""
    (truth,) = torch.autograd.grad(loss, leaf)

    def error_of(gradient: Tensor) -> tuple[float, str]:
        error = (len(gradient) * gradient[:1].double() - truth).abs().max() / truth.abs().max()
        return error.item(), "of max"

    return error_of


def plain_wing(prediction: Tensor, target: Tensor) -> Tensor:
    """Adaptive wing as a user would write it, with the arithmetic of `losses.adaptive_wing`."""
    distance, power = (prediction - target).abs(), losses.ALPHA - target
    near = distance.clamp(1e-12, losses.THETA)
    t = torch.exp2(power * torch.log2(near / losses.EPSILON))
    slope = losses.OMEGA * power * t / (near * (1 + t))
    return losses.OMEGA * torch.log1p(t) + slope.detach() * (distance - near)


def paper_loss(heatmaps: Tensor, points: Tensor) -> Tensor:
    """Adaptive wing loss with weight map (Wang et al. 2019), as printed, on whole heatmaps."""
    target = codec.render(points, heatmaps.shape[-2], heatmaps.shape[-1], SIGMA)
    near = functional.max_pool2d(target, 3, stride=1, padding=1) >= losses.FOREGROUND
    distance, power = (target - heatmaps).abs(), losses.ALPHA - target
    ratio = losses.THETA / losses.EPSILON
    slope = losses.OMEGA / (1 + ratio**power) * power * ratio ** (power - 1) / losses.EPSILON
    offset = losses.THETA * slope - losses.OMEGA * torch.log(1 + ratio**power)
    curved = losses.OMEGA * torch.log(1 + (distance / losses.EPSILON) ** power)
    loss = torch.where(distance < losses.THETA, curved, slope * distance - offset)
    return (loss * (WEIGHT_MAP * near + 1)).mean()
