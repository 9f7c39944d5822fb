"""Small tables of pictures, beside that of their landmarks, read whole.

The points that a submission must hold, boxes, weights, and pictures to leave out. The names in them
follow the rules of `heatmap.data.contest.table`, and rows are counted as there.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.table import (
    NAME_COLUMNS,
    add_name,
    check_name,
    checked_name,
    parse_number,
    require_file,
)
from heatmap.runtime.files import write_atomically


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a small table, separated by comma or TAB: where each stands, and its cells.

    Args:
        columns: those whose cells are given, in this order, without spaces round them; others are
            not read. file_name may be called filename in the table.

    Raises:
        ValueError: no such table, a column is missing, or a row has other cells than the header.
    """
    rows = csv_rows(path)
    header = ["file_name" if cell.strip() == "filename" else cell.strip() for cell in rows[0]]
    if not set(columns) <= set(header):
        raise ValueError(
            f"{path}, row 1: expected the columns {', '.join(columns)}, found {header}"
        )
    places = [header.index(column) for column in columns]
    for row, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cells where the header has {len(header)}"
            )
        yield f"{path}, row {row}", [cells[place].strip() for place in places]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table that `read_rows` reads, separated by commas."""
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def csv_rows(path: Path) -> list[list[str]]:
    """The cells of a small table, without the blank rows at its end; its header may be empty."""
    require_file(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a table in UTF-8: {error}") from error
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    return rows or [[]]


@dataclass(frozen=True)
class AskedPoints:
    """Which landmarks of which test pictures a submission holds.

    names: file names, in the table's order.
    indices: (N, K) int64, unsorted; an index may stand in a row more than once.
    """

    path: Path
    names: list[str]
    indices: np.ndarray


def read_asked_points(path: Path, num_landmarks: int) -> AskedPoints:
    """The table of the points that a submission must hold: file_name, point_index_list.

    Separated by TAB or comma (then the list stands in quotes). The list is JSON and is only ever
    parsed: "[742, 385, 583]".

    Args:
        num_landmarks: the indices asked for lie below this.

    Raises:
        ValueError: anything else; the message names file, row and column.
    """
    rows_by_name: dict[str, int] = {}
    lists: list[list[int]] = []
    for row, cells in enumerate(asked_rows(path), start=2):
        num_asked = len(lists[0]) if lists else None
        lists.append(parse_asked_row(cells, rows_by_name, num_landmarks, num_asked, path, row))
    return AskedPoints(path=path, names=list(rows_by_name), indices=np.array(lists, np.int64))


def asked_rows(path: Path) -> list[list[str]]:
    """The cells of the rows below the header of a table of asked points.

    Raises:
        ValueError: no such table, not the header of one, or no rows.
    """
    rows = csv_rows(path)
    header = [cell.strip() for cell in rows[0]]
    if len(header) != 2 or header[0] not in NAME_COLUMNS or header[1] != "point_index_list":
        raise ValueError(
            f"{path}, row 1: expected the columns file_name and point_index_list, separated by a "
            f"TAB or a comma, found {header}"
        )
    if len(rows) == 1:
        raise ValueError(f"{path}: the table has a header but no rows")
    return rows[1:]


def parse_asked_row(
    cells: Sequence[str],
    rows_by_name: dict[str, int],
    num_landmarks: int,
    num_asked: int | None,
    path: Path,
    row: int,
) -> list[int]:
    """The landmarks that a row asks for, after its name was noted; what is wrong is named.

    Args:
        num_asked: landmarks that the rows above ask for; None if there are none.
    """
    where = f"{path}, row {row}"
    if not cells:
        raise ValueError(f"{where}: the row is blank, but others follow it")
    if len(cells) != 2:
        raise ValueError(
            f"{where}: {len(cells)} cells where the header has 2; in a comma-separated file the "
            "list of indices must stand in quotes"
        )
    add_name(rows_by_name, checked_name(cells[0], where), row, path)
    where = f"{where}, column point_index_list"
    indices = _parse_indices(cells[1], num_landmarks, where)
    if num_asked is not None and len(indices) != num_asked:
        raise ValueError(
            f"{where}: {len(indices)} indices, but other rows have {num_asked}; a submission needs "
            "the same number for every picture"
        )
    return indices


def write_asked_points(path: Path, names: Sequence[str], indices: np.ndarray) -> None:
    """Writes the table of the points asked for: TAB, lists as "[742, 385, 583]".

    Args:
        indices: (N, K) integers.
    """
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write("file_name\tpoint_index_list\n")
        for name, row in zip(names, indices.tolist(), strict=True):
            check_name(name, "\t")
            file.write(f"{name}\t{json.dumps(row)}\n")


def read_boxes(path: Path, pictures: Sequence[Path]) -> np.ndarray:
    """(N, 4) float64 boxes of these N pictures: x0, y0, x1, y1, opposite corners in image pixels.

    The table has the columns file_name, x0, y0, x1, y1, and names as `_of_pictures` finds them.

    Raises:
        ValueError: anything else, or a picture without a box; the message names file and row, or
            the picture.
    """
    boxes = _numbers_by_name(path, ["x0", "y0", "x1", "y1"])
    for (x0, y0, x1, y1), where in boxes.values():
        if x0 >= x1 or y0 >= y1:
            raise ValueError(
                f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty; x0 must be "
                "below x1, and y0 below y1"
            )
    return _of_pictures(path, boxes, pictures).reshape(-1, 4)


def write_boxes(path: Path, names: Sequence[str], boxes_image: np.ndarray) -> None:
    """Writes a table for `read_boxes`: comma; file_name, x0, y0, x1, y1, to 6 decimals.

    Args:
        boxes_image: (N, 4) float64, as `read_boxes` gives them.
    """
    boxes = zip(names, boxes_image.round(6).tolist(), strict=True)
    rows = ([name, *(f"{number:.12g}" for number in box)] for name, box in boxes)
    write_rows(path, ["file_name", "x0", "y0", "x1", "y1"], rows)


def read_weights(path: Path, pictures: Sequence[Path]) -> np.ndarray:
    """(N,) float64 weights of these N pictures, >= 0.

    The table has the columns file_name and weight, and names as `_of_pictures` finds them.

    Raises:
        ValueError: anything else, or a picture without a weight; the message names file and row, or
            the picture.
    """
    weights = _numbers_by_name(path, ["weight"])
    for (weight,), where in weights.values():
        if weight < 0:
            raise ValueError(f"{where}, column weight: {weight:g} is negative")
    return _of_pictures(path, weights, pictures).reshape(-1)


def write_weights(
    path: Path, names: Sequence[str], angles: np.ndarray, weights: np.ndarray
) -> None:
    """Writes a table for `read_weights`: comma; file_name, angle (empty where NaN), weight."""
    rows = (
        [name, "" if math.isnan(angle) else f"{angle:.4f}", f"{weight:g}"]
        for name, angle, weight in zip(names, angles, weights, strict=True)
    )
    write_rows(path, ["file_name", "angle", "weight"], rows)


def _numbers_by_name(path: Path, columns: Sequence[str]) -> dict[str, tuple[list[float], str]]:
    """The numbers in these columns by file name, and the row that they stand in."""
    rows_by_name: dict[str, int] = {}
    values: dict[str, tuple[list[float], str]] = {}
    for row, (where, (name, *cells)) in enumerate(read_rows(path, ["file_name", *columns]), 2):
        add_name(rows_by_name, checked_name(name, where), row, path)
        places = (f"{where}, column {column}" for column in columns)
        values[name] = list(map(parse_number, cells, places)), where
    return values


def _of_pictures(
    path: Path, values: Mapping[str, tuple[list[float], str]], pictures: Sequence[Path]
) -> np.ndarray:
    """(N, K) float64 numbers of N pictures.

    A file name holds as many of the picture's folders as tell it from others: "1.jpg" or
    "test/images/1.jpg".
    """
    owners: dict[str, Path] = {}
    found = []
    for picture in pictures:
        ends = ("/".join(picture.parts[first:]) for first in range(len(picture.parts)))
        name = next((end for end in ends if end in values), None)  # the longest
        if name is None:
            raise ValueError(f"{path}: there is no row for {picture}, and every picture needs one")
        numbers, where = values[name]
        if owners.setdefault(name, picture) != picture:
            raise ValueError(
                f"{where}: {name} is the name of {owners[name]} and of {picture}; write as much of "
                "their folders as tells them apart"
            )
        found.append(numbers)
    return np.array(found)


def read_excluded(path: Path, table: LandmarkTable) -> np.ndarray:
    """(E,) int64 rows of a training table whose pictures stand in a table of their own.

    That one has a column file_name; it is separated by comma or TAB, a picture may stand in it more
    than once, and its other columns mean nothing.

    Raises:
        ValueError: no such table or column, or a picture that the training table does not have; the
            message names file and row.
    """
    index_of = {name: index for index, name in enumerate(table.names)}
    excluded = set[int]()
    for where, (name,) in read_rows(path, ["file_name"]):
        if name not in index_of:
            raise ValueError(f"{where}, column file_name: {name!r} is not in {table.path}")
        excluded.add(index_of[name])
    return np.array(sorted(excluded), np.int64)


def write_excluded(path: Path, reasons: Mapping[str, Sequence[str]]) -> None:
    """Writes a table for `read_excluded`: comma; file_name, reasons.

    Args:
        reasons: why each picture is left out, by file name.
    """
    rows = ([name, "; ".join(why)] for name, why in reasons.items())
    write_rows(path, ["file_name", "reasons"], rows)


def _parse_indices(text: str, num_landmarks: int, where: str) -> list[int]:
    try:
        indices = json.loads(text)
    except (ValueError, RecursionError):
        indices = None
    if not isinstance(indices, list) or not indices:
        raise ValueError(f"{where}: expected a list such as [742, 385, 583], found {text[:60]!r}")
    for index in indices:
        if type(index) is not int:
            raise ValueError(f"{where}: {index!r} is not an integer")
        if not 0 <= index < num_landmarks:
            raise ValueError(
                f"{where}: index {index} is out of range; there are {num_landmarks} landmarks, 0 "
                f"to {num_landmarks - 1}"
            )
    return indices
