"""A race: its contenders, measurements and table of results."""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from heatmap.runtime.columns import lined_up

OURS, PEER, LIMIT = "ours", "peer", "limit"


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
    error: tuple[float, str] | None = None  # value and unit
    images: int = 0  # per call


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the table."""

    race: str
    name: str
    kind: str
    milliseconds: float
    times_best_peer: float | None  # how many times faster than the fastest peer
    times_limit: float | None  # how many times slower than the slowest limit
    peak_mib: float  # without the inputs
    error: str
    images_per_second: float | None


def race(title: str, contenders: list[Contender], settings: Settings) -> list[Result]:
    """Races the contenders; memory is measured in separate calls, which also warm up."""
    order, times = random.Random(0), {c.name: list[float]() for c in contenders}
    peaks = {}
    for contender in contenders:
        contender.action()
        peaks[contender.name] = peak_mib_of(contender.action, settings.device)
    begin, rounds = time.monotonic(), 0
    with tqdm(desc=title, unit="round", leave=False, disable=None) as bar:
        while rounds < settings.min_rounds or time.monotonic() - begin < settings.seconds * len(
            contenders
        ):
            for contender in order.sample(contenders, len(contenders)):
                times[contender.name].append(seconds_of(contender.action, settings.device))
            rounds += 1
            bar.update()
    median = {name: statistics.median(values) for name, values in times.items()}
    return results_of(title, contenders, median, peaks)


def results_of(
    title: str, contenders: list[Contender], median: dict[str, float], peaks: dict[str, float]
) -> list[Result]:
    """The contenders' results, from median seconds and peak MiB by name."""
    peer = min((median[c.name] for c in contenders if c.kind == PEER), default=None)
    limit = max((median[c.name] for c in contenders if c.kind == LIMIT), default=None)
    return [
        Result(
            race=title,
            name=c.name,
            kind=c.kind,
            milliseconds=1e3 * median[c.name],
            times_best_peer=peer and peer / median[c.name],
            times_limit=limit and median[c.name] / limit,
            peak_mib=peaks[c.name],
            error=f"{c.error[0]:.2g} {c.error[1]}" if c.error else "",
            images_per_second=c.images / median[c.name] if c.images else None,
        )
        for c in contenders
    ]


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
        "",
        "ms",
        "times faster than best peer",
        "times limit",
        "peak MiB",
        "error",
        "images/s",
    )
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
