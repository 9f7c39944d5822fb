"""Shared by the readers: labelled faces, checks for every format, and text parsing."""

import csv
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from tqdm import tqdm

from heatmap.data.contest.table import bounded_lines, parse_cells
from heatmap.errors import UserError

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
Table = Path | zipfile.Path


@dataclass(frozen=True)
class LabelledFace:
    """One labelled face in an image."""

    where: str  # file and row, for messages
    name: str  # of the image, relative, with "/" between folders
    path: Path
    points_image: np.ndarray  # (P, 2) image pixels, NaN = unlabelled
    is_test: bool = False
    box_image: np.ndarray | None = None  # (4,) x0, y0, x1, y1 in image pixels


@dataclass(frozen=True)
class LabelledFaces:
    """One or more faces with the same number of landmarks; either all have a box or none."""

    faces: list[LabelledFace]  # names are unique within training and test; images may repeat
    left_out: Counter[str]  # how many entries were skipped, by reason

    def only(self, part: Literal["train", "test"]) -> "LabelledFaces":
        """Returns one part's faces as training faces; raises UserError if there are none."""
        faces = [face for face in self.faces if face.is_test == (part == "test")]
        if not faces:
            raise UserError(f"the {part} part has no faces")
        return replace(self, faces=[replace(face, is_test=False) for face in faces])


def gather(
    source: Path, faces: Iterable[LabelledFace | str], *, several: bool = False
) -> LabelledFaces:
    """Collects the faces that a reader yields and checks them.

    Args:
        source: the file or folder that the reader reads.
        faces: faces; a string instead of a face is the reason an entry is skipped.
        several: whether an image may have several faces. From the second on, their names get a
            number ("a#2.jpg"), because a contest table has one row per name; not "a_2.jpg", which
            would name another person (`contest.split_rows`).

    Raises:
        UserError: `source` is missing or an archive, there are no faces, an image is missing, a
            name repeats, faces differ in the number of landmarks, or only some have a box.
    """
    if source.is_file() and source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise UserError(f"{source} is an archive; unpack it and pass the folder")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    by_name: dict[tuple[bool, str], LabelledFace] = {}
    counts, left_out = Counter[tuple[bool, str]](), Counter[str]()
    first: LabelledFace | None = None
    for face in tqdm(faces, "Reading faces", unit="face", delay=1):
        if isinstance(face, str):
            left_out[face] += 1
            continue
        first = first or face
        _check_face(face, first)
        if several:
            counts[face.is_test, face.name] += 1
            number, path = counts[face.is_test, face.name], PurePosixPath(face.name)
            if number > 1:
                face = replace(face, name=str(path.with_stem(f"{path.stem}#{number}")))
        previous = by_name.setdefault((face.is_test, face.name), face)
        if previous is not face:
            raise UserError(f"{face.where}: {face.name!r} is already in {previous.where}")
    if first is None:
        raise UserError(f"{source}: found no labelled face")
    return LabelledFaces(list(by_name.values()), left_out)


def _check_face(face: LabelledFace, first: LabelledFace) -> None:
    if not face.path.is_file():
        raise UserError(f"{face.where}: no image {face.path}")
    if len(face.points_image) != len(first.points_image):
        number, expected = len(face.points_image), len(first.points_image)
        raise UserError(f"{face.where}: {number} landmarks, but {expected} in {first.where}")
    if (face.box_image is None) != (first.box_image is None):
        with_box, without = (first, face) if face.box_image is None else (face, first)
        raise UserError(f"{without.where}: no box, but {with_box.where} has one")


def checked_box(x0: float, y0: float, x1: float, y1: float, where: str) -> np.ndarray:
    """Returns the (4,) float64 box; raises UserError if it is empty."""
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty")
    return np.array([x0, y0, x1, y1])


def read_lines(path: Path) -> list[str]:
    """Reads a file's stripped lines, without blank ones at its end; UserError if not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def read_cells(table: Table) -> Iterator[tuple[str, list[str]]]:
    """Yields file and row (for messages) and the cells of each row of a CSV table, header first.

    Raises:
        UserError: a row is blank or its length differs from the header's, the table is not UTF-8
            text, or its archive is damaged.
    """
    row, width = 0, 0
    try:
        with table.open("rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as text:
            reader = csv.reader(bounded_lines(text, table), strict=True)
            for row, cells in enumerate(reader, start=1):
                if not cells and not any(reader):
                    break  # only blank rows follow
                where, width = f"{table}, row {row}", width or len(cells)
                if len(cells) != width:
                    raise UserError(
                        f"{where}: {len(cells)} cells, but {width} in the header; is the row "
                        "blank, or the file cut short?"
                    )
                yield where, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}, near row {row + 1}: not a UTF-8 table: {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{table}: the archive is damaged or cut short ({error}); download it again"
        ) from error


def parse_points(cells: Sequence[str], where: str, first: int = 0) -> np.ndarray:
    """Parses cells x, y, x, y, ... to (P, 2) float64; an empty or "nan" pair is unlabelled.

    `first` is the first landmark's index, for messages. Raises UserError for a bad cell.
    """
    columns = [f"{'xy'[index % 2]} of landmark {first + index // 2}" for index in range(len(cells))]
    cells = ["" if cell.lower() == "nan" else cell for cell in cells]
    return parse_cells(["", *cells], ["", *columns], where).reshape(-1, 2)


def parse_rows(
    lines: Sequence[str], separator: str | None, path: Path, first_row: int
) -> np.ndarray:
    """Parses lines "x y", one per landmark, to (P, 2) float64; separator None is whitespace.

    Raises UserError for a line that does not hold two coordinates.
    """
    points = []
    for landmark, line in enumerate(lines):
        where = f"{path}, row {first_row + landmark}"
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != 2:
            raise UserError(f"{where}: expected 'x{separator or ' '}y', found {line[:60]!r}")
        points.append(parse_points(cells, where, landmark))
    return np.concatenate(points)
