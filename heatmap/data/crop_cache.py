"""Crops kept on disk, so that a later pass over the pictures, or the next run, decodes no JPEG.

A cache is a file with a place for every row of the table, and sparse: a row that was never kept
takes no room. Whoever has cut a picture's crop writes its row. A checksum covers the row, so what a
killed process or a full disk left of one is taken for absent. There are no locks: whoever writes a
row writes the same bytes, and one that is read half written fails its checksum.

The file is read and written by calls, not mapped into memory: the system's page cache serves all
processes alike, their own memory does not grow, and a full disk is an error that they survive.
"""

import functools
import hashlib
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from heatmap.data.contest import Photograph

logger = logging.getLogger("heatmap")

_CHECKSUM = struct.Struct("<I")
_HEAD = struct.Struct("<16sIqq9d6q")  # the file's content and stamp, and the numbers of the cut


class Cut(NamedTuple):
    """What a sample shows of its photograph: everything in it that the pixels tell.

    crop: (h, w, 3) uint8 RGB, margin included; image_from_crop: (3, 3) float64; image_hw, inner: as
    in `heatmap.data.samples.Sample`.
    """

    crop: np.ndarray
    image_from_crop: np.ndarray
    image_hw: tuple[int, int]
    inner: tuple[int, int, int, int]


@dataclass(frozen=True)
class CropCache:
    """A file of crops of height x width pixels, margin included, all cut in the same way."""

    path: Path
    height: int
    width: int

    @property
    def row_bytes(self) -> int:
        return _CHECKSUM.size + _HEAD.size + 3 * self.height * self.width

    def get(self, row: int, picture: Path) -> Cut | None:
        """What the row keeps of the picture, or None.

        A picture of the same path, size and time is taken to be the same; else its bytes decide.

        Raises:
            ValueError: these have to be read and cannot be.
        """
        checksum, head = bytearray(_CHECKSUM.size), bytearray(_HEAD.size)
        crop = np.zeros((self.height, self.width, 3), np.uint8)
        try:
            stamp = _stamp(picture, picture.stat())
            with self.path.open("rb", buffering=0) as file:
                os.preadv(file.fileno(), [checksum, head, crop.data], row * self.row_bytes)
        except OSError:
            return None  # what is wrong will be said when the picture is read, or the crop kept
        content, path, size, mtime_ns, *numbers = _HEAD.unpack(head)
        if size == 0 or checksum != _checksum(head, crop):
            return None
        image_from_crop, image_hw, inner = numbers[:9], numbers[9:11], numbers[11:]
        kept = Cut(crop, np.reshape(image_from_crop, (3, 3)), tuple(image_hw), tuple(inner))
        if stamp != (path, size, mtime_ns):
            photograph = Photograph(picture)
            if _content(photograph) != content:
                return None
            self.put(row, photograph, kept)
        return kept

    def put(self, row: int, photograph: Photograph, cut: Cut) -> None:
        """Keeps what the row shows of its photograph; where that fails, it is said once."""
        head = _HEAD.pack(
            _content(photograph),
            *_stamp(photograph.path, photograph.stat),
            *cut.image_from_crop.flat,
            *cut.image_hw,
            *cut.inner,
        )
        checksum = _checksum(head, cut.crop)
        try:
            with self.path.open("r+b", buffering=0) as file:
                os.pwritev(file.fileno(), [checksum, head, cut.crop.data], row * self.row_bytes)
        except OSError as error:
            _say_once(f"{self.path}: crops are no longer kept: {error.strerror}")


def make(rows_kept: Mapping[CropCache, int], num_rows: int) -> None:
    """Makes the files of caches in one folder, for so many rows each; what they hold stays.

    Args:
        rows_kept: how many of the rows each will come to hold.

    Raises:
        ValueError: the disk has no room for them, or they cannot be written.
    """
    folder = next(iter(rows_kept)).path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        need = sum(
            max(0, rows * cache.row_bytes - _taken(cache.path)) for cache, rows in rows_kept.items()
        )
        if need > free:
            raise ValueError(
                f"{folder}: the crops need {_size(need)} of disk, and {_size(free)} are free; name "
                "a folder on another disk with --data.crop-cache, or do without"
            )
        for cache in rows_kept:
            with cache.path.open("ab") as file:
                if file.tell() < num_rows * cache.row_bytes:
                    file.truncate(num_rows * cache.row_bytes)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: crops cannot be kept there (data.crop_cache): {error.strerror}"
        ) from error


def _taken(path: Path) -> int:
    """Bytes of disk that the file takes, holes not counted."""
    return 512 * path.stat().st_blocks if path.exists() else 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"


def _stamp(path: Path, stat: os.stat_result) -> tuple[int, int, int]:
    """What tells a file without reading it."""
    return zlib.crc32(os.fsencode(path)), stat.st_size, stat.st_mtime_ns


def _content(photograph: Photograph) -> bytes:
    return hashlib.blake2b(photograph.data, digest_size=16).digest()


def _checksum(head: bytes | bytearray, crop: np.ndarray) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(crop.data, zlib.crc32(head)))


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
