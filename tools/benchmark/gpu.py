"""Checks a GPU's numbers and measures its speed, in eight minutes.

    python tools/benchmark/gpu.py OUT [--seconds 480] [--only A,B] [--device cpu] [--tiny]

Sections run one by one. A section that fails does not stop the others, and one that needs more than
the remaining time is skipped. OUT receives figures.log, all printed lines, and trace.json, a
profile of three steps. Needs only torch and the imports of `heatmap` itself, not tyro or wandb.
`--device cpu --tiny` tries out every section in two minutes; its figures mean nothing.
"""

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from heatmap import codec, config, losses, maps, networks
from heatmap.data import augment, samples
from heatmap.errors import UserError
from heatmap.evaluation import metrics
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
CPU = torch.device("cpu")
TF32 = (torch.backends.cuda.matmul, "allow_tf32")

DRAW = """
import sys
from pathlib import Path
from heatmap.data.synthetic import make_contest
root, count, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
make_contest(root, count=count, seed=0, test_count=4, workers=workers)
"""


@dataclass(frozen=True)
class Bench:
    """Settings of a benchmark, and its log."""

    out: Path
    device: torch.device
    seconds: float  # time limit of all sections, from `begin`
    tiny: bool  # smallest sizes and single measurements
    begin: float  # time.monotonic()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def contest(self) -> Path:
        return self.out / "contest"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.begin)

    def log(self, line: str) -> None:
        """Prints a line with the elapsed time and appends it to figures.log."""
        line = f"[{time.monotonic() - self.begin:5.0f} s] {line}"
        print(line, flush=True)
        with (self.out / "figures.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def experiment(
        self,
        batch: int = 64,
        *,
        model: config.UNet | config.DenseUNet = MODEL,
        workers: int | None = 0,
        precision: Literal["fp32", "bf16"] = "bf16",
        compiled: Literal["off", "loss", "all"] = "loss",
        **train: Any,
    ) -> config.Experiment:
        """experiments/unet.py with random weights on the drawn faces; CPUs use fp32, not bf16."""
        crop = UNET.crop
        if self.tiny:
            batch, crop = 2, replace(crop, height=32, width=32)
            if isinstance(model, config.UNet):
                model = replace(model, encoder="tu-test_resnet", width=8)
            else:
                model = replace(model, encoder="densenet121", width=8)
        return replace(
            UNET,
            data=config.Data(root=self.contest, workers=workers, split="order"),
            crop=crop,
            model=model,
            train=config.Train(
                batch=batch, precision=precision if self.on_gpu else "fp32", compile=compiled,
                epochs=2, device="cuda" if self.on_gpu else "cpu", **train,
            ),
            wandb=config.Wandb(mode="off"),
        )  # fmt: skip


class Timed(NamedTuple):
    """Milliseconds per call."""

    synchronized: float  # median, waiting for the GPU after every call
    queued: float  # mean, waiting only once


def timed(bench: Bench, action: Callable[[], Any], seconds: float = 0.5) -> Timed:
    """Measures the action for `seconds` each way, after three calls; if tiny, for one call."""
    seconds, min_calls = (0.0, 1) if bench.tiny else (seconds, 3)
    for _ in range(0 if bench.tiny else 3):
        action()
    bench.synchronize()
    times, end = list[float](), time.monotonic() + seconds
    while time.monotonic() < end or len(times) < min_calls:
        begin = time.perf_counter()
        action()
        bench.synchronize()
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in times:
        action()
    bench.synchronize()
    total = time.perf_counter() - begin
    return Timed(1e3 * statistics.median(times), 1e3 * total / len(times))


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute for the duration of the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


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

    def output(self, batch: augment.Batch) -> maps.Maps:
        with autocast(self.run.device, self.run.experiment.train.precision):
            return self.run.network(batch.images)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """In the Euclidean norm; the absolute error if the truth is zero."""
    value, truth = value.detach().cpu().double(), truth.detach().cpu().double()
    error, length = (value - truth).norm().item(), truth.norm().item()
    return error / length if length > 1e-12 else error


def max_difference(value: Tensor, truth: Tensor) -> float:
    """The largest absolute difference, with NaN counted as 0."""
    difference = value.detach().cpu().double() - truth.detach().cpu().double()
    return difference.abs().nan_to_num().max().item()


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
    took = timed(bench, lambda: copy.copy_(large)).synchronized
    bench.log(f"copy {2 * large.nbytes / took / 1e9:.2f} TB/s")
    side = 256 if bench.tiny else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        factor = torch.randn(side, side, device=bench.device, dtype=dtype)
        with changed(*TF32, tf32):
            took = timed(bench, partial(torch.matmul, factor, factor.mT)).synchronized
        name = "TF32" if tf32 else str(dtype).removeprefix("torch.")
        bench.log(f"matrix product in {name}: {2 * side**3 / took / 1e9:.0f} TFLOP/s")
    number = torch.empty(1, device=bench.device)
    begin, count = time.perf_counter(), 10_000
    for _ in range(count):
        number.add_(1)
    bench.log(f"kernel launch {1e6 * (time.perf_counter() - begin) / count:.2f} µs")
    bench.synchronize()


def compare_with_cpu(bench: Bench) -> None:
    """Losses, decoders, augmentation and network against the CPU, some in float64."""
    _compare_losses(bench)
    generator = torch.Generator().manual_seed(1)
    points = 30 * torch.rand(3, 97, 2, generator=generator)
    heatmaps = 0.8 * codec.render(points, 24, 32, 1.5)
    heatmaps += 0.02 * torch.randn(heatmaps.shape, generator=generator)
    for decoder in ("window", "parabola", "global", "softmax"):
        decoded = codec.decode(heatmaps.to(bench.device), 1.5, decoder).points_heatmap
        truth = codec.decode(heatmaps.double(), 1.5, decoder).points_heatmap
        bench.log(f"decoder {decoder}: max difference {max_difference(decoded, truth):.1e} px")

    training = Training.of(bench.experiment(16, precision="fp32", compiled="off"))
    on_device = training.augmented()
    on_cpu = training.run.data.augmented(training.sample, 0, CPU)
    pixels = max_difference(on_device.images, on_cpu.images)
    shift = max_difference(on_device.points_crop, on_cpu.points_crop)
    bench.log(f"augmentation: max difference {pixels:.1e} of 1 in pixels, {shift:.1e} px in points")
    network, images = training.run.network.eval(), on_cpu.images[:8]
    with torch.no_grad():
        default = network(images.to(bench.device)).features
        with autocast(bench.device, "bf16"):
            bf16 = network(images.to(bench.device)).features.float()
        with changed(torch.backends.cudnn, "allow_tf32", False):
            fp32 = network(images.to(bench.device)).features
        truth = network.to(CPU)(images).features
    bench.log(
        f"features, relative errors: fp32 {relative_error(fp32, truth):.1e}, default (TF32 "
        f"convolutions) {relative_error(default, truth):.1e}, bf16 "
        f"{relative_error(bf16, truth):.1e}"
    )


def _compare_losses(bench: Bench) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    images, landmarks, channels = 3, 97, 40
    inputs = (
        normal(images, channels, 24, 32),
        normal(landmarks, channels) / channels,
        normal(landmarks) / 9,
    )
    points = 30 * torch.rand(images, landmarks, 2, generator=generator, dtype=torch.float64)
    weights = (torch.rand(images, landmarks, generator=generator) > 0.1).float()
    loss = partial(maps.loss, sigma=1.5, weight_map=10.0)
    functions: dict[str, Callable[[maps.Maps, Tensor, Tensor], Tensor]] = {
        "loss, eager": loss,
        "loss, compiled": partial(loss, block_loss=maps.compiled_loss_of_block),
        "loss, squared": partial(maps.loss, sigma=1.5, pointwise=losses.squared),
        "soft-argmax": lambda m, *_: maps.soft_argmax(m, 8.0)[0].sum(),
        "divergence": lambda m, p, w: maps.divergence(m, p, w, 8.0, 1.5),
    }
    for name, function in functions.items():
        results = []
        for device, dtype in ((bench.device, torch.float32), (CPU, torch.float64)):
            leaves = maps.Maps(*(t.to(device, dtype).requires_grad_() for t in inputs))
            value = function(leaves, points.to(device), weights.to(device))
            gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
            results.append((value, *gradients))
        errors = " ".join(f"{relative_error(*pair):.1e}" for pair in zip(*results, strict=True))
        bench.log(f"{name}: relative errors of value and gradients {errors}")


def steps(bench: Bench) -> None:
    """Training steps of several variants, after two that compile and capture."""
    fine, dense = replace(MODEL, stride=2), config.DenseUNet(weights="none")
    variants = {
        "bf16, batch 64": bench.experiment(),
        "bf16, batch 64, kernel by kernel": bench.experiment(graph="off"),
        "bf16, batch 64, eager loss": bench.experiment(compiled="off"),
        "fp32, batch 64": bench.experiment(precision="fp32"),
        "bf16, batch 256": bench.experiment(256),
        "bf16, batch 64, EMA": bench.experiment(ema=0.999),
        "bf16, batch 64, stride 2": bench.experiment(model=fine),
        "DenseUNet, batch 64": bench.experiment(model=dense),
        "DenseUNet, batch 64, kernel by kernel": bench.experiment(model=dense, graph="off"),
    }
    for name, experiment in list(variants.items())[: 2 if bench.tiny else None]:
        bench.log(f"{name}: {_format_step(bench, experiment)}")
        torch.cuda.empty_cache()


def _format_step(bench: Bench, experiment: config.Experiment) -> str:
    training = Training.of(experiment)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    begin = time.monotonic()
    for _ in range(2):
        training.step()
    bench.synchronize()
    first = time.monotonic() - begin
    training.watch.seconds()  # resets the watch
    synchronized, queued = timed(bench, training.step, 2.0)
    parts = training.watch.seconds()
    shares = ", ".join(f"{name} {s / sum(parts.values()):.0%}" for name, s in parts.items())
    peak = torch.cuda.max_memory_allocated(bench.device) / 2**20 if bench.on_gpu else 0
    return (
        f"two first steps {first:.1f} s, then {queued:.2f} ms per step ({synchronized:.2f} when "
        f"synchronized), {1e3 * experiment.train.batch / queued:.0f} images/s, peak {peak:.0f} "
        f"MiB; {shares}"
    )


def goals(bench: Bench) -> None:
    """Parts of a bf16 step of batch 64 and of its prediction, as ratios with their limits."""
    training = Training.of(bench.experiment())
    training.step()
    batch = training.augmented()
    step = timed(bench, training.step, 2.0).queued
    settings, rows = training.run.experiment.augment, training.sample.row.tolist()
    sampling = timed(bench, lambda: augment.sample_changes(settings, 0, 0, rows)).synchronized
    augmenting = timed(bench, training.augmented).synchronized
    bench.log(f"augmentation: {augmenting:.2f} ms, {sampling:.2f} ms for sampling its parameters")

    output = maps.Maps(*(t.detach().requires_grad_() for t in training.output(batch)))

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
    points, weights = (
        width * torch.rand(*shape, 2, device=bench.device),
        torch.ones_like(heights[..., 0]),
    )
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
    launched = timed(bench, lambda: coordinates(batch.images)).queued
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
        return timed(bench, lambda: function(*tensors)).queued
    graph = CudaGraph(function, tensors)
    empty = CudaGraph(lambda *tensors: tensors[0].view(-1)[:1] + 1, tensors)  # copies the arguments
    return timed(bench, lambda: graph(tensors)).queued - timed(bench, lambda: empty(tensors)).queued


def profile_steps(bench: Bench) -> None:
    """Profile of three steps: a table, and trace.json for a browser."""
    training = Training.of(bench.experiment())
    for _ in range(3):
        training.step()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * bench.on_gpu]
    with profile(activities=activities) as profiler:
        for _ in range(3):
            training.step()
        bench.synchronize()
    profiler.export_chrome_trace(str(bench.out / "trace.json"))
    by = "device_time_total" if bench.on_gpu else "cpu_time_total"
    averages = profiler.key_averages()
    bench.log(averages.table(sort_by=by, row_limit=25, max_name_column_width=60))


def trainings(bench: Bench) -> None:
    """The loader alone, steps with and without it, and a training with validation."""
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
    alone = timed(bench, training.step, 2.0).queued
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
    last = (bench.run / "metrics.jsonl").read_text().splitlines()[-1]
    shares = {k: round(v, 2) for k, v in json.loads(last).items() if k.startswith("time/")}
    bench.log(f"time shares of its last epoch: {shares}")


def evaluations(bench: Bench) -> None:
    """Evaluates the trained run on the device and the CPU, and predicts many images."""
    for device in bench.device, CPU:
        ensemble = Ensemble.load([bench.run])
        evaluation = metrics.evaluate_run(ensemble, None, device)
        bench.log(f"evaluation on {device.type}: MSE {evaluation.scores['mse']:.3f} px²")
    run = prepare.prepare(bench.experiment())
    paths, points = run.data.validation.paths, run.data.table.points_image
    rows = np.tile(run.data.validation_rows, 1 if bench.tiny else 20)
    watch = Stopwatch(bench.device)
    predictions = predict(
        Ensemble.load([bench.run]).views(paths, points, bench.device), rows,
        batch=run.experiment.train.batch, workers=None, watch=watch,
    )  # fmt: skip
    begin = time.monotonic()
    count = sum(len(prediction.rows) for prediction in predictions)
    seconds = time.monotonic() - begin
    parts = {name: round(1e3 * value / count, 3) for name, value in watch.seconds().items()}
    bench.log(
        f"prediction: {count / seconds:.0f} images/s, 99,819 images in "
        f"{99_819 * seconds / count:.0f} s (limit 60); milliseconds per image {parts}"
    )


def repeat_run(bench: Bench) -> None:
    """Compares the weights of identical runs of four steps, and times deterministic ones."""
    runs = [_weights_after_steps(bench) for _ in range(2)]
    without_graph = _weights_after_steps(bench, graph="off")
    bench.log(
        f"identical runs of 4 steps: max difference {max_difference(*runs):.1e} in weights, "
        f"{max_difference(runs[0], without_graph):.1e} without the graph"
    )
    experiment = bench.experiment(deterministic=True)
    bench.log(f"deterministic: {_format_step(bench, experiment)}")
    torch.use_deterministic_algorithms(False)


def _weights_after_steps(bench: Bench, graph: Literal["auto", "off"] = "auto") -> Tensor:
    training = Training.of(bench.experiment(32, graph=graph))
    for _ in range(4):
        training.step()
        training.run.progress.step += 1
    weights = [weight.detach().flatten().cpu() for weight in training.run.network.parameters()]
    return torch.cat(weights)


def compile_all(bench: Bench) -> None:
    """A step with the network compiled as well."""
    bench.log(f"compile all: {_format_step(bench, bench.experiment(compiled='all'))}")


class Section(NamedTuple):
    title: str
    action: Callable[[Bench], None]
    min_seconds: float = 0.0  # skipped if less time is left


SECTIONS = {
    "A": Section("machine", machine_limits),
    "B": Section("differences from the CPU", compare_with_cpu),
    "C": Section("steps of experiments/unet.py", steps, 120),
    "D": Section("goals", goals, 60),
    "E": Section("profile of three steps", profile_steps, 30),
    "F": Section("loader and trainings", trainings, 90),
    "G": Section("evaluation", evaluations, 30),
    "H": Section("reproducibility", repeat_run, 25),
    "I": Section("compiled network", compile_all, 110),
}


def draw_faces(bench: Bench) -> None:
    """Draws the contest used by all sections if it does not exist.

    Runs in a new process, so that its workers do not inherit the GPU context.
    """
    if bench.contest.exists():
        return
    count, workers = (24, 1) if bench.tiny else (6000, max(1, len(os.sched_getaffinity(0)) - 2))
    command = [sys.executable, "-c", DRAW, str(bench.contest), str(count), str(workers)]
    subprocess.run(command, check=True)
    bench.log(f"{count} faces drawn by {workers} processes")


def run_sections(bench: Bench, letters: list[str]) -> bool:
    """Runs the sections; returns whether all succeeded."""
    failed = []
    for letter in letters:
        section = SECTIONS[letter]
        if bench.seconds_left < section.min_seconds and not bench.tiny:
            bench.log(f"== {letter} {section.title}: skipped, needs {section.min_seconds:.0f} s")
            continue
        bench.log(f"== {letter} {section.title}")
        try:
            section.action(bench)
        except Exception as error:
            failed.append(letter)
            bench.log(f"{letter} failed: {type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
        torch.cuda.empty_cache()
    bench.log(f"failed: {', '.join(failed)}" if failed else "done")
    return not failed


def _letters(text: str) -> list[str]:
    letters = text.upper().split(",")
    if wrong := [letter for letter in letters if letter not in SECTIONS]:
        message = f"no section {wrong[0]!r}; choose from {', '.join(SECTIONS)}"
        raise argparse.ArgumentTypeError(message)
    return letters


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="sections: " + "; ".join(f"{k} {s.title}" for k, s in SECTIONS.items()),
    )
    parser.add_argument("out", type=Path, help="folder for figures.log, drawn faces and a run")
    parser.add_argument("--seconds", type=float, default=480, help="time limit of all sections")
    parser.add_argument(
        "--only", type=_letters, default=list(SECTIONS), help="sections, such as A,B"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try out the script")
    options = parser.parse_args()
    try:
        device = machine.chosen_device(options.device)
    except UserError as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, device, options.seconds, options.tiny, time.monotonic())
    draw_faces(bench)
    return 0 if run_sections(bench, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
