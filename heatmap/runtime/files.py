"""Reads regular files only, and writes files and folders completely or not at all."""

import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from heatmap.errors import UserError, located
from heatmap.runtime.validate import parse_json

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

_BUFFER = 1 << 20  # bytes
_LONGEST_NAME = 255  # bytes, on most file systems
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link to itself",
}


def open_file(path: Path, what: str = "file") -> io.BufferedReader:
    """Opens a regular file for reading; a pipe could block for ever, and a device have no end.

    Args:
        what: what the file should be, for messages, such as "table".

    Raises:
        UserError: the file is missing, not a regular file or not readable.
    """
    if problem := problem_of(path):
        raise UserError(f"{path}: the {what} {problem}")
    try:
        return io.BufferedReader(path.open("rb", 0), _BUFFER)
    except OSError as error:
        raise UserError(f"{path}: the {what} cannot be read: {error.strerror}") from None


def problem_of(path: Path) -> str:
    """Returns why `open_file` would refuse a file, such as "does not exist"; else ""."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        target = f"is a link to {path.readlink()}, which " if path.is_symlink() else ""
        return f"{target}does not exist"
    except OSError as error:  # such as a link to itself, or a name that is too long
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "cannot be read: a NUL character is in its name"
    return "" if stat.S_ISREG(mode) else f"is {_KINDS[stat.S_IFMT(mode)]}, not a regular file"


def read_bytes(path: Path, what: str = "file") -> bytes:
    """Reads a whole file; arguments and errors as for `open_file`."""
    with open_file(path, what) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: the {what} cannot be read: {error.strerror}") from None


def read_text(path: Path, what: str = "file") -> str:
    """Reads a file's UTF-8 text, without a byte order mark; else as `read_bytes`."""
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None


def written_path(path: Path) -> Path:
    """Returns the file that is replaced when `path` is written: `path`, or the end of its links.

    Raises:
        UserError: something other than a regular file is there.
    """
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is {_KINDS[stat.S_IFMT(mode)]}; only a file can be replaced")
    return target


def fitting_name(start: str, stem: str, end: str) -> str:
    """Joins the parts of a file name, with as much of the stem as fits into 255 bytes."""
    while stem and len(os.fsencode(start + stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
    return start + stem + end


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` and renames it to `path` at the end of the block.

    A crash or power failure never leaves half a file, and an error leaves the old file. The
    temporary name has the same suffix. Missing folders are created, and links followed.

    Raises:
        UserError: something other than a regular file is there.
        OSError: the disk is full, read-only or gone; the error names `path`.
    """
    path = written_path(path)
    with _naming(path, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(fitting_name(f".{os.getpid()}-", path.stem, path.suffix))
    with _naming(path, temporary):
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()
        _flush_to_disk(path.parent)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Makes errors of writing `temporary` name `path` and say whether an earlier file is left."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch hides the error of its file behind a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        written = Path(str(cause.filename2 or cause.filename or path))
        if written != path and not written.is_relative_to(temporary):
            raise
        is_kept = os.access(path, os.F_OK)  # False if its disk is gone
        kept = f"; the earlier {path.name} is unchanged" if is_kept else ""
        reason = str(cause.strerror).removeprefix("cannot be written: ")  # of a file in a folder
        problem = f"cannot be written: {reason}{kept}"
        raise OSError(cause.errno, problem, str(path)) from None


@contextmanager
def folder_when_complete(out: Path) -> Iterator[Path]:
    """Yields a new folder next to `out` and renames it to `out` at the end, or removes it on error.

    Raises:
        UserError: `out` exists and is not an empty folder.
        OSError: the disk is full, read-only or gone; the error names `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another name or remove it")
    out = Path(os.path.realpath(out))  # the end of its links
    with _naming(out, out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(
            prefix=".new-", dir=out.parent, ignore_cleanup_errors=True
        )
    with temporary as parent:
        folder = Path(parent, out.name)
        with _naming(out, folder):
            folder.mkdir()
            yield folder
            folder.replace(out)


def _flush_to_disk(path: Path) -> None:
    """Syncs a file's bytes, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reading_bar(path: Path, action: str, shown: bool) -> tqdm:
    """Returns a progress bar over a file's bytes, for the reader to update; appears after 1 s."""
    return tqdm(
        desc=f"{action} {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=1,
        disable=not shown,
    )  # fmt: skip


def append_text(path: Path, text: str) -> None:
    """Appends to an existing file; a crash may leave half of the text.

    Raises:
        OSError: the file is missing, or the disk full, read-only or gone; the error names `path`.
    """
    with _naming(path, path), path.open("r+", encoding="utf-8") as file:
        file.seek(0, os.SEEK_END)
        file.write(text)


def write_text(path: Path, text: str) -> None:
    """Writes the text as UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_image(path: Path, image: "np.ndarray") -> None:
    """Writes (H, W, 3) uint8 RGB, atomically; the suffix (.jpg, .png) selects the format.

    Raises:
        UserError: the image is too large for the format, or as for `write_atomically`.
    """
    import cv2  # late, so that other commands start faster

    fits, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not fits:  # a JPEG has at most 65,500 pixels a side
        height, width = image.shape[:2]
        raise UserError(f"{path}: {width} x {height} pixels are too large for its format")
    with write_atomically(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes the values as indented JSON, atomically, with null for NaN and infinities."""
    write_text(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, kind: type[T]) -> T:
    """Reads a JSON file whose value is of the type `kind`, as for `validate.typed`.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds a value of another type.
    """
    text = read_text(path)
    with located(path):
        return parse_json(text, kind)


def finite(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by None, in nested containers too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
