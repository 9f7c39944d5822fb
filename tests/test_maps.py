import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heatmap import codec, losses, maps
from heatmap.maps import Maps
from heatmap.runtime import compiling

IMAGES, CHANNELS, LANDMARKS, HEIGHT, WIDTH = 3, 4, 11, 17, 13
ROW, MAP = LANDMARKS * WIDTH, HEIGHT * WIDTH
SIGMA, WEIGHT_MAP = 1.5, 10.0
BLOCKS = {
    "part of a row": 5 * LANDMARKS,
    "some rows": 5 * ROW,
    "one image": LANDMARKS * MAP,
    "two images": 2 * LANDMARKS * MAP,
    "everything": 2**20,
}


@pytest.fixture
def problem() -> tuple[Maps, Tensor, Tensor]:
    """float64 maps, points inside and outside them, and random weights."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heatmaps = Maps(
        normal(IMAGES, CHANNELS, HEIGHT, WIDTH),
        0.3 * normal(LANDMARKS, CHANNELS),
        normal(LANDMARKS),
    )
    size = torch.tensor([WIDTH, HEIGHT])
    points = (1.2 * torch.rand(IMAGES, LANDMARKS, 2, generator=generator) - 0.1) * size
    weights = 2 * torch.rand(IMAGES, LANDMARKS, generator=generator)
    return heatmaps, points.double(), weights.double()


def cast(heatmaps: Maps, dtype: torch.dtype) -> Maps:
    return Maps(*(t.detach().to(dtype) for t in heatmaps))


def loss_of(heatmaps: Maps, points: Tensor, weights: Tensor, weight_map: float = 10.0) -> Tensor:
    return maps.loss(heatmaps, points, weights, sigma=SIGMA, weight_map=weight_map)


def loss_and_gradients(
    heatmaps: Maps, points: Tensor, weights: Tensor, **settings: float
) -> tuple[Tensor, Maps]:
    leaves = Maps(*(t.detach().requires_grad_() for t in heatmaps))
    loss = loss_of(leaves, points, weights, **settings)
    return loss.detach(), Maps(*torch.autograd.grad(loss, leaves))


def reference_loss(
    heatmaps: Maps, points: Tensor, weights: Tensor, weight_map: float = WEIGHT_MAP
) -> Tensor:
    """The loss from whole maps in float64, by autograd and the paper's formulas."""
    features, embeddings, bias = (t.double() for t in heatmaps)
    heights = torch.einsum("bchw,pc->bphw", features, embeddings) + bias[:, None, None]
    points = points.double()
    reach = 1.5 * SIGMA
    x = points[..., 0].clamp(-reach, WIDTH - 1 + reach)[..., None, None]
    y = points[..., 1].clamp(-reach, HEIGHT - 1 + reach)[..., None, None]
    grid_y, grid_x = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)
    target = torch.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * SIGMA**2))
    near = functional.max_pool2d(target, 3, stride=1, padding=1) >= 0.2
    loss = reference.adaptive_wing(heights, target) * (1 + weight_map * near)
    return (loss * weights[..., None, None]).sum() / (IMAGES * LANDMARKS * MAP)


def reference_gradients(heatmaps: Maps, *arguments: Tensor, **settings: float) -> Maps:
    leaves = Maps(*(t.detach().double().requires_grad_() for t in heatmaps))
    return Maps(*torch.autograd.grad(reference_loss(leaves, *arguments, **settings), leaves))


def assert_close(actual: Maps, expected: Maps, tolerance: float) -> None:
    """Within `tolerance` of the largest expected value."""
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e.double()).abs().max() <= tolerance * e.abs().max()


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def block_values(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", request.param)
    return request.param


# the loss


@pytest.mark.parametrize("weight_map", [0.0, 10.0])
def test_loss_and_gradients_equal_those_of_whole_maps(
    problem: Any, weight_map: float, block_values: int
) -> None:
    loss, gradients = loss_and_gradients(*problem, weight_map=weight_map)
    expected = reference_loss(*problem, weight_map=weight_map)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_close(gradients, reference_gradients(*problem, weight_map=weight_map), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_hardly_changes_the_loss(
    problem: Any, dtype: torch.dtype, block_values: int
) -> None:
    heatmaps, points, weights = problem
    heatmaps = cast(heatmaps, dtype)
    loss, gradients = loss_and_gradients(heatmaps, points.float(), weights.float())
    assert loss.dtype == torch.float32
    assert {g.dtype for g in gradients} == {dtype}
    expected = reference_loss(heatmaps, points.float(), weights.float())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8  # rounding of the gradients
    assert_close(gradients, reference_gradients(heatmaps, points.float(), weights), tolerance)


def test_a_block_can_be_a_single_pixel(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", 1)
    loss, gradients = loss_and_gradients(*problem)
    assert loss.item() == pytest.approx(reference_loss(*problem).item(), rel=1e-12)
    assert_close(gradients, reference_gradients(*problem), 1e-12)


def test_gradcheck(problem: Any) -> None:
    heatmaps, points, weights = problem
    features, embeddings, bias = heatmaps
    leaves = [
        t.clone().requires_grad_() for t in (features[:2, :, :5, :7], embeddings[:3], bias[:3])
    ]
    points = points[:2, :3] / 2
    assert torch.autograd.gradcheck(
        lambda *tensors: loss_of(Maps(*tensors), points, weights[:2, :3]), leaves
    )


def test_autocast_changes_no_bit(problem: Any) -> None:
    heatmaps, points, weights = problem
    heatmaps = cast(heatmaps, torch.bfloat16)._replace(embeddings=heatmaps.embeddings.float())
    expected = loss_and_gradients(heatmaps, points, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(heatmaps, points, weights)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))
    assert gradients.features.dtype == torch.bfloat16
    assert gradients.embeddings.dtype == torch.float32


def test_loss_without_gradient_is_the_same(problem: Any) -> None:
    loss, _ = loss_and_gradients(*problem)
    assert torch.equal(loss_of(*problem), loss)
    with torch.no_grad():
        heatmaps, *rest = problem
        without = loss_of(Maps(*(t.clone().requires_grad_() for t in heatmaps)), *rest)
    assert torch.equal(without, loss)
    assert not without.requires_grad


def test_frozen_parts_get_no_gradient(problem: Any) -> None:
    heatmaps, points, weights = problem
    embeddings = heatmaps.embeddings.clone().requires_grad_()
    loss_of(heatmaps._replace(embeddings=embeddings), points, weights).backward()
    assert heatmaps.features.grad is None
    _, expected = loss_and_gradients(*problem)
    assert embeddings.grad is not None
    assert torch.equal(embeddings.grad, expected.embeddings)


def test_gradients_scale_with_the_loss(problem: Any) -> None:
    heatmaps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    (-3 * loss_of(leaves, points, weights)).backward()
    _, expected = loss_and_gradients(*problem)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.allclose(leaf.grad, -3 * gradient, rtol=1e-12)


def test_weights_multiply_the_loss_and_its_gradients(problem: Any) -> None:
    heatmaps, points, weights = problem
    loss, gradients = loss_and_gradients(heatmaps, points, weights)
    tripled, tripled_gradients = loss_and_gradients(heatmaps, points, 3 * weights)
    assert tripled.item() == pytest.approx(3 * loss.item(), rel=1e-12)
    assert_close(tripled_gradients, Maps(*(3 * g for g in gradients)), 1e-12)


def test_losses_of_disjoint_weights_add_up(problem: Any) -> None:
    heatmaps, points, weights = problem
    whole, whole_gradients = loss_and_gradients(heatmaps, points, weights)
    chosen = torch.rand(weights.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    part, part_gradients = loss_and_gradients(heatmaps, points, weights * chosen)
    rest, rest_gradients = loss_and_gradients(heatmaps, points, weights * ~chosen)
    assert (part + rest).item() == pytest.approx(whole.item(), rel=1e-12)
    added = Maps(*(a + b for a, b in zip(part_gradients, rest_gradients, strict=True)))
    assert_close(added, whole_gradients, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("position", [math.nan, 5.3, -1e30, math.inf])
def test_position_of_a_masked_landmark_does_not_matter(
    problem: Any, dtype: torch.dtype, position: float, block_values: int
) -> None:
    heatmaps, points, weights = problem
    heatmaps, masked = cast(heatmaps, dtype), weights.clone()
    masked[:, 4], masked[1, 7] = 0, 0
    moved = torch.where(masked[..., None] == 0, position, points)
    loss, gradients = loss_and_gradients(heatmaps, moved, masked)
    expected_loss, expected = loss_and_gradients(heatmaps, points, masked)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert gradients.embeddings[4].abs().max() == 0
    assert gradients.bias[4] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masking_a_landmark_leaves_other_gradients_bit_equal(
    problem: Any, dtype: torch.dtype, block_values: int
) -> None:
    heatmaps, points, weights = problem
    heatmaps, masked = cast(heatmaps, dtype), weights.clone()
    masked[:, 4] = 0
    _, gradients = loss_and_gradients(heatmaps, points, masked)
    _, expected = loss_and_gradients(heatmaps, points, weights)
    others = [p for p in range(LANDMARKS) if p != 4]
    assert torch.equal(gradients.embeddings[others], expected.embeddings[others])
    assert torch.equal(gradients.bias[others], expected.bias[others])


def test_batch_without_labels_has_zero_loss_and_gradients(problem: Any) -> None:
    heatmaps, points, weights = problem
    loss, gradients = loss_and_gradients(heatmaps, points * math.nan, 0 * weights)
    assert loss == 0
    assert all(g.abs().max() == 0 for g in gradients)


def test_squared_error_equals_that_of_whole_maps(problem: Any, block_values: int) -> None:
    heatmaps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    loss = maps.loss(leaves, points, weights, sigma=SIGMA, pointwise=losses.squared)
    gradients = Maps(*torch.autograd.grad(loss, leaves))
    exact = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    reach = 1.5 * SIGMA
    high = torch.tensor([WIDTH, HEIGHT]) - 1 + reach
    inside = torch.minimum(points.clamp_min(-reach), high)
    heights = torch.einsum("bchw,pc->bphw", exact.features, exact.embeddings)
    heights = heights + exact.bias[:, None, None]
    squares = (heights - codec.render(inside, HEIGHT, WIDTH, SIGMA)).square().mean((2, 3))
    expected = (squares * weights).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_close(gradients, Maps(*torch.autograd.grad(expected, exact)), 1e-12)


def test_retained_graph_gives_the_same_gradient_again(problem: Any) -> None:
    heatmaps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    loss = loss_of(leaves, points, weights)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(3 * loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(3 * one, other, rtol=1e-12)


def test_checkpointed_network_gets_the_same_gradients(problem: Any) -> None:
    heatmaps, points, weights = problem
    _, expected = loss_and_gradients(*problem)
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    loss = torch.utils.checkpoint.checkpoint(
        lambda *tensors: loss_of(Maps(*tensors), points, weights), *leaves, use_reentrant=False
    )
    loss.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_heatmap_and_coordinate_loss_add_up_in_one_step(problem: Any) -> None:
    heatmaps, points, weights = problem

    def coordinates(leaves: Maps) -> Tensor:
        return (maps.soft_argmax(leaves, 2.0)[0] - points).square().mean()

    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    (loss_of(leaves, points, weights) + coordinates(leaves)).backward()
    _, of_maps = loss_and_gradients(*problem)
    alone = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    coordinates(alone).backward()
    assert torch.allclose(leaves.features.grad, of_maps.features + alone.features.grad, rtol=1e-9)
    assert torch.allclose(
        leaves.embeddings.grad, of_maps.embeddings + alone.embeddings.grad, rtol=1e-9
    )
    assert torch.equal(leaves.bias.grad, of_maps.bias)  # it cancels in the softmax


def test_gradients_of_partial_batches_add_up(problem: Any) -> None:
    heatmaps, points, weights = problem
    _, expected = loss_and_gradients(*problem)
    leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
    for rows in (slice(0, 2), slice(2, 3)):
        part = leaves._replace(features=leaves.features[rows])
        count = rows.stop - rows.start
        (loss_of(part, points[rows], weights[rows]) * count / IMAGES).backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.allclose(leaf.grad, gradient, rtol=1e-9)


# compiled


@pytest.mark.slow
def test_compiled_loss_is_the_same_and_compiles_at_most_twice_for_all_shapes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    shapes = [(3, 11, 17, 13), (2, 11, 17, 13), (5, 7, 9, 21), (3, 971, 32, 32), (2, 2000, 8, 12)]
    shapes += [(1, 971, 32, 32), (1, 68, 64, 64), (4, 68, 24, 40)]
    with torch._dynamo.config.patch(disable=False):
        for images, landmarks, height, width in shapes:
            heatmaps = Maps(
                torch.randn(images, 4, height, width),
                torch.randn(landmarks, 4),
                torch.randn(landmarks),
            )
            points = 20 * torch.rand(images, landmarks, 2)
            results = []
            for block_loss in (maps.loss_of_block, maps.compiled_loss_of_block):
                leaves = Maps(*(t.clone().requires_grad_() for t in heatmaps))
                loss = maps.loss(
                    leaves, points, torch.ones(images, landmarks),
                    sigma=SIGMA, weight_map=WEIGHT_MAP, block_loss=block_loss,
                )  # fmt: skip
                results.append((loss.item(), Maps(*torch.autograd.grad(loss, leaves))))
            (loss, gradients), (compiled_loss, compiled_gradients) = results
            assert compiled_loss == pytest.approx(loss, rel=1e-5)
            assert_close(compiled_gradients, gradients, 1e-5)
    assert not [r for r in caplog.records if r.name == "heatmap"]  # no warning, so it was compiled
    # one graph for several images, one for a single image
    assert 1 <= counted["unique_graphs"] - before <= 2


@pytest.mark.slow
def test_without_a_compiler_the_loss_runs_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(compiling, "_failures", [])  # later tests may compile
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    block_losses = [maps.loss_of_block, *[compiling.compiled(maps.loss_of_block)] * 2]
    heatmaps = Maps(torch.randn(2, 4, 9, 7), torch.randn(5, 4), torch.randn(5))
    points, weights = 7 * torch.rand(2, 5, 2), torch.ones(2, 5)
    no_compiler = inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))})
    with no_compiler, torch._dynamo.config.patch(disable=False):
        values = [
            maps.loss(heatmaps, points, weights, sigma=SIGMA, block_loss=f) for f in block_losses
        ]
    assert values[0] == values[1] == values[2]
    (message,) = [record.message for record in caplog.records if record.name == "heatmap"]
    expected = "loss_of_block is not compiled and may run slower (InvalidCxxCompiler"
    assert message.startswith(expected) and "--train.compile off" in message


# decoding


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_every_decoder_equals_that_of_whole_maps(
    problem: Any, decoder: str, block_values: int
) -> None:
    heatmaps = cast(problem[0], torch.float32)
    decoded = maps.decode(heatmaps, SIGMA, decoder)
    expected = codec.decode(maps.whole(heatmaps), SIGMA, decoder)
    assert (decoded.points_heatmap - expected.points_heatmap).abs().max() < 1e-4


def test_soft_argmax_and_its_gradient_equal_those_of_whole_maps(problem: Any) -> None:
    steepness = torch.rand(IMAGES, LANDMARKS, dtype=torch.float64) + 0.5
    direction = torch.randn(IMAGES, LANDMARKS, 2, dtype=torch.float64)
    gradients = []
    for function in (maps.soft_argmax, lambda m, k: codec.soft_argmax(maps.whole(m), k)):
        leaves = Maps(*(t.clone().requires_grad_() for t in problem[0]))
        points, covariance = function(leaves, steepness)
        value = (points * direction).sum() + covariance.sum()
        gradients.append((points, covariance, *torch.autograd.grad(value, leaves[:2])))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def reference_divergence(
    heatmaps: Maps, points: Tensor, weights: Tensor, steepness: float
) -> Tensor:
    """The formula of Nibali et al.: 1/2 KL(p, m) + 1/2 KL(q, m) with m = (p + q) / 2."""
    p = (steepness * maps.whole(heatmaps)).flatten(2).softmax(-1)
    q = codec.render(points, HEIGHT, WIDTH, SIGMA).flatten(2)
    q = q / q.sum(-1, keepdim=True)
    m = (p + q) / 2
    terms = torch.special.xlogy(p, p / m) + torch.special.xlogy(q, q / m)
    return (terms.sum(-1) / 2 * weights).sum() / weights.numel()


def test_divergence_and_its_gradient_equal_those_of_whole_maps(
    problem: Any, block_values: int
) -> None:
    results = []
    for function in (
        lambda *arguments: maps.divergence(*arguments, 2.0, SIGMA),
        lambda *arguments: reference_divergence(*arguments, 2.0),
    ):
        leaves = Maps(*(t.clone().requires_grad_() for t in problem[0]))
        loss = function(leaves, *problem[1:])
        results.append((loss.item(), torch.autograd.grad(loss, leaves[:2])))
    (loss, gradients), (expected, expected_gradients) = results
    assert loss == pytest.approx(expected, rel=1e-9)
    assert 0 < loss < 2 * math.log(2)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()


def test_divergence_is_0_for_the_targets_own_softmax() -> None:
    points = torch.tensor([[[4.3, 7.2], [9.1, 3.4]]], dtype=torch.float64)
    along_y, along_x = codec.log_gaussian_factors(points, HEIGHT, WIDTH, SIGMA)
    logarithms = along_y[..., :, None] + along_x[..., None, :]
    exact = Maps(logarithms, torch.eye(2).double(), torch.zeros(2).double())
    assert maps.divergence(exact, points, torch.ones(1, 2), 1.0, SIGMA).item() < 1e-12
    elsewhere = points + torch.tensor([2.0, 0.0])
    assert maps.divergence(exact, elsewhere, torch.ones(1, 2), 1.0, SIGMA).item() > 0.1
    nowhere = torch.full_like(points, torch.nan)
    assert maps.divergence(exact, nowhere, torch.zeros(1, 2), 1.0, SIGMA).item() == 0


def test_float32_soft_argmax_is_accurate_to_a_ten_thousandth_pixel(problem: Any) -> None:
    points, _ = maps.soft_argmax(cast(problem[0], torch.float32), 2.0)
    expected, _ = codec.soft_argmax(maps.whole(problem[0]), 2.0)
    assert (points - expected).abs().max() < 1e-4


def test_decoding_equals_that_of_whole_maps(problem: Any, block_values: int) -> None:
    heatmaps = cast(problem[0], torch.float32)
    decoded = maps.decode(heatmaps, SIGMA)
    expected = codec.decode(maps.whole(heatmaps), SIGMA)
    assert [tuple(part.shape) for part in decoded] == [
        (IMAGES, LANDMARKS, 2),
        (IMAGES, LANDMARKS),
        (IMAGES, LANDMARKS, 2, 2),
    ]
    for one, other in zip(decoded, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_whole_maps_are_inner_products_in_full_precision(problem: Any) -> None:
    features, embeddings, bias = heatmaps = cast(problem[0], torch.bfloat16)
    heights = maps.whole(heatmaps)
    assert heights.dtype == torch.float32
    expected = functional.conv2d(
        features.double(), embeddings.double()[:, :, None, None], bias.double()
    )
    assert torch.allclose(heights.double(), expected, atol=1e-5)


class Operations(TorchDispatchMode):
    """Counts operations that are not views; each launches at least one kernel on a GPU."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("blocks", "limit"), [(1, 90), (9, 90 + 8 * 25)])
def test_decoding_takes_few_operations_per_block(
    blocks: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", 32 * 32 // 2)  # decoding's blocks hold twice that
    many = Maps(torch.randn(blocks, CHANNELS, 32, 32), torch.randn(1, CHANNELS), torch.randn(1))
    with Operations() as operations:
        maps.decode(many, SIGMA)
    assert operations.count <= limit


def test_decoding_needs_no_gradient(problem: Any) -> None:
    heatmaps = Maps(*(t.requires_grad_() for t in cast(problem[0], torch.float32)))
    assert not any(part.requires_grad for part in maps.decode(heatmaps, SIGMA))


# memory


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor created inside the context."""

    num_values = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                values = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.num_values = max(self.num_values, values)
        return made


MANY_LANDMARKS, BLOCK = 61, 4 * 61 * WIDTH  # some rows; much larger than features and factors


@pytest.fixture
def many_maps(monkeypatch: pytest.MonkeyPatch) -> Maps:
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", BLOCK)
    assert IMAGES * MANY_LANDMARKS * MAP > 10 * BLOCK
    return Maps(
        torch.randn(IMAGES, CHANNELS, HEIGHT, WIDTH).requires_grad_(),
        torch.randn(MANY_LANDMARKS, CHANNELS).requires_grad_(),
        torch.randn(MANY_LANDMARKS).requires_grad_(),
    )


def test_loss_and_its_gradient_never_hold_more_than_one_block(many_maps: Maps) -> None:
    points = 10 * torch.rand(IMAGES, MANY_LANDMARKS, 2)
    with LargestTensor() as largest:
        loss_of(many_maps, points, torch.ones(IMAGES, MANY_LANDMARKS)).backward()
    assert BLOCK // 2 < largest.num_values <= BLOCK


def test_divergence_never_holds_more_than_one_block(many_maps: Maps) -> None:
    points = 10 * torch.rand(IMAGES, MANY_LANDMARKS, 2)
    with LargestTensor() as largest:
        weights = torch.ones(IMAGES, MANY_LANDMARKS)
        maps.divergence(many_maps, points, weights, 2.0, SIGMA).backward()
    assert BLOCK // 2 < largest.num_values <= BLOCK


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_decoding_never_holds_more_than_two_blocks_of_the_loss(
    many_maps: Maps, decoder: str
) -> None:
    with LargestTensor() as largest:
        maps.decode(many_maps, SIGMA, decoder)
    assert BLOCK < largest.num_values <= 2 * BLOCK


def test_holding_whole_maps_is_detected(many_maps: Maps) -> None:
    with LargestTensor() as largest, torch.no_grad():
        maps.whole(many_maps)
    assert largest.num_values == IMAGES * MANY_LANDMARKS * MAP


def test_soft_argmax_never_holds_the_maps(many_maps: Maps) -> None:
    with LargestTensor() as largest:
        maps.soft_argmax(many_maps, 1.0)[0].sum().backward()
    assert largest.num_values < MANY_LANDMARKS * MAP


PEAKS = """
import os, re, sys, torch
from heatmap import maps

def peak_mib(block_loss, images, landmarks, height, width, channels=128):
    features = torch.randn(images, channels, height, width)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    embeddings = torch.randn(landmarks, channels, requires_grad=True)
    bias = torch.zeros(landmarks, requires_grad=True)
    points, weights = width * torch.rand(images, landmarks, 2), torch.ones(images, landmarks)
    before = resident_mib("VmRSS")
    leaves = maps.Maps(features, embeddings, bias)
    settings = dict(sigma=1.5, weight_map=10.0, block_loss=block_loss)
    loss = maps.loss(leaves, points, weights, **settings)
    if not torch.is_grad_enabled():
        return
    loss.backward()
    gradients = sum(t.grad.nbytes for t in leaves)
    return resident_mib("VmHWM") - before - gradients / 2**20

def resident_mib(which):
    with open("/proc/self/status") as status:
        return int(re.search(which + r":\\s+(\\d+) kB", status.read())[1]) / 1024

with torch.no_grad():  # compiles; autograd's threads would not survive the fork
    peak_mib(maps.compiled_loss_of_block, 1, 3, 5, 7)
for case in sys.argv[1:]:
    landmarks, height, width, how = case.split(",")
    landmarks, height, width = int(landmarks), int(height), int(width)
    block_loss = maps.compiled_loss_of_block if how == "compiled" else maps.loss_of_block
    if os.fork() == 0:  # a child inherits the compiled code and has its own VmHWM
        peak_mib(block_loss, 1, min(landmarks, 3), 5, 7)  # loads the libraries' pages
        print(case, peak_mib(block_loss, 8, landmarks, height, width), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loss_takes_less_than_64_mib_beyond_its_gradients() -> None:
    """8 images. 64 x 64 features take 16 MiB, so with one landmark not even a copy fits.

    The narrow maps of 10,000 landmarks give blocks of two rows.
    """
    limits = {
        "1,64,64,eager": 14,
        "971,64,64,eager": 64,
        "971,64,64,compiled": 64,
        "10000,64,24,compiled": 64,
    }
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *limits],
        env=os.environ | {"TORCH_COMPILE_DISABLE": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks = dict(line.split() for line in done.stdout.splitlines())
    assert peaks.keys() == limits.keys()
    for case, limit in limits.items():
        assert 0 < float(peaks[case]) < limit, case
