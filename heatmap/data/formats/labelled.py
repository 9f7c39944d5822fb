"""What the readers share: the faces they find, checks that hold in every format, and text."""

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

from heatmap.data.contest.table import parse_cells
from heatmap.errors import UserError

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
Table = Path | zipfile.Path


@dataclass(frozen=True, kw_only=True)
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
    """At least one face; all have the same number of landmarks, and all or none have a box.

    Names are unique in each part, training and test. An image that shows several faces stands here
    several times. left_out: what was not taken over, in words, and how many of it.
    """

    faces: list[LabelledFace]
    left_out: Counter[str]

    def only(self, part: Literal["train", "test"]) -> "LabelledFaces":
        """The faces of one part, all of them to train on; UserError if there are none."""
        faces = [face for face in self.faces if face.is_test == (part == "test")]
        if not faces:
            raise UserError(f"there are no faces in the part {part}")
        return replace(self, faces=[replace(face, is_test=False) for face in faces])


def gather(
    source: Path, faces: Iterable[LabelledFace | str], *, several: bool = False
) -> LabelledFaces:
    """The faces that a reader finds, after checking what holds in every format.

    Args:
        source: what is read.
        faces: a text in the place of a face says what was left out.
        several: whether an image may show several faces. From the second on, they get names with a
            number, "a#2.jpg": the contest's table has one row a name, and a number after another
            "_" would tell another person (`contest.split_rows`).

    Raises:
        UserError: `source` is missing or an archive, there are no faces, an image is missing, a
            name comes twice, faces differ in the number of landmarks, or only some have a box.
    """
    if source.is_file() and source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise UserError(f"{source}: an archive; unpack it and name the folder")
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder")
    found: dict[tuple[bool, str], LabelledFace] = {}
    counts, left_out = Counter[tuple[bool, str]](), Counter[str]()
    first: LabelledFace | None = None
    for face in tqdm(faces, "Reading faces", unit="face", delay=1):
        if isinstance(face, str):
            left_out[face] += 1
            continue
        first = first or face
        if not face.path.is_file():
            raise UserError(f"{face.where}: there is no image {face.path}")
        if len(face.points_image) != len(first.points_image):
            number, expected = len(face.points_image), len(first.points_image)
            raise UserError(f"{face.where}: {number} landmarks, but {expected} in {first.where}")
        if (face.box_image is None) != (first.box_image is None):
            with_box, without = (first, face) if face.box_image is None else (face, first)
            raise UserError(f"{without.where}: there is no box, but {with_box.where} has one")
        if several:
            counts[face.is_test, face.name] += 1
            number, path = counts[face.is_test, face.name], PurePosixPath(face.name)
            if number > 1:
                name = path.with_name(f"{path.stem}#{number}{path.suffix}")
                face = replace(face, name=str(name))
        key = face.is_test, face.name
        if key in found:
            raise UserError(f"{face.where}: {face.name!r} is in {found[key].where} already")
        found[key] = face
    if first is None:
        raise UserError(f"{source}: no labelled face is in it")
    return LabelledFaces(list(found.values()), left_out)


def checked_box(x0: float, y0: float, x1: float, y1: float, where: str) -> np.ndarray:
    """(4,) float64 box of a face; UserError if it is empty."""
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty")
    return np.array([x0, y0, x1, y1])


def read_lines(path: Path) -> list[str]:
    """The lines of a file without spaces round them, and without blank ones at its end.

    Raises:
        UserError: the file is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason})") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def read_cells(table: Table) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table with commas, from the header on: where each stands, and its cells.

    Raises:
        UserError: a row has more or fewer cells than the header or is blank before others, the
            table is not text in UTF-8, or the archive that it is in is damaged.
    """
    row, width = 0, 0
    try:
        with table.open("rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for row, cells in enumerate(reader, start=1):
                if not cells and not any(reader):
                    break  # blank rows at the end
                where, width = f"{table}, row {row}", width or len(cells)
                if len(cells) != width:
                    raise UserError(
                        f"{where}: {len(cells)} cells where the header has {width}; is the row "
                        "blank, or the file cut short?"
                    )
                yield where, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}, near row {row + 1}: not a table in UTF-8: {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{table}: the archive is damaged or cut short ({error}); download it again"
        ) from error


def parse_points(cells: Sequence[str], where: str, first: int = 0) -> np.ndarray:
    """(P, 2) float64 from the cells x, y, x, y, ...; "nan", or nothing, twice is unlabelled.

    first: number of the first landmark, for messages.

    Raises:
        UserError: a cell is not a coordinate.
    """
    columns = [f"{'xy'[index % 2]} of landmark {first + index // 2}" for index in range(len(cells))]
    known = ["" if cell.lower() == "nan" else cell for cell in cells]
    return parse_cells(["", *known], ["", *columns], where).reshape(-1, 2)


def parse_rows(
    lines: Sequence[str], separator: str | None, path: Path, first_row: int
) -> np.ndarray:
    """(P, 2) float64 from lines with a landmark each; separator None stands for spaces.

    Raises:
        UserError: a line does not hold two coordinates.
    """
    points = []
    for landmark, line in enumerate(lines):
        where = f"{path}, row {first_row + landmark}"
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != 2:
            raise UserError(f"{where}: expected 'x{separator or ' '}y', found {line[:60]!r}")
        points.append(parse_points(cells, where, landmark))
    return np.concatenate(points)
