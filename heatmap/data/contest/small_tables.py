"""Small tables of images, beside that of their landmarks, read whole.

The points that a submission must hold, boxes, weights, and images to leave out. The names in them
follow the rules of `heatmap.data.contest.table`, and rows are counted as there.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.table import (
    NAME_COLUMNS,
    add_name,
    blank_row,
    check_name,
    parse_number,
    require_file,
    write_rows,
)
from heatmap.errors import UserError


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a small table, separated by comma or TAB: where each stands, and its cells.

    Args:
        columns: whose cells are given, in this order, without spaces round them. file_name may be
            called filename in the table.

    Raises:
        UserError: no such table, a column is missing, or a row has other cells than the header.
    """
    rows = csv_rows(path)
    header = ["file_name" if cell.strip() == "filename" else cell.strip() for cell in rows[0]]
    if not set(columns) <= set(header):
        wanted = ", ".join(columns)
        raise UserError(f"{path}, row 1: expected the columns {wanted}, found {header}")
    places = [header.index(column) for column in columns]
    for row, cells in enumerate(rows[1:], start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        yield where, [cells[place].strip() for place in places]


def csv_rows(path: Path) -> list[list[str]]:
    """The cells of a small table, without the blank rows at its end; its header may be empty."""
    require_file(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table in UTF-8: {error}") from error
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    return rows or [[]]


@dataclass(frozen=True)
class AskedPoints:
    """Which landmarks of which test images a submission holds."""

    path: Path
    names: list[str]  # file names, in the table's order
    indices: np.ndarray  # (N, K) int64, unsorted; an index may stand in a row more than once


def read_asked_points(path: Path, num_landmarks: int) -> AskedPoints:
    """The table of the points that a submission must hold: file_name, point_index_list.

    Separated by TAB or comma (then the list stands in quotes). The list is JSON: "[742, 385, 583]".

    Args:
        num_landmarks: the indices asked for lie below this.

    Raises:
        UserError: anything else; the message names file, row and column.
    """
    rows_by_name: dict[str, int] = {}
    rows, num_asked = asked_rows(path)
    lists = [
        parse_asked_row(cells, rows_by_name, num_landmarks, num_asked, path, row)
        for row, cells in enumerate(rows, start=2)
    ]
    return AskedPoints(path, list(rows_by_name), np.array(lists, np.int64))


def asked_rows(path: Path) -> tuple[list[list[str]], int]:
    """The cells of the rows of a table of asked points, and how many points most of them ask for.

    Raises:
        UserError: no such table, not the header of one, or no rows.
    """
    header, *rows = csv_rows(path)
    header = [cell.strip() for cell in header]
    if len(header) != 2 or header[0] not in NAME_COLUMNS or header[1] != "point_index_list":
        raise UserError(
            f"{path}, row 1: expected the columns file_name and point_index_list, separated by a "
            f"TAB or a comma, found {header}"
        )
    if not rows:
        raise UserError(f"{path}: the table has a header but no rows")
    counts = Counter(cells[1].count(",") + 1 for cells in rows if len(cells) == 2)
    return rows, counts.most_common(1)[0][0] if counts else 0


def parse_asked_row(
    cells: Sequence[str],
    rows_by_name: dict[str, int],
    num_landmarks: int,
    num_asked: int,
    path: Path,
    row: int,
) -> list[int]:
    """The landmarks that a row asks for, after its name was noted; what is wrong is named."""
    where = f"{path}, row {row}"
    if not cells:
        raise UserError(blank_row(path, row))
    if len(cells) != 2:
        raise UserError(
            f"{where}: {len(cells)} cells where the header has 2; in a comma-separated file the "
            "list of indices must stand in quotes"
        )
    add_name(rows_by_name, cells[0], row, path)
    where, text = f"{where}, column point_index_list", cells[1]
    try:
        indices = json.loads(text)
    except (ValueError, RecursionError):
        indices = None
    if not isinstance(indices, list) or not indices:
        raise UserError(f"{where}: expected a list such as [742, 385, 583], found {text[:60]!r}")
    for index in indices:
        if type(index) is not int:
            raise UserError(f"{where}: {index!r} is not an integer")
        if not 0 <= index < num_landmarks:
            raise UserError(
                f"{where}: index {index} is out of range; there are {num_landmarks} landmarks, 0 "
                f"to {num_landmarks - 1}"
            )
    if len(indices) != num_asked:
        raise UserError(
            f"{where}: {len(indices)} indices, but other rows have {num_asked}; a submission needs "
            "the same number for every image"
        )
    return indices


def write_asked_points(path: Path, names: Sequence[str], indices: np.ndarray) -> None:
    """Writes a table for `read_asked_points`, with TAB, from integers (N, K)."""
    for name in names:
        check_name(name, "\t")
    rows = zip(names, map(json.dumps, indices.tolist()), strict=True)
    write_rows(path, ["file_name", "point_index_list"], rows, delimiter="\t")


def read_boxes(path: Path, images: Sequence[Path]) -> np.ndarray:
    """(N, 4) float64 boxes of these N images: x0, y0, x1, y1, opposite corners in image pixels.

    The table has the columns file_name, x0, y0, x1, y1, and names as `_numbers_of` finds them.

    Raises:
        UserError: anything else, with file and row, or an image without a box.
    """

    def check(where: str, x0: float, y0: float, x1: float, y1: float) -> None:
        if x0 >= x1 or y0 >= y1:
            raise UserError(
                f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty; x0 must be "
                "below x1, and y0 below y1"
            )

    return _numbers_of(images, path, ["x0", "y0", "x1", "y1"], check)


def write_boxes(path: Path, names: Sequence[str], boxes_image: np.ndarray) -> None:
    """Writes a table for `read_boxes`, to 6 decimals, from what it gives."""
    boxes = zip(names, boxes_image.round(6).tolist(), strict=True)
    rows = ([name, *(f"{number:.12g}" for number in box)] for name, box in boxes)
    write_rows(path, ["file_name", "x0", "y0", "x1", "y1"], rows)


def read_weights(path: Path, images: Sequence[Path]) -> np.ndarray:
    """(N,) float64 weights of these N images, >= 0; columns file_name and weight.

    Raises: as `read_boxes`.
    """

    def check(where: str, weight: float) -> None:
        if weight < 0:
            raise UserError(f"{where}, column weight: {weight:g} is negative")

    return _numbers_of(images, path, ["weight"], check)[:, 0]


def write_weights(
    path: Path, names: Sequence[str], angles: np.ndarray, weights: np.ndarray
) -> None:
    """Writes a table for `read_weights`: file_name, angle (empty where NaN), weight."""
    rows = (
        [name, "" if math.isnan(angle) else f"{angle:.4f}", f"{weight:g}"]
        for name, angle, weight in zip(names, angles, weights, strict=True)
    )
    write_rows(path, ["file_name", "angle", "weight"], rows)


def _numbers_of(
    images: Sequence[Path], path: Path, columns: Sequence[str], check: Callable[..., None]
) -> np.ndarray:
    """(N, K) float64 numbers of N images, of K columns.

    A file name holds as many of the image's folders as tell it from others: "1.jpg" or
    "test/images/1.jpg". `check` is called with each row's place and numbers.
    """
    rows_by_name: dict[str, int] = {}
    values: dict[str, list[float]] = {}
    for row, (where, (name, *cells)) in enumerate(read_rows(path, ["file_name", *columns]), 2):
        add_name(rows_by_name, name, row, path)
        places = (f"{where}, column {column}" for column in columns)
        values[name] = list(map(parse_number, cells, places))
        check(where, *values[name])
    owners: dict[str, Path] = {}
    found = []
    for image in images:
        ends = ("/".join(image.parts[first:]) for first in range(len(image.parts)))
        name = next((end for end in ends if end in values), "")  # the longest
        if not name:
            raise UserError(f"{path}: there is no row for {image}, and every image needs one")
        if owners.setdefault(name, image) != image:
            raise UserError(
                f"{path}, row {rows_by_name[name]}: {name} is the name of {owners[name]} and of "
                f"{image}; write as much of their folders as tells them apart"
            )
        found.append(values[name])
    return np.array(found, np.float64).reshape(-1, len(columns))


def read_excluded(path: Path, table: LandmarkTable) -> np.ndarray:
    """(E,) int64 rows of a training table whose images stand, once or more, in this one.

    Raises:
        UserError: no such table, no column file_name, or an image that the training table does not
            have; the message names file and row.
    """
    index_of = {name: index for index, name in enumerate(table.names)}
    excluded = set[int]()
    for where, (name,) in read_rows(path, ["file_name"]):
        if name not in index_of:
            raise UserError(f"{where}, column file_name: {name!r} is not in {table.path}")
        excluded.add(index_of[name])
    return np.array(sorted(excluded), np.int64)


def write_excluded(path: Path, reasons: Mapping[str, Sequence[str]]) -> None:
    """Writes a table for `read_excluded`: each image's name, and why it is left out."""
    rows = ([name, "; ".join(why)] for name, why in reasons.items())
    write_rows(path, ["file_name", "reasons"], rows)
