"""Loss, decoders and augmentation on each device against float64 or the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import codec, config, losses, maps
from heatmap.data import augment, samples
from heatmap.maps import Maps
from heatmap.training.optimizer import RunningMean
from heatmap.training.prepare import prepare

IMAGES, LANDMARKS, HEIGHT, WIDTH, SIGMA = 3, 24, 33, 27, 1.5
# The factors of the loss's products have 10 bits on a GPU (TF32). Emulated on the CPU, the error is
# 0.001 if they are rounded and 0.009 if they are cut off.
GRADIENT_ERROR = {"cpu": 1e-5, "cuda": 1e-2}


class Problem(tuple[Maps, Tensor, Tensor]):
    """Maps, points and weights."""

    def to(self, device: torch.device) -> "Problem":
        """In float32 on the device."""
        heatmaps, *others = self
        to_device = [t.to(device, torch.float32) for t in others]
        return Problem((Maps(*(t.to(device, torch.float32) for t in heatmaps)), *to_device))


@pytest.fixture
def problem() -> Problem:
    """In float64: noisy Gaussians near the points, of which some are masked and NaN."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor([WIDTH, HEIGHT])
    points = torch.rand(IMAGES, LANDMARKS, 2, generator=generator, dtype=torch.float64) * size
    targets = codec.render(points + 0.3 * normal(*points.shape), HEIGHT, WIDTH, SIGMA)
    embeddings, _ = torch.linalg.qr(normal(LANDMARKS, LANDMARKS))
    features = torch.einsum("pc,bphw->bchw", embeddings, targets)
    heatmaps = Maps(features + 0.05 * normal(*features.shape), embeddings, 0.05 * normal(LANDMARKS))
    weights = 0.5 + torch.rand(IMAGES, LANDMARKS, generator=generator, dtype=torch.float64)
    weights[0, :5] = 0
    points[0, :5] = torch.nan
    return Problem((heatmaps, points, weights))


def value_and_gradients(
    function: Callable[[Maps, Tensor, Tensor], Tensor], problem: Sequence[Tensor]
) -> tuple[float, list[Tensor]]:
    heatmaps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    value = function(leaves, points, weights)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.item(), [g for g in gradients if g is not None]


def assert_same(
    function: Callable[[Maps, Tensor, Tensor], Tensor], problem: Problem, device: torch.device,
    error: float,
) -> None:  # fmt: skip
    """The Euclidean norm of each gradient's error is at most `error` of the gradient's."""
    expected, expected_gradients = value_and_gradients(function, problem)
    value, gradients = value_and_gradients(function, problem.to(device))
    assert value == pytest.approx(expected, rel=error)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert (gradient.cpu() - reference).norm() <= error * reference.norm()


@pytest.mark.parametrize("pointwise", [losses.adaptive_wing, losses.squared])
def test_heatmap_loss_and_gradients(
    problem: Problem, device: torch.device, pointwise: losses.Pointwise
) -> None:
    def loss(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        return maps.loss(heatmaps, points, weights, sigma=SIGMA, weight_map=10, pointwise=pointwise)

    assert_same(loss, problem, device, GRADIENT_ERROR[device.type])


def test_divergence_and_gradients(problem: Problem, device: torch.device) -> None:
    def divergence(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        return maps.divergence(heatmaps, points, weights, 8.0, SIGMA)

    # the bias cancels, so its gradient is rounding
    without_bias = Problem((problem[0]._replace(bias=torch.zeros(LANDMARKS)), *problem[1:]))

    def of_factors(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        return divergence(heatmaps._replace(bias=heatmaps.bias.detach()), points, weights)

    assert_same(of_factors, without_bias, device, 1e-4)


def test_soft_argmax_and_gradients(problem: Problem, device: torch.device) -> None:
    steepness = codec.softmax_steepness(HEIGHT, WIDTH, SIGMA)
    expected, covariance = maps.soft_argmax(problem[0], steepness)
    actual, actual_covariance = maps.soft_argmax(problem.to(device)[0], steepness)
    assert (actual.cpu() - expected).abs().max() < 1e-3
    assert (actual_covariance.cpu() - covariance).abs().max() < 1e-2

    def distance(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        found, spread = maps.soft_argmax(heatmaps, steepness)
        points = torch.where(weights[..., None] > 0, points, 0)
        return ((found - points).square() * weights[..., None]).sum() + spread.sum()

    assert_same(distance, problem, device, 1e-3)


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_decoders(problem: Problem, device: torch.device, decoder: str) -> None:
    expected = maps.decode(problem[0], SIGMA, decoder)
    decoded = maps.decode(problem.to(device)[0], SIGMA, decoder)
    assert (decoded.points_heatmap.cpu() - expected.points_heatmap).abs().max() < 1e-3
    assert (decoded.peak.cpu() - expected.peak).abs().max() < 1e-5
    assert torch.allclose(decoded.covariance.cpu().double(), expected.covariance, 1e-2, 1e-2)


def test_rendered_targets(problem: Problem, device: torch.device) -> None:
    points = problem[1][1:]
    rendered = codec.render(points.to(device, torch.float32), HEIGHT, WIDTH, SIGMA)
    assert (rendered.cpu() - codec.render(points, HEIGHT, WIDTH, SIGMA)).abs().max() < 1e-5


# A JPEG coefficient between two steps may be rounded either way, which changes its block.
@pytest.mark.parametrize(("jpeg", "share"), [(0.0, 0.999), (0.7, 0.99)])
def test_augmentation(
    tiny: config.Experiment, device: torch.device, jpeg: float, share: float
) -> None:
    settings = replace(tiny.augment, jpeg=jpeg)
    experiment = replace(
        tiny, augment=settings, crop=config.Crop(height=96, width=128),
        train=replace(tiny.train, device="cpu"),
    )  # fmt: skip
    data = prepare(experiment).data
    sample = samples.collate([data.training[row] for row in data.training_rows.tolist()])
    expected, actual = (data.augmented(sample, 0, d) for d in (torch.device("cpu"), device))
    error = (actual.images.cpu() - expected.images).abs()
    assert (error <= 2 / 255).double().mean() >= share
    for name in ("points_crop", "weights"):
        both = getattr(actual, name).cpu(), getattr(expected, name)
        assert torch.allclose(*both, rtol=0, atol=1e-6, equal_nan=True), name


def test_noise_is_drawn_on_the_device(tiny: config.Experiment, device: torch.device) -> None:
    """Its draws differ between devices, so only its size is compared."""
    settings = config.Augment(noise=0.1)
    changes = augment.sample_changes(settings, 0, 0, [0, 1])
    grey = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8, device=device)
    points = torch.zeros(2, 7, 2, device=device)
    identity = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    batch = augment.augmented(grey, identity, points, (64, 64), changes, None)
    assert batch.images.device.type == device.type
    np.testing.assert_allclose(batch.images.std((1, 2, 3)).cpu(), changes.noise, rtol=0.05)


def test_running_mean(tiny: config.Experiment, device: torch.device) -> None:
    """Weights and statistics against float64, counters as they are."""
    train = replace(tiny.train, device=device.type, ema=0.9)
    run = prepare(replace(tiny, train=train))
    averaged, expected = RunningMean(run.network, 0.9), dict[str, Tensor]()
    generator = torch.Generator(device).manual_seed(0)
    for step in range(4):
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        for name, tensor in run.network.state_dict().items():
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=generator, device=device)
                value = tensor.double()
                expected[name] = value + decay * (expected.get(name, value) - value)
            else:
                tensor += 1
                expected[name] = tensor.clone()
        averaged.update(run.network, step)
    for name, tensor in averaged.network.state_dict().items():
        assert torch.allclose(tensor.double(), expected[name].double(), 1e-5, 1e-5), name
