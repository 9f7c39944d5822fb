"""A race: its contenders, measurements and table of results."""

import gc
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from heatmap.runtime import machine
from heatmap.runtime.columns import lined_up

OURS, PEER, LIMIT = "ours", "peer", "limit"
OUT_OF_MEMORY = "out of memory"
RACE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The size of a race."""

    device: torch.device
    batch: int  # images
    landmarks: int
    size: int  # height and width of a heatmap
    seconds: float  # measuring time per contender
    encoder: str
    rows: int = 20_000  # of the training table

    @property
    def min_rounds(self) -> int:
        """Medians need 3 rounds; a trial run of less than 0.1 s takes 1."""
        return 3 if self.seconds >= 0.1 else 1


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Keeps `count` cores busy, as data loading does."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@dataclass(frozen=True)
class Contender:
    """One implementation in a race."""

    name: str
    kind: str  # OURS, PEER, LIMIT, or "part" for a part of ours
    action: Callable[[], Any]
    error_of: Callable[[Any], tuple[float, str]] | None = None  # of its result: value and unit
    images: int = 0  # per call


@dataclass
class Entry:
    """A contender and its measurements."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)  # of each call
    peak_mib: float | None = None  # without the inputs
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the table. If memory ran out, `error` says so and all measurements are None."""

    race: str
    name: str
    kind: str
    milliseconds: float | None
    times_best_peer: float | None  # how many times faster than the fastest peer
    times_limit: float | None  # how many times slower than the slowest limit
    peak_mib: float | None
    error: str
    images_per_second: float | None


def race(title: str, contenders: list[Contender], settings: Settings) -> list[Result]:
    """Races the contenders for one round or more, and RACE_SECONDS at most without compiling.

    The first call of each compiles, the second measures memory. Then they are timed in turns.
    """
    device, end = settings.device, time.monotonic() + RACE_SECONDS
    entries = [Entry(contender) for contender in contenders]
    for entry in entries:
        with _noting_out_of_memory(entry):
            end += _warm_up(entry, device)
    running = [entry for entry in entries if entry.error != OUT_OF_MEMORY]
    order, rounds = random.Random(0), 0
    enough = time.monotonic() + settings.seconds * len(running)
    with tqdm(desc=title, unit="round", leave=False, disable=None) as bar:
        while rounds == 0 or (
            time.monotonic() < end and (rounds < settings.min_rounds or time.monotonic() < enough)
        ):
            for entry in order.sample(running, len(running)):
                with _noting_out_of_memory(entry):
                    entry.seconds.append(seconds_of(entry.contender.action, device))
            running = [entry for entry in running if entry.error != OUT_OF_MEMORY]
            rounds += 1
            bar.update()
    return results_of(title, entries)


def _warm_up(entry: Entry, device: torch.device) -> float:
    """Measures error and memory; returns how many seconds slower the first call was."""

    def first_call() -> None:
        result = entry.contender.action()
        if entry.contender.error_of is not None:
            value, unit = entry.contender.error_of(result)
            entry.error = f"{value:.2g} {unit}"

    first = seconds_of(first_call, device)
    begin = time.monotonic()
    entry.peak_mib = peak_mib_of(entry.contender.action, device)
    return max(0.0, first - (time.monotonic() - begin))


@contextmanager
def _noting_out_of_memory(entry: Entry) -> Iterator[None]:
    """If memory runs out, frees it and notes it in the entry."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        entry.seconds.clear()
        entry.peak_mib, entry.error = None, OUT_OF_MEMORY
        traceback.clear_frames(error.__traceback__)  # their variables hold tensors
        gc.collect()
        torch.cuda.empty_cache()


def results_of(title: str, entries: list[Entry]) -> list[Result]:
    """The rows of a race's table, from the medians."""
    median = {e.contender.name: statistics.median(e.seconds) for e in entries if e.seconds}

    def medians(kind: str) -> list[float]:
        return [median[e.contender.name] for e in entries if e.contender.kind == kind and e.seconds]

    peer, limit = min(medians(PEER), default=None), max(medians(LIMIT), default=None)
    results = []
    for entry in entries:
        contender, seconds = entry.contender, median.get(entry.contender.name)
        results.append(
            Result(
                race=title,
                name=contender.name,
                kind=contender.kind,
                milliseconds=seconds and 1e3 * seconds,
                times_best_peer=seconds and peer and peer / seconds,
                times_limit=seconds and limit and seconds / limit,
                peak_mib=entry.peak_mib,
                error=entry.error,
                images_per_second=seconds and (contender.images / seconds or None),
            )
        )
    return results


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_mib_of(action: Callable[[], Any], device: torch.device) -> float:
    """The action's peak memory, as counted by torch's allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**20


def size_of(settings: Settings) -> str:
    return f"{settings.batch}×{settings.landmarks}×{settings.size}×{settings.size}"


def precision_of(settings: Settings) -> Literal["fp32", "bf16"]:
    return "bf16" if settings.device.type == "cuda" else "fp32"


def format_results(results: list[Result], *, markdown: bool) -> str:
    """Formats a table per race, in aligned columns or as Markdown."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    columns = (
        "", "ms", "times faster than best peer", "times limit", "peak MiB", "error", "images/s"
    )  # fmt: skip
    lines = []
    for race in dict.fromkeys(r.race for r in results):
        rows = [
            (
                r.name,
                r.kind,
                cell(r.milliseconds, ",.1f"),
                cell(r.times_best_peer, ".2f"),
                cell(r.times_limit, ".2f"),
                cell(r.peak_mib, ",.0f"),
                r.error,
                cell(r.images_per_second, ",.0f"),
            )
            for r in results
            if r.race == race
        ]
        header, *aligned = lined_up([(race, *columns), *rows], left=2)
        if markdown:
            rule = ["-" * (len(c) - (i > 1)) + ":" * (i > 1) for i, c in enumerate(header)]
            lines += [f"| {' | '.join(cells)} |" for cells in (header, rule, *aligned)]
        else:
            head, *body = ["  ".join(cells).rstrip() for cells in (header, *aligned)]
            lines += [head, "-" * len(head), *body]
        lines.append("")
    return "\n".join(lines)
