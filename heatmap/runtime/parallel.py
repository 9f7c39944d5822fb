"""Maps a function over many images with a process pool."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import cv2
from tqdm import tqdm

from heatmap.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str
) -> Iterator[Result]:
    """Yields the results of a picklable function for all jobs, in order, with a progress bar.

    Args:
        workers: number of processes; 1 runs the jobs in this process.
        title: label of the progress bar.

    Raises:
        UserError: a worker process was killed.
    """
    show = partial(tqdm, desc=title, total=len(jobs), delay=1, unit="img")
    if workers == 1 or len(jobs) < 2:
        yield from show(map(function, jobs))
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, cv2.setNumThreads, (1,))
    try:
        chunksize = min(16, math.ceil(len(jobs) / workers))
        yield from show(pool.map(function, jobs, chunksize=chunksize))
    except BrokenProcessPool:
        problem = "a worker process was killed, perhaps because memory ran out"
        raise UserError(f"{problem}; use fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
