"""The readers of the training table."""

import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmark import readers
from benchmark.measuring import LIMIT, OURS, PEER, Contender, Result, Settings, compared


def landmark_table(settings: Settings) -> Iterator[list[Result]]:
    """A part of a table by the organisers' loop and ours, then the whole of it by ours.

    Memory is what a process takes above its imports, files that are mapped among it.
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
    """The readers in turn, in random order, each time in a new process."""
    cache = path.with_name("cache")
    readers.alone(readers.start, path, cache)

    def first_read() -> readers.Measured:
        with tempfile.TemporaryDirectory(dir=path.parent) as empty:
            return readers.alone(readers.start, path, Path(empty))

    alone = readers.alone
    contenders = [
        Contender("first read", OURS, first_read),
        Contender("later start", OURS, lambda: alone(readers.start, path, cache)),
        Contender("organisers' loop", PEER, lambda: alone(readers.organisers_loop, path)),
        Contender("reading the bytes", LIMIT, lambda: alone(readers.read_bytes, path)),
    ]
    contenders = [replace(contender, images=num_rows) for contender in contenders]
    order, found = random.Random(0), {c.name: list[readers.Measured]() for c in contenders}
    for _ in range(3):
        for contender in order.sample(contenders, len(contenders)):
            found[contender.name].append(contender.action())
    median = {n: statistics.median(m.seconds for m in several) for n, several in found.items()}
    peaks = {n: max(m.peak_mib for m in several) for n, several in found.items()}
    return compared(f"table {num_rows:,}×{settings.landmarks}", contenders, median, peaks)


def _whole_table(path: Path, images: Path, settings: Settings, workers: int = 2) -> list[Result]:
    alone, cache = readers.alone, path.with_name("cache")
    first, later = (alone(readers.start, path, cache) for _ in range(2))
    looked = alone(readers.look_for_images, path, cache, images)
    epoch_seconds, growth = alone(readers.epoch, path, cache, images, workers).result
    epoch_name = f"an epoch's rows by {workers} workers, growth of each"
    rows = {
        "first read": (first.seconds, first.peak_mib),
        "later start": (later.seconds, later.peak_mib),
        "looking for the images": (looked.result, looked.peak_mib),
        epoch_name: (epoch_seconds, growth),
    }
    return compared(
        f"whole table {settings.rows:,}×{settings.landmarks}",
        [Contender(name, OURS, lambda: None, images=settings.rows) for name in rows],
        {name: seconds for name, (seconds, _) in rows.items()},
        {name: mib for name, (_, mib) in rows.items()},
    )
