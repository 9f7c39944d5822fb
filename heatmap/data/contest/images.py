"""Finds and reads image files."""

import io
import logging
import mmap
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from heatmap.errors import UserError
from heatmap.runtime.files import problem_of, read_bytes

SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp",
}  # fmt: skip
UNREADABLE = {".exr", ".hdr", ".heic", ".heif", ".jxl", ".pic"}  # suffixes of other images
_HEIC = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"  # ISO 23008-12

logger = logging.getLogger("heatmap")

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[2356]" + 2 * (_GAP + rb"\d+") + _GAP + rb"(\d+)\s")  # its largest value
_PIXELS_PER_BYTE = 512  # of a JPEG, at most: every 8 x 8 pixels have at least one Huffman code
_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # set in heatmap/__init__.py
_TOO_LARGE = f"it has more pixels than the environment variable {_LIMIT} allows"
_LOGGED = mmap.mmap(-1, 4096)  # whether notes were logged, shared with forked workers


class ImageFile:
    """An image file's bytes, decoded on demand and once per size.

    The format is detected from the bytes. Pixels are RGB, rotated by the EXIF orientation. Grey,
    palette and CMYK images become RGB, alpha is dropped, and only the first frame of an animation
    is read. 16 bits become the upper 8 of those that the file uses (8, 10, 12, 14 or 16).

    Attributes:
        note: how the decoded pixels differ from the file's; empty for most images.

    Raises:
        UserError: the file is missing, empty or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path, "image")
        if not self.data:
            raise UserError(f"{path}: the image is an empty file")
        self._header_hw = _jpeg_hw(self.data)
        self._decoded: dict[int, np.ndarray] = {}
        self.note = ""

    @classmethod
    def in_memory(cls, image: np.ndarray) -> "ImageFile":
        """Wraps a decoded image, (H, W, 3) uint8 RGB; anything else raises a UserError."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UserError(
                "an image in memory must be a (height, width, 3) uint8 RGB array, got "
                f"{image.shape} {image.dtype}"
            )
        file = cls.__new__(cls)
        file.path, file.data = Path("an image in memory"), b""
        file._header_hw, file._decoded, file.note = None, {1: image}, ""
        return file

    @property
    def is_animated(self) -> bool:
        """Whether the file holds several frames, as animated GIF, WebP, PNG and AVIF do."""
        from PIL import Image  # late, since JPEGs do not need it

        try:
            with warnings.catch_warnings(action="ignore"):  # of many pixels
                return getattr(Image.open(io.BytesIO(self.data)), "is_animated", False)
        except Exception:  # Pillow raises many kinds for damaged files
            return False

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width, read from the header of a JPEG unless EXIF rotates it."""
        if self._header_hw:
            return self._header_hw
        height, width, _ = self.pixels(1)[0].shape
        return height, width

    def pixels(self, reduction: int) -> tuple[np.ndarray, int]:
        """Returns the image at 1/reduction of its size, if it can be decoded at that size.

        JPEGs without EXIF rotation can, at 1/2, 1/4 and 1/8, with a smaller inverse DCT of their
        blocks. See `heatmap.frame.Frame.reduced` for the coordinates.

        Returns:
            (ceil(H / r), ceil(W / r), 3) uint8 RGB, and r: `reduction`, or 1.

        Raises:
            UserError: the file is truncated or not an image, it has more pixels than
                OPENCV_IO_MAX_IMAGE_PIXELS allows or its bytes can hold, or they are not unsigned
                integers of 8 or 16 bits.
        """
        if self._header_hw is None:
            reduction = 1
        if reduction not in self._decoded:
            image = self._decode(reduction)
            expected = tuple(-(-size // reduction) for size in self._header_hw or ())
            if expected and image.shape[:2] != expected:
                self._header_hw = None  # the header gave a wrong size
                return self.pixels(1)
            self._decoded[reduction] = image
        return self._decoded[reduction], reduction

    def _decode(self, reduction: int) -> np.ndarray:
        is_jpeg = self.data[:2] == b"\xff\xd8"
        if self._header_hw:  # before memory is allocated
            self._check_size(*self._header_hw, is_jpeg)
        # 16-bit TIFF has wrong values with the RGB flag (OpenCV 5.0)
        flags = cv2.IMREAD_COLOR_RGB if is_jpeg else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        if reduction > 1:  # combined with a colour flag, this sets only the size
            flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduction}")
        try:  # imdecode refuses a truncated JPEG; imread would pad it with grey
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
        except cv2.error as error:
            problem = _TOO_LARGE if "MAX_IMAGE_PIXELS" in error.err else error.err
            raise UserError(f"{self.path}: the image cannot be decoded: {problem}") from error
        if image is not None:
            height, width = image.shape[:2]
            self._check_size(reduction * height, reduction * width, is_jpeg)
            return image if is_jpeg else self._rgb8(image)
        start = self.data[:30]
        if start.isascii() and start.decode().splitlines()[0].isprintable():
            raise UserError(f"{self.path}: this is text, not an image; it begins with {start!r}")
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
            raise UserError(
                f"{self.path}: this is a HEIC image, as phones take them, which cannot be read; "
                "convert it to JPEG, for example with heif-convert or sips"
            )
        raise UserError(
            f"{self.path}: the image cannot be decoded; its {len(self.data)} bytes are damaged, "
            "truncated or of an unknown format"
        )

    def _check_size(self, height: int, width: int, is_jpeg: bool) -> None:
        """Checks the full size: OpenCV checks the reduced one, and fills up what a JPEG lacks."""
        problem, limit = "", os.environ.get(_LIMIT, "")
        if is_jpeg and height * width > _PIXELS_PER_BYTE * len(self.data):
            problem = f"{len(self.data)} bytes cannot hold the {width} x {height} pixels it claims"
        elif limit.isdecimal() and height * width > int(limit):
            problem = _TOO_LARGE
        if problem:
            raise UserError(f"{self.path}: the image cannot be decoded: {problem}")

    def _rgb8(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a decoded grey or BGR image."""
        if image.dtype not in (np.uint8, np.uint16):
            raise UserError(
                f"{self.path}: its pixels are {image.dtype}; convert it to unsigned integers of 8 "
                "or 16 bits"
            )
        if (match := _PNM.match(self.data)) and int(match[1]) < 255:  # OpenCV does not scale them
            raise UserError(
                f"{self.path}: its largest value is {int(match[1])}, not 255; convert it to PNG"
            )
        if image.dtype == np.uint16:
            highest = int(image.max())
            bits = next(bits for bits in (8, 10, 12, 14, 16) if highest < 1 << bits)
            image = (image >> (bits - 8)).astype(np.uint8)
            if bits < 16:
                self.note = f"the {bits}-bit values of a 16-bit file are stretched to its range"
        if self.is_animated:
            self.note = "only the first frame of an animation is used"
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)

    def log_note(self) -> None:
        """Logs `note` unless an image with the same one was logged before."""
        place = zlib.crc32(self.note.encode()) % len(_LOGGED)
        if self.note and not _LOGGED[place]:
            _LOGGED[place] = 1
            logger.warning(f"{self.path}: {self.note} (logged once)")


def read_image(path: Path) -> np.ndarray:
    """Reads the whole image, (H, W, 3) uint8 RGB, as `ImageFile` describes.

    Raises:
        UserError: the file is missing, empty, truncated or not an image.
    """
    return ImageFile(path).pixels(1)[0]


def is_readable(path: Path) -> bool:
    """Whether `read_image` can read the file."""
    try:
        read_image(path)
    except UserError:
        return False
    return True


def _jpeg_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width from a JPEG's header (ITU-T T.81, B.2.2).

    None for other formats, and for a JPEG that EXIF rotates: its header may have the sides swapped.
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
        segment = data[at + 4 : end]
        if marker == 0xE1 and segment[:6] == b"Exif\0\0" and _is_rotated(segment[6:]):
            return None
        at = end
    return None


def _is_rotated(tiff: bytes) -> bool:
    """Whether an EXIF block gives an orientation other than upright (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    entries = range(first + 2, first + 2 + 12 * number(first, 2), 12)
    return any(number(at, 2) == 0x0112 and number(at + 8, 2) != 1 for at in entries)


def image_paths(
    images: Path, names: Sequence[str], table: Path, rows: Iterable[int] | None = None
) -> Sequence[Path]:
    """Returns the path of every named image, after checking that it exists inside the folder.

    Args:
        images: folder of the images; may itself be a link.
        names: one for each row of the table, in order; may contain subfolders.
        table: file the names come from, for messages.
        rows: indices of the names to check; all if None.

    Raises:
        UserError: the folder or an image is missing, or a link leads out of the folder.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder, but {table} names images in it")
    wrong = list(misplaced(images, names, rows))
    if wrong:
        index, problem = wrong[0]
        more = f"; {len(wrong) - 1} more missing or outside" if len(wrong) > 1 else ""
        # row 1 is the header
        raise UserError(f"{table}, row {index + 2}, column file_name: {problem}{more}")
    return _Paths(images, names)


def misplaced(
    images: Path, names: Sequence[str], rows: Iterable[int] | None = None
) -> Iterator[tuple[int, str]]:
    """Yields the index of each image missing from the folder or outside it, and what is wrong.

    Takes the arguments of `image_paths`.
    """
    root = os.path.realpath(images)
    files_in: dict[str, set[str]] = {}
    checked = None if rows is None else frozenset(rows)
    for index, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in files_in:
            files_in[folder] = _plain_files(root, folder)
        if file in files_in[folder] or (checked is not None and index not in checked):
            continue
        path = Path(root, name)
        if problem := problem_of(path):
            yield index, f"the image {name!r} in {images} {problem}"
        elif not (target := Path(os.path.realpath(path))).is_relative_to(root):
            yield index, f"{name!r} leads out of {images}, to {target}"


def _plain_files(root: str, folder: str) -> set[str]:
    """Names of the files in a folder inside the root; links must be checked one by one."""
    try:
        inside = Path(os.path.realpath(Path(root, folder)))
        if not inside.is_relative_to(root):
            return set()
        with os.scandir(inside) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except (OSError, ValueError):  # no such folder; `problem_of` says why for each image
        return set()


class _Paths(Sequence[Path]):
    """Paths built on access, so that no Python object is kept per row."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self._folder / name for name in self._names[row]]
        return self._folder / self._names[row]
