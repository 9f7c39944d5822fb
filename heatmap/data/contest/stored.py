"""The training table, read from its text once and kept for later starts.

A kept table is a folder in the cache that is named after the table's path:

    points        (N, P, 2) numbers as they lie in memory, int16 if all are whole and small, else
                  float32; mapped, so that all processes of a machine share one copy
    names.txt     one file name a line
    table.json    what the table was read from, and what the other two hold
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from heatmap.data.contest.landmarks import (
    LandmarkTable,
    Names,
    Points,
    as_numbers,
    compact,
    digest_of,
    joined,
)
from heatmap.data.contest.table import read_blocks, require_file
from heatmap.runtime.files import (
    flush_to_disk,
    folder_when_complete,
    read_json,
    reading_bar,
    write_json,
)

logger = logging.getLogger("heatmap")

_FORMAT = 1  # of the folder; another one's is read anew
_AT_ONCE = 1 << 20  # numbers of the points
_WORTH_KEEPING = 16 << 20  # bytes of text; less is read before anyone waits for it


def read_landmarks(path: Path, cache: Path | None = None, progress: bool = False) -> LandmarkTable:
    """The training table: file_name, Point_0_X, Point_0_Y, Point_1_X, ..., as `read_blocks` says.

    A large table is read from its text once; later calls take what was kept then, as long as the
    text's size and time are the same, or else its bytes. Where nothing can be kept, a warning says
    so and the table is read into memory.

    Args:
        cache: the folder to keep it in; None for heatmap in the user's cache, which is
            $XDG_CACHE_HOME or ~/.cache.
        progress: show a bar once the reading has taken a second.

    Raises:
        ValueError: anything wrong with the table; the message names file, row and column.
    """
    require_file(path)
    if path.stat().st_size < _WORTH_KEEPING:
        return _in_memory(path, progress)
    try:
        return _kept(path, cache or _users_cache(), progress)
    except OSError as error:
        where = f" in {error.filename}" if error.filename else ""
        logger.warning(
            f"{path}: the table cannot be kept{where} ({error.strerror or error}), so every start "
            "reads its text; name another folder for it with --data.cache"
        )
        return _in_memory(path, progress)


def _users_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heatmap"
    except RuntimeError as error:
        raise OSError(f"{error}") from error


def _in_memory(path: Path, progress: bool) -> LandmarkTable:
    names: list[str] = []
    blocks: list[np.ndarray] = []
    for some_names, some_points in read_blocks(path, np.float32, progress=progress):
        names += some_names
        blocks.append(compact(some_points))
    are_whole = all(block.dtype == np.int16 for block in blocks)
    points = Points(joined(blocks, np.int16 if are_whole else np.float32))
    kept_names = Names.of(names)
    return LandmarkTable(path, kept_names, points, digest_of(kept_names, points.in_blocks()))


def _kept(path: Path, cache: Path, progress: bool) -> LandmarkTable:
    """The table from the cache, where it is put first if need be."""
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    folder = cache / "tables" / f"{path.stem[:40]}-{key}"
    note = _fresh_note(folder, path)
    if note is None:
        with _one_at_a_time(folder):
            note = (
                _fresh_note(folder, path)  # which another process has just put there
                or _renewed_note(folder, path, progress)
                or _keep(folder, path, progress)
            )
    points = np.memmap(folder / "points", note["dtype"], "r", shape=tuple(note["shape"]))
    names = Names(np.memmap(folder / "names.txt", np.uint8, "r"))
    return LandmarkTable(path, names, Points(points), note["fingerprint"])


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps all but one process from making the folder; a killed one does not stand in the way."""
    import fcntl  # not on Windows

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stamp(path: Path) -> dict[str, int]:
    """What tells a changed file without reading it."""
    status = path.stat()
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,  # which no program can set back
    }


def _note(folder: Path) -> dict[str, Any] | None:
    """What a kept table says of itself; None if it is not there or not whole."""
    try:
        note = read_json(folder / "table.json")
        sizes = {name: (folder / name).stat().st_size for name in ("points", "names.txt")}
    except (OSError, ValueError):
        return None
    return note if note.get("format") == _FORMAT and note["sizes"] == sizes else None


def _fresh_note(folder: Path, path: Path) -> dict[str, Any] | None:
    """The kept table's note if it was read from the text as it is now, by its size and time."""
    note = _note(folder)
    return note if note and note["stamp"] == _stamp(path) else None


def _renewed_note(folder: Path, path: Path, progress: bool) -> dict[str, Any] | None:
    """The same if only the text's time is another; its bytes are compared."""
    note, stamp = _note(folder), _stamp(path)
    if note is None:
        return None
    if note["stamp"]["bytes"] == stamp["bytes"] and note["sha256"] == _sha256(path, progress):
        note["stamp"] = stamp
        write_json(folder / "table.json", note)
        return note
    logger.info(f"{path} has changed since it was kept and is read anew")
    return None


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, reading_bar(path, "Comparing", progress) as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _keep(folder: Path, path: Path, progress: bool) -> dict[str, Any]:
    """Reads the text into the folder; returns the note on it. For one process at a time."""
    for torn in folder.parent.iterdir():
        if torn == folder or torn.name.startswith(f".{folder.name}."):  # old, or left by a kill
            shutil.rmtree(torn)
    stamp, digest = _stamp(path), hashlib.sha256()
    if shutil.disk_usage(folder.parent).free < stamp["bytes"]:  # more than is needed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
    with folder_when_complete(folder) as temporary:
        points_file, names_file = temporary / "points", temporary / "names.txt"
        with points_file.open("w+b") as file:
            names, dtype, num_landmarks = _write_points(
                file, read_blocks(path, np.float32, progress=progress, watch=digest.update)
            )
        names.text.tofile(names_file)
        if _stamp(path) != stamp:
            raise ValueError(f"{path} was changed while it was read; start again")
        note = {
            "format": _FORMAT,
            "source": str(path.resolve()),
            "stamp": stamp,
            "sha256": digest.hexdigest(),
            "shape": (len(names), num_landmarks, 2),
            "dtype": np.dtype(dtype).name,
            "fingerprint": digest_of(names, _blocks_in(points_file, dtype, progress)),
            "sizes": {kept.name: kept.stat().st_size for kept in (points_file, names_file)},
        }
        for kept in (points_file, names_file):
            flush_to_disk(kept)
        write_json(temporary / "table.json", note)
    logger.info(f"{path}: kept in {folder} for later starts")
    return note


def _write_points(
    file: BinaryIO, blocks: Iterable[tuple[list[str], np.ndarray]]
) -> tuple[Names, type[np.generic], int]:
    """Writes the points of all blocks; returns the names, the points' type and number a row."""
    names: list[str] = []
    are_whole, num_landmarks = True, 0
    for some_names, some_points in blocks:
        names += some_names
        num_landmarks = some_points.shape[1]
        points = compact(some_points)
        if are_whole and points.dtype != np.int16:
            _widen(file)
            are_whole = False
        file.write((points if are_whole else as_numbers(points, np.float32)).data)
    return Names.of(names), np.int16 if are_whole else np.float32, num_landmarks


def _blocks_in(file: Path, dtype: type[np.generic], progress: bool) -> Iterator[np.ndarray]:
    """The numbers in a file of points, as float32; mapped, they would count as memory in use."""
    count = file.stat().st_size // np.dtype(dtype).itemsize
    begins = range(0, count, _AT_ONCE)
    with file.open("rb") as opened:
        for _ in tqdm(begins, "Hashing the landmarks", delay=1, disable=not progress):
            yield as_numbers(np.fromfile(opened, dtype, _AT_ONCE), np.float32)


def _widen(file: BinaryIO) -> None:
    """Makes the int16 that were written float32, from the last to the first, in their own place."""
    count = file.tell() // 2
    for begin in reversed(range(0, count, _AT_ONCE)):
        file.seek(2 * begin)
        stored = np.frombuffer(file.read(2 * min(_AT_ONCE, count - begin)), np.int16)
        file.seek(4 * begin)
        file.write(as_numbers(stored, np.float32).data)
    file.seek(4 * count)
