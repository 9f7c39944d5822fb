"""Losses, decoders, augmentation and the mean of weights against float64 or the CPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from device_runs import on
from torch import Tensor

from heatmap import codec, config, losses, maps
from heatmap.data import samples
from heatmap.maps import Maps
from heatmap.networks import CropPrediction, PriorValues, ShapePrior
from heatmap.training.optimizer import RunningMean
from heatmap.training.prepare import prepare

CPU, IMAGES, LANDMARKS, HEIGHT, WIDTH, SIGMA = torch.device("cpu"), 3, 24, 33, 27, 1.5
STEEPNESS = codec.softmax_steepness(HEIGHT, WIDTH, SIGMA)
# The factors of the loss's products have 10 bits on a GPU (TF32). Emulated on the CPU, the error is
# 0.001 if they are rounded and 0.009 if they are cut off.
HEATMAP_LOSS_ERROR = {"cpu": 1e-5, "cuda": 1e-2}

BORDER = torch.tensor([0.0, 0.0, 26.0, 32.0, 2.0])

Function = Callable[[Maps, Tensor, Tensor], Tensor]


@pytest.fixture
def problem() -> list[Tensor]:
    """Noisy maps (three factors), their points and weights in float64; masked points are NaN."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor([WIDTH, HEIGHT])
    points = torch.rand(IMAGES, LANDMARKS, 2, generator=generator, dtype=torch.float64) * size
    targets = codec.render(points + 0.3 * normal(*points.shape), HEIGHT, WIDTH, SIGMA)
    embeddings, _ = torch.linalg.qr(normal(LANDMARKS, LANDMARKS))
    features = torch.einsum("pc,bphw->bchw", embeddings, targets)
    weights = 0.5 + torch.rand(IMAGES, LANDMARKS, generator=generator, dtype=torch.float64)
    weights[0, :5], points[0, :5] = 0, torch.nan
    noisy = features + 0.05 * normal(*features.shape)
    return [noisy, embeddings, 0.05 * normal(LANDMARKS), points, weights]


def in_float32(problem: list[Tensor], device: torch.device) -> list[Tensor]:
    return [tensor.to(device, torch.float32) for tensor in problem]


def assert_same(
    function: Function, problem: list[Tensor], device: torch.device, error: float
) -> None:
    """The Euclidean norm of each gradient's error is at most `error` of the gradient's."""

    def value_and_gradients(problem: list[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        leaves = [tensor.clone().requires_grad_() for tensor in problem[:3]]
        value = function(Maps(*leaves), *problem[3:])
        return value.item(), torch.autograd.grad(value, leaves, materialize_grads=True)

    expected, expected_gradients = value_and_gradients(problem)
    value, gradients = value_and_gradients(in_float32(problem, device))
    assert value == pytest.approx(expected, rel=error)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        # the bias cancels in a softmax, so its gradient is rounding alone
        rounding = 1e-5 * expected_gradients[0].norm()
        assert (gradient.cpu() - reference).norm() <= error * reference.norm() + rounding


@pytest.mark.parametrize("pointwise", [losses.adaptive_wing, losses.squared])
def test_heatmap_loss(
    problem: list[Tensor], device: torch.device, pointwise: losses.Pointwise
) -> None:
    def loss(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        return maps.loss(heatmaps, points, weights, sigma=SIGMA, weight_map=10, pointwise=pointwise)

    assert_same(loss, problem, device, HEATMAP_LOSS_ERROR[device.type])


def test_divergence(problem: list[Tensor], device: torch.device) -> None:
    def divergence(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        return maps.divergence(heatmaps, points, weights, STEEPNESS, SIGMA)

    assert_same(divergence, problem, device, 1e-4)


def test_soft_argmax(problem: list[Tensor], device: torch.device) -> None:
    def spread(heatmaps: Maps, points: Tensor, weights: Tensor) -> Tensor:
        points_heatmap, covariance = maps.soft_argmax(heatmaps, STEEPNESS)
        return (points_heatmap.square().sum(-1) * weights).sum() + covariance.sum()

    assert_same(spread, problem, device, 1e-3)


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_decoders(problem: list[Tensor], device: torch.device, decoder: str) -> None:
    expected = maps.decode(Maps(*problem[:3]), SIGMA, decoder)
    decoded = maps.decode(Maps(*in_float32(problem, device)[:3]), SIGMA, decoder)
    assert (decoded.points_heatmap.cpu() - expected.points_heatmap).abs().max() < 1e-3
    assert (decoded.peak.cpu() - expected.peak).abs().max() < 1e-5
    assert torch.allclose(decoded.covariance.cpu().double(), expected.covariance, 1e-2, 1e-2)


def test_rendered_targets(problem: list[Tensor], device: torch.device) -> None:
    points = problem[3][1:]
    rendered = codec.render(points.to(device, torch.float32), HEIGHT, WIDTH, SIGMA)
    assert (rendered.cpu() - codec.render(points, HEIGHT, WIDTH, SIGMA)).abs().max() < 1e-5


# A JPEG coefficient between two steps may be rounded either way, which changes its block. Noise is
# left out, since its draws differ between devices.
@pytest.mark.parametrize(("jpeg", "share"), [(0.0, 0.999), (0.7, 0.99)])
def test_augmentation(
    tiny: config.Experiment, device: torch.device, jpeg: float, share: float
) -> None:
    experiment = replace(on(CPU, tiny), augment=replace(tiny.augment, jpeg=jpeg))
    data = prepare(experiment).data
    sample = samples.collate([data.training[row] for row in data.training_rows.tolist()])
    expected, actual = (data.augmented(sample, 0, where) for where in (CPU, device))
    error = (actual.images.cpu() - expected.images).abs()
    assert (error <= 2 / 255).double().mean() >= share
    assert torch.equal(actual.weights.cpu(), expected.weights)
    points = actual.points_crop.cpu(), expected.points_crop
    assert torch.allclose(*points, rtol=0, atol=1e-6, equal_nan=True)


def test_running_mean(tiny: config.Experiment, device: torch.device) -> None:
    """Weights and statistics against float64; counters must be exact."""
    network = prepare(on(device, tiny)).network
    averaged, expected = RunningMean(network, 0.9), dict[str, Tensor]()
    for step in range(4):
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        for name, tensor in network.state_dict().items():
            tensor += torch.randn_like(tensor) if tensor.is_floating_point() else 1
            before = expected.get(name, tensor.double())
            decay_of_tensor = decay if tensor.is_floating_point() else 0
            expected[name] = tensor.double() + decay_of_tensor * (before - tensor.double())
        averaged.update(network, step)
    for name, tensor in averaged.network.state_dict().items():
        assert torch.allclose(tensor.double(), expected[name], 1e-5, 1e-5), name


def test_shape_prior(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(5)
    mean, noise = torch.randn(2, LANDMARKS, generator=generator), torch.full((LANDMARKS,), 1e-3)
    basis = 0.1 * torch.randn(2, 3, LANDMARKS, generator=generator)
    error = torch.tensor([[2.0], [0.5], [1.0]]).expand(3, LANDMARKS)
    slopes, typical = torch.tensor([-1.0, 1.0, 2.0]), torch.zeros(LANDMARKS, 3)
    values = PriorValues(mean, basis, noise, error, slopes, typical, BORDER, torch.ones(()))
    points = 8 * mean.T + 14 + torch.randn(IMAGES, LANDMARKS, 2, generator=generator)
    spread = 4 * torch.eye(2).expand(IMAGES, LANDMARKS, 2, 2)
    prediction = CropPrediction(points, torch.rand(points.shape[:2], generator=generator), spread)
    expected = ShapePrior(values)(prediction)
    on_device = CropPrediction(*(part.to(device) for part in prediction if part is not None))
    actual = ShapePrior(values).to(device)(on_device)
    for one, other in zip(expected, actual, strict=True):
        assert one is not None and other is not None
        assert (one - other.cpu()).abs().max() < 1e-3
