"""Measures a GPU: its limits, training steps, the goals for their parts, training and prediction.

    python tools/benchmark/gpu.py OUT [--only goals steps] [--device cpu] [--tiny]

OUT/figures.log receives each line as it is printed. A section that fails does not stop the others.
Needs only torch and the imports of `heatmap` itself, not tyro or wandb. `--device cpu --tiny` tries
out every section in two minutes; its figures mean nothing.
"""

import argparse
import runpy
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heatmap import config, losses, maps, networks
from heatmap.data import augment, samples
from heatmap.data.synthetic import make_contest
from heatmap.errors import UserError
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import autocast, predict
from heatmap.runtime import machine
from heatmap.runtime.cuda_graph import CudaGraph
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import loop, prepare
from heatmap.training.step import Stepper, batches_of_pass

UNET: config.Experiment = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "experiments" / "unet.py")
)["EXPERIMENT"]
assert isinstance(UNET.model, config.UNet)
MODEL = replace(UNET.model, weights="none")


@dataclass(frozen=True)
class Bench:
    """Settings of a benchmark, and its log."""

    out: Path
    device: torch.device
    tiny: bool  # smallest sizes and single measurements

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def contest(self) -> Path:
        return self.out / "contest"

    @property
    def run(self) -> Path:
        return self.out / "run"

    def log(self, line: str) -> None:
        """Prints a line and appends it to figures.log."""
        print(line, flush=True)
        with (self.out / "figures.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def experiment(
        self,
        *,
        model: config.UNet | config.DenseUNet = MODEL,
        workers: int | None = 0,
        **train: Any,
    ) -> config.Experiment:
        """experiments/unet.py with random weights on the drawn faces; CPUs use fp32, not bf16."""
        defaults = {"batch": 64, "precision": "bf16", "compile": "loss", "epochs": 2}
        train = {**defaults, **train}
        crop = UNET.crop
        if not self.on_gpu:
            train["precision"] = "fp32"
        if self.tiny:
            train["batch"], crop = 2, replace(crop, height=32, width=32)
            if isinstance(model, config.UNet):
                model = replace(model, encoder="tu-test_resnet", width=8)
            else:
                model = replace(model, encoder="densenet121", width=8)
        return replace(
            UNET,
            data=config.Data(root=self.contest, workers=workers, split="order"),
            crop=crop,
            model=model,
            train=config.Train(device="cuda" if self.on_gpu else "cpu", **train),
            wandb=config.Wandb(mode="off"),
        )

    def milliseconds(self, action: Callable[[], Any], seconds: float = 0.5) -> float:
        """Mean time of calls in a row, for about `seconds` after three calls; if tiny, of one."""
        count = 1
        if not self.tiny:
            for _ in range(3):
                action()
            count = max(3, round(seconds / self._seconds_of(action, 1)))
        return 1e3 * self._seconds_of(action, count) / count

    def _seconds_of(self, action: Callable[[], Any], count: int) -> float:
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            action()
        self.synchronize()
        return time.perf_counter() - begin


class Training(NamedTuple):
    """A run that takes training steps on a single batch."""

    run: prepare.Run
    stepper: Stepper
    sample: samples.Sample
    watch: Stopwatch

    @classmethod
    def of(cls, experiment: config.Experiment) -> "Training":
        run = prepare.prepare(experiment)
        batches = samples.shuffled_batches(run.data.training_rows, experiment.train.batch, 0, 0)[:1]
        (sample,) = samples.load(run.data.training, batches, 0, run.device)
        stepper = Stepper(run)
        stepper.train()
        return cls(run, stepper, sample, Stopwatch(run.device))

    def step(self) -> None:
        self.stepper.step(self.sample, self.watch)

    def augmented(self) -> augment.Batch:
        return self.run.data.augmented(self.sample, 0, self.run.device)


def machine_limits(bench: Bench) -> None:
    """Versions, memory bandwidth, matrix products and kernel launches."""
    about = machine.describe(bench.device)
    cudnn = torch.backends.cudnn.version() if bench.on_gpu else None
    bench.log(
        f"{about['processor']}, torch {about['torch']}, cuDNN {cudnn}, {about['cpu_cores']} cores, "
        f"{about['date']}, commit {about['commit']}"
    )
    large = torch.empty(2**14 if bench.tiny else 2**28, device=bench.device)
    copy = torch.empty_like(large)
    took = bench.milliseconds(lambda: copy.copy_(large))
    bench.log(f"copy {2 * large.nbytes / took / 1e9:.2f} TB/s")
    side = 256 if bench.tiny else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        factor = torch.randn(side, side, device=bench.device, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = tf32  # False, the default, at the end
        took = bench.milliseconds(partial(torch.matmul, factor, factor.mT))
        name = "TF32" if tf32 else str(dtype).removeprefix("torch.")
        bench.log(f"matrix product in {name}: {2 * side**3 / took / 1e9:.0f} TFLOP/s")
    number = torch.empty(1, device=bench.device)
    bench.log(f"kernel launch {1e3 * bench.milliseconds(lambda: number.add_(1)):.2f} µs")


def steps(bench: Bench) -> None:
    """Training steps of several variants, after two that compile and capture."""
    fine, dense = replace(MODEL, stride=2), config.DenseUNet(weights="none")
    variants = {
        "bf16, batch 64": bench.experiment(),
        "bf16, batch 64, kernel by kernel": bench.experiment(graph="off"),
        "bf16, batch 64, eager loss": bench.experiment(compile="off"),
        "fp32, batch 64": bench.experiment(precision="fp32"),
        "bf16, batch 256": bench.experiment(batch=256),
        "bf16, batch 64, EMA": bench.experiment(ema=0.999),
        "bf16, batch 64, stride 2": bench.experiment(model=fine),
        "DenseUNet, batch 64": bench.experiment(model=dense),
        "DenseUNet, batch 64, kernel by kernel": bench.experiment(model=dense, graph="off"),
        "bf16, batch 64, network compiled too": bench.experiment(compile="all"),
    }
    for name, experiment in list(variants.items())[: 2 if bench.tiny else None]:
        training = Training.of(experiment)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        begin = time.monotonic()
        for _ in range(2):
            training.step()
        bench.synchronize()
        first = time.monotonic() - begin
        training.watch.seconds()  # resets the watch
        took = bench.milliseconds(training.step, 2.0)
        parts = training.watch.seconds()
        shares = ", ".join(f"{name} {s / sum(parts.values()):.0%}" for name, s in parts.items())
        peak = torch.cuda.max_memory_allocated(bench.device) / 2**20 if bench.on_gpu else 0
        bench.log(
            f"{name}: two first steps {first:.1f} s, then {took:.2f} ms per step, "
            f"{1e3 * experiment.train.batch / took:.0f} images/s, peak {peak:.0f} MiB; {shares}"
        )
        torch.cuda.empty_cache()


def goals(bench: Bench) -> None:
    """Parts of a bf16 step of batch 64 and of its prediction, as ratios with their limits."""
    training = Training.of(bench.experiment())
    training.step()
    batch, experiment = training.augmented(), training.run.experiment
    step = bench.milliseconds(training.step, 2.0)
    rows = training.sample.row.tolist()
    sampling = bench.milliseconds(lambda: augment.sample_changes(experiment.augment, 0, 0, rows))
    augmenting = bench.milliseconds(training.augmented)
    bench.log(f"augmentation: {augmenting:.2f} ms, {sampling:.2f} ms for sampling its parameters")

    with autocast(bench.device, experiment.train.precision):
        output = training.run.network(batch.images)
    output = maps.Maps(*(t.detach().requires_grad_() for t in output))

    def head(points_crop: Tensor, weights: Tensor) -> Tensor:
        loss = training.run.network.loss(output, points_crop, weights)
        loss.backward()
        return loss

    took = _graphed(bench, head, batch.points_crop, batch.weights)
    bench.log(
        f"head and loss: {took:.2f} of {step:.2f} ms per step, {took / step:.0%} (limit 10 %)"
    )
    _loss_of_stored_maps(bench, output)
    _images_to_coordinates(bench, training, batch)
    all_landmarks, one = (_pass_milliseconds(bench, training, batch, n) for n in (971, 1))
    bench.log(
        f"forward, loss and backward: {all_landmarks:.2f} ms with 971 landmarks, "
        f"{all_landmarks / one:.2f} times one (limit 1.15)"
    )


def _loss_of_stored_maps(bench: Bench, output: maps.Maps) -> None:
    height, width = output.features.shape[2:]
    shape = len(output.features), len(output.bias)
    heights = torch.rand(*shape, height * width, device=bench.device)
    points = width * torch.rand(*shape, 2, device=bench.device)
    weights = torch.ones(shape, device=bench.device)
    targets = maps.targets_of(points, weights, (height, width), 1.5, 10.0)

    def slope(heights: Tensor) -> Tensor:
        return maps.compiled_loss_of_block(heights, targets, losses.adaptive_wing)[1]

    took, copy = (_graphed(bench, function, heights) for function in (slope, torch.clone))
    bench.log(f"loss of stored maps: {took:.3f} ms, {took / copy:.2f} times a copy (limit 2)")


def _images_to_coordinates(bench: Bench, training: Training, batch: augment.Batch) -> None:
    network, precision = training.run.network.eval(), training.run.experiment.train.precision
    assert isinstance(network, networks.HeatmapNetwork)

    @torch.no_grad()
    def backbone(images: Tensor) -> maps.Maps:
        with autocast(bench.device, precision):
            return network(images)

    def features(images: Tensor) -> Tensor:
        return backbone(images).features

    def coordinates(images: Tensor) -> Tensor:
        return network.decode(backbone(images)).points_crop

    alone, whole = (_graphed(bench, work, batch.images) for work in (features, coordinates))
    launched = bench.milliseconds(lambda: coordinates(batch.images))
    network.train()
    bench.log(
        f"images to coordinates: {whole:.2f} ms ({launched:.2f} launched one by one), "
        f"{whole / alone:.2f} times the backbone alone (limit 1.2)"
    )


def _pass_milliseconds(
    bench: Bench, training: Training, batch: augment.Batch, num_landmarks: int
) -> float:
    """Forward, loss and backward of a network with this many landmarks."""
    experiment = training.run.experiment
    network = networks.build(experiment.model, experiment.crop, num_landmarks).to(bench.device)
    network.to(memory_format=torch.channels_last)
    network.compiled_parts = "loss"

    def work(images: Tensor, points_crop: Tensor, weights: Tensor) -> Tensor:
        network.zero_grad()
        with autocast(bench.device, experiment.train.precision):
            output = network(images)
        loss = network.loss(output, points_crop, weights)
        loss.backward()
        return loss

    labels = batch.points_crop[:, :num_landmarks], batch.weights[:, :num_landmarks]
    return _graphed(bench, work, batch.images, *labels)


def _graphed(bench: Bench, function: Callable[..., Tensor], *tensors: Tensor) -> float:
    """Milliseconds of the function's GPU work, without its launches; on a CPU, of a call."""
    for _ in range(2):
        function(*tensors)
    if not bench.on_gpu:
        return bench.milliseconds(lambda: function(*tensors))
    graph = CudaGraph(function, tensors)
    empty = CudaGraph(lambda *tensors: tensors[0].view(-1)[:1] + 1, tensors)  # copies the arguments
    whole, copies = (bench.milliseconds(partial(one, tensors)) for one in (graph, empty))
    return whole - copies


def trainings(bench: Bench) -> None:
    """The loader alone, steps with and without it, a training with validation, and prediction."""
    training = Training.of(bench.experiment())
    run, num_batches = training.run, 3 if bench.tiny else 160
    passes = range(-(-num_batches // run.data.batches_per_pass))
    batches = [batch for index in passes for batch in batches_of_pass(run, index)][:num_batches]
    for workers in (1,) if bench.tiny else (2, None):
        loading = samples.load(run.data.training, batches, workers, bench.device)
        next(loading)
        begin = time.perf_counter()
        count = sum(len(sample.row) for sample in loading)
        rate = count / (time.perf_counter() - begin)
        bench.log(f"loader, {machine.loader_processes(workers)} workers: {rate:.0f} images/s")

    for _ in range(3):
        training.step()
    alone = bench.milliseconds(training.step, 2.0)
    loading = samples.load(run.data.training, batches, None, bench.device)
    training.stepper.step(next(loading), training.watch)
    bench.synchronize()
    begin = time.perf_counter()
    for sample in loading:
        training.stepper.step(sample, training.watch)
    bench.synchronize()
    took = 1e3 * (time.perf_counter() - begin) / (num_batches - 1)
    bench.log(f"a step with the loader: {took:.2f} ms, {took / alone:.2f} times alone (limit 1.1)")

    shutil.rmtree(bench.run, ignore_errors=True)
    run = prepare.prepare(bench.experiment(max_minutes=0.02 if bench.tiny else 0.6, workers=None))
    begin = time.monotonic()
    summary = loop.train(run, bench.run)
    rate = summary["steps"] * run.experiment.train.batch / (time.monotonic() - begin)
    bench.log(
        f"training: {summary['steps']} steps, {rate:.0f} images/s including validation, MSE "
        f"{summary['best_mse']:.1f} px² (mean shape {summary['mean_shape_mse']:.1f})"
    )
    _predictions(bench, run)


def _predictions(bench: Bench, run: prepare.Run) -> None:
    rows = np.tile(run.data.validation_rows, 1 if bench.tiny else 20)
    paths, points = run.data.validation.paths, run.data.table.points_image
    views = Ensemble.load([bench.run]).views(paths, points, bench.device)
    batch, watch = run.experiment.train.batch, Stopwatch(bench.device)
    begin = time.monotonic()
    predictions = predict(views, rows, batch=batch, workers=None, watch=watch)
    count = sum(len(prediction.rows) for prediction in predictions)
    seconds = time.monotonic() - begin
    parts = {name: round(1e3 * value / count, 3) for name, value in watch.seconds().items()}
    bench.log(
        f"prediction: {count / seconds:.0f} images/s, 99,819 images in "
        f"{99_819 * seconds / count:.0f} s (limit 60); milliseconds per image {parts}"
    )


SECTIONS = {"machine": machine_limits, "steps": steps, "goals": goals, "training": trainings}


def run_sections(bench: Bench, names: list[str]) -> bool:
    """Runs the sections; returns whether all succeeded."""
    failed = []
    for name in names:
        bench.log(f"== {name}")
        try:
            SECTIONS[name](bench)
        except Exception as error:
            failed.append(name)
            bench.log(f"{name} failed: {type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
        torch.cuda.empty_cache()
    bench.log(f"failed: {', '.join(failed)}" if failed else "done")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for figures.log, drawn faces and a run")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try out the script")
    options = parser.parse_args()
    try:
        device = machine.chosen_device(options.device)
    except UserError as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, device, options.tiny)
    if not bench.contest.exists():
        count, workers = (24, 1) if bench.tiny else (6000, max(1, machine.usable_cores() - 2))
        make_contest(bench.contest, count=count, seed=0, test_count=4, workers=workers)
    return 0 if run_sections(bench, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
