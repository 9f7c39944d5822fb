"""Writes files and folders completely or not at all."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from heatmap.errors import UserError, located
from heatmap.runtime.validate import parse_json

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` and renames it to `path` at the end of the block.

    A crash or power failure never leaves half a file, and an error leaves the old file. The
    temporary name has the same suffix. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush_to_disk(path.parent)


@contextmanager
def folder_when_complete(out: Path) -> Iterator[Path]:
    """Yields a new folder next to `out` and renames it to `out` at the end, or removes it on error.

    Raises:
        UserError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another name or remove it")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as parent:
        folder = Path(parent, out.name)
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


def write_text(path: Path, text: str) -> None:
    """Writes the text as UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_image(path: Path, image: "np.ndarray") -> None:
    """Writes (H, W, 3) uint8 RGB, atomically; the suffix (.jpg, .png) selects the format."""
    import cv2  # late, so that other commands start faster

    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
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
    text = read_bytes(path)
    with located(path):
        return parse_json(text, kind)


def read_bytes(path: Path) -> bytes:
    """Reads a whole file; raises UserError if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def finite(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by None, in nested containers too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
