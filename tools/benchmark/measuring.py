"""A race: its contenders, how they are measured, and its table."""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from heatmap.runtime.columns import lined_up

OURS, PEER, LIMIT = "ours", "peer", "limit"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is raced: B images, P landmarks, size x size heatmaps, and for how long.

    seconds: of measuring for every contender, about; rows: of the training table.
    """

    device: torch.device
    batch: int
    landmarks: int
    size: int
    seconds: float
    encoder: str
    rows: int = 20_000


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """As many other processes that take all of a core's time, as loading workers do."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@dataclass(frozen=True)
class Contender:
    """One way to do it. kind: ours, peer or limit; error: (value, unit) against the truth."""

    name: str
    kind: str
    action: Callable[[], Any]
    error: tuple[float, str] | None = None
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the table: times in milliseconds, memory in MiB beyond what the action was given."""

    race: str
    name: str
    kind: str
    milliseconds: float
    times_best_peer: float | None
    times_limit: float | None
    peak_mib: float
    error: str
    images_per_second: float | None


def race(title: str, contenders: list[Contender], settings: Settings) -> list[Result]:
    """Races the contenders. Memory is measured apart from time, in one more call of each."""
    order, times = random.Random(0), {c.name: [] for c in contenders}  # type: ignore[var-annotated]
    peaks = {}
    for contender in contenders:  # warms up, too
        contender.action()
        peaks[contender.name] = peak_mib_of(contender.action, settings.device)
    begin = time.monotonic()
    rounds = 0
    with tqdm(desc=title, unit="round", leave=False, disable=None) as bar:
        while rounds < 3 or time.monotonic() - begin < settings.seconds * len(contenders):
            for contender in order.sample(contenders, len(contenders)):
                times[contender.name].append(seconds_of(contender.action, settings.device))
            rounds += 1
            bar.update()
    median = {name: statistics.median(values) for name, values in times.items()}
    return compared(title, contenders, median, peaks)


def compared(
    title: str, contenders: list[Contender], median: dict[str, float], peaks: dict[str, float]
) -> list[Result]:
    """The results of the contenders, by name: median seconds, and peaks in MiB."""

    def best(kind: str) -> float | None:
        return min((median[c.name] for c in contenders if c.kind == kind), default=None)

    peer, limit = (
        best(PEER),
        max((median[c.name] for c in contenders if c.kind == LIMIT), default=None),
    )
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
    """The most that the action holds at once, by the allocator's own account."""
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
    """The results as text that lines up, or as Markdown."""
    header = ("", "", "ms", "× faster than best peer", "× limit", "peak MiB", "error", "images/s")
    lines = []
    for race in dict.fromkeys(r.race for r in results):
        rows = [
            (
                r.name,
                r.kind,
                f"{r.milliseconds:,.1f}",
                "" if r.times_best_peer is None else f"{r.times_best_peer:.2f}",
                "" if r.times_limit is None else f"{r.times_limit:.2f}",
                f"{r.peak_mib:,.0f}",
                r.error,
                "" if r.images_per_second is None else f"{r.images_per_second:,.0f}",
            )
            for r in results
            if r.race == race
        ]
        titled = [(race, *header[1:]), *rows]
        for number, cells in enumerate(lined_up(titled, left=2)):
            lines.append("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip())
            if number == 0:
                ruled = [
                    "-" * len(cell) if i < 2 else "-" * (len(cell) - 1) + ":"
                    for i, cell in enumerate(cells)
                ]
                lines.append("| " + " | ".join(ruled) + " |" if markdown else "-" * len(lines[-1]))
        lines.append("")
    return "\n".join(lines)


def to_json(results: list[Result]) -> list[dict[str, Any]]:
    """The results as JSON-able values."""
    return [asdict(r) for r in results]
