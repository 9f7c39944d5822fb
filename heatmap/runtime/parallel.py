"""Work on many images, in several processes."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import cv2
from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str
) -> Iterator[Result]:
    """The function's results for all jobs, in their order, under a progress bar.

    Args:
        function: of a module, or a partial of one; like jobs and results it goes between processes.
        workers: one is this process.
        title: of the bar.

    Raises:
        ValueError: a process was killed.
    """
    show = partial(tqdm, desc=title, total=len(jobs), delay=1, unit="img")
    if workers == 1 or len(jobs) < 2:
        yield from show(map(function, jobs))
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    )
    try:
        chunksize = min(16, math.ceil(len(jobs) / workers))
        yield from show(pool.map(function, jobs, chunksize=chunksize))
    except BrokenProcessPool:
        raise ValueError(
            "a process that worked on the pictures was killed, perhaps for want of memory; use "
            "fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
