"""Times the named parts of a program, on the CPU or a GPU."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Sums the time spent in named parts; on a GPU it records events, without synchronising."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times the block."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_seconds = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_seconds

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and times the wait for each."""
        begin = time.perf_counter()
        for item in items:
            self._seconds[name] += time.perf_counter() - begin
            yield item
            begin = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each part since the last call, and resets them."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
