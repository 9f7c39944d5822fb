"""The training table, parsed once and cached as a memory-mapped file.

A cached table is one file: a page of JSON, the points (int16 if all are integers that fit, else
float32), the names, and a checksum. Its name holds a hash of the table's path, its size and times.
"""

import hashlib
import json
import logging
import os
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable, Names, Points, as_floats, fingerprint_of
from heatmap.data.contest.table import read_blocks, read_points
from heatmap.errors import UserError
from heatmap.runtime.files import open_file, write_atomically

logger = logging.getLogger("heatmap")

_PAGE, _CHUNK = 1 << 12, 1 << 20  # bytes
_WHOLE = 0x2144DF1C  # CRC-32 of any bytes that are followed by their own CRC-32
_WORTH_CACHING = 16 << 20  # bytes; smaller tables are parsed quickly
_ABANDONED = 3600  # seconds without a write until a temporary file counts as abandoned
_LOCK = threading.Lock()  # threads would share a temporary file


def read_landmarks(path: Path, cache: Path | None = None, progress: bool = False) -> LandmarkTable:
    """Reads the training table: file_name, Point_0_X, Point_0_Y, Point_1_X, ... (`read_blocks`).

    A large table is cached, and parsed again only when its size or times change.

    Args:
        cache: folder of the cache; by default heatmap in $XDG_CACHE_HOME or ~/.cache.
        progress: show a bar if parsing takes more than a second.

    Raises:
        UserError: the table is malformed; the message names file, row and column.
    """
    if path.is_file() and path.stat().st_size >= _WORTH_CACHING:
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            with _LOCK:
                return _read_cached(path, (cache or home / "heatmap") / "tables", progress)
        except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
            logger.warning(
                f"{path}: the table cannot be cached ({error}), so every run parses it again; "
                "choose another folder with --data.cache or XDG_CACHE_HOME"
            )
    name_list, stored = read_points(path, np.float32, progress=progress)
    names, points = Names.of(name_list), Points(stored)
    return LandmarkTable(path, names, points, fingerprint_of(names, points.in_blocks()))


def _read_cached(path: Path, folder: Path, progress: bool) -> LandmarkTable:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    cached = folder / f"{path.stem[:40]}-{key}-{_version(path)}.table"
    if table := _map(path, cached):
        return table
    try:
        _write(path, cached, np.int16, progress)
    except OverflowError:  # a number does not fit
        _write(path, cached, np.float32, progress)
    logger.info(f"{path}: cached in {cached} for later runs")
    for other in folder.glob(f"*-{key}-*.table"):  # old versions and temporary files
        with suppress(FileNotFoundError):
            idle = time.time() - other.stat().st_mtime
            if other != cached and (idle > _ABANDONED or not other.name.startswith(".")):
                other.unlink()  # processes that have mapped it keep its content
    table = _map(path, cached)
    assert table is not None, cached
    return table


def _version(path: Path) -> str:
    """Size, mtime and ctime in hexadecimal; programs cannot set ctime."""
    status = path.stat()
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def _map(path: Path, cached: Path) -> LandmarkTable | None:
    """The cached table, or None if it is missing or damaged."""
    try:
        with open_file(cached) as file:
            if _checksum(file) != _WHOLE:
                return None
            file.seek(0)
            header = json.loads(file.read(_PAGE))
        points = np.memmap(cached, header["dtype"], "r", _PAGE, tuple(header["shape"]))
        names = np.memmap(cached, np.uint8, "r", _PAGE + points.nbytes, header["name_bytes"])
    except ValueError:
        return None
    return LandmarkTable(path, Names(names), Points(points), header["fingerprint"])


def _write(path: Path, cached: Path, dtype: type[np.generic], progress: bool) -> None:
    """Parses the table into the cached file, with its points as `dtype`."""
    version, name_list = _version(path), list[str]()
    with write_atomically(cached) as temporary, temporary.open("w+b") as file:
        file.seek(_PAGE)
        for block_names, points in read_blocks(path, progress=progress):
            if dtype == np.int16 != points.dtype:
                raise OverflowError
            name_list += block_names
            file.write((points if dtype == np.int16 else as_floats(points, np.float32)).data)
        names = Names.of(name_list)
        file.seek(_PAGE)
        chunks = iter(lambda: file.read(_CHUNK), b"")  # not mapped, to keep memory use low
        blocks = (as_floats(np.frombuffer(chunk, dtype), np.float32) for chunk in chunks)
        header = {
            "dtype": np.dtype(dtype).name,
            "shape": (len(names), points.shape[1], 2),
            "name_bytes": len(names.text),
            "fingerprint": fingerprint_of(names, blocks),
        }
        if _version(path) != version:
            raise UserError(f"{path} changed while being read; start again")
        file.write(names.text.data)
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(_PAGE))
        file.write(_checksum(file).to_bytes(4, "little"))


def _checksum(file: IO[bytes]) -> int:
    """CRC-32 of a whole file, which is left at its end."""
    checksum = file.seek(0)
    while chunk := file.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum
