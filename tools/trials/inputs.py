"""Reads damaged files and compares what is accepted with what an independent reader reads."""

import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from heatmap.errors import UserError
from heatmap.runtime.columns import as_lines
from trials.mutants import mutant

SECONDS = 20  # until reading an input counts as hanging
_MEMORY = 2 << 30  # bytes
_LONGEST = 700  # characters of an error
FINE = "refused", "equal", "only ours"
FAULTS = "traceback", "unequal", "no line", "hang", "memory", "crash"


class Subject(NamedTuple):
    """Files of one kind and two readers of them, which get the folder.

    Attributes:
        files: contents by name.
        damaged: the names of those that are damaged, one at a time.
        is_strict: whether what `theirs` refuses must be refused.
    """

    name: str
    files: dict[str, bytes]
    damaged: Sequence[str]
    ours: Callable[[Path], Any]
    theirs: Callable[[Path], Any]
    is_strict: bool = True
    tolerance: float = 0.0


class Verdict(NamedTuple):
    number: int
    subject: str
    kind: str  # one of FINE or FAULTS
    detail: str = ""


def fuzz(
    folder: Path, count: int, seed: int, subjects: Sequence[Subject], seconds: float = SECONDS
) -> Iterator[Verdict]:
    """Yields the verdicts on inputs 0 to `count` - 1; a faulty input stays in FOLDER/INDEX."""
    index, context = 0, multiprocessing.get_context("fork")
    while index < count:
        verdicts, sender = context.Pipe(duplex=False)
        target = folder, range(index, count), seed, subjects, sender
        process = context.Process(target=_judge_all, args=target)
        process.start()
        sender.close()
        while index < count:
            subject = subjects[index % len(subjects)].name
            try:
                verdict = Verdict(index, subject, "hang", f"more than {seconds} s")
                if verdicts.poll(seconds):
                    verdict = verdicts.recv()
            except EOFError:
                process.join()
                verdict = Verdict(index, subject, "crash", f"exit code {process.exitcode}")
            if verdict.kind in FINE:
                shutil.rmtree(folder / f"{index}")
            yield verdict
            index += 1
            if verdict.kind in ("hang", "crash"):
                break
        process.kill()
        process.join()


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Returns a table of how many inputs of each subject had each verdict, and the faults."""
    counts = Counter((verdict.subject, verdict.kind) for verdict in verdicts)
    names = list(dict.fromkeys(verdict.subject for verdict in verdicts))
    kinds = [*FINE, *FAULTS]
    rows = [[name, *(f"{counts[name, kind]}" for kind in kinds)] for name in names]
    total = Counter(verdict.kind for verdict in verdicts)
    table = as_lines([["input", *kinds], *rows, ["all", *(f"{total[kind]}" for kind in kinds)]])
    faults = [f"{v.number} {v.subject}: {v.kind}: {v.detail}" for v in verdicts if v.kind in FAULTS]
    return "\n".join([*table, *faults])


def _judge_all(
    folder: Path, indices: range, seed: int, subjects: Sequence[Subject], sender: Connection
) -> None:
    logging.disable()
    warnings.simplefilter("error")
    cv2.setNumThreads(0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # notes of image and video libraries
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, resource.RLIM_INFINITY))
    for index in indices:
        subject, case = subjects[index % len(subjects)], folder / f"{index}"
        generator = random.Random(f"{seed} {index}")
        damaged = generator.choice(subject.damaged)
        for name, content in subject.files.items():
            path = case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutant(content, generator) if name == damaged else content)
        sender.send(Verdict(index, subject.name, *judge(subject, case)))


def judge(subject: Subject, folder: Path) -> tuple[str, str]:
    """Returns the kind of verdict on the files in a folder, and details of a fault."""
    try:
        ours = subject.ours(folder)
    except (UserError, OSError) as error:
        message = str(error)
        is_line = "\n" not in message and len(message) < _LONGEST and str(folder) in message
        return ("refused", "") if is_line else ("no line", message[:300])
    except MemoryError:
        return "memory", f"more than {_MEMORY >> 30} GB"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{error!r:.200} in {place.filename}, line {place.lineno}"
    try:
        with warnings.catch_warnings(action="ignore"):
            theirs = subject.theirs(folder)
    except Exception as error:
        detail = f"{ours!r:.200}, but the other reader: {error!r:.200}"
        return ("unequal", detail) if subject.is_strict else ("only ours", "")
    if are_equal(ours, theirs, subject.tolerance):
        return "equal", ""
    if isinstance(ours, dict) and ours.keys() == theirs.keys():  # only what differs
        names = [k for k in ours if not are_equal(ours[k], theirs[k], subject.tolerance)]
        ours, theirs = ({k: values[k] for k in names} for values in (ours, theirs))
    return "unequal", f"{ours!r:.200}, but the other reader: {theirs!r:.200}"


def are_equal(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """Whether nested values are equal; lists equal tuples, NaN equals NaN, and 1 equals 1.0.

    Arrays may differ by `tolerance` on average.
    """
    if isinstance(one, np.ndarray):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
            return False
        return bool(np.nan_to_num(np.abs(one - other)).mean() <= tolerance) if one.size else True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            are_equal(one[key], other[key], tolerance) for key in one
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(
            are_equal(a, b, tolerance) for a, b in zip(one, other, strict=True)
        )
    return one == other and isinstance(one, bool) == isinstance(other, bool)
