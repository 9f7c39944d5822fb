import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    BATCH,
    ENCODER,
    NUM_TRAINING,
    STEPS_AN_EPOCH,
    changed,
    contest_of_faces,
    progress_of,
    trained,
)
from torch.utils._python_dispatch import TorchDispatchMode

from heatmap import config
from heatmap.config import (
    Augment,
    Crop,
    Data,
    Direct,
    Experiment,
    Optimizer,
    Schedule,
    UNet,
)
from heatmap.data.samples import load, shuffled_batches
from heatmap.networks import HeatmapNetwork
from heatmap.runs.ledger import read_metrics
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import loop
from heatmap.training.prepare import prepare
from heatmap.training.schedule import learning_rate
from heatmap.training.step import Stepper, time_steps


def test_the_optimizer_gets_the_scheduled_rate(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step = [], torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    schedule = Schedule(kind="cosine", warmup=0.5)
    optimizer = Optimizer(kind="sgd", lr=0.02)
    run = trained(replace(tiny, schedule=schedule, optimizer=optimizer), tmp_path)
    assert run.total_steps == 2 * STEPS_AN_EPOCH == len(seen)
    expected = [[0.02 * learning_rate(schedule, i / len(seen))] for i in range(len(seen))]
    np.testing.assert_allclose(seen, np.broadcast_to(expected, (len(seen), 7)))
    assert [row["lr"] for row in read_metrics(tmp_path)] == [seen[3][0], seen[7][0]]


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_gradients_are_clipped_to_clip_norm(
    tiny: Experiment, tmp_path: Path, clip_norm: float | None
) -> None:
    experiment = replace(
        tiny,
        optimizer=Optimizer(kind="sgd", lr=1, momentum=0, weight_decay=0, clip_norm=clip_norm),
        schedule=Schedule(kind="constant", warmup=0),
        train=replace(tiny.train, max_steps=1),
    )
    run = prepare(experiment)
    before = [p.detach().clone() for p in run.network.parameters()]
    loop.train(run, tmp_path)
    moved = [p.detach() - b for p, b in zip(run.network.parameters(), before, strict=True)]
    length = math.sqrt(sum(float(m.double().square().sum()) for m in moved))
    if clip_norm:
        assert length == pytest.approx(clip_norm, rel=1e-3)
    else:
        assert length > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_every_optimizer_lowers_the_loss(tiny: Experiment, tmp_path: Path, kind: str) -> None:
    lr = 0.02 if kind == "sgd" else 2e-3
    trained(replace(tiny, optimizer=Optimizer(kind=kind, lr=lr)), tmp_path)
    first, last = read_metrics(tmp_path)
    assert last["train/loss"] < 0.9 * first["train/loss"]


def gradients_of_a_step(experiment: Experiment) -> list[torch.Tensor]:
    """Gradients of the first batch, with the network in eval mode."""
    run = prepare(experiment)
    run.network.eval()
    batches = shuffled_batches(run.data.training_rows, experiment.train.batch, 0, 0)
    sample = next(iter(load(run.data.training, batches[:1], 0, run.device)))
    stepper = Stepper(run)
    stepper.step(sample, Stopwatch(run.device))
    return [p.grad for p in run.network.parameters() if p.grad is not None]


def test_accumulated_gradients_equal_those_of_the_whole_batch(tiny: Experiment) -> None:
    whole, parts = (
        gradients_of_a_step(replace(tiny, train=replace(tiny.train, batch=6, accumulate=count)))
        for count in (1, 3)
    )
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


DIRECT = Direct(encoder=ENCODER, weights="none")


ON_COORDINATES = UNet(
    encoder=ENCODER, weights="none", width=6, loss="none", coordinate_loss="mse", decoder="softmax"
)


@pytest.mark.parametrize(
    ("model", "power"),
    [
        (DIRECT, 1.0),
        (replace(DIRECT, loss="mae"), 0.5),
        (UNet(encoder=ENCODER, weights="none", width=6), 1.0),
        (ON_COORDINATES, 1.0),
        (replace(ON_COORDINATES, coordinate_loss="mae"), 0.5),
        (replace(ON_COORDINATES, coordinate_loss="smooth_l1"), 0.5),
        (replace(ON_COORDINATES, coordinate_loss="wing"), 0.5),
    ],
)
def test_pixel_weights_weigh_errors_in_image_pixels(
    tiny: Experiment, model: config.Model, power: float
) -> None:
    """Compares with the gradient of one image without weights, scaled by area or side."""
    plain = replace(tiny, augment=Augment(), model=model, train=replace(tiny.train, batch=1))
    weighted = replace(plain, train=replace(plain.train, pixel_weights=True))
    run = prepare(plain)
    ((row,), *_) = shuffled_batches(run.data.training_rows, 1, 0, 0)
    image_from_crop = run.data.validation[row].image_from_crop
    area = (image_from_crop[0, 0] * image_from_crop[1, 1]).item()
    assert abs(area - 1) > 0.1
    for one, other in zip(*map(gradients_of_a_step, (plain, weighted)), strict=True):
        expected = area**power * one
        assert torch.allclose(other, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_bf16_is_used_in_the_network_only(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, losses, loss = set(), set(), HeatmapNetwork.loss

    def spy(self: HeatmapNetwork, output: Any, *arguments: Any) -> torch.Tensor:
        value = loss(self, output, *arguments)
        features.add(output.features.dtype)
        losses.add(value.dtype)
        return value

    monkeypatch.setattr(HeatmapNetwork, "loss", spy)
    run = trained(replace(tiny, train=replace(tiny.train, precision="bf16")), tmp_path)
    assert (features, losses) == ({torch.bfloat16}, {torch.float32})
    assert {p.dtype for p in run.network.parameters()} == {torch.float32}
    first, last = read_metrics(tmp_path)
    assert last["train/loss"] < first["train/loss"]
    assert math.isfinite(last["val/mse"])


def test_image_weights_scale_the_loss(tiny: Experiment, tmp_path: Path) -> None:
    names = prepare(tiny).data.table.names
    settings = replace(tiny.train, batch=9, max_steps=1)

    def gradients(weights: dict[str, float]) -> dict[str, torch.Tensor]:
        lines = [f"{name}\t{weights.get(name, 1)}" for name in names[:NUM_TRAINING]]
        path = tmp_path / "weights.tsv"
        path.write_text("\n".join(["file_name\tweight", *lines]))
        run = prepare(replace(tiny, data=replace(tiny.data, weights=path), train=settings))
        (sample,) = load(run.data.training, [list(range(NUM_TRAINING))], 0, run.device)
        batch = run.data.augmented(sample, 0, run.device)
        output = run.network(batch.images)
        run.network.loss(output, batch.points_crop, batch.weights).backward()
        return {n: p.grad.clone() for n, p in run.network.named_parameters()}

    plain = gradients({})
    without = gradients({names[4]: 0})
    twice = gradients({names[4]: 2})
    for name, gradient in plain.items():  # the image's own part, added once more
        assert torch.allclose(twice[name] - gradient, gradient - without[name], atol=1e-4)
    assert changed(plain, without)


def test_an_image_without_a_weight_is_named(tiny: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "weights.csv"
    path.write_text("file_name,weight\nada_0.jpg,1\n")
    with pytest.raises(ValueError, match=r"weights.csv: no row for .*ada_1.jpg"):
        prepare(replace(tiny, data=replace(tiny.data, weights=path)))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_image(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = HeatmapNetwork.forward, []

    def forward_with_a_hole(self: HeatmapNetwork, images: torch.Tensor) -> Any:
        output = forward(self, images)
        calls.append(len(images))
        if len(calls) < 3:
            return output
        hole = torch.zeros_like(output.features)
        hole[1, :, 2, 3] = torch.nan
        return output._replace(features=output.features + hole)

    monkeypatch.setattr(HeatmapNetwork, "forward", forward_with_a_hole)
    run = prepare(tiny)
    with pytest.raises(ValueError, match=r"step 3 .*the loss is nan") as caught:
        loop.train(run, tmp_path)
    innocent, offender = shuffled_batches(run.data.training_rows, BATCH, 0, 0)[2]
    assert run.data.table.names[offender] in str(caught.value)
    assert run.data.table.names[innocent] not in str(caught.value)
    assert progress_of(tmp_path / "last.pt")["step"] < 3
    assert not (tmp_path / "summary.json").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = HeatmapNetwork.loss

    def steep(self: HeatmapNetwork, *arguments: Any) -> torch.Tensor:
        value = loss(self, *arguments)
        return value + (self.bias.sum() - self.bias.sum().detach()) * 1e38 * 1e38

    monkeypatch.setattr(HeatmapNetwork, "loss", steep)
    run = prepare(tiny)
    before = {name: tensor.clone() for name, tensor in run.network.named_parameters()}
    with pytest.raises(ValueError, match=r"the gradient norm (inf|nan)") as caught:
        loop.train(run, tmp_path)
    for row in shuffled_batches(run.data.training_rows, BATCH, 0, 0)[0]:
        assert run.data.table.names[row] in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in run.network.named_parameters())


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf 80 GiB ..."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_names_the_options_to_change(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_large(*_: Any) -> None:
        raise error

    run = prepare(tiny)
    monkeypatch.setattr(HeatmapNetwork, "layers", too_large)
    with pytest.raises(
        ValueError, match=r"cpu has too little memory .*--train\.accumulate .*--model\.stride"
    ) as caught:
        loop.train(run, tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(HeatmapNetwork, "layers", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        time_steps(run)


class LargestTensor(TorchDispatchMode):
    """Records the number of values in the largest tensor."""

    largest = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and not any(s == 0 for s in made.stride()):
                self.largest = max(self.largest, made.numel())
        return result


@pytest.mark.slow
def test_all_heatmaps_are_never_in_memory_at_once(tiny: Experiment, tmp_path: Path) -> None:
    contest = contest_of_faces(tmp_path / "faces", 8, 1, slice(None))
    experiment = replace(
        tiny,
        data=Data(root=contest.root, split="order", validation=0.5, workers=0),
        crop=Crop(height=64, width=96),
        model=UNet(encoder=ENCODER, weights="none", stride=1, width=6),
        train=replace(tiny.train, batch=4, max_steps=1),
    )
    run = prepare(experiment)
    whole = 4 * 971 * 64 * 96
    with LargestTensor() as seen:
        loop.train(run, tmp_path / "run")
    assert 0 < seen.largest < whole / 8


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (2, 2)])
def test_a_single_image_for_batch_normalisation_names_the_options(
    tiny: Experiment, batch: int, accumulate: int
) -> None:
    settings = replace(tiny.train, batch=batch, accumulate=accumulate)
    run = prepare(replace(tiny, crop=Crop(height=32, width=32), train=settings))
    with pytest.raises(ValueError, match=rf"a batch of {batch} .*--train\.batch .*--train\.acc"):
        time_steps(run)
