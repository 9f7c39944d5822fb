"""Ways to read the training table, each measured in its own process.

Memory comes from Linux's /proc.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from heatmap.data.contest import image_paths, read_landmarks

_DISTINCT = 1000  # rows that are repeated, so that a table is written in seconds


@dataclass(frozen=True)
class Measured:
    """Time and memory of an action, and its result."""

    seconds: float
    peak_mib: float  # growth since the imports
    result: Any


def alone(action: Callable[..., Any], *arguments: Any) -> Measured:
    """Measures the action, a module-level function, in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "heatmap.data.contest"])  # imported once, not by each
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measured, action, *arguments).result()


def measured(action: Callable[..., Any], *arguments: Any) -> Measured:
    """Measures the action in this process."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, begin = _peak_mib(), time.perf_counter()
    result = action(*arguments)
    return Measured(time.perf_counter() - begin, _peak_mib() - before, result)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def write_table(path: Path, num_rows: int, num_landmarks: int) -> None:
    """Writes a table like the contest's: integers, mostly inside a 250 px image."""
    faces = np.random.default_rng(0).normal(125, 45, (_DISTINCT, 2 * num_landmarks)).astype(int)
    numbers = ["\t".join(map(str, face)).encode() + b"\n" for face in faces.tolist()]
    columns = (f"Point_{index}_{axis}" for index in range(num_landmarks) for axis in "XY")
    with path.open("wb") as file:
        file.write("\t".join(["file_name", *columns]).encode() + b"\n")
        for row in _bar(num_rows, "writing a table"):
            file.write(_name(row).encode() + b"\t" + numbers[row % _DISTINCT])


def make_images(images: Path, num_rows: int) -> None:
    """Creates the table's images as empty files."""
    images.mkdir()
    for row in _bar(num_rows, "creating its images"):
        (images / _name(row)).touch()


def _bar(num_rows: int, label: str) -> "tqdm[int]":
    return tqdm(range(num_rows), label, leave=False, disable=None)


def _name(row: int) -> str:
    return f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}.jpg"  # unique and unordered


def organisers_loop(path: Path) -> None:
    names, points = [], []
    with path.open() as file:
        next(file)
        for line in file:
            cells = line.strip().split("\t")
            names.append(cells[0])
            points.append(np.array(list(map(np.int16, cells[1:]))))


def read_bytes(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def start(path: Path, cache: Path) -> None:
    """Opens the table, with or without a filled cache, and reads the first row."""
    table = read_landmarks(path, cache)
    assert table.points_image[0].shape == (table.num_landmarks, 2)


def find_images(path: Path, cache: Path, images: Path) -> float:
    """Returns the seconds to find all images of a cached table."""
    table, begin = read_landmarks(path, cache), time.perf_counter()
    image_paths(images, table.names, path)
    return time.perf_counter() - begin
