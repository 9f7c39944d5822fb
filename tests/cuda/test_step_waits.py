"""A training step neither waits for the GPU nor holds all maps in its memory."""

import runpy
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_runs import on, take_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heatmap import config, maps
from heatmap.config import Experiment
from heatmap.data.samples import load
from heatmap.maps import Maps
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training.prepare import prepare
from heatmap.training.step import Stepper, batches_of_pass

WAITING = {"_local_scalar_dense", "_linalg_check_errors", "masked_select", "nonzero", "_unique2"}
CPU = torch.device("cpu")


class Waits(TorchDispatchMode):
    """Counts operations and copies between devices that wait until a GPU has computed a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, call.overloadpacket.__name__
        result = call(*args, **kwargs)
        devices = {t.device for t in tree_leaves((args, result)) if isinstance(t, Tensor)}
        between_devices = name in ("copy_", "_to_copy") and len(devices) > 1
        non_blocking = between_devices and (kwargs.get("non_blocking") or True in args[2:])
        if name in WAITING or (between_devices and not non_blocking):
            self.seen[name] += 1
        return result


@pytest.fixture(params=["main recipe", "every augmentation"])
def recipe(tiny: Experiment, request: pytest.FixtureRequest) -> Experiment:
    """experiments/unet.py on a small encoder and 32 pixels."""
    path = Path(__file__).resolve().parents[2] / "experiments" / "unet.py"
    main: Experiment = runpy.run_path(str(path))["EXPERIMENT"]
    assert isinstance(main.model, config.UNet)
    if request.param == "every augmentation":
        all_changes = replace(tiny.augment, jpeg=0.7, noise=0.05, fill="mixed")
        main = replace(main, augment=all_changes)
    return replace(
        main,
        data=tiny.data,
        crop=config.Crop(height=32, width=32),
        model=replace(main.model, encoder="tu-test_resnet", weights="none", width=8),
        train=replace(main.train, batch=2, compile="off", ema=0.9),
    )


def test_a_step_on_a_gpu_never_waits(recipe: Experiment, gpu: torch.device) -> None:
    """This mode does not see that `check` waits for the previous step's event."""
    run = prepare(on(gpu, recipe))
    stepper = Stepper(run)
    stepper.train()
    samples = [*load(run.data.training, batches_of_pass(run, 0)[:4], 0, gpu)]
    try:
        for number, sample in enumerate(samples, start=1):
            if number == 3:  # the first one launches, the second captures
                torch.cuda.set_sync_debug_mode("error")
            stepper.step(sample, Stopwatch(gpu))
            run.progress.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stepper.check()


def test_no_value_on_the_device_is_read_between_images_and_gradients(
    recipe: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on the meta device, whose tensors have no values, so that reading one is an error."""
    changes = replace(recipe.augment, noise=0.0, fill="edge")  # meta has no random generator
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    run, meta = prepare(on(CPU, replace(recipe, augment=changes))), torch.device("meta")
    (sample,) = load(run.data.training, batches_of_pass(run, 0)[:1], 0, CPU)
    network = run.network.to(meta).train()
    with Waits() as waits:
        batch = run.data.augmented(sample, 0, meta)
        loss = network.loss(network(batch.images), batch.points_crop, batch.weights)
        loss.backward()
    # kornia sends the values of blur, sharpness and JPEG, which waits here but not on a GPU
    assert waits.seen["_to_copy"] == (3 if changes.jpeg else 0) and waits.seen["copy_"] == 0
    assert all(weight.grad is not None for weight in network.parameters())


def test_a_step_reads_few_values(recipe: Experiment) -> None:
    """Counted on the CPU, from the sample to the updated weights and their running mean."""
    seen = []

    class Counted(Stepper):
        def step(self, *arguments: Any) -> None:
            with Waits() as waits:
                super().step(*arguments)
            seen.append(dict(waits.seen))

    take_steps(prepare(on(CPU, recipe)), 3, stepper_type=Counted)
    # the inverse of the warp, and kornia's checks of its arguments: always on the CPU
    expected = {"_linalg_check_errors": 1}
    if recipe.augment.jpeg:
        expected["_local_scalar_dense"] = 5
    assert seen == 3 * [expected]


def test_the_loss_holds_one_block_of_maps(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides gradients: some copies of a block, for heights, targets, loss and slope."""
    block, landmarks, channels = 2**21, 971, 128
    monkeypatch.setitem(maps.BLOCK_VALUES, "cuda", block)
    heatmaps = Maps(
        torch.randn(16, channels, 64, 64, device=gpu, requires_grad=True),
        torch.randn(landmarks, channels, device=gpu, requires_grad=True),
        torch.randn(landmarks, device=gpu, requires_grad=True),
    )
    points = 64 * torch.rand(16, landmarks, 2, device=gpu)
    weights = torch.ones(16, landmarks, device=gpu)

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = maps.loss(heatmaps, points, weights, sigma=1.5, weight_map=10)
        torch.autograd.grad(loss, heatmaps)
        return torch.cuda.max_memory_allocated() - before

    peak()  # the first product allocates cuBLAS's workspace
    gradients, whole = sum(tensor.numel() for tensor in heatmaps), 16 * landmarks * 64 * 64
    assert peak() <= 4 * (gradients + 12 * block) < 4 * whole
