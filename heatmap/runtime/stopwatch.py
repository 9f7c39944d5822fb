"""Where the time goes: seconds by name, on the CPU's clock or the GPU's."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Adds up the time spent in named parts; on a GPU by events, so that nothing waits for it."""

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
        """The items, timing the wait for each."""
        begin = time.perf_counter()
        for item in items:
            self._seconds[name] += time.perf_counter() - begin
            yield item
            begin = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the last call, which starts them anew."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
