"""Small tables of pictures, beside that of their landmarks, read whole.

The points that a submission must hold, boxes, weights, and pictures to leave out. The names in them
follow the rules of `heatmap.data.contest.table`, and rows are counted as there.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
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
    header = [cell.strip() for cell in rows[0]] if rows else []
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

    The table has the columns file_name, x0, y0, x1, y1, as `_numbers_of_pictures` reads them.

    Raises:
        ValueError: anything else, or a picture without a box; the message names file and row, or
            the picture.
    """

    def check(box: np.ndarray, where: str) -> None:
        if not (box[:2] < box[2:]).all():
            raise ValueError(
                f"{where}: the box from ({box[0]:g}, {box[1]:g}) to ({box[2]:g}, {box[3]:g}) is "
                "empty; x0 must be below x1, and y0 below y1"
            )

    return _numbers_of_pictures(path, ["x0", "y0", "x1", "y1"], pictures, check)


def write_boxes(path: Path, names: Sequence[str], boxes_image: np.ndarray) -> None:
    """Writes a table for `read_boxes`: comma; file_name, x0, y0, x1, y1, to 6 decimals.

    Args:
        boxes_image: (N, 4) float64, as `read_boxes` gives them.
    """
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "x0", "y0", "x1", "y1"])
        for name, box in zip(names, boxes_image.round(6).tolist(), strict=True):
            table.writerow([name, *(f"{number:.12g}" for number in box)])


def read_weights(path: Path, pictures: Sequence[Path]) -> np.ndarray:
    """(N,) float64 weights of these N pictures, >= 0.

    The table has the columns file_name and weight, as `_numbers_of_pictures` reads them.

    Raises:
        ValueError: anything else, or a picture without a weight; the message names file and row, or
            the picture.
    """

    def check(weight: np.ndarray, where: str) -> None:
        if weight[0] < 0:
            raise ValueError(f"{where}, column weight: {weight[0]:g} is negative")

    return _numbers_of_pictures(path, ["weight"], pictures, check)[:, 0]


def write_weights(
    path: Path, names: Sequence[str], angles: np.ndarray, weights: np.ndarray
) -> None:
    """Writes a table for `read_weights`: comma; file_name, angle (empty where NaN), weight."""
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "angle", "weight"])
        for name, angle, weight in zip(names, angles, weights, strict=True):
            table.writerow([name, "" if math.isnan(angle) else f"{angle:.4f}", f"{weight:g}"])


def _numbers_of_pictures(
    path: Path,
    columns: Sequence[str],
    pictures: Sequence[Path],
    check: Callable[[np.ndarray, str], None],
) -> np.ndarray:
    """(N, K) float64 values of these K columns for N pictures.

    Columns are separated by comma or TAB; the first is file_name, others than these are not read.
    A file name holds as many of the picture's folders as tell it from others: "1.jpg" or
    "test/images/1.jpg".

    Args:
        check: raises ValueError for a row's values that cannot be; it is told where they stand.
    """
    rows = csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header[:1] not in ([name] for name in NAME_COLUMNS) or not set(columns) <= set(header):
        raise ValueError(
            f"{path}, row 1: expected the columns file_name, {', '.join(columns)}, found {header}"
        )
    rows_by_name: dict[str, int] = {}
    values: dict[str, np.ndarray] = {}
    for row, cells in enumerate(rows[1:], start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        add_name(rows_by_name, checked_name(cells[0], where), row, path)
        chosen = [cells[header.index(column)] for column in columns]
        values[cells[0].strip()] = numbers = _parse_all(chosen, columns, where)
        check(numbers, where)
    names = [_name_in(values, picture, path) for picture in pictures]
    owners: dict[str, Path] = {}
    for name, picture in zip(names, pictures, strict=True):
        if owners.setdefault(name, picture) != picture:
            raise ValueError(
                f"{path}, row {rows_by_name[name]}: {name} is the name of {owners[name]} and of "
                f"{picture}; write as much of their folders as tells them apart"
            )
    found = [values[name] for name in names]
    return np.array(found).reshape(-1, len(columns))


def _parse_all(cells: Sequence[str], columns: Sequence[str], where: str) -> np.ndarray:
    """The numbers of these cells, none of which may be empty."""
    numbers = np.empty(len(cells))
    for position, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        numbers[position] = parse_number(cell, f"{where}, column {column}")
    return numbers


def _name_in(values: dict[str, np.ndarray], picture: Path, path: Path) -> str:
    """The longest end of the picture's path that the table has."""
    for first in range(len(picture.parts)):
        name = "/".join(picture.parts[first:])
        if name in values:
            return name
    raise ValueError(f"{path}: there is no row for {picture}, and every picture needs one")


def read_excluded(path: Path, table: LandmarkTable) -> np.ndarray:
    """(E,) int64 rows of a training table whose pictures stand in a table of their own.

    That one has a column file_name; it is separated by comma or TAB, a picture may stand in it more
    than once, and its other columns mean nothing.

    Raises:
        ValueError: no such table or column, or a picture that the training table does not have; the
            message names file and row.
    """
    rows = csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    column = next((i for i, cell in enumerate(header) if cell in NAME_COLUMNS), None)
    if column is None:
        raise ValueError(f"{path}, row 1: expected a column file_name, found {header}")
    index_of = {name: index for index, name in enumerate(table.names)}
    excluded = set[int]()
    for row, cells in enumerate(rows[1:], start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        name = cells[column].strip()
        if name not in index_of:
            raise ValueError(f"{where}, column file_name: {name!r} is not in {table.path}")
        excluded.add(index_of[name])
    return np.array(sorted(excluded), np.int64)


def write_excluded(path: Path, reasons: Mapping[str, Sequence[str]]) -> None:
    """Writes a table for `read_excluded`: comma; file_name, reasons.

    Args:
        reasons: why each picture is left out, by file name.
    """
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "reasons"])
        table.writerows((name, "; ".join(why)) for name, why in reasons.items())


def csv_rows(path: Path) -> list[list[str]]:
    """The cells of a small table, without the blank rows at its end."""
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
    return rows


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
