"""Training on each device: steps, CUDA graphs, resumed runs, compiled code."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_runs import on, take_steps, weights_of
from torch import Tensor

from heatmap import config
from heatmap.config import FROZEN_ENCODER, Experiment, Stage
from heatmap.errors import UserError
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runtime.cuda_graph import CudaGraph
from heatmap.training import loop, step
from heatmap.training.prepare import Run, prepare
from heatmap.training.step import Stepper, batches_of_pass


def assert_moved_alike(start: Tensor, one: Tensor, other: Tensor, error: float) -> None:
    """The difference is at most `error` of the way from the start, as Euclidean norms."""
    way = (one - start).norm()
    assert way > 0 and (one - other).norm() <= error * way


class CapturingStepper(Stepper):
    """Captures its steps on the CPU too, where a graph calls its function instead."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._captures = run.experiment.train.graph == "auto"

    def _gradients(self, *arguments: Any) -> Tensor:
        if self._run.device.type == "cpu":  # a graph writes new gradients, a function adds to them
            self._run.optimizer.zero_grad()
        return super()._gradients(*arguments)


@pytest.fixture
def graphs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[CudaGraph]:
    """The graphs captured so far."""
    made: list[CudaGraph] = []

    class Spy(CudaGraph):
        def __init__(self, function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
            made.append(self)
            self.function = function
            if device.type == "cuda":
                super().__init__(function, tensors)

        def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
            return super().__call__(tensors) if device.type == "cuda" else self.function(*tensors)

    monkeypatch.setattr(step, "CudaGraph", Spy)
    monkeypatch.setattr(loop, "Stepper", CapturingStepper)
    return made


def test_a_step_moves_the_weights_as_on_the_cpu(
    tiny: Experiment, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rounded to 10 bits, the convolutions alone turn this gradient by a tenth of its length
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    runs = [prepare(on(d, tiny)) for d in (torch.device("cpu"), device)]
    start = weights_of(runs[0])
    assert torch.equal(start, weights_of(runs[1]))
    (expected,), (loss,) = (take_steps(run, 1) for run in runs)
    assert loss == pytest.approx(expected, rel=1e-3)
    # the products of the loss are still rounded on a GPU
    assert_moved_alike(start, *map(weights_of, runs), 0.02 if device.type == "cuda" else 0)


def test_a_graph_trains_like_single_launches_and_follows_sigma(
    tiny: Experiment, device: torch.device, graphs: list[CudaGraph]
) -> None:
    runs = [prepare(on(device, tiny, graph=graph)) for graph in ("off", "auto")]
    start, losses, captured = weights_of(runs[0]), [], list[int]()
    for run in runs:

        def shrink_sigma(number: int, run: Run = run) -> None:
            captured.append(len(graphs))
            if number == 4:
                run.network.sigma = 1.0

        losses.append(take_steps(run, 6, shrink_sigma, CapturingStepper))
    assert captured == 6 * [0] + [0, 0, 1, 1, 1, 2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert_moved_alike(start, *map(weights_of, runs), 0.01)


def test_every_stage_has_its_graph(
    tiny: Experiment, device: torch.device, graphs: list[CudaGraph], tmp_path: Path
) -> None:
    stages = Stage(epochs=1), Stage(epochs=1, rates=FROZEN_ENCODER)
    staged = replace(tiny, stages=stages, train=replace(tiny.train, epochs=None))
    weights = []
    for graph, num_captured in (("off", 0), ("auto", 2)):
        run = prepare(on(device, staged, graph=graph))
        start = weights_of(run)
        loop.train(run, tmp_path / graph)
        weights.append(weights_of(run))
        assert len(graphs) == num_captured
    assert_moved_alike(start, *weights, 0.01)


def test_a_loss_that_is_not_finite_changes_no_weight(
    tiny: Experiment, device: torch.device, graphs: list[CudaGraph]
) -> None:
    run = prepare(on(device, replace(tiny, optimizer=config.Optimizer()), ema=0.9))
    assert run.averaged
    offender, *innocent = batches_of_pass(run, 0)[2]
    after_two = list[Tensor]()

    def spoil(number: int) -> None:
        if number == 3:
            assert len(graphs) == 1
            run.data.image_weights[offender] = torch.nan
            after_two.append(weights_of(run))

    with pytest.raises(UserError, match=r"step 3 .*the loss is nan") as caught:
        take_steps(run, 3, spoil, CapturingStepper)
    assert run.data.table.names[offender] in str(caught.value)
    assert not any(run.data.table.names[row] in str(caught.value) for row in innocent)
    assert torch.equal(weights_of(run), *after_two)
    assert all(torch.isfinite(tensor).all() for tensor in run.averaged.network.parameters())


def test_a_run_resumes_on_either_device(
    tiny: Experiment, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, state = checkpoint.save, tmp_path / "state.pt"

    def keeping_epoch_1(path: Path, saved: checkpoint.Checkpoint) -> None:
        save(path, saved)
        if saved.state and saved.state.progress.epoch == 1:
            shutil.copy(path, state)

    experiment = replace(on(device, tiny, ema=0.5), optimizer=config.Optimizer())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", keeping_epoch_1)
        loop.train(prepare(experiment), tmp_path / "whole")
    (_, expected), saved = read_metrics(tmp_path / "whole"), checkpoint.load(state)
    assert saved.state
    for other in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        run = prepare(on(torch.device(other), experiment), saved)
        loaded = run.optimizer.state_dict()["state"]
        assert loaded.keys() == saved.state.optimizer["state"].keys()
        for index, values in saved.state.optimizer["state"].items():
            for name, value in values.items():
                assert torch.equal(torch.as_tensor(loaded[index][name]).cpu(), value.cpu())
        for weight, values in run.optimizer.state.items():  # a fused optimizer needs this
            same_shape = [v for v in values.values() if v.shape == weight.shape]
            assert same_shape and all(v.stride() == weight.stride() for v in same_shape)
        loop.train(run, tmp_path / other)
        (resumed,) = read_metrics(tmp_path / other)
        assert resumed["train/loss"] == pytest.approx(expected["train/loss"], rel=0.02)


@pytest.fixture
def deterministic(device: torch.device) -> Any:
    """Undoes what train.deterministic sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.usefixtures("deterministic")
def test_deterministic_runs_are_equal_to_the_bit(tiny: Experiment, device: torch.device) -> None:
    runs = [prepare(on(device, tiny, deterministic=True)) for _ in range(2)]
    losses = [take_steps(run, 3) for run in runs]
    assert losses[0] == losses[1]
    assert torch.equal(*map(weights_of, runs))


def test_the_compiled_loss_trains_like_the_plain_one(
    tiny: Experiment, gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test, since compiling takes a minute; tests/test_maps.py compiles on the CPU."""
    with torch._dynamo.config.patch(disable=False):
        plain, compiled = (prepare(on(gpu, tiny, compile=part)) for part in ("off", "loss"))
        start = weights_of(plain)
        expected, losses = take_steps(plain, 3), take_steps(compiled, 3)
    # no warning, so the loss was compiled and the step captured
    assert not [record for record in caplog.records if record.name == "heatmap"]
    assert losses == pytest.approx(expected, rel=1e-3)
    assert_moved_alike(start, weights_of(plain), weights_of(compiled), 0.01)
