"""Files and folders that are written whole or not at all."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from heatmap.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends without an error.

    Neither a kill nor a power cut leaves half a file. After an error the target is as it was. The
    temporary name ends like the target's; missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)


@contextmanager
def folder_when_complete(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its name at the end, or is removed on any failure.

    Raises:
        UserError: `out` is there already and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problem = "is there already and is not an empty folder"
        raise UserError(f"{out} {problem}; name another or remove it")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Waits until the file's bytes, or the folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reading_bar(path: Path, doing: str, shown: bool) -> tqdm:
    """A bar for the bytes of a file, to be updated by whoever reads it; it comes after a second."""
    return tqdm(
        desc=f"{doing} {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=1,
        disable=not shown,
    )  # fmt: skip


def write_image(path: Path, image: "np.ndarray") -> None:
    """Writes (H, W, 3) uint8 RGB in the format that the name's ending tells, such as .jpg."""
    import cv2  # here, since other commands start faster without it

    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with write_atomically(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes the values for people and programs to read, with null for NaN and infinities."""
    with write_atomically(path) as temporary:
        text = json.dumps(finite(values), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The values that `write_json` wrote.

    Raises:
        UserError: missing, or not such a file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable file of a run ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a file of a run (it holds no named values)")
    return values


def finite(value: Any) -> Any:
    """The same value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
