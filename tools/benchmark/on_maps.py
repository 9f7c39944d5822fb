"""Decoders and losses on given maps, and losses on maps that never exist."""

from collections.abc import Callable, Iterator

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
BETA = 20.0  # of the peers' softmax: lower pulls points to the middle, higher to the pixel grid


def decode(settings: Settings) -> Iterator[list[Result]]:
    """Given maps (peak 0.8, noise 0.03) to points; the error is the mean distance to the truth."""
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch, settings.landmarks, settings.size, settings.size
    inner = 4 + (settings.size - 9) * torch.rand(*shape[:2], 2, generator=generator)
    truth = inner.to(settings.device)
    given = torch.randn(shape, generator=generator).to(settings.device).mul_(0.03)
    for some, points in zip(given, truth, strict=True):
        some += 0.8 * codec.render(points, settings.size, settings.size, SIGMA)

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        distance = (action() - truth).norm(dim=-1).mean()
        return Contender(name, kind, action, (distance.item(), "px"))

    def ours(decoder: str) -> Callable[[], Tensor]:
        images = max(1, maps.block_values(given) // given[0].numel())
        return lambda: torch.cat(
            [codec.decode(some, SIGMA, decoder).points_heatmap for some in given.split(images)]
        )

    temperature = torch.tensor(1 / BETA, device=settings.device)
    contenders = [
        with_error("window soft-argmax", OURS, ours("window")),
        with_error("log-parabola", OURS, ours("parabola")),
        with_error("global soft-argmax", OURS, ours("global")),
        with_error(
            "kornia spatial_soft_argmax2d",
            PEER,
            lambda: kornia.geometry.subpix.spatial_soft_argmax2d(given, temperature, False),
        ),
        Contender("reading the maps (amax)", LIMIT, lambda: given.amax(-1)),
    ]
    if dsntnn is not None:
        half = (
            settings.size - 1
        ) / 2  # dsntnn's square is [-1, 1] at the outer pixels' outer edges

        def by_dsntnn() -> Tensor:
            return dsntnn.dsnt(dsntnn.flat_softmax(given * BETA)) * settings.size / 2 + half

        contenders.insert(4, with_error("dsntnn flat_softmax + dsnt", PEER, by_dsntnn))
    yield race(f"decode {size_of(settings)}", contenders, settings)


def loss(settings: Settings) -> Iterator[list[Result]]:
    """Adaptive wing with weight map, forward and backward, with the target: on given maps, and with
    the head's 1 x 1 convolution. The error is that of the gradient, of its largest value."""
    device, size = settings.device, settings.size
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch, settings.landmarks, size, size
    points = (size * torch.rand(*shape[:2], 2, generator=generator)).to(device)
    weights = torch.ones(shape[:2], device=device)
    given = torch.rand(shape, generator=generator).to(device)
    gradient = torch.empty_like(given)

    def ours(block_loss: maps.BlockLoss) -> Callable[[], Tensor]:
        def action() -> Tensor:
            images = max(1, maps.block_values(given) // given[0].numel())
            for start in range(0, len(given), images):
                some = slice(start, start + images)
                targets = maps.targets_of(
                    points[some], weights[some] / given.numel(), (size, size), SIGMA, WEIGHT_MAP
                )
                _, slope = block_loss(given[some].flatten(2), targets, losses.adaptive_wing)
                gradient[some] = slope.view_as(gradient[some])
            return gradient

        return action

    def as_printed() -> Tensor:
        leaf = given.detach().requires_grad_()
        paper_loss(leaf, points).backward()
        assert leaf.grad is not None
        return leaf.grad

    exact = given[:1].double().requires_grad_()
    paper_loss(exact, points[:1].double()).backward()
    truth = exact.grad
    assert truth is not None
    largest = truth.abs().max()

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        ratio = settings.batch * action()[:1].double() - truth
        return Contender(name, kind, action, ((ratio.abs().max() / largest).item(), "of max"))

    contenders = [
        with_error("closed form, compiled", OURS, ours(maps.compiled_loss_of_block)),
        with_error("closed form, eager", OURS, ours(maps.loss_of_block)),
        with_error("PyTorch as the paper prints it", PEER, as_printed),
        Contender("copying the maps", LIMIT, lambda: gradient.copy_(given)),
    ]
    yield race(f"adaptive wing {size_of(settings)}", contenders, settings)
    contenders.clear()
    for channels in (32, 128):
        yield _fused(settings, channels, points, weights)


def _fused(settings: Settings, channels: int, points: Tensor, weights: Tensor) -> list[Result]:
    size, device = settings.size, settings.device
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(settings.batch, channels, size, size, generator=generator).to(device)
    features = features.contiguous(memory_format=torch.channels_last)
    embeddings = (torch.randn(settings.landmarks, channels, generator=generator) / channels).to(
        device
    )
    bias = torch.zeros(settings.landmarks, device=device)
    leaves = Maps(*(t.requires_grad_() for t in (features, embeddings, bias)))

    def ours(block_loss: maps.BlockLoss) -> Callable[[], Tensor]:
        def action() -> Tensor:
            return _gradient(
                leaves,
                lambda: maps.loss(
                    leaves, points, weights,
                    sigma=SIGMA, weight_map=WEIGHT_MAP, block_loss=block_loss,
                ),
            )  # fmt: skip

        return action

    def head() -> Tensor:
        return functional.conv2d(features, embeddings[:, :, None, None], bias)

    def products() -> None:
        with torch.no_grad():
            for pixels in features.flatten(2):
                heights = embeddings @ pixels
                embeddings.T @ heights
                heights @ pixels.T

    exact = Maps(
        *(t.detach()[: 1 if t is features else None].double().requires_grad_() for t in leaves)
    )
    whole = functional.conv2d(exact.features, exact.embeddings[:, :, None, None], exact.bias)
    of_features = torch.autograd.grad(paper_loss(whole, points[:1].double()), exact.features)[0]

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        off = (settings.batch * action()[:1].double() - of_features).abs().max()
        return Contender(name, kind, action, ((off / of_features.abs().max()).item(), "of max"))

    contenders = [
        with_error("fused, compiled", OURS, ours(maps.compiled_loss_of_block)),
        with_error("fused, eager", OURS, ours(maps.loss_of_block)),
        with_error(
            "1×1 convolution + loss as printed",
            PEER,
            lambda: _gradient(leaves, lambda: paper_loss(head(), points)),
        ),
        Contender(
            "1×1 convolution with a mean",
            LIMIT,
            lambda: _gradient(leaves, lambda: head().mean()),
        ),
        Contender("matrix products alone", "part", products),
    ]
    return race(f"head of {channels} and adaptive wing {size_of(settings)}", contenders, settings)


def _gradient(leaves: Maps, loss: Callable[[], Tensor]) -> Tensor:
    return torch.autograd.grad(loss(), leaves)[0]


def paper_loss(heights: Tensor, points: Tensor) -> Tensor:
    """Wang et al. 2019 as printed, with weight map, on whole maps; the target is separable."""
    target = codec.render(points, heights.shape[-2], heights.shape[-1], SIGMA)
    near = functional.max_pool2d(target, 3, stride=1, padding=1) >= losses.FOREGROUND
    distance, power = (target - heights).abs(), losses.ALPHA - target
    ratio = losses.THETA / losses.EPSILON
    slope = losses.OMEGA / (1 + ratio**power) * power * ratio ** (power - 1) / losses.EPSILON
    offset = losses.THETA * slope - losses.OMEGA * torch.log(1 + ratio**power)
    curved = losses.OMEGA * torch.log(1 + (distance / losses.EPSILON) ** power)
    loss = torch.where(distance < losses.THETA, curved, slope * distance - offset)
    return (loss * (WEIGHT_MAP * near + 1)).mean()
