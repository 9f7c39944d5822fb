"""Small tables with one image per row: requested points, boxes, weights, images to exclude.

File names and row numbers follow `heatmap.data.contest.table`.
"""

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.table import (
    NAME_COLUMNS,
    RowError,
    add_name,
    blank_row,
    bounded_lines,
    check_name,
    parse_number,
    write_rows,
)
from heatmap.errors import UserError
from heatmap.runtime.files import open_file
from heatmap.runtime.validate import parse_json

logger = logging.getLogger("heatmap")


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the rows of a small table, separated by comma or TAB: "FILE, row N", and its cells.

    Args:
        columns: columns to read, in this order. The table may call file_name filename.

    Raises:
        UserError: the table or a column is missing, a column is repeated, or a row and the header
            differ in length.
    """
    rows = csv_rows(path)
    header = ["file_name" if cell.strip() == "filename" else cell.strip() for cell in rows[0]]
    if any(header.count(column) != 1 for column in columns):
        raise UserError(
            f"{path}, row 1: expected the columns {', '.join(columns)}, once each, found "
            f"{','.join(header)!r}"
        )
    for row, cells in enumerate(rows[1:], start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        yield where, [cells[header.index(column)].strip() for column in columns]


def csv_rows(path: Path) -> list[list[str]]:
    """Reads a small table's cells, at least one row, without blank rows at the end."""
    with io.TextIOWrapper(open_file(path, "table"), "utf-8-sig", newline="") as file:
        try:
            lines = list(bounded_lines(file, path))
            delimiter = "\t" if "\t" in "".join(lines[:1]) else ","
            rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table in UTF-8: {error}") from error
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    return rows or [[]]


@dataclass(frozen=True)
class AskedPoints:
    """The landmarks that a submission holds for each test image."""

    path: Path
    names: list[str]  # file names, in the table's order
    indices: np.ndarray  # (N, K) int64, in any order, possibly repeated


def read_asked_points(path: Path, num_landmarks: int) -> AskedPoints:
    """Reads the landmarks that a submission must hold: file_name, point_index_list.

    The list is JSON: "[742, 385, 583]". In a comma-separated table it must be in quotes.

    Args:
        num_landmarks: every index must be below this.

    Raises:
        UserError: the table is malformed; the message names file, row and column.
    """
    names, lists = list[str](), list[list[int]]()
    for _, name, indices in parse_asked_points(path, num_landmarks):
        if isinstance(indices, RowError):
            raise indices
        names.append(name)
        lists.append(indices)
    return AskedPoints(path, names, np.array(lists, np.int64))


def parse_asked_points(
    path: Path, num_landmarks: int
) -> Iterator[tuple[int, str, list[int] | RowError]]:
    """Yields each row's number, its name, "" if unusable, and its landmarks or its error."""
    header, *rows = csv_rows(path)
    header = [cell.strip() for cell in header]
    if len(header) != 2 or header[0] not in NAME_COLUMNS or header[1] != "point_index_list":
        raise UserError(
            f"{path}, row 1: expected the columns file_name and point_index_list, separated by a "
            f"TAB or a comma, found {','.join(header)!r}"
        )
    if not rows:
        raise UserError(f"{path}: the table has a header but no rows")
    counts = Counter(cells[1].count(",") + 1 for cells in rows if len(cells) == 2)
    (num_asked, _), *_ = counts.most_common(1) or [(0, 0)]
    rows_by_name: dict[str, int] = {}
    for row, cells in enumerate(rows, start=2):
        name, where = "", f"{path}, row {row}"
        try:
            if not cells:
                raise blank_row(path, row)
            if len(cells) != 2:
                raise RowError(
                    f"{where}: {len(cells)} cells where the header has 2; in a comma-separated "
                    "table the list of indices must be in quotes",
                    "asked points",
                )
            name = add_name(rows_by_name, cells[0], row, path)
            where = f"{where}, column point_index_list"
            indices = _parse_indices(cells[1], num_landmarks, num_asked, where)
        except RowError as error:
            yield row, name, error
        else:
            yield row, name, indices


def _parse_indices(text: str, num_landmarks: int, num_asked: int, where: str) -> list[int]:
    problem, reason, indices = "", "", list[int]()
    try:
        indices = parse_json(text, list[int])
    except UserError as error:
        reason = f" ({error})"
    if not indices:
        problem = f"expected integers such as [742, 385, 583], found {text!r}{reason}"
    elif wrong := [index for index in indices if not 0 <= index < num_landmarks]:
        numbers = f"there are {num_landmarks} landmarks, 0 to {num_landmarks - 1}"
        problem = f"index {wrong[0]} is out of range; {numbers}"
    elif len(indices) != num_asked:
        problem = f"{len(indices)} indices, but other rows have {num_asked}; all must agree"
    if problem:
        raise RowError(f"{where}: {problem}", "asked points")
    return indices


def write_asked_points(path: Path, names: Sequence[str], indices: np.ndarray) -> None:
    """Writes (N, K) landmark indices for `read_asked_points`, separated by TAB."""
    for name in names:
        check_name(name, "\t")
    rows = zip(names, map(json.dumps, indices.tolist()), strict=True)
    write_rows(path, ["file_name", "point_index_list"], rows, delimiter="\t")


def read_boxes(path: Path, images: Sequence[Path]) -> np.ndarray:
    """Reads (N, 4) float64 boxes of N images: x0, y0, x1, y1, opposite corners in image pixels.

    The columns are file_name, x0, y0, x1, y1. A name includes as many of the image's folders as it
    takes to be unique: "1.jpg" or "test/images/1.jpg".

    Raises:
        UserError: the table is malformed or lacks an image; the message names file and row.
    """

    def check(where: str, x0: float, y0: float, x1: float, y1: float) -> None:
        if x0 >= x1 or y0 >= y1:
            raise UserError(
                f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty; x0 must be "
                "below x1, and y0 below y1"
            )

    return _numbers_of(images, path, ["x0", "y0", "x1", "y1"], check)


def write_boxes(path: Path, names: Sequence[str], boxes_image: np.ndarray) -> None:
    """Writes (N, 4) boxes for `read_boxes`, to 6 decimals."""
    boxes = zip(names, boxes_image.round(6).tolist(), strict=True)
    rows = ([name, *(f"{number:.12g}" for number in box)] for name, box in boxes)
    write_rows(path, ["file_name", "x0", "y0", "x1", "y1"], rows)


def read_weights(path: Path, images: Sequence[Path]) -> np.ndarray:
    """Reads (N,) float64 weights >= 0 of N images: file_name, weight; names as in `read_boxes`.

    Raises:
        UserError: the table is malformed or lacks an image; the message names file and row.
    """

    def check(where: str, weight: float) -> None:
        if weight < 0:
            raise UserError(f"{where}, column weight: {weight:g} is negative")

    return _numbers_of(images, path, ["weight"], check)[:, 0]


def write_weights(
    path: Path, names: Sequence[str], angles: np.ndarray, weights: np.ndarray
) -> None:
    """Writes (N,) angles and weights for `read_weights`; a NaN angle becomes an empty cell."""
    rows = (
        [name, "" if math.isnan(angle) else f"{angle:.4f}", f"{weight:g}"]
        for name, angle, weight in zip(names, angles, weights, strict=True)
    )
    columns = ["file_name", "angle", "weight"]
    write_rows(path, columns, rows, replaces=[columns])


def _numbers_of(
    images: Sequence[Path], path: Path, columns: Sequence[str], check: Callable[..., None]
) -> np.ndarray:
    """(N, K) float64 from K columns for N images; `check` gets each row's place and numbers."""
    rows_by_name: dict[str, int] = {}
    values: dict[str, list[float]] = {}
    for row, (where, (name, *cells)) in enumerate(read_rows(path, ["file_name", *columns]), 2):
        add_name(rows_by_name, name, row, path)
        places = (f"{where}, column {column}" for column in columns)
        values[name] = list(map(parse_number, cells, places))
        check(where, *values[name])
    images_by_name, numbers = dict[str, Path](), list[list[float]]()
    for image in images:
        ends = ("/".join(image.parts[first:]) for first in range(len(image.parts)))
        name = next((end for end in ends if end in values), "")  # the longest
        if not name:
            raise UserError(f"{path}: no row for {image}, but every image needs one")
        if images_by_name.setdefault(name, image) != image:
            raise UserError(
                f"{path}, row {rows_by_name[name]}: {name} matches both {images_by_name[name]} "
                f"and {image}; add the folders that distinguish them"
            )
        numbers.append(values[name])
    return np.array(numbers, np.float64).reshape(-1, len(columns))


def read_excluded(path: Path, table: LandmarkTable) -> np.ndarray:
    """Reads which rows of a training table to leave out: (E,) int64, from the column file_name.

    Without a header, the first column has the names. Names that are not in the training table are
    logged.

    Raises:
        UserError: the table or column is missing, or none of the names is in the training table.
    """
    rows = csv_rows(path)
    if Path("".join(rows[0][:1])).suffix and not {*NAME_COLUMNS} & {*rows[0]}:
        names = {
            cells[0].strip(): f"{path}, row {row}" for row, cells in enumerate(rows, 1) if cells
        }
    else:
        names = {name: where for where, (name,) in read_rows(path, ["file_name"])}
    index_of = {name: index for index, name in enumerate(table.names)}
    if unknown := [name for name in names if name not in index_of]:
        others = f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else ""
        problem = f"{names[unknown[0]]}: {unknown[0]!r} is not in {table.path}{others}"
        if len(unknown) == len(names):
            raise UserError(f"{problem}; none of the names is: is the list for other data?")
        logger.warning(problem)
    return np.array(sorted(index_of[name] for name in names if name in index_of), np.int64)


def write_excluded(path: Path, reasons: Mapping[str, Sequence[str]]) -> None:
    """Writes a table for `read_excluded`: each image's name, and why it is left out."""
    rows = ([name, "; ".join(why)] for name, why in reasons.items())
    columns = ["file_name", "reasons"]
    write_rows(path, columns, rows, replaces=[columns])
