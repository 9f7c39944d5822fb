"""The landmarks and names of a whole table, compact, and shared with every process that reads it.

Nothing here keeps a Python object a row: counting its references would copy the memory page that it
lies in into every forked worker. What a file holds is mapped again in a worker that is spawned.
"""

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, overload

import numpy as np

UNLABELLED = np.iinfo(np.int16).min  # stands for NaN among int16
_AT_ONCE = 512  # rows


class Names(Sequence[str]):
    """File names, held as the bytes of a text with one name a line."""

    def __init__(self, text: np.ndarray) -> None:
        """
        Args:
            text: (bytes,) uint8, UTF-8; every name is followed by a newline and holds none.
        """
        self.text = text.view(np.ndarray)
        self._ends = np.flatnonzero(text == ord("\n"))

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        return cls(np.frombuffer("".join(f"{name}\n" for name in names).encode(), np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[operator.index(row)]  # counts from the end, or raises IndexError
        begin = self._ends[row - 1] + 1 if row else 0
        return self.text[begin : self._ends[row]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for last in (*range(_AT_ONCE - 1, len(self) - 1, _AT_ONCE), len(self) - 1):
            yield from self.text[begin : self._ends[last]].tobytes().decode().split("\n")
            begin = self._ends[last] + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __reduce__(self) -> tuple[Callable[..., "Names"], tuple[Any, ...]]:
        return _pickled(Names, self.text)


class Points:
    """(N, P, 2) points_image, of which an index gives a part as a new float32 array with NaN.

    Nothing is ever converted that was not asked for, which for `points[:]` is everything.
    """

    def __init__(self, stored: np.ndarray) -> None:
        """
        Args:
            stored: (N, P, 2), int16 with `UNLABELLED`, or float32 with NaN.
        """
        assert stored.dtype in (np.int16, np.float32), stored.dtype
        self.stored = stored.view(np.ndarray)
        self.shape: tuple[int, int, int] = stored.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return as_numbers(self.stored[index], np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def in_blocks(self) -> Iterator[np.ndarray]:
        """All points in their order, some hundred rows at a time."""
        for begin in range(0, len(self), _AT_ONCE):
            yield self[begin : begin + _AT_ONCE]

    def __reduce__(self) -> tuple[Callable[..., "Points"], tuple[Any, ...]]:
        return _pickled(Points, self.stored)


def _pickled(kind: Callable[..., Any], array: np.ndarray) -> tuple[Callable[..., Any], tuple]:
    """For pickle: where a mapped file holds the array, or the array if none does."""
    mapped = array.base
    if not isinstance(mapped, np.memmap) or not isinstance(mapped.base, mmap):  # or a part of one
        return kind, (array,)
    return _mapped_again, (kind, mapped.filename, mapped.dtype, mapped.offset, mapped.shape)


def _mapped_again(kind: Callable[..., Any], file: Path, dtype: Any, offset: int, shape: Any) -> Any:
    return kind(np.memmap(file, dtype, "r", offset, shape))


@dataclass(frozen=True)
class LandmarkTable:
    """The landmarks of every image of a table."""

    path: Path
    names: Sequence[str]  # file names, relative to the images folder, in the table's order
    points_image: Points  # (N, P, 2) float32, image pixels; NaN = unlabelled
    digest: str  # of the names and points, as `digest_of` gives it

    @property
    def num_landmarks(self) -> int:
        return self.points_image.shape[1]

    def fingerprint(self) -> str:
        """SHA-256 of names and points: equal where a split or a run fits the table."""
        return self.digest


def digest_of(names: Names, blocks: Iterable[np.ndarray]) -> str:
    """SHA-256 of the names, with newlines between them, and of the points, float32 with NaN."""
    digest = hashlib.sha256(names.text[:-1].data)
    for points in blocks:
        digest.update(points.data)
    return digest.hexdigest()


def as_numbers(stored: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """A new array of the same numbers, NaN where int16 are `UNLABELLED`."""
    numbers = np.array(stored, dtype)
    if stored.dtype == np.int16:
        numbers[stored == UNLABELLED] = np.nan
    return numbers
