"""The photographs: found and read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np


def read_image(path: Path) -> np.ndarray:
    """The picture as a person sees it: (H, W, 3) uint8, RGB, turned as its EXIF says.

    The format is told by the bytes, not by the name. Grey, palette and CMYK pictures become RGB,
    16 bits become 8, alpha is dropped, and an animation gives its first frame.

    Raises:
        ValueError: the file is missing, empty, cut short or not a picture.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: the picture cannot be read: {error.strerror}") from error
    if data.size == 0:
        raise ValueError(f"{path}: the picture is an empty file")
    try:
        # imdecode refuses a JPEG that is cut short; imread would fill the rest with grey.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError(f"{path}: the picture cannot be decoded: {error.err}") from error
    if image is None:
        beginning = data[:30].tobytes()
        if beginning.isascii() and beginning.decode().splitlines()[0].isprintable():
            raise ValueError(f"{path}: this is text, not a picture; it begins {beginning!r}")
        raise ValueError(
            f"{path}: the picture cannot be decoded; its {data.size} bytes are damaged, cut short "
            "or of no known format"
        )
    return image


def image_paths(
    images: Path, names: Sequence[str], table: Path, rows: Iterable[int] | None = None
) -> list[Path]:
    """The path of every named picture, each of which exists inside the folder.

    Args:
        images: folder of the pictures; it may itself be a link.
        names: one for each row of the table, in its order; may contain subfolders.
        table: where the names come from, for the message.
        rows: indices of the names whose pictures are needed; all if None.

    Raises:
        ValueError: the folder or a needed picture is missing, or a link leads out of the folder.
    """
    if not images.is_dir():
        raise ValueError(f"{images}: there is no such folder, but {table} names pictures in it")
    wrong = list(misplaced(images, names, rows))
    if wrong:
        index, problem = wrong[0]
        more = f"; {len(wrong) - 1} more pictures are missing or outside" if len(wrong) > 1 else ""
        # row 1 is the header
        raise ValueError(f"{table}, row {index + 2}, column file_name: {problem}{more}")
    return [images / name for name in names]


def misplaced(
    images: Path, names: Sequence[str], rows: Iterable[int] | None = None
) -> Iterator[tuple[int, str]]:
    """The indices of the pictures that are not in their folder, and what is wrong with each.

    Args:
        images, names, rows: as `image_paths` takes them; the folder exists.
    """
    root = images.resolve()
    plain_files: dict[str, set[str]] = {}
    needed = None if rows is None else frozenset(rows)
    for index, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in plain_files:
            plain_files[folder] = _plain_files(root, folder)
        if file in plain_files[folder] or (needed is not None and index not in needed):
            continue
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            yield index, f"{name!r} leads out of {images}, to {target}"
        elif not target.is_file():
            yield index, f"there is no picture {name!r} in {images}"


def _plain_files(root: Path, folder: str) -> set[str]:
    """Names in a folder that need no second look: files, not links, and inside the root."""
    inside = (root / folder).resolve()
    if not inside.is_relative_to(root) or not inside.is_dir():
        return set()
    with os.scandir(inside) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
