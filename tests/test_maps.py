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

IMAGES, CHANNELS, LANDMARKS, HEIGHT, WIDTH = 3, 4, 11, 17, 13
ROW, MAP = LANDMARKS * WIDTH, HEIGHT * WIDTH
SIGMA, WEIGHT_MAP = 1.5, 10.0
BLOCKS = {
    "less than a row": 1,
    "some rows": 5 * ROW,
    "one image": LANDMARKS * MAP,
    "two images": 2 * LANDMARKS * MAP,
    "everything": 2**20,
}


@pytest.fixture
def problem() -> tuple[Maps, Tensor, Tensor]:
    """float64 maps, points in and around them, and weights of many sizes."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    some_maps = Maps(
        normal(IMAGES, CHANNELS, HEIGHT, WIDTH),
        0.3 * normal(LANDMARKS, CHANNELS),
        normal(LANDMARKS),
    )
    size = torch.tensor([WIDTH, HEIGHT])
    points = (1.2 * torch.rand(IMAGES, LANDMARKS, 2, generator=generator) - 0.1) * size
    weights = 2 * torch.rand(IMAGES, LANDMARKS, generator=generator)
    return some_maps, points.double(), weights.double()


def cast(some_maps: Maps, dtype: torch.dtype) -> Maps:
    return Maps(*(t.detach().to(dtype) for t in some_maps))


def loss_of(some_maps: Maps, points: Tensor, weights: Tensor, weight_map: float = 10.0) -> Tensor:
    return maps.loss(some_maps, points, weights, sigma=SIGMA, weight_map=weight_map)


def loss_and_gradients(
    some_maps: Maps, points: Tensor, weights: Tensor, **settings: float
) -> tuple[Tensor, Maps]:
    leaves = Maps(*(t.detach().requires_grad_() for t in some_maps))
    loss = loss_of(leaves, points, weights, **settings)
    return loss.detach(), Maps(*torch.autograd.grad(loss, leaves))


def reference_loss(
    some_maps: Maps, points: Tensor, weights: Tensor, weight_map: float = WEIGHT_MAP
) -> Tensor:
    """The same number from whole maps in float64, by autograd and the paper's formulas."""
    features, embeddings, bias = (t.double() for t in some_maps)
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


def reference_gradients(some_maps: Maps, *arguments: Tensor, **settings: float) -> Maps:
    leaves = Maps(*(t.detach().double().requires_grad_() for t in some_maps))
    return Maps(*torch.autograd.grad(reference_loss(leaves, *arguments, **settings), leaves))


def assert_close(some: Maps, others: Maps, tolerance: float) -> None:
    """Within `tolerance` of the largest value of each."""
    for one, other in zip(some, others, strict=True):
        assert (one.double() - other.double()).abs().max() <= tolerance * other.abs().max()


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def block_values(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", request.param)
    return request.param


# the loss


@pytest.mark.parametrize("weight_map", [0.0, 10.0])
def test_loss_and_gradients_are_those_of_whole_maps(
    problem: Any, weight_map: float, block_values: int
) -> None:
    loss, gradients = loss_and_gradients(*problem, weight_map=weight_map)
    expected = reference_loss(*problem, weight_map=weight_map)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_close(gradients, reference_gradients(*problem, weight_map=weight_map), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_costs_the_loss_next_to_nothing(
    problem: Any, dtype: torch.dtype, block_values: int
) -> None:
    some_maps, points, weights = problem
    some_maps = cast(some_maps, dtype)
    loss, gradients = loss_and_gradients(some_maps, points.float(), weights.float())
    assert loss.dtype == torch.float32
    assert {g.dtype for g in gradients} == {dtype}
    expected = reference_loss(some_maps, points.float(), weights.float())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8  # the gradients' own rounding
    assert_close(gradients, reference_gradients(some_maps, points.float(), weights), tolerance)


def test_gradcheck(problem: Any) -> None:
    some_maps, points, weights = problem
    features, embeddings, bias = some_maps
    leaves = [
        t.clone().requires_grad_() for t in (features[:2, :, :5, :7], embeddings[:3], bias[:3])
    ]
    points = points[:2, :3] / 2
    assert torch.autograd.gradcheck(
        lambda *tensors: loss_of(Maps(*tensors), points, weights[:2, :3]), leaves
    )


def test_autocast_changes_no_bit(problem: Any) -> None:
    some_maps, points, weights = problem
    some_maps = cast(some_maps, torch.bfloat16)._replace(embeddings=some_maps.embeddings.float())
    expected = loss_and_gradients(some_maps, points, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(some_maps, points, weights)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))
    assert gradients.features.dtype == torch.bfloat16
    assert gradients.embeddings.dtype == torch.float32


def test_without_gradient_the_loss_is_the_same(problem: Any) -> None:
    loss, _ = loss_and_gradients(*problem)
    assert torch.equal(loss_of(*problem), loss)
    with torch.no_grad():
        some_maps, *rest = problem
        without = loss_of(Maps(*(t.clone().requires_grad_() for t in some_maps)), *rest)
    assert torch.equal(without, loss)
    assert not without.requires_grad


def test_parts_that_learn_nothing_get_no_gradient(problem: Any) -> None:
    some_maps, points, weights = problem
    embeddings = some_maps.embeddings.clone().requires_grad_()
    loss_of(some_maps._replace(embeddings=embeddings), points, weights).backward()
    assert some_maps.features.grad is None
    _, expected = loss_and_gradients(*problem)
    assert embeddings.grad is not None
    assert torch.equal(embeddings.grad, expected.embeddings)


def test_what_is_done_to_the_loss_is_done_to_its_gradients(problem: Any) -> None:
    some_maps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    (-3 * loss_of(leaves, points, weights)).backward()
    _, expected = loss_and_gradients(*problem)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.allclose(leaf.grad, -3 * gradient, rtol=1e-12)


def test_weights_multiply_the_loss_and_its_gradients(problem: Any) -> None:
    some_maps, points, weights = problem
    loss, gradients = loss_and_gradients(some_maps, points, weights)
    tripled, tripled_gradients = loss_and_gradients(some_maps, points, 3 * weights)
    assert tripled.item() == pytest.approx(3 * loss.item(), rel=1e-12)
    assert_close(tripled_gradients, Maps(*(3 * g for g in gradients)), 1e-12)


def test_the_divisor_is_constant_so_that_parts_add_up(problem: Any) -> None:
    some_maps, points, weights = problem
    whole, whole_gradients = loss_and_gradients(some_maps, points, weights)
    chosen = torch.rand(weights.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    some, some_gradients = loss_and_gradients(some_maps, points, weights * chosen)
    rest, rest_gradients = loss_and_gradients(some_maps, points, weights * ~chosen)
    assert (some + rest).item() == pytest.approx(whole.item(), rel=1e-12)
    added = Maps(*(a + b for a, b in zip(some_gradients, rest_gradients, strict=True)))
    assert_close(added, whole_gradients, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("somewhere", [math.nan, 0.0, 5.3, -1e30, math.inf])
def test_a_masked_landmark_can_lie_anywhere(
    problem: Any, dtype: torch.dtype, somewhere: float, block_values: int
) -> None:
    some_maps, points, weights = problem
    some_maps, masked = cast(some_maps, dtype), weights.clone()
    masked[:, 4], masked[1, 7] = 0, 0
    moved = torch.where(masked[..., None] == 0, somewhere, points)
    loss, gradients = loss_and_gradients(some_maps, moved, masked)
    expected_loss, expected = loss_and_gradients(some_maps, points, masked)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert gradients.embeddings[4].abs().max() == 0
    assert gradients.bias[4] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_landmark_changes_no_other_gradient_by_a_bit(
    problem: Any, dtype: torch.dtype, block_values: int
) -> None:
    some_maps, points, weights = problem
    some_maps, masked = cast(some_maps, dtype), weights.clone()
    masked[:, 4] = 0
    _, gradients = loss_and_gradients(some_maps, points, masked)
    _, expected = loss_and_gradients(some_maps, points, weights)
    others = [p for p in range(LANDMARKS) if p != 4]
    assert torch.equal(gradients.embeddings[others], expected.embeddings[others])
    assert torch.equal(gradients.bias[others], expected.bias[others])


def test_a_batch_without_any_label_teaches_nothing(problem: Any) -> None:
    some_maps, points, weights = problem
    loss, gradients = loss_and_gradients(some_maps, points * math.nan, 0 * weights)
    assert loss == 0
    assert all(g.abs().max() == 0 for g in gradients)


def test_squared_error_runs_in_the_same_machinery(problem: Any, block_values: int) -> None:
    some_maps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    loss = maps.loss(leaves, points, weights, sigma=SIGMA, pointwise=losses.squared)
    gradients = Maps(*torch.autograd.grad(loss, leaves))
    exact = Maps(*(t.clone().requires_grad_() for t in some_maps))
    reach = 1.5 * SIGMA
    high = torch.tensor([WIDTH, HEIGHT]) - 1 + reach
    inside = torch.minimum(points.clamp_min(-reach), high)
    heights = torch.einsum("bchw,pc->bphw", exact.features, exact.embeddings)
    heights = heights + exact.bias[:, None, None]
    squares = (heights - codec.render(inside, HEIGHT, WIDTH, SIGMA)).square().mean((2, 3))
    expected = (squares * weights).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_close(gradients, Maps(*torch.autograd.grad(expected, exact)), 1e-12)


def test_a_retained_graph_gives_its_gradient_again(problem: Any) -> None:
    some_maps, points, weights = problem
    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    loss = loss_of(leaves, points, weights)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(3 * loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(3 * one, other, rtol=1e-12)


def test_a_checkpointed_network_gets_the_same_gradients(problem: Any) -> None:
    some_maps, points, weights = problem
    _, expected = loss_and_gradients(*problem)
    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    loss = torch.utils.checkpoint.checkpoint(
        lambda *tensors: loss_of(Maps(*tensors), points, weights), *leaves, use_reentrant=False
    )
    loss.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_heatmap_and_coordinate_loss_add_up_in_one_step(problem: Any) -> None:
    some_maps, points, weights = problem

    def coordinates(leaves: Maps) -> Tensor:
        return (maps.soft_argmax(leaves, 2.0)[0] - points).square().mean()

    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    (loss_of(leaves, points, weights) + coordinates(leaves)).backward()
    _, of_maps = loss_and_gradients(*problem)
    alone = Maps(*(t.clone().requires_grad_() for t in some_maps))
    coordinates(alone).backward()
    assert torch.allclose(leaves.features.grad, of_maps.features + alone.features.grad, rtol=1e-9)
    assert torch.allclose(
        leaves.embeddings.grad, of_maps.embeddings + alone.embeddings.grad, rtol=1e-9
    )
    assert torch.equal(leaves.bias.grad, of_maps.bias)  # a softmax does not see it


def test_parts_of_a_batch_add_up_to_its_gradient(problem: Any) -> None:
    some_maps, points, weights = problem
    _, expected = loss_and_gradients(*problem)
    leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
    for rows in (slice(0, 2), slice(2, 3)):
        part = leaves._replace(features=leaves.features[rows])
        count = rows.stop - rows.start
        (loss_of(part, points[rows], weights[rows]) * count / IMAGES).backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.allclose(leaf.grad, gradient, rtol=1e-9)


# compiled


@pytest.mark.slow
def test_the_compiled_loss_is_the_same_and_compiled_few_times_for_all_shapes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    shapes = [(3, 11, 17, 13), (2, 11, 17, 13), (5, 7, 9, 21), (3, 971, 32, 32), (2, 2000, 16, 24)]
    shapes += [(1, 971, 32, 32), (1, 68, 64, 64), (4, 68, 24, 40)]
    with torch._dynamo.config.patch(disable=False):
        for images, landmarks, height, width in shapes:
            some_maps = Maps(
                torch.randn(images, 4, height, width),
                torch.randn(landmarks, 4),
                torch.randn(landmarks),
            )
            points = 20 * torch.rand(images, landmarks, 2)
            found = []
            for block_loss in (maps.loss_of_block, maps.compiled_loss_of_block):
                leaves = Maps(*(t.clone().requires_grad_() for t in some_maps))
                loss = maps.loss(
                    leaves, points, torch.ones(images, landmarks),
                    sigma=SIGMA, weight_map=WEIGHT_MAP, block_loss=block_loss,
                )  # fmt: skip
                found.append((loss.item(), Maps(*torch.autograd.grad(loss, leaves))))
            (loss, gradients), (compiled_loss, compiled_gradients) = found
            assert compiled_loss == pytest.approx(loss, rel=1e-5)
            assert_close(compiled_gradients, gradients, 1e-5)
    assert not [r for r in caplog.records if r.name == "heatmap"]  # compiled indeed
    # one for several images, one for a single one
    assert 1 <= counted["unique_graphs"] - before <= 2


WITHOUT_COMPILER = """
import logging, torch
logging.basicConfig(format="%(message)s")
from heatmap import maps
some = maps.Maps(torch.randn(2, 4, 9, 7, requires_grad=True), torch.randn(5, 4), torch.randn(5))
points, weights = 7 * torch.rand(2, 5, 2), torch.ones(2, 5)
one, other, again = (
    maps.loss(some, points, weights, sigma=1.5, block_loss=f).item()
    for f in (maps.loss_of_block, maps.compiled_loss_of_block, maps.compiled_loss_of_block)
)
assert one == other == again
"""


@pytest.mark.slow
def test_without_a_compiler_it_runs_as_it_is_and_says_so_once(tmp_path: Any) -> None:
    environment = {
        "TORCH_COMPILE_DISABLE": "0",
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("loss_of_block is not compiled and may run slower (InvalidCxxCompiler")
        == 1
    )
    assert "--train.compile off" in done.stderr


# decoding


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_every_decoder_is_that_of_whole_maps(problem: Any, decoder: str, block_values: int) -> None:
    some_maps = cast(problem[0], torch.float32)
    decoded = maps.decode(some_maps, SIGMA, decoder)
    expected = codec.decode(maps.whole(some_maps), SIGMA, decoder)
    assert (decoded.points_heatmap - expected.points_heatmap).abs().max() < 1e-4


def test_soft_argmax_and_its_gradient_are_those_of_whole_maps(problem: Any) -> None:
    steepness = torch.rand(IMAGES, LANDMARKS, dtype=torch.float64) + 0.5
    direction = torch.randn(IMAGES, LANDMARKS, 2, dtype=torch.float64)
    gradients = []
    for function in (maps.soft_argmax, lambda some, k: codec.soft_argmax(maps.whole(some), k)):
        leaves = Maps(*(t.clone().requires_grad_() for t in problem[0]))
        points, covariance = function(leaves, steepness)
        value = (points * direction).sum() + covariance.sum()
        gradients.append((points, covariance, *torch.autograd.grad(value, leaves[:2])))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def reference_divergence(
    some_maps: Maps, points: Tensor, weights: Tensor, steepness: float
) -> Tensor:
    """As Nibali et al. print it: 1/2 KL(p, m) + 1/2 KL(q, m) with m = (p + q) / 2."""
    found = (steepness * maps.whole(some_maps)).flatten(2).softmax(-1)
    target = codec.render(points, HEIGHT, WIDTH, SIGMA).flatten(2)
    target = target / target.sum(-1, keepdim=True)
    middle = (found + target) / 2
    terms = torch.special.xlogy(found, found / middle) + torch.special.xlogy(
        target, target / middle
    )
    return (terms.sum(-1) / 2 * weights).sum() / weights.numel()


def test_the_divergence_and_its_gradient_are_those_of_whole_maps(
    problem: Any, block_values: int
) -> None:
    found = []
    for function in (
        lambda *given: maps.divergence(*given, 2.0, SIGMA),
        lambda *given: reference_divergence(*given, 2.0),
    ):
        leaves = Maps(*(t.clone().requires_grad_() for t in problem[0]))
        loss = function(leaves, *problem[1:])
        found.append((loss.item(), torch.autograd.grad(loss, leaves[:2])))
    (loss, gradients), (expected, expected_gradients) = found
    assert loss == pytest.approx(expected, rel=1e-9)
    assert 0 < loss < 2 * math.log(2)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()


def test_the_divergence_is_0_for_the_targets_own_softmax() -> None:
    points = torch.tensor([[[4.3, 7.2], [9.1, 3.4]]], dtype=torch.float64)
    along_y, along_x = codec.log_gaussian_factors(points, HEIGHT, WIDTH, SIGMA)
    logarithms = along_y[..., :, None] + along_x[..., None, :]
    exact = Maps(logarithms, torch.eye(2).double(), torch.zeros(2).double())
    assert maps.divergence(exact, points, torch.ones(1, 2), 1.0, SIGMA).item() < 1e-12
    elsewhere = points + torch.tensor([2.0, 0.0])
    assert maps.divergence(exact, elsewhere, torch.ones(1, 2), 1.0, SIGMA).item() > 0.1
    nowhere = torch.full_like(points, torch.nan)
    assert maps.divergence(exact, nowhere, torch.zeros(1, 2), 1.0, SIGMA).item() == 0


def test_in_single_precision_soft_argmax_errs_by_less_than_a_ten_thousandth(problem: Any) -> None:
    points, _ = maps.soft_argmax(cast(problem[0], torch.float32), 2.0)
    expected, _ = codec.soft_argmax(maps.whole(problem[0]), 2.0)
    assert (points - expected).abs().max() < 1e-4


def test_decoding_is_that_of_whole_maps(problem: Any, block_values: int) -> None:
    some_maps = cast(problem[0], torch.float32)
    decoded = maps.decode(some_maps, SIGMA)
    expected = codec.decode(maps.whole(some_maps), SIGMA)
    assert [tuple(part.shape) for part in decoded] == [
        (IMAGES, LANDMARKS, 2),
        (IMAGES, LANDMARKS),
        (IMAGES, LANDMARKS, 2, 2),
    ]
    for one, other in zip(decoded, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_whole_maps_are_inner_products_in_full_precision(problem: Any) -> None:
    features, embeddings, bias = some_maps = cast(problem[0], torch.bfloat16)
    heights = maps.whole(some_maps)
    assert heights.dtype == torch.float32
    expected = functional.conv2d(
        features.double(), embeddings.double()[:, :, None, None], bias.double()
    )
    assert torch.allclose(heights.double(), expected, atol=1e-5)


def test_decoding_needs_no_gradient(problem: Any) -> None:
    some_maps = Maps(*(t.requires_grad_() for t in cast(problem[0], torch.float32)))
    assert not any(part.requires_grad for part in maps.decode(some_maps, SIGMA))


# whole maps never exist


class LargestTensor(TorchDispatchMode):
    """Remembers the most values that any tensor had that was made inside."""

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


def test_the_loss_and_its_gradient_never_hold_more_than_one_block(many_maps: Maps) -> None:
    points = 10 * torch.rand(IMAGES, MANY_LANDMARKS, 2)
    with LargestTensor() as largest:
        loss_of(many_maps, points, torch.ones(IMAGES, MANY_LANDMARKS)).backward()
    assert BLOCK // 2 < largest.num_values <= BLOCK


def test_the_divergence_never_holds_more_than_one_block(many_maps: Maps) -> None:
    points = 10 * torch.rand(IMAGES, MANY_LANDMARKS, 2)
    with LargestTensor() as largest:
        weights = torch.ones(IMAGES, MANY_LANDMARKS)
        maps.divergence(many_maps, points, weights, 2.0, SIGMA).backward()
    assert BLOCK // 2 < largest.num_values <= BLOCK


def test_decoding_never_holds_more_than_one_block(many_maps: Maps) -> None:
    with LargestTensor() as largest:
        maps.decode(many_maps, SIGMA)
    assert BLOCK // 2 < largest.num_values <= BLOCK


def test_holding_whole_maps_would_be_noticed(many_maps: Maps) -> None:
    with LargestTensor() as largest, torch.no_grad():
        maps.whole(many_maps)
    assert largest.num_values == IMAGES * MANY_LANDMARKS * MAP


def test_soft_argmax_never_makes_the_maps(many_maps: Maps) -> None:
    with LargestTensor() as largest:
        maps.soft_argmax(many_maps, 1.0)[0].sum().backward()
    assert largest.num_values < MANY_LANDMARKS * MAP


PEAK = """
import re, sys, torch
from heatmap import maps
landmarks, compiled = int(sys.argv[1]), sys.argv[2] == "compiled"
block_loss = maps.compiled_loss_of_block if compiled else maps.loss_of_block

def peak_mib(images, landmarks, height, width, channels=128):
    features = torch.randn(images, channels, height, width)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    embeddings = torch.randn(landmarks, channels, requires_grad=True)
    bias = torch.zeros(landmarks, requires_grad=True)
    points, weights = width * torch.rand(images, landmarks, 2), torch.ones(images, landmarks)
    before = resident_mib("VmRSS")
    some = maps.Maps(features, embeddings, bias)
    maps.loss(some, points, weights, sigma=1.5, weight_map=10.0, block_loss=block_loss).backward()
    gradients = sum(t.grad.nbytes for t in some)
    return resident_mib("VmHWM") - before - gradients / 2**20

def resident_mib(which):
    with open("/proc/self/status") as status:
        return int(re.search(which + r":\\s+(\\d+) kB", status.read())[1]) / 1024

# libraries, threads and compiled code are not counted: several images, one, and one row of one
for images, height in ((2, 5), (1, 5), (1, 1)):
    peak_mib(images, min(landmarks, 3), height, 7)
print(peak_mib(8, landmarks, 64, 64))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("landmarks", "most", "how"),
    [(1, 14, "compiled"), (971, 64, "eager"), (971, 64, "compiled"), (10_000, 64, "compiled")],
)
def test_the_loss_takes_less_than_64_mib_beyond_its_gradients(
    landmarks: int, most: float, how: str
) -> None:
    """The features alone are 16 MiB, so for one landmark not even a copy of them has room."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(landmarks), how],
        env=os.environ | {"TORCH_COMPILE_DISABLE": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < float(done.stdout) < most
