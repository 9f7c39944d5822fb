import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from reference import ALPHA, OMEGA, THETA, adaptive_wing, constants
from torch import Tensor

from heatmap import config, losses
from heatmap.errors import UserError


def slope_in_the_paper(prediction: Tensor, target: Tensor) -> Tensor:
    prediction = prediction.double().requires_grad_()
    (slope,) = torch.autograd.grad(adaptive_wing(prediction, target).sum(), prediction)
    return slope


@pytest.fixture
def heights() -> tuple[Tensor, Tensor]:
    """(41, 601) float32 predictions and targets; no distance is 0 and none is THETA."""
    target, distance = torch.meshgrid(
        torch.linspace(0, 1, 41), torch.linspace(-3, 3, 601) + 0.0037, indexing="ij"
    )
    return target + distance, target


@pytest.mark.parametrize(
    ("target", "slope", "offset"), [(0, 11.121, 2.626), (0.5, 11.113, 1.565), (1, 9.798, -0.4615)]
)
def test_reference_has_the_papers_constants(target: float, slope: float, offset: float) -> None:
    a, c = constants(torch.tensor(target))
    assert a.item() == pytest.approx(slope, abs=6e-4)
    assert c.item() == pytest.approx(offset, abs=6e-4)


def test_adaptive_wing_has_the_papers_values() -> None:
    loss, _ = losses.adaptive_wing(torch.tensor([1.0, 0.25]), torch.tensor([0.0, 0.0]))
    # a line with slope 11.121 less 2.626; 14 ln(1 + 0.25^2.1)
    assert loss.tolist() == pytest.approx([8.4959, OMEGA * math.log(1 + 0.25**ALPHA)], rel=2e-5)


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3, 1.0, 10.0])
def test_adaptive_wing_equals_the_papers_two_branches(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(50, 211, generator=generator)
    prediction = target + spread * torch.randn(50, 211, generator=generator)
    loss, _ = losses.adaptive_wing(prediction, target)
    expected = adaptive_wing(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.double().sum().item() == pytest.approx(expected.sum().item(), rel=1e-6)
    assert (loss - expected).abs().max() < 1e-6 * expected.max()
    # a single small distance loses some digits in its power
    assert ((loss - expected).abs() / expected).max() < 5e-6


def test_slope_is_the_derivative_of_the_papers_loss(heights: tuple[Tensor, Tensor]) -> None:
    _, slope = losses.adaptive_wing(*heights)
    expected = slope_in_the_paper(*heights)
    assert (slope - expected).abs().max() < 1e-5 * expected.abs().max()


def test_in_float64_loss_and_slope_are_exact(heights: tuple[Tensor, Tensor]) -> None:
    prediction, target = heights[0].double(), heights[1].double()
    loss, slope = losses.adaptive_wing(prediction, target)
    assert loss.dtype == slope.dtype == torch.float64
    assert torch.allclose(loss, adaptive_wing(prediction, target), rtol=1e-12, atol=0)
    expected = slope_in_the_paper(prediction, target)
    assert torch.allclose(slope, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_value_and_slope_are_continuous_at_theta(side: int, target: float) -> None:
    gap = 1e-9
    targets = torch.full((2,), target, dtype=torch.float64)
    distance = torch.tensor([THETA - gap, THETA + gap], dtype=torch.float64)
    loss, slope = losses.adaptive_wing(targets + side * distance, targets)
    assert loss.diff().abs().item() < 30 * gap
    assert slope.diff().abs().item() < 60 * gap
    assert (side * slope > 9).all()


def test_equal_heights_have_zero_loss_and_slope() -> None:
    target = torch.linspace(0, 1, 7)
    loss, slope = losses.adaptive_wing(target.clone(), target)
    assert torch.equal(slope, torch.zeros(7))
    assert loss.max() < 1e-12


def test_arguments_are_not_modified() -> None:
    prediction, target = torch.rand(3, 5), torch.rand(3, 5)
    copies = prediction.clone(), target.clone()
    losses.adaptive_wing(prediction, target)
    assert torch.equal(prediction, copies[0])
    assert torch.equal(target, copies[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_and_slope_are_finite_for_any_prediction(dtype: torch.dtype) -> None:
    heights = [0, 1, THETA, 1 + THETA, 1e-7, 1e-30, 1e4, min(torch.finfo(dtype).max, 1e30)]
    prediction = torch.tensor([s * h for h in heights for s in (1, -1)], dtype=dtype)[:, None]
    target = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1 - 1e-7, 1.0], dtype=dtype)
    loss, slope = losses.adaptive_wing(*torch.broadcast_tensors(prediction, target))
    assert loss.dtype == slope.dtype == torch.promote_types(dtype, torch.float32)
    for weight in (0, 1, 10):
        assert (weight * loss).isfinite().all()
        assert (weight * slope).isfinite().all()
    assert (loss > -1e-12).all()


def test_squared_error_is_the_mean_over_x_and_y() -> None:
    points = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [5.0, 1.0]]])
    truth = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 3.0]]])
    assert losses.squared_error(points, truth).tolist() == [[0.0, 12.5, 2.0]]


@pytest.mark.parametrize(
    ("loss", "of_3", "of_16"),
    [
        (losses.squared_error, 9.0, 256.0),
        (losses.absolute_error, 3.0, 16.0),
        (losses.smooth_absolute_error, 2.5, 15.5),
        # 10 ln(1 + 3 / 2), and 16 - (10 - 10 ln 6)
        (losses.wing, 10 * math.log(2.5), 16 - 10 + 10 * math.log(6)),
    ],
)
def test_point_losses_have_the_papers_values(loss: Any, of_3: float, of_16: float) -> None:
    points = torch.tensor([[[3.0, -3.0], [16.0, -16.0], [0.0, 3.0]]], dtype=torch.float64)
    values = loss(points, torch.zeros_like(points))
    assert values.tolist()[0] == pytest.approx([of_3, of_16, of_3 / 2], rel=1e-12)
    away = points.flatten(1).requires_grad_()
    truth = torch.full((1, 6), 0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (away, truth))


def test_wing_loss_is_continuous_between_its_branches() -> None:
    points = torch.tensor([[10 - 1e-9] * 2, [10 + 1e-9] * 2], dtype=torch.float64)
    assert losses.wing(points, torch.zeros_like(points)).diff().item() == pytest.approx(0, abs=1e-8)


def test_config_names_the_losses_of_the_table() -> None:
    table = losses.LOSSES
    assert set(get_args(config.HeatmapLoss)) == {k for k, loss in table.items() if loss.of_heatmaps}
    assert set(get_args(config.PointLoss)) == {k for k, loss in table.items() if loss.of_points}


@pytest.mark.parametrize("name", get_args(config.PointLoss))
def test_loss_grows_as_the_table_says(name: str) -> None:
    loss = losses.LOSSES[name]
    assert loss.of_points
    near, far = (
        loss.of_points(torch.full((1, 1, 2), x, dtype=torch.float64), torch.zeros(1, 1, 2))
        for x in (1e3, 1e4)
    )
    power = 1 if loss.grows_with == "distance" else 2
    assert math.log10((far / near).item()) == pytest.approx(power, abs=0.02)


FUNCTIONS = """
def cubic(prediction, target):
    return (prediction - target).abs() ** 3


def cubic_of_points(points, truth):
    return cubic(points, truth).mean(-1)


def averaged(prediction, target):
    return cubic(prediction, target).mean()
"""


def test_a_function_is_a_loss_with_the_slope_of_its_derivative(
    heights: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    prediction, target = heights
    with torch.no_grad():  # as in the forward pass of `heatmap.maps.loss`
        loss, slope = losses.of_heatmaps(f"{tmp_path}/mine.py:cubic")(prediction, target)
    residual = prediction - target
    assert torch.allclose(loss, residual.abs() ** 3)
    assert torch.allclose(slope, 3 * residual * residual.abs())
    assert not loss.requires_grad and not slope.requires_grad
    of_points = losses.of_points(f"{tmp_path}/mine.py:cubic_of_points").of_points
    assert of_points and of_points(torch.full((1, 2), 2.0), torch.zeros(1, 2)).tolist() == [8]


def test_a_function_that_averages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    for kind in (losses.of_heatmaps, losses.of_points):
        with pytest.raises(UserError, match=r"mine\.py:averaged must return .*, not \(\)"):
            kind(f"{tmp_path}/mine.py:averaged")


def test_weights_in_image_pixels_are_scaled_by_area_or_side() -> None:
    weights, area = torch.tensor([[1.0, 0], [2, 1]]), torch.tensor([4.0, 9])
    assert losses.in_image_pixels(weights, area, "square").tolist() == [[4, 0], [18, 9]]
    assert losses.in_image_pixels(weights, area, "distance").tolist() == [[2, 0], [6, 3]]
