"""The landmarks and file names of a whole table, compact and shared between processes.

No row is a Python object: counting its references would copy its memory page into every forked
worker. Arrays mapped from a file are pickled as their place in the file, for spawned workers.
"""

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

UNLABELLED = np.iinfo(np.int16).min  # stands for NaN in int16 arrays
_BLOCK_ROWS = 512  # rows


class Names(Sequence[str]):
    """File names, stored as UTF-8 text with one name per line."""

    def __init__(self, text: np.ndarray) -> None:
        """
        Args:
            text: (bytes,) uint8; a newline follows every name.
        """
        self.text = text.view(np.ndarray)
        self._ends = np.flatnonzero(text == ord("\n"))

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        return cls(np.frombuffer("".join(f"{name}\n" for name in names).encode(), np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        row = range(len(self))[operator.index(row)]  # resolves negatives, raises IndexError
        return self._text_of(row, row)

    def __iter__(self) -> Iterator[str]:
        for row in range(0, len(self), _BLOCK_ROWS):
            yield from self._text_of(row, min(row + _BLOCK_ROWS, len(self)) - 1).split("\n")

    def _text_of(self, first: int, last: int) -> str:
        start = self._ends[first - 1] + 1 if first else 0
        return self.text[start : self._ends[last]].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __reduce__(self) -> tuple[Callable[..., "Names"], tuple[Any, ...]]:
        return _pickled(Names, self.text)


class Points:
    """(N, P, 2) points in image pixels; indexing returns a float32 copy, NaN where unlabelled.

    Only the indexed part is converted; `points[:]` converts everything.
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
        return as_floats(self.stored[index], np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def in_blocks(self) -> Iterator[np.ndarray]:
        """Yields all points in order, up to 512 rows at a time."""
        for row in range(0, len(self), _BLOCK_ROWS):
            yield self[row : row + _BLOCK_ROWS]

    def __reduce__(self) -> tuple[Callable[..., "Points"], tuple[Any, ...]]:
        return _pickled(Points, self.stored)


def _pickled(kind: Callable[..., Any], array: np.ndarray) -> tuple[Callable[..., Any], tuple]:
    mapped = array.base
    if not isinstance(mapped, np.memmap) or not isinstance(mapped.base, mmap):  # or a slice of one
        return kind, (array,)
    return _remap, (kind, mapped.filename, mapped.dtype, mapped.offset, mapped.shape)


def _remap(kind: Callable[..., Any], file: Path, dtype: Any, offset: int, shape: Any) -> Any:
    return kind(np.memmap(file, dtype, "r", offset, shape))


@dataclass(frozen=True)
class LandmarkTable:
    """The landmarks of every image of a table."""

    path: Path
    names: Sequence[str]  # file names, relative to the images folder, in the table's order
    points_image: Points  # (N, P, 2) float32, image pixels; NaN = unlabelled
    fingerprint: str  # by `fingerprint_of`; runs and splits store it

    @property
    def num_landmarks(self) -> int:
        return self.points_image.shape[1]


def fingerprint_of(names: Names, blocks: Iterable[np.ndarray]) -> str:
    """SHA-256 of the names, separated by newlines, and of the float32 points with NaN."""
    digest = hashlib.sha256(names.text[:-1].data)
    for points in blocks:
        digest.update(points.data)
    return digest.hexdigest()


def as_floats(stored: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """A new array of floats, NaN where an int16 array is `UNLABELLED`."""
    numbers = np.array(stored, dtype)
    if stored.dtype == np.int16:
        numbers[stored == UNLABELLED] = np.nan
    return numbers
