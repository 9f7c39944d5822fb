"""Readers of the training table."""

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmark import readers
from benchmark.measuring import (
    LIMIT,
    OURS,
    PEER,
    RACE_SECONDS,
    Contender,
    Entry,
    Result,
    Settings,
    results_of,
)


def landmark_table(settings: Settings) -> Iterator[list[Result]]:
    """Reads part of a table with the organisers' loop and ours, then the whole table with ours.

    Memory is a process's growth since its imports, including memory-mapped files.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part, whole, images = folder / "part.csv", folder / "whole.csv", folder / "images"
        num_part = min(settings.rows, 20_000)
        readers.write_table(part, num_part, settings.landmarks)
        yield _readers(part, num_part, settings)
        part.unlink()
        readers.write_table(whole, settings.rows, settings.landmarks)
        readers.make_images(images, settings.rows)
        yield _whole_table(whole, images, settings)


def _readers(path: Path, num_rows: int, settings: Settings) -> list[Result]:
    """Runs the readers in random order, each in a new process."""
    cache, alone = path.with_name("cache"), readers.alone
    alone(readers.start, path, cache)

    def first_read() -> readers.Measured:
        with tempfile.TemporaryDirectory(dir=path.parent) as empty:
            return alone(readers.start, path, Path(empty))

    contenders = [
        Contender("first read", OURS, first_read),
        Contender("later start", OURS, lambda: alone(readers.start, path, cache)),
        Contender("organisers' loop", PEER, lambda: alone(readers.organisers_loop, path)),
        Contender("reading the bytes", LIMIT, lambda: alone(readers.read_bytes, path)),
    ]
    contenders = [replace(contender, images=num_rows) for contender in contenders]
    order, entries = random.Random(0), [Entry(contender) for contender in contenders]
    end = time.monotonic() + RACE_SECONDS
    for number in range(settings.min_rounds):
        if number and time.monotonic() > end:
            break
        for entry in order.sample(entries, len(entries)):
            measured = entry.contender.action()
            entry.seconds.append(measured.seconds)
            entry.peak_mib = max(entry.peak_mib or 0, measured.peak_mib)
    return results_of(f"table {num_rows:,}×{settings.landmarks}", entries)


def _whole_table(path: Path, images: Path, settings: Settings) -> list[Result]:
    alone, cache = readers.alone, path.with_name("cache")
    first, later = (alone(readers.start, path, cache) for _ in range(2))
    search = alone(readers.find_images, path, cache, images)
    rows = {
        "first read": (first.seconds, first.peak_mib),
        "later start": (later.seconds, later.peak_mib),
        "finding the images": (search.result, search.peak_mib),
    }
    entries = [
        Entry(Contender(name, OURS, lambda: None, images=settings.rows), [seconds], peak_mib)
        for name, (seconds, peak_mib) in rows.items()
    ]
    return results_of(f"whole table {settings.rows:,}×{settings.landmarks}", entries)
