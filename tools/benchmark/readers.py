"""What reading the training table takes, each way in a process of its own: its time and memory.

Memory is told by Linux's /proc.
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

from heatmap.data.contest import LandmarkTable, image_paths, read_landmarks

_DISTINCT = 1000  # rows of numbers; a large table repeats them, so that it is made in seconds


@dataclass(frozen=True)
class Measured:
    """seconds: of the action; peak_mib: above what its imports took; result: what it returned."""

    seconds: float
    peak_mib: float
    result: Any


def alone(action: Callable[..., Any], *arguments: Any) -> Measured:
    """The action, which is a function of a module, in a new process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, action, arguments).result()


def _measured(action: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before, begin = _mib("status", "VmHWM"), time.perf_counter()
    result = action(*arguments)
    return Measured(time.perf_counter() - begin, _mib("status", "VmHWM") - before, result)


def _mib(file: str, name: str) -> float:
    """A figure of this process from a file in /proc/self."""
    lines = (Path("/proc/self") / file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10


def write_table(path: Path, num_rows: int, num_landmarks: int) -> None:
    """A table of the contest's form: whole numbers, most of them within an image of 250 px."""
    faces = np.random.default_rng(0).normal(125, 45, (_DISTINCT, 2 * num_landmarks)).astype(int)
    numbers = ["\t".join(map(str, face)).encode() + b"\n" for face in faces.tolist()]
    columns = (f"Point_{index}_{axis}" for index in range(num_landmarks) for axis in "XY")
    with path.open("wb") as file:
        file.write("\t".join(["file_name", *columns]).encode() + b"\n")
        for row in _bar(num_rows, "making a table"):
            file.write(_name(row).encode() + b"\t" + numbers[row % _DISTINCT])


def make_images(images: Path, num_rows: int) -> None:
    """The files that the table names, all empty."""
    images.mkdir()
    for row in _bar(num_rows, "making its images"):
        (images / _name(row)).touch()


def _bar(num_rows: int, doing: str) -> "tqdm[int]":
    return tqdm(range(num_rows), doing, leave=False, disable=None)


def _name(row: int) -> str:
    return f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}.jpg"  # names of no order, none twice


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
    """The first or a later one, to the first row."""
    table = read_landmarks(path, cache)
    assert table.points_image[0].shape == (table.num_landmarks, 2)


def look_for_images(path: Path, cache: Path, images: Path) -> float:
    """Seconds that it takes to find all images of a kept table."""
    table, begin = read_landmarks(path, cache), time.perf_counter()
    image_paths(images, table.names, path)
    return time.perf_counter() - begin


def epoch(path: Path, cache: Path, images: Path, workers: int) -> tuple[float, float]:
    """Seconds in which workers read all rows once, and the most MiB that one's own memory grows."""
    from torch.utils.data import DataLoader

    table = read_landmarks(path, cache)
    order = np.random.default_rng(0).permutation(len(table.names))
    batches = np.array_split(order, -(-len(order) // 1024))
    rows: Any = _Rows(table, image_paths(images, table.names, path))
    first, growth, begin = dict[int, float](), 0.0, time.perf_counter()
    loader = DataLoader(rows, batch_size=None, sampler=batches, num_workers=workers)
    for worker, own_mib in loader:
        growth = max(growth, own_mib - first.setdefault(worker, own_mib))
    return time.perf_counter() - begin, growth


@dataclass(frozen=True)
class _Rows:
    """Gives the reading worker's number and its own MiB after it has read some rows."""

    table: LandmarkTable
    paths: Any

    def __getitem__(self, rows: np.ndarray) -> tuple[int, float]:
        from torch.utils.data import get_worker_info

        read = [(self.paths[row], self.table.points_image[row]) for row in rows]
        worker = get_worker_info()
        assert worker is not None and len(read) == len(rows)
        return worker.id, _mib("smaps_rollup", "Private_Dirty")  # not files, nor what is shared
