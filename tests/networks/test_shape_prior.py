"""The shape prior gives the posterior mean and covariance, and survives hard cases."""

import pytest
import torch
from torch import Tensor

from heatmap.networks import CropPrediction, PriorValues, ShapePrior
from heatmap.networks.shape_prior import LARGEST_MOVE, inverse

P, K = 40, 5
BORDER = torch.tensor([1.5, 1.5, 125.5, 125.5, 9.0])


def prior_values(noise: float = 1e-4, error: float = 4.0) -> PriorValues:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(2, P, generator=generator)
    mean = mean - mean.mean(1, keepdim=True)
    mean = mean / mean.square().sum(0).mean().sqrt()
    flat = torch.cat([pose_of(mean), torch.randn(2, K, P, generator=generator)], 1)
    orthogonal, _ = torch.linalg.qr(flat.permute(0, 2, 1).flatten(0, 1))  # free of the pose
    basis = 0.05 * P**0.5 * orthogonal[:, 4:].unflatten(0, (2, P)).permute(0, 2, 1)
    xx, xy, yy = torch.tensor([1.0, 0.3, 0.5])
    errors = error * torch.stack([xx, xy, yy])[:, None].expand(3, P)
    slopes, typical, one = torch.zeros(3), torch.zeros(P, 3), torch.ones(())
    return PriorValues(mean, basis, torch.full((P,), noise), errors, slopes, typical, BORDER, one)


def pose_of(mean: Tensor) -> Tensor:
    """(2, 4, P): the changes of a shape by size, tilt and position."""
    one, zero = torch.ones_like(mean[0]), torch.zeros_like(mean[0])
    x, y = mean
    return torch.stack([torch.stack([x, -y, one, zero]), torch.stack([y, x, zero, one])])


def crop_prediction(points: Tensor) -> CropPrediction:
    spread = 9 * torch.eye(2).expand(*points.shape, 2)
    return CropPrediction(points, torch.ones(points.shape[:2]), spread)


def drawn(values: PriorValues, faces: int, angle: float = 0.3) -> tuple[Tensor, Tensor]:
    """True points of faces from the model, and the same with errors: (B, P, 2) each."""
    generator = torch.Generator().manual_seed(2)
    amounts = torch.randn(faces, 1, K, generator=generator)
    shapes = values.mean + torch.stack([(amounts @ b)[:, 0] for b in values.basis], 1)
    shapes = shapes + values.noise.sqrt() * torch.randn(faces, 2, P, generator=generator)
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    rotation = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    points = (30 * rotation @ shapes).mT + torch.tensor([60.0, 70.0])
    xx, xy, yy = values.error[:, 0].tolist()
    root = torch.linalg.cholesky(torch.tensor([[xx, xy], [xy, yy]]))
    return points, points + torch.randn(points.shape, generator=generator) @ root.mT


def dense_posterior(values: PriorValues, points: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The formula m + C (C + R)^-1 (y - m) with whole matrices, in float64, around a known pose."""
    size, centre = 30.0, torch.tensor([60.0, 70.0]).double()
    cosine, sine = torch.cos(torch.tensor(angle)).double(), torch.sin(torch.tensor(angle)).double()
    rotation = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    mean = values.mean.double()
    basis = torch.cat([pose_of(mean), values.basis.double()], 1)
    columns = size * torch.einsum("ij,jkp->pik", rotation, basis).flatten(0, 1)
    prior = columns @ columns.T + size**2 * torch.diag(values.noise.double().repeat_interleave(2))
    xx, xy, yy = values.error.double()
    error = torch.block_diag(*torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2)))
    gain = prior @ torch.linalg.inv(prior + error)
    middle = ((size * rotation @ mean).T + centre).flatten()
    flat = points.double().flatten(1)
    posterior = middle + (flat - middle) @ gain.T
    return posterior.view_as(points), prior - gain @ prior


def test_it_equals_the_dense_formula() -> None:
    """The pose is linearised elsewhere than in the reference, which moves points by little."""
    values = prior_values()
    _, decoded = drawn(values, 6)
    expected, covariance = dense_posterior(values, decoded, 0.3)
    actual = ShapePrior(values)(crop_prediction(decoded))
    limit = LARGEST_MOVE * 3**0.5  # the mean variance of both axes is 3
    is_free = (expected - decoded).norm(dim=-1) < limit - 0.1
    assert is_free.float().mean() > 0.95
    assert (actual.points_crop - expected)[is_free].abs().max() < 0.1
    diagonal = covariance.view(P, 2, P, 2).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    assert torch.allclose(actual.covariance_crop[0].double(), diagonal, rtol=0.02, atol=0.005)


def test_it_lowers_the_error_of_points_from_the_model() -> None:
    values = prior_values()
    truth, decoded = drawn(values, 50)
    actual = ShapePrior(values)(crop_prediction(decoded))
    before, after = ((p - truth).square().mean() for p in (decoded, actual.points_crop))
    assert after < 0.3 * before
    variance = actual.covariance_crop.diagonal(dim1=-2, dim2=-1).mean()
    assert variance == pytest.approx(float(after), rel=0.15)


def test_a_landmark_outside_the_crop_comes_from_the_others() -> None:
    values = prior_values(error=0.5)
    values.slopes[2] = 8.0  # beyond the border
    truth, decoded = drawn(values, 20)
    truth, decoded = truth + torch.tensor([50.0, 0.0]), decoded + torch.tensor([50.0, 0.0])
    outside = truth[..., 0] > 125.5 + 9
    assert outside.sum() > 20
    cut = torch.minimum(decoded, torch.tensor([125.5 + 9, 1e9]))
    actual = ShapePrior(values)(crop_prediction(cut)).points_crop
    before, after = ((p - truth)[outside].square().mean() for p in (cut, actual))
    assert after < 0.1 * before
    assert (actual - truth)[~outside].square().mean() < (cut - truth)[~outside].square().mean()


def test_an_unseen_expression_is_not_flattened() -> None:
    """Eight sharply decoded landmarks lie far from the model: they move by at most their error."""
    values = prior_values(error=0.25)
    truth, decoded = drawn(values, 20)
    truth[:, :8, 1] += 12
    decoded[:, :8, 1] += 12
    actual = ShapePrior(values)(crop_prediction(decoded)).points_crop
    move = (actual - decoded).norm(dim=-1)
    assert move.max() <= LARGEST_MOVE * 0.25**0.5
    before, after = ((p - truth).square().mean().sqrt() for p in (decoded, actual))
    assert after < before + LARGEST_MOVE * 0.25**0.5


def test_doubt_raises_the_error() -> None:
    values = prior_values()
    values.slopes.copy_(torch.tensor([-1.0, 2.0, 3.0]))
    prior = ShapePrior(values)
    points = torch.full((1, P, 2), 60.0)
    sure = crop_prediction(points)
    for changed in (
        sure._replace(peak=sure.peak / 2),
        sure._replace(covariance_crop=2 * sure.covariance_crop),
        sure._replace(points_crop=points + torch.tensor([70.0, 0])),
    ):
        more, less = prior.error_crop(*changed).variance(), prior.error_crop(*sure).variance()
        assert (more > 1.5 * less).all()


@pytest.mark.parametrize("size", [1, 7, 30])
def test_the_inverse(size: int) -> None:
    root = torch.randn(4, size, size, generator=torch.Generator().manual_seed(size)).double()
    matrix = root @ root.mT + 0.1 * torch.eye(size).double()
    scale = torch.logspace(-3, 3, size).double()
    matrix = scale[:, None] * matrix * scale
    product = inverse(matrix) @ matrix
    assert torch.allclose(product, torch.eye(size).double().expand_as(product), atol=1e-6)
