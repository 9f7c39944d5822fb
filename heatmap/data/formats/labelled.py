"""Shared by the readers: labelled faces, checks for every format, and text parsing."""

import csv
import io
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Literal

import numpy as np
from tqdm import tqdm

from heatmap.data.contest.images import SUFFIXES
from heatmap.data.contest.table import bounded_lines, parse_cells
from heatmap.errors import UserError
from heatmap.runtime.files import open_file, problem_of, read_text

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
    num_replaced_boxes: int = 0  # faces without a usable box, which have that of their landmarks

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
        several: whether an image may have several faces, each with a box. From the second on, their
            names get a number ("a#2.jpg"), because a contest table has one row per name; not
            "a_2.jpg", which would name another person (`contest.split_rows`). A face without a
            usable box gets the bounding box of its landmarks, or is skipped if they span none.

    Raises:
        UserError: `source` is missing or an archive, there are no faces, an image is missing, a
            name repeats, or faces differ in the number of landmarks.
    """
    if source.is_file() and source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise UserError(f"{source} is an archive; unpack it and pass the folder")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    by_name: dict[tuple[bool, str], LabelledFace] = {}
    counts, left_out = Counter[tuple[bool, str]](), Counter[str]()
    first: LabelledFace | None = None
    num_replaced_boxes = 0
    for face in tqdm(faces, "Reading faces", unit="face", delay=1):
        if isinstance(face, str):
            left_out[face] += 1
            continue
        if several and face.box_image is None:
            face = replace(face, box_image=bounds(face.points_image))
            if face.box_image is None:
                left_out["faces without a box whose landmarks span none"] += 1
                continue
            num_replaced_boxes += 1
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
    return LabelledFaces(list(by_name.values()), left_out, num_replaced_boxes)


def _check_face(face: LabelledFace, first: LabelledFace) -> None:
    if problem := problem_of(face.path):
        raise UserError(f"{face.where}: the image {face.path} {problem}")
    if len(face.points_image) != len(first.points_image):
        number, expected = len(face.points_image), len(first.points_image)
        raise UserError(f"{face.where}: {number} landmarks, but {expected} in {first.where}")


def usable_box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray | None:
    """Returns the (4,) float64 box, or None if it is empty."""
    return np.array([x0, y0, x1, y1], np.float64) if x0 < x1 and y0 < y1 else None


def bounds(points: np.ndarray) -> np.ndarray | None:
    """Returns the (4,) bounding box of points (P, 2), NaN where unlabelled; None if it is empty."""
    labelled = points[np.isfinite(points[:, 0])]
    return usable_box(*labelled.min(0), *labelled.max(0)) if len(labelled) else None


def image_name(text: str) -> str:
    """Returns an image name with "/" between folders, where a label file may have "\\"."""
    return text.replace("\\", "/")


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Returns the files at any depth with one of these suffixes, in upper or lower case.

    Hidden files are left out, such as macOS's ._NAME.
    """
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if p.suffix.lower() in suffixes and not p.name.startswith(".")]


class Images:
    """The images in a folder and its subfolders."""

    def __init__(self, folder: Path) -> None:
        self._by_stem = defaultdict[str, list[Path]](list)
        for path in files_below(folder, SUFFIXES):
            self._by_stem[path.stem.lower()].append(path)

    def find(self, name: PurePath, where: str) -> Path | None:
        """Returns the image whose path ends with `name` and a suffix, or None.

        Of several, it is the one whose case matches, then the one in the fewest folders.

        Raises:
            UserError: several remain; the message begins with `where`.
        """
        ranked = []
        for path in self._by_stem.get(name.name.lower(), []):
            end = PurePath(*path.with_suffix("").parts[-len(name.parts) :])
            if str(end).lower() == str(name).lower():
                ranked.append((end != name, len(path.parts), path))
        ranked.sort()
        if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
            raise UserError(
                f"{where}: {str(name)!r} matches both {ranked[0][2]} and {ranked[1][2]}"
            )
        return ranked[0][2] if ranked else None


def read_lines(path: Path) -> list[str]:
    """Reads a file's stripped lines, without blank ones at its end; UserError if not UTF-8."""
    return [line.strip() for line in read_text(path).rstrip().splitlines()]


def open_binary(table: Table) -> IO[bytes]:
    """Opens a table, or another file, on its own or in a zip archive.

    Raises:
        UserError: the file is missing, or its archive encrypted or compressed unusually.
    """
    if isinstance(table, Path):
        return open_file(table, "table")
    info = table.root.getinfo(table.at)
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "needs a password" if info.flag_bits & 1 else "is not compressed with Deflate"
        raise UserError(f"{table}: the archive {problem}; unpack it with another program")
    return table.open("rb")


def read_cells(table: Table) -> Iterator[tuple[str, list[str]]]:
    """Yields file and row (for messages) and the cells of each row of a CSV table, header first.

    Raises:
        UserError: a row is blank or its length differs from the header's, the table is not UTF-8
            text, or its archive is damaged.
    """
    row, width = 0, 0
    try:
        with io.TextIOWrapper(open_binary(table), "utf-8-sig", newline="") as text:
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
