"""The training table, read from its text once and kept in a file for later starts.

A kept table is one file in the cache's folder `tables`, mapped so that all processes of a machine
share one copy: a page of JSON that says what follows, the points (int16 if all are whole and small,
else float32), and the names. Its name tells the text's path, size and times. It gets that name when
it is whole: so whoever finds it can use it, and whoever else writes it does no harm.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable, Names, Points, as_numbers, digest_of
from heatmap.data.contest.table import read_blocks, read_points, require_file
from heatmap.errors import UserError
from heatmap.runtime.files import write_atomically

logger = logging.getLogger("heatmap")

_PAGE, _AT_ONCE = 1 << 12, 1 << 20  # bytes
_WORTH_KEEPING = 16 << 20  # bytes of text; less is read before anyone waits for it
_ABANDONED = 3600  # seconds without a write after which an unfinished file's writer is dead
_LOCK = threading.Lock()  # threads of one process would write the same temporary file


class _NotWhole(Exception):
    """Numbers that are not whole or not small, after others that are."""


def read_landmarks(path: Path, cache: Path | None = None, progress: bool = False) -> LandmarkTable:
    """The training table: file_name, Point_0_X, Point_0_Y, Point_1_X, ..., as `read_blocks` says.

    What is kept of a large table is used as long as the text's size and times, or else its bytes,
    are the same. Where nothing can be kept, a warning says so.

    Args:
        cache: folder to keep it in; by default heatmap in $XDG_CACHE_HOME or ~/.cache.
        progress: show a bar once the reading has taken a second.

    Raises:
        UserError: anything wrong with the table; the message names file, row and column.
    """
    require_file(path)
    if path.stat().st_size >= _WORTH_KEEPING:
        try:
            users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "heatmap"
            with _LOCK:
                return _kept(path, cache or users, progress)
        except (OSError, RuntimeError) as error:  # the latter for a user without a home
            logger.warning(
                f"{path}: the table cannot be kept ({error}), so every start reads its text; name "
                "another folder for it with --data.cache, or with XDG_CACHE_HOME"
            )
    found, stored = read_points(path, np.float32, progress=progress)
    names, points = Names.of(found), Points(stored)
    return LandmarkTable(path, names, points, digest_of(names, points.in_blocks()))


def _kept(path: Path, cache: Path, progress: bool) -> LandmarkTable:
    """The table from the cache, where it is put first if need be."""
    folder, name = cache / "tables", _name(path)
    kept, (*_, key, size, _, _) = folder / name, name.split("-")
    if table := _mapped(path, kept):
        return table
    for other in folder.glob(f"*-{key}-{size}-*.table"):
        with suppress(FileNotFoundError, ValueError):  # another process was faster, or damaged
            if _header(other)["text_sha256"] == _sha256(path):  # only its times are others
                other.replace(kept)
    if table := _mapped(path, kept):
        return table
    with ThreadPoolExecutor(1) as beside:
        text_sha256 = beside.submit(_sha256, path)
        try:
            _keep(path, kept, np.int16, text_sha256, progress)
        except _NotWhole:
            _keep(path, kept, np.float32, text_sha256, progress)
    logger.info(f"{path}: kept in {kept} for later starts")
    for other in folder.glob(f"*-{key}-*.table"):  # old, or unfinished
        with suppress(FileNotFoundError):
            idle = time.time() - other.stat().st_mtime
            if other != kept and (idle > _ABANDONED or not other.name.startswith(".")):
                other.unlink()  # who has mapped it keeps what it holds
    table = _mapped(path, kept)
    assert table is not None, kept
    return table


def _name(path: Path) -> str:
    """Of the file that keeps the table: a hash of the text's path, its size, and its times.

    No program can set the last of these back.
    """
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    status = path.stat()
    times = f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
    return f"{path.stem[:40]}-{key}-{status.st_size:x}-{times}.table"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(kept: Path) -> dict[str, Any]:
    with kept.open("rb") as file:
        return json.loads(file.read(_PAGE))


def _mapped(path: Path, kept: Path) -> LandmarkTable | None:
    """The table that a kept file holds, None if it is not there or damaged."""
    try:
        header = _header(kept)
        points = np.memmap(kept, header["dtype"], "r", _PAGE, tuple(header["shape"]))
        names = np.memmap(kept, np.uint8, "r", _PAGE + points.nbytes, header["name_bytes"])
    except (FileNotFoundError, ValueError):
        return None
    return LandmarkTable(path, Names(names), Points(points), header["digest"])


def _keep(
    path: Path, kept: Path, dtype: type[np.generic], text_sha256: Future[str], progress: bool
) -> None:
    """Reads the text into the file, which holds its points as `dtype`."""
    names: list[str] = []
    with write_atomically(kept) as temporary, temporary.open("w+b") as file:
        file.seek(_PAGE)
        for some_names, points in read_blocks(path, np.float32, progress=progress):
            if dtype == np.int16 != points.dtype:
                raise _NotWhole
            names += some_names
            file.write((points if dtype == np.int16 else as_numbers(points, np.float32)).data)
        held = Names.of(names)
        header = {
            "dtype": np.dtype(dtype).name,
            "shape": (len(held), points.shape[1], 2),
            "name_bytes": len(held.text),
            "digest": digest_of(held, _blocks_in(file, dtype)),
            "text_sha256": text_sha256.result(),
        }
        if _name(path) != kept.name:
            raise UserError(f"{path} was changed while it was read; start again")
        file.write(held.text.data)
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(_PAGE))


def _blocks_in(file: BinaryIO, dtype: type[np.generic]) -> Iterator[np.ndarray]:
    """The points in the file, which ends with them; mapped, they would count as memory in use."""
    file.seek(_PAGE)
    while block := file.read(_AT_ONCE):
        yield as_numbers(np.frombuffer(block, dtype), np.float32)
