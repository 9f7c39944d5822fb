"""The landmarks and names of a whole table, compact, and shared by all that were forked from here.

Nothing here keeps a Python object a row. Reading one would count a reference in it, and so copy the
page that it lies in into every process that loads pictures.
"""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

UNLABELLED = np.iinfo(np.int16).min  # stands for NaN among int16
_LARGEST = np.iinfo(np.int16).max
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

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])!r}, {len(self)} in all)"


class Points:
    """(N, P, 2) points_image of which any part is given as float32, NaN where unlabelled.

    `points[rows]`, or any other index that an array takes, gives a new array of that part; nothing
    is ever converted that was not asked for, which for `points[:]` is everything.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

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
        return self[:].astype(dtype or self.dtype, copy=False)

    def in_blocks(self) -> Iterator[np.ndarray]:
        """All points in their order, some hundred rows at a time."""
        for begin in range(0, len(self), _AT_ONCE):
            yield self[begin : begin + _AT_ONCE]


@dataclass(frozen=True)
class LandmarkTable:
    """The landmarks of every picture of a table.

    names: file names, relative to the images folder, in the table's order.
    points_image: (N, P, 2) float32, image pixels; NaN = unlabelled.
    digest: of the names and points, as `digest_of` gives it.
    """

    path: Path
    names: Sequence[str]
    points_image: Points
    digest: str

    @property
    def num_landmarks(self) -> int:
        return self.points_image.shape[1]

    def fingerprint(self) -> str:
        """SHA-256 of names and points: equal where a split or a run fits the table."""
        return self.digest


def digest_of(names: Names, blocks: Iterable[np.ndarray]) -> str:
    """SHA-256 of the names, with newlines between them, and of the points.

    Args:
        blocks: of the points in their order, float32 with NaN.
    """
    digest = hashlib.sha256(names.text[:-1].data)
    for points in blocks:
        digest.update(points.data)
    return digest.hexdigest()


def as_numbers(stored: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """A new array of the same numbers, NaN where int16 are `UNLABELLED`."""
    numbers = np.array(stored, dtype)
    if stored.dtype == np.int16:
        numbers[stored == UNLABELLED] = np.nan
    return numbers


def compact(points: np.ndarray) -> np.ndarray:
    """The points as int16 where these give the same bits back, else as they are.

    Args:
        points: (N, P, 2), int16 with `UNLABELLED`, or float32 with NaN.
    """
    if points.dtype == np.int16:
        return points
    for some in (points[:1], points):  # one row tells most tables with decimals
        unlabelled = np.isnan(some)
        if not (unlabelled | (np.abs(some) <= _LARGEST)).all():
            return points
        whole = np.where(unlabelled, UNLABELLED, some).astype(np.int16)
        # bits, since the whole number 0 has no sign
        if (as_numbers(whole, np.float32).view(np.int32) != some.view(np.int32)).any():
            return points
    return whole


def joined(blocks: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """The blocks of rows as one array; the list is emptied, so that nothing is held twice.

    Args:
        blocks: of int16, or of floats; dtype may be int16 if all are.
    """
    result = np.empty((sum(map(len, blocks)), *blocks[0].shape[1:]), dtype)
    end = len(result)
    while blocks:
        block = blocks.pop()
        begin = end - len(block)
        result[begin:end] = block if block.dtype == dtype else as_numbers(block, dtype)
        end = begin
    return result
