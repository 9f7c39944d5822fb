"""Values that dsntnn (github.com/anibali/dsntnn, Apache 2.0) publishes in its own tests.

Its coordinates run from -1 to 1 between the image's edges: x_pixel = (x + 1) width / 2 - 1/2. Ours
are pixels, in which errors are measured.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import codec, maps
from heatmap.maps import Maps


# tests/test_make_gauss.py, test_2d and test_rectangular: sigma 1 at (0, 0) and at the corner
# (-1, -1). Its default is a sum of 1; ours has height 1, as its test_unnormalized, because the peak
# tells how sure a network is, also where the border cuts the Gaussian.
@pytest.mark.parametrize(
    "centre, height, top_left",
    [
        (2.0, 5, [[0.002969, 0.013306, 0.021938], [0.013306, 0.059634, 0.098320]]),
        (-0.5, 3, [[0.496683, 0.182719, 0.024728], [0.182719, 0.067219, 0.009097]]),
    ],
)
def test_gaussian_over_its_sum(centre: float, height: int, top_left: list[list[float]]) -> None:
    actual = codec.render(torch.tensor([centre, centre]), height, 5, sigma=1.0)
    actual = actual[:2, :3] / actual.sum()
    assert actual.numpy() == pytest.approx(np.array(top_left), abs=1e-6)


def cross(height: int, width: int) -> Tensor:
    """0.6 at a pixel and 0.1 at its neighbours, which dsntnn's tests share."""
    probability = torch.zeros(height, width)
    probability[1:4, 2] = probability[2, 1:4] = 0.1
    probability[2, 2] = 0.6
    return probability


# tests/test_dsnt.py: test_dsnt_forward_not_normalized and test_dsnt_linear_expectation, whose
# (1.5, 2.5) is (y, x)
def test_expectation() -> None:
    points, _ = codec.soft_argmax(cross(5, 5).roll(1, 1).log(), 1.0)
    assert points.tolist() == pytest.approx([3, 2])
    wide = torch.zeros(4, 5)
    wide[1:3, 2:4] = torch.tensor([[0.2, 0.3], [0.3, 0.2]])
    assert codec.soft_argmax(wide.log(), 1.0)[0].tolist() == pytest.approx([2.5, 1.5])


# tests/test_dsnt.py, test_dsnt_backward: the slopes of the mean squared error from (0.5, 0.5)
# fall from 0.48 at the first pixel by 0.04 per column and by 0.2 per row. They are slopes in the
# probabilities; our maps are logits, whose softmax takes off the mean slope.
def test_gradient_of_the_expectation() -> None:
    published = 0.48 - 0.04 * torch.arange(5) - 0.2 * torch.arange(5)[:, None]
    probability = cross(5, 5).roll(1, 1)
    logits = probability.log().requires_grad_()
    normalised = (codec.soft_argmax(logits, 1.0)[0] + 0.5) * 2 / 5 - 1
    (normalised - 0.5).square().mean().backward()
    expected = probability * (published - (probability * published).sum())
    assert logits.grad.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


# tests/test_flat_softmax.py, test_flat_softmax_example, through its sums of rows and columns
def test_softmax_of_a_map() -> None:
    point, _ = codec.soft_argmax(torch.tensor([[10.0, 1.0], [5.0, 2.0]]), 1.0)
    x, y = 0.00012253 + 0.00033307, 0.00668980 + 0.00033307
    assert point.tolist() == pytest.approx([x, y], abs=1e-6)


# tests/test_regularization.py, TestVarianceRegLoss: test_exact, test_rectangular, test_batch
def test_squared_difference_of_the_variances_from_4() -> None:
    other = torch.zeros(4, 4)
    other[2, 0] = other[2, 2] = 0.1
    other[1:4, 1] = torch.tensor([0.2, 0.5, 0.1])

    def loss(probability: Tensor) -> float:
        _, covariance = codec.soft_argmax(probability.log(), 1.0)
        return (covariance.diagonal(dim1=-2, dim2=-1) - 4).square().sum(-1).mean().item()

    assert loss(cross(4, 4)) == loss(cross(4, 6)) == pytest.approx(28.88)
    assert loss(torch.stack([cross(4, 4), other])) == pytest.approx(28.54205)


# tests/test_regularization.py, TestJSRegLoss: 9 x 9 pixels, shifts of 0.1, which are 0.45 px
@pytest.mark.parametrize("shift, sigma", [(0, 1.2), (0, 0.8), (0.45, 1.0), (-0.45, 1.0)])
def test_divergence_is_0_at_the_target_and_more_elsewhere(shift: float, sigma: float) -> None:
    centre, ones = torch.full((1, 1, 2), 4.0), torch.ones(1, 1)

    def divergence(shift: float, sigma: float) -> float:
        features = codec.render(centre + shift, 9, 9, sigma).log()
        return maps.divergence(Maps(features, ones, torch.zeros(1)), centre, ones, 1.0, 1.0).item()

    assert divergence(0, 1.0) == pytest.approx(0, abs=1e-6)
    assert divergence(shift, sigma) > 1e-3
