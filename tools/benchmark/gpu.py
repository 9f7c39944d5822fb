"""The first figures of a GPU, in eight minutes: what is right there, and what is slow.

    python tools/benchmark/gpu.py OUT [--seconds 480] [--only A,B] [--device cpu] [--tiny]

Sections run in turn; one that fails does not stop the others, and one that the time left is too
short for is skipped. OUT gets figures.log with all that was printed, and trace.json, the profile of
three steps. Needs torch and what `heatmap` itself imports, neither tyro nor wandb. `--device cpu
--tiny` walks through all of it in two minutes, with figures that mean nothing.
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

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from heatmap import codec, config, frame, losses, maps
from heatmap.data import augment, samples
from heatmap.errors import UserError
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import autocast
from heatmap.networks import HeatmapNetwork
from heatmap.runtime import machine
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import loop, prepare
from heatmap.training.step import step as train_step

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
    """Where it runs, how large, how long, and where the figures go.

    seconds: for all sections together, from `begin` on (monotonic). tiny: smallest sizes.
    """

    out: Path
    device: torch.device
    seconds: float
    tiny: bool
    begin: float

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

    def say(self, line: str) -> None:
        """Prints a line with the time so far, and adds it to figures.log."""
        line = f"[{time.monotonic() - self.begin:5.0f} s] {line}"
        print(line, flush=True)
        with (self.out / "figures.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def wait(self) -> None:
        """Until the GPU has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def experiment(
        self,
        batch: int = 64,
        *,
        model: config.UNet | config.DenseUNet = MODEL,
        workers: int = 0,
        precision: Literal["fp32", "bf16"] = "bf16",
        compiled: Literal["off", "loss", "all"] = "loss",
        **train: Any,
    ) -> config.Experiment:
        """experiments/unet.py with random weights, on the drawn faces, or a tiny variant of it.

        CPUs are not made for bf16 and take fp32 in its place.
        """
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
    """Milliseconds a call: the median of calls that are waited for, and the mean of calls that the
    GPU works off while the next ones are launched."""

    waited: float
    free: float


def timed(bench: Bench, action: Callable[[], Any], seconds: float = 0.5) -> Timed:
    """Calls the action for as long, twice, after three calls that warm up; if tiny, once each."""
    seconds, least = (0.0, 1) if bench.tiny else (seconds, 3)
    for _ in range(least):
        action()
    bench.wait()
    times, end = list[float](), time.monotonic() + seconds
    while time.monotonic() < end or len(times) < least:
        begin = time.perf_counter()
        action()
        bench.wait()
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in times:
        action()
    bench.wait()
    total = time.perf_counter() - begin
    return Timed(1e3 * statistics.median(times), 1e3 * total / len(times))


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute has another value inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Training(NamedTuple):
    """A run that can take steps on one batch."""

    run: prepare.Run
    sample: samples.Sample
    watch: Stopwatch

    @classmethod
    def of(cls, experiment: config.Experiment) -> "Training":
        run = prepare.prepare(experiment)
        batches = samples.shuffled_batches(run.data.training_rows, experiment.train.batch, 0, 0)[:1]
        (sample,) = samples.load(run.data.training, batches, 0, run.device)
        run.network.train()
        return cls(run, sample, Stopwatch(run.device))

    def step(self) -> None:
        train_step(self.run, self.run.network, self.sample, self.watch)

    def augmented(self) -> augment.Batch:
        return self.run.data.augmented(self.sample, 0, self.run.device)

    def output(self, batch: augment.Batch) -> maps.Maps:
        with autocast(self.run.device, self.run.experiment.train.precision):
            return self.run.network(batch.images)


def off(found: Tensor, truth: Tensor) -> float:
    """The relative error in the Euclidean norm, or the absolute one where the truth is nothing."""
    found, truth = found.detach().cpu().double(), truth.detach().cpu().double()
    error, length = (found - truth).norm().item(), truth.norm().item()
    return error / length if length > 1e-12 else error


def largest(found: Tensor, truth: Tensor) -> float:
    """The largest difference; NaN against NaN is none."""
    difference = found.detach().cpu().double() - truth.detach().cpu().double()
    return difference.abs().nan_to_num().max().item()


def about_machine(bench: Bench) -> None:
    """Versions, memory bandwidth, matrix products and what it takes to launch a kernel."""
    about = machine.describe(bench.device)
    cudnn = torch.backends.cudnn.version() if bench.on_gpu else None
    bench.say(
        f"{about['processor']}, torch {about['torch']}, cuDNN {cudnn}, {about['cpu_cores']} cores, "
        f"{about['date']}, commit {about['commit']}"
    )
    large = torch.empty(2**14 if bench.tiny else 2**28, device=bench.device)
    copy = torch.empty_like(large)
    took = timed(bench, lambda: copy.copy_(large)).waited
    bench.say(f"copying {2 * large.nbytes / took / 1e9:.2f} TB/s")
    side = 256 if bench.tiny else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        factor = torch.randn(side, side, device=bench.device, dtype=dtype)
        with changed(*TF32, tf32):
            took = timed(bench, partial(torch.matmul, factor, factor.mT)).waited
        name = "TF32" if tf32 else str(dtype).removeprefix("torch.")
        bench.say(f"products in {name}: {2 * side**3 / took / 1e9:.0f} TFLOP/s")
    number = torch.empty(1, device=bench.device)
    begin, count = time.perf_counter(), 10_000
    for _ in range(count):
        number.add_(1)
    bench.say(f"launching a kernel {1e6 * (time.perf_counter() - begin) / count:.2f} µs")
    bench.wait()


def same_numbers(bench: Bench) -> None:
    """Losses, decoders, augmentation and network, against float64 or the same on the CPU."""
    _same_losses(bench)
    generator = torch.Generator().manual_seed(1)
    points = 30 * torch.rand(3, 97, 2, generator=generator)
    given = 0.8 * codec.render(points, 24, 32, 1.5)
    given += 0.02 * torch.randn(given.shape, generator=generator)
    for decoder in ("window", "parabola", "global", "softmax"):
        found = codec.decode(given.to(bench.device), 1.5, decoder).points_heatmap
        truth = codec.decode(given.double(), 1.5, decoder).points_heatmap
        bench.say(f"decoder {decoder}: at most {largest(found, truth):.1e} px apart")

    training = Training.of(bench.experiment(16, precision="fp32", compiled="off"))
    there = training.augmented()
    here = training.run.data.augmented(training.sample, 0, CPU)
    bench.say(
        f"augmentation: pixels at most {largest(there.images, here.images):.1e} of 1 apart, "
        f"points {largest(there.points_crop, here.points_crop):.1e} px"
    )
    network, images = training.run.network.eval(), here.images[:8]
    with torch.no_grad():
        as_it_is = network(images.to(bench.device)).features
        with autocast(bench.device, "bf16"):
            half = network(images.to(bench.device)).features.float()
        with changed(torch.backends.cudnn, "allow_tf32", False):
            exact = network(images.to(bench.device)).features
        truth = network.to(CPU)(images).features
    bench.say(
        f"features, relative errors: fp32 {off(exact, truth):.1e}, as it is (TF32 convolutions) "
        f"{off(as_it_is, truth):.1e}, bf16 {off(half, truth):.1e}"
    )


def _same_losses(bench: Bench) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    images, landmarks, channels = 3, 97, 40
    given = (
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
        "soft-argmax": lambda some, *_: maps.soft_argmax(some, 8.0)[0].sum(),
        "divergence": lambda some, p, w: maps.divergence(some, p, w, 8.0, 1.5),
    }
    for name, function in functions.items():
        found = []
        for device, dtype in ((bench.device, torch.float32), (CPU, torch.float64)):
            leaves = maps.Maps(*(t.to(device, dtype).requires_grad_() for t in given))
            value = function(leaves, points.to(device), weights.to(device))
            gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
            found.append((value, *gradients))
        errors = " ".join(f"{off(one, truth):.1e}" for one, truth in zip(*found, strict=True))
        bench.say(f"{name}: relative errors of value and gradients {errors}")


def steps(bench: Bench) -> None:
    """Whole training steps, variant by variant, after the one that compiles."""
    fine = replace(MODEL, stride=2)
    for name, experiment in {
        "bf16, batch 64": bench.experiment(),
        "bf16, batch 64, not compiled": bench.experiment(compiled="off"),
        "fp32, batch 64": bench.experiment(precision="fp32"),
        "bf16, batch 128": bench.experiment(128),
        "bf16, batch 256": bench.experiment(256),
        "bf16, batch 64, EMA": bench.experiment(ema=0.999),
        "bf16, batch 64, stride 2": bench.experiment(model=fine),
        "DenseUNet, batch 64": bench.experiment(model=config.DenseUNet(weights="none")),
    }.items():
        bench.say(f"{name}: {_told_step(bench, experiment)}")
        _forget(bench)


def _told_step(bench: Bench, experiment: config.Experiment) -> str:
    training = Training.of(experiment)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    begin = time.monotonic()
    training.step()
    bench.wait()
    first = time.monotonic() - begin
    training.watch.seconds()  # starts it anew
    waited, free = timed(bench, training.step, 2.0)
    parts = training.watch.seconds()
    shares = ", ".join(f"{name} {s / sum(parts.values()):.0%}" for name, s in parts.items())
    peak = torch.cuda.max_memory_allocated(bench.device) / 2**20 if bench.on_gpu else 0
    return (
        f"first step {first:.1f} s, then {free:.2f} ms a step ({waited:.2f} waited for), "
        f"{1e3 * experiment.train.batch / free:.0f} images/s, peak {peak:.0f} MiB; {shares}"
    )


def changes(bench: Bench) -> None:
    """A bf16 step of batch 64 with one thing changed at a time, and its parts alone."""
    training = Training.of(bench.experiment())

    def tell(name: str) -> None:
        bench.say(f"step, {name}: {timed(bench, training.step, 1.5).free:.2f} ms")

    tell("as it is")
    with changed(torch.backends.cudnn, "benchmark", True):
        tell("cudnn.benchmark")
    for power in (22, 24, 28):
        with changed(maps, "BLOCK_VALUES", maps.BLOCK_VALUES | {bench.device.type: 2**power}):
            tell(f"blocks of 2^{power}")
    with changed(*TF32, True):
        tell("all products in TF32 (not to be kept)")

    settings, rows = training.run.experiment.augment, training.sample.row.tolist()
    drawn = timed(bench, lambda: augment.sample_changes(settings, 0, 0, rows)).waited
    bench.say(
        f"augmentation alone: {timed(bench, training.augmented).waited:.2f} ms, of which drawing "
        f"its parameters {drawn:.2f}"
    )
    batch = training.augmented()
    output = maps.Maps(*(t.detach().requires_grad_() for t in training.output(batch)))

    def loss() -> None:
        training.run.network.loss(output, batch.points_crop, batch.weights).backward()

    bench.say(f"loss and its gradient alone: {timed(bench, loss).free:.2f} ms")
    _products(bench, output.embeddings.detach())
    if bench.on_gpu:
        _graph(bench, training, batch)
    else:
        bench.say("one CUDA graph: skipped: no GPU")


def _products(bench: Bench, embeddings: Tensor) -> None:
    """Ways to write the two products of a block's gradient, exact and in TF32."""
    batch, (landmarks, channels), pixels = 2 if bench.tiny else 64, embeddings.shape, 1024
    slope = torch.randn(batch, landmarks, pixels, device=bench.device)
    features = torch.randn(batch, channels, pixels, device=bench.device)
    total = torch.zeros(landmarks, channels, device=bench.device)
    for name, product in {
        "of embeddings, addbmm_": lambda: total.addbmm_(slope, features.mT),
        "of embeddings, bmm and sum": lambda: torch.bmm(slope, features.mT).sum(0),
        "of features, embeddings.T @ slope": lambda: embeddings.T @ slope,
        "of features, bmm(slope.mT, embeddings)": lambda: torch.bmm(
            slope.mT, embeddings.expand(batch, -1, -1)
        ),
    }.items():
        exact = timed(bench, product, 0.3).free
        with changed(*TF32, True):
            in_tf32 = timed(bench, product, 0.3).free
        bench.say(f"gradient {name}: {exact:.3f} ms, in TF32 {in_tf32:.3f}")


def _graph(bench: Bench, training: Training, batch: augment.Batch) -> None:
    """Forward, loss and backward, launched one by one and as one CUDA graph."""
    network = training.run.network
    assert isinstance(network, HeatmapNetwork)
    heatmap_from_crop = torch.linalg.inv(frame.crop_from_heatmap(network.stride)).to(bench.device)
    points_heatmap = frame.apply(heatmap_from_crop, batch.points_crop)

    def work() -> None:
        maps.loss(
            training.output(batch), points_heatmap, batch.weights,
            sigma=network.sigma, weight_map=10.0, block_loss=maps.compiled_loss_of_block,
        ).backward()  # fmt: skip

    launched = timed(bench, work).free
    network.zero_grad(set_to_none=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    network.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    bench.say(
        f"forward, loss and backward: launched {launched:.2f} ms, as one CUDA graph "
        f"{timed(bench, graph.replay).free:.2f} ms"
    )


def profiled(bench: Bench) -> None:
    """What three steps spend their time on: a table, and trace.json for a browser."""
    training = Training.of(bench.experiment())
    for _ in range(3):
        training.step()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * bench.on_gpu]
    with profile(activities=activities) as profiler:
        for _ in range(3):
            training.step()
        bench.wait()
    profiler.export_chrome_trace(str(bench.out / "trace.json"))
    by = "device_time_total" if bench.on_gpu else "cpu_time_total"
    averages = profiler.key_averages()
    bench.say(averages.table(sort_by=by, row_limit=25, max_name_column_width=60))


def whole_trainings(bench: Bench) -> None:
    """The loader alone, and trainings with loader and validation, by the number of workers."""
    run = prepare.prepare(bench.experiment())
    wanted, batch = 2 if bench.tiny else 120, run.experiment.train.batch
    batches = list[list[int]]()
    for passed in range(-(-wanted // run.data.batches_per_pass)):
        batches += samples.shuffled_batches(run.data.training_rows, batch, 0, passed)
    for workers in (1,) if bench.tiny else (2, 8, 14):
        loading = samples.load(run.data.training, batches[:wanted], workers, bench.device)
        next(loading)
        begin = time.perf_counter()
        count = sum(len(sample.row) for sample in loading)
        rate = count / (time.perf_counter() - begin)
        bench.say(f"loader, {workers} workers: {rate:.0f} images/s")

    for workers in (0,) if bench.tiny else (2, 14):
        shutil.rmtree(bench.run, ignore_errors=True)
        minutes = 0.05 if bench.tiny else 0.6
        experiment = bench.experiment(workers=workers, max_minutes=minutes)
        run, begin = prepare.prepare(experiment), time.monotonic()
        summary = loop.train(run, bench.run)
        rate = summary["steps"] * experiment.train.batch / (time.monotonic() - begin)
        bench.say(
            f"training, {workers} workers: {summary['steps']} steps, {rate:.0f} images/s with "
            f"validation, {summary['best_mse']:.1f} px² (mean shape "
            f"{summary['mean_shape_mse']:.1f})"
        )
        last = (bench.run / "metrics.jsonl").read_text().splitlines()[-1]
        shares = {k: round(v, 2) for k, v in json.loads(last).items() if k.startswith("time/")}
        bench.say(f"shares of its last epoch: {shares}")


def scoring(bench: Bench) -> None:
    """The last training's run evaluated, plain, with augmentation, and on the CPU."""
    ways = ("none", bench.device), ("mirror,scale", bench.device), ("none", CPU)
    for tta, device in ways:
        begin = time.monotonic()
        ensemble = Ensemble.load([bench.run], tta=tta)
        evaluation = metrics.evaluate_run(ensemble, None, device)
        scores, timing = evaluation.scores, evaluation.timing
        assert timing is not None
        rate = scores["images"] / (time.monotonic() - begin)
        parts = timing["milliseconds_per_image"]
        rounded = {name: round(value, 2) for name, value in parts.items()}
        views = "one view" if tta == "none" else tta
        bench.say(
            f"evaluation on {device.type}, {views}: {scores['mse']:.3f} px², {rate:.0f} images/s, "
            f"milliseconds an image {rounded}"
        )


def repeated(bench: Bench) -> None:
    """Whether two equal runs of four steps end with equal weights, as a resumed one must."""
    found = []
    for _ in range(2):
        training = Training.of(bench.experiment(32))
        for _ in range(4):
            training.step()
            training.run.progress.step += 1
        weights = [weight.detach().flatten().cpu() for weight in training.run.network.parameters()]
        found.append(torch.cat(weights))
    bench.say(f"two equal runs of 4 steps: weights at most {largest(*found):.1e} apart")


def compiled_whole(bench: Bench) -> None:
    """A step with the network compiled as well."""
    bench.say(f"compile all: {_told_step(bench, bench.experiment(compiled='all'))}")


class Section(NamedTuple):
    """action: says its figures; least: seconds without which it is not begun."""

    title: str
    action: Callable[[Bench], None]
    least: float = 0.0


SECTIONS = {
    "A": Section("the machine", about_machine),
    "B": Section("the same numbers as on the CPU", same_numbers),
    "C": Section("steps of experiments/unet.py", steps, 120),
    "D": Section("what single changes bring", changes, 60),
    "E": Section("three steps under the profiler", profiled, 30),
    "F": Section("the loader, and whole trainings", whole_trainings, 90),
    "G": Section("scoring", scoring, 30),
    "H": Section("the same bits twice", repeated, 25),
    "I": Section("the network compiled, too", compiled_whole, 110),
}


def draw_faces(bench: Bench) -> None:
    """Draws the contest that all is measured on, unless it is there.

    In a process of its own, whose workers do not inherit what holds the GPU.
    """
    if bench.contest.exists():
        return
    count, workers = (24, 1) if bench.tiny else (6000, max(1, len(os.sched_getaffinity(0)) - 2))
    command = [sys.executable, "-c", DRAW, str(bench.contest), str(count), str(workers)]
    subprocess.run(command, check=True)
    bench.say(f"{count} faces drawn by {workers} processes")


def _forget(bench: Bench) -> None:
    """Hands back memory that nothing holds."""
    if bench.on_gpu:
        torch.cuda.empty_cache()


def run_sections(bench: Bench, letters: list[str]) -> bool:
    """Runs the sections; returns whether none failed."""
    failed = []
    for letter in letters:
        section = SECTIONS[letter]
        if bench.seconds_left < section.least and not bench.tiny:
            bench.say(f"== {letter} {section.title}: skipped: {section.least:.0f} s are needed")
            continue
        bench.say(f"== {letter} {section.title}")
        try:
            section.action(bench)
        except Exception as error:
            failed.append(letter)
            bench.say(f"{letter} failed: {type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
        _forget(bench)
    bench.say(f"failed: {', '.join(failed)}" if failed else "done")
    return not failed


def _letters(text: str) -> list[str]:
    letters = text.upper().split(",")
    if wrong := [letter for letter in letters if letter not in SECTIONS]:
        message = f"no section {wrong[0]!r}; there are {', '.join(SECTIONS)}"
        raise argparse.ArgumentTypeError(message)
    return letters


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="sections: " + "; ".join(f"{k} {s.title}" for k, s in SECTIONS.items()),
    )
    parser.add_argument("out", type=Path, help="folder for figures.log, drawn faces and a run")
    parser.add_argument("--seconds", type=float, default=480, help="for all sections together")
    parser.add_argument("--only", type=_letters, default=list(SECTIONS), help="such as A,B")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try it out")
    given = parser.parse_args()
    try:
        device = machine.chosen_device(given.device)
    except UserError as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore")
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, device, given.seconds, given.tiny, time.monotonic())
    draw_faces(bench)
    return 0 if run_sections(bench, given.only) else 1


if __name__ == "__main__":
    sys.exit(main())
