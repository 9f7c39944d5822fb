"""Work on many images, in several processes."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """The results of a picklable function for all jobs, in order; one worker is this process.

    Raises:
        ValueError: a process was killed.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, cv2.setNumThreads, (1,))
    try:
        yield from pool.map(function, jobs, chunksize=min(16, math.ceil(len(jobs) / workers)))
    except BrokenProcessPool:
        problem = "a process that worked on the images was killed, perhaps for want of memory"
        raise ValueError(f"{problem}; use fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
