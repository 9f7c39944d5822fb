"""Image files: found and read."""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import cv2
import numpy as np

from heatmap.errors import UserError


class ImageFile:
    """An image's file, read; it is decoded when its pixels are asked for, once for every size.

    The format is told by the bytes, not by the name. Pixels are RGB as a person sees the image,
    turned as its EXIF says. Grey, palette and CMYK become RGB, 16 bits become 8, alpha is dropped,
    and an animation gives its first frame.

    Raises:
        UserError: the file is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: the image cannot be read: {error.strerror}") from error
        if not self.data:
            raise UserError(f"{path}: the image is an empty file")
        self._header_hw = _jpeg_hw(self.data)
        self._decoded: dict[int, np.ndarray] = {}

    @classmethod
    def in_memory(cls, image: np.ndarray) -> "ImageFile":
        """An image that is decoded already: (H, W, 3) uint8 RGB; anything else is a UserError."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UserError(
                "an image in memory is a (height, width, 3) uint8 array, RGB, not "
                f"{image.shape} {image.dtype}"
            )
        file = cls.__new__(cls)
        file.path, file.data = Path("an image in memory"), b""
        file._header_hw, file._decoded = None, {1: image}
        return file

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width; those of a JPEG are read from its header."""
        if self._header_hw:
            return self._header_hw
        height, width, _ = self.pixels(1)[0].shape
        return height, width

    def pixels(self, reduction: int) -> tuple[np.ndarray, int]:
        """The image at 1/reduction of its size, if it can be decoded so, and its reduction.

        A JPEG that EXIF does not turn can, at 1/2, 1/4 and 1/8: its blocks are decoded by a smaller
        inverse DCT. See `heatmap.frame.Frame.reduced`.

        Returns:
            (ceil(H / r), ceil(W / r), 3) uint8 RGB, and r: `reduction`, or 1.

        Raises:
            UserError: the file is cut short or not an image.
        """
        if self._header_hw is None:
            reduction = 1
        if reduction not in self._decoded:
            image = self._decode(reduction)
            if self._header_hw and image.shape[:2] != _ceil_div(self._header_hw, reduction):
                self._header_hw = None  # it misled: the size is that of the pixels
                return self.pixels(1)
            self._decoded[reduction] = image
        return self._decoded[reduction], reduction

    def _decode(self, reduction: int) -> np.ndarray:
        try:
            # imdecode refuses a JPEG that is cut short; imread would fill the rest with grey.
            flags = cv2.IMREAD_COLOR_RGB | _REDUCED[reduction]
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
        except cv2.error as error:
            raise UserError(f"{self.path}: the image cannot be decoded: {error.err}") from error
        if image is not None:
            return image
        start = self.data[:30]
        if start.isascii() and start.decode().splitlines()[0].isprintable():
            raise UserError(f"{self.path}: this is text, not an image; it begins {start!r}")
        raise UserError(
            f"{self.path}: the image cannot be decoded; its {len(self.data)} bytes are damaged, "
            "cut short or of no known format"
        )


# With a colour flag beside it, the one for grey asks for the size alone.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def read_image(path: Path) -> np.ndarray:
    """The whole image: (H, W, 3) uint8, RGB, as `ImageFile` describes it.

    Raises:
        UserError: the file is missing, empty, cut short or not an image.
    """
    image, _ = ImageFile(path).pixels(1)
    return image


def is_readable(path: Path) -> bool:
    """Whether `read_image` can read it."""
    try:
        read_image(path)
    except UserError:
        return False
    return True


def _ceil_div(size_hw: tuple[int, int], by: int) -> tuple[int, int]:
    return -(-size_hw[0] // by), -(-size_hw[1] // by)


def _jpeg_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width by the header of a JPEG (ITU-T T.81, B.2.2); None for all else.

    None, too, for a JPEG that EXIF turns: then these are not the sizes that a person sees.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame begins
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (height, width) if height and width else None
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" and _turns(data[at + 10 : end]):
            return None
        at = end
    return None


def _turns(tiff: bytes) -> bool:
    """Whether an EXIF block has an orientation other than upright (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    entries = range(first + 2, first + 2 + 12 * number(first, 2), 12)
    return any(number(at, 2) == 0x0112 and number(at + 8, 2) != 1 for at in entries)


def image_paths(
    images: Path, names: Sequence[str], table: Path, rows: Iterable[int] | None = None
) -> Sequence[Path]:
    """The path of every named image, each of which exists inside the folder.

    Args:
        images: folder of the images; it may itself be a link.
        names: one for each row of the table, in its order; may contain subfolders.
        table: where the names come from, for the message.
        rows: indices of the names whose images are needed; all if None.

    Raises:
        UserError: the folder or a needed image is missing, or a link leads out of the folder.
    """
    if not images.is_dir():
        raise UserError(f"{images}: there is no such folder, but {table} names images in it")
    wrong = list(misplaced(images, names, rows))
    if wrong:
        index, problem = wrong[0]
        more = f"; {len(wrong) - 1} more images are missing or outside" if len(wrong) > 1 else ""
        # row 1 is the header
        raise UserError(f"{table}, row {index + 2}, column file_name: {problem}{more}")
    return _Paths(images, names)


def misplaced(
    images: Path, names: Sequence[str], rows: Iterable[int] | None = None
) -> Iterator[tuple[int, str]]:
    """The indices of the images that are not in their folder, and what is wrong with each.

    Args: as `image_paths` takes them; the folder exists.
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
            yield index, f"there is no image {name!r} in {images}"


class _Paths(Sequence[Path]):
    """The names in a folder, each of which becomes a path when it is asked for."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> list[Path]: ...
    def __getitem__(self, row: int | slice) -> Path | list[Path]:
        if isinstance(row, slice):
            return [self._folder / name for name in self._names[row]]
        return self._folder / self._names[row]


def _plain_files(root: Path, folder: str) -> set[str]:
    """Names in a folder that need no second look: files, not links, and inside the root."""
    inside = (root / folder).resolve()
    if not inside.is_relative_to(root) or not inside.is_dir():
        return set()
    with os.scandir(inside) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
