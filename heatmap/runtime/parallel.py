"""Work on many pictures, in several processes."""

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
    """The function's results for all jobs, in their order; one worker is this process.

    Args:
        function: of a module, or a partial of one; like jobs and results it goes between processes.

    Raises:
        ValueError: a process was killed.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    )
    try:
        yield from pool.map(function, jobs, chunksize=min(16, math.ceil(len(jobs) / workers)))
    except BrokenProcessPool:
        raise ValueError(
            "a process that worked on the pictures was killed, perhaps for want of memory; use "
            "fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
