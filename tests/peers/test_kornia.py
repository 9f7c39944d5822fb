"""Values that kornia (github.com/kornia/kornia, Apache 2.0) publishes in its own tests."""

import math

import pytest
import torch

from heatmap import codec, maps
from heatmap.maps import Maps


# tests/geometry/subpix/test_spatial_softargmax.py, TestSpatialSoftArgmax2d: 1e16 at a corner
@pytest.mark.parametrize("x, y", [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_soft_argmax_at_a_corner(x: int, y: int) -> None:
    heatmap = torch.zeros(2, 3)
    heatmap[y, x] = 1e16
    assert codec.soft_argmax(heatmap, 1.0)[0].tolist() == pytest.approx([x, y], abs=1e-6)


def divergence(features: torch.Tensor, point: tuple[float, float], sigma: float) -> float:
    ones = torch.ones(1, 1)
    one_map = Maps(features[None, None], ones, torch.zeros(1))
    return maps.divergence(one_map, torch.tensor([[point]]), ones, 1.0, sigma).item()


# the same, test_end_to_end: a constant map, and Gaussians at (0, 0) and (1, 1) in coordinates from
# -1 to 1 between pixel centres, with sigma 1, which is 3 px
@pytest.mark.parametrize("point, expected", [((3.0, 3.0), 0.0087), ((6.0, 6.0), 0.0818)])
def test_constant_map(point: tuple[float, float], expected: float) -> None:
    constant = torch.ones(7, 7)
    assert codec.soft_argmax(constant, 1.0)[0].tolist() == pytest.approx([3, 3], abs=1e-6)
    assert divergence(constant, point, sigma=3.0) == pytest.approx(expected, abs=5e-5)


# tests/losses/test_divergence.py: at most ln 2, where distributions do not meet. Its ln(2) / 2 for
# a map of zeros has no counterpart, since ours all pass a softmax.
def test_divergence_of_distributions_that_do_not_meet() -> None:
    features = torch.zeros(8, 8)
    features[7, 7] = 1000
    assert divergence(features, (0.0, 0.0), sigma=0.3) == pytest.approx(math.log(2), abs=1e-6)


# tests/geometry/subpix/test_dsnt.py, TestRenderGaussian2d.gaussian, before it is normalised
def test_gaussian_is_a_product() -> None:
    along = torch.tensor([0.00033546, 0.13533528, 1.0, 0.13533528, 0.00033546])
    actual = codec.render(torch.tensor([2.0, 2.0]), 5, 5, sigma=0.5)
    expected = (along[:, None] * along).numpy()
    assert actual.numpy() == pytest.approx(expected, abs=1e-7, rel=1e-5)
