"""The photographs: found and read."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height change places


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


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture as a person sees it, from the beginning of its file.

    Raises:
        ValueError: the file is missing or not a picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            lies = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except OSError as error:
        raise ValueError(f"{path}: the size of the picture cannot be read: {error}") from error
    return (width, height) if lies else (height, width)


def image_paths(images: Path, names: Sequence[str], table: Path) -> list[Path]:
    """The path of every named picture, each of which exists inside the folder.

    Args:
        images: folder of the pictures; it may itself be a link.
        names: one for each row of the table, in its order; may contain subfolders.
        table: where the names come from, for the message.

    Raises:
        ValueError: the folder or a picture is missing, or a link leads out of the folder.
    """
    if not images.is_dir():
        raise ValueError(f"{images}: there is no such folder, but {table} names pictures in it")
    root = images.resolve()
    plain_files: dict[str, set[str]] = {}
    missing = []
    for row, name in enumerate(names, start=2):  # row 1 is the header
        folder, _, file = name.rpartition("/")
        if folder not in plain_files:
            plain_files[folder] = _plain_files(root, folder)
        if file in plain_files[folder]:
            continue
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(
                f"{table}, row {row}, column file_name: {name!r} leads out of {images}, to {target}"
            )
        if not target.is_file():
            missing.append((row, name))
    if missing:
        row, name = missing[0]
        more = f"; {len(missing) - 1} more pictures are missing" if len(missing) > 1 else ""
        raise ValueError(
            f"{table}, row {row}, column file_name: there is no picture {name!r} in {images}{more}"
        )
    return [images / name for name in names]


def _plain_files(root: Path, folder: str) -> set[str]:
    """Names in a folder that need no second look: files, not links, and inside the root."""
    inside = (root / folder).resolve()
    if not inside.is_relative_to(root) or not inside.is_dir():
        return set()
    with os.scandir(inside) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
