"""The contest's tables, read strictly and written whole.

Rows are counted as an editor shows them: the header is row 1, so the picture with index i stands
in row i + 2. Blank rows are an error except at the end of a file, which keeps that true.
"""

import csv
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from heatmap.contest.digits import parse_rows
from heatmap.contest.landmarks import LandmarkTable, joined
from heatmap.files import reading_bar, write_atomically

T = TypeVar("T")

_BLOCK = 1 << 18  # bytes of text parsed at once; what is made of them stays in a core's cache
_THREADS = min(4, os.cpu_count() or 1)  # more would wait for the one that reads
DELIMITERS, PREFIXES = "\t,", ("Point_", "Point_M")  # of a landmark table
_FARTHEST = 1e6  # pixels from the origin; no picture is so large
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NAME_COLUMNS = ("file_name", "filename")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class AskedPoints:
    """Which landmarks of which test pictures a submission holds.

    names: file names, in the table's order.
    indices: (N, K) int64, unsorted; an index may stand in a row more than once.
    """

    path: Path
    names: list[str]
    indices: np.ndarray


def count_landmarks(path: Path) -> int:
    """The number of landmarks that the header of a table names.

    Raises:
        ValueError: no such table, or not the header of one.
    """
    require_file(path)
    with path.open("rb") as file:
        _, columns = read_header(path, file.readline(), DELIMITERS, PREFIXES)
    return (len(columns) - 1) // 2


def write_landmarks(path: Path, names: Sequence[str], points_image: np.ndarray) -> None:
    """Writes a training table: TAB, integers if all values are integral, empty cells for NaN.

    Args:
        points_image: (N, P, 2); decimals are written to 6 places.
    """
    with write_atomically(path) as temporary:
        write_points(temporary, names, points_image, delimiter="\t", prefix="Point_", decimals=6)


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
    rows = _csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    if len(header) != 2 or header[0] not in _NAME_COLUMNS or header[1] != "point_index_list":
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
    rows = _csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header[:1] not in ([name] for name in _NAME_COLUMNS) or not set(columns) <= set(header):
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
    found = [_of_picture(picture, values, path) for picture in pictures]
    return np.array(found).reshape(-1, len(columns))


def _parse_all(cells: Sequence[str], columns: Sequence[str], where: str) -> np.ndarray:
    """The numbers of these cells, none of which may be empty."""
    numbers = np.empty(len(cells))
    for position, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        numbers[position] = parse_number(cell, f"{where}, column {column}")
    return numbers


def _of_picture(picture: Path, values: dict[str, np.ndarray], path: Path) -> np.ndarray:
    for first in range(len(picture.parts)):
        name = "/".join(picture.parts[first:])
        if name in values:
            return values[name]
    raise ValueError(f"{path}: there is no row for {picture}, and every picture needs one")


def read_excluded(path: Path, table: LandmarkTable) -> np.ndarray:
    """(E,) int64 rows of a training table whose pictures stand in a table of their own.

    That one has a column file_name; it is separated by comma or TAB, a picture may stand in it more
    than once, and its other columns mean nothing.

    Raises:
        ValueError: no such table or column, or a picture that the training table does not have; the
            message names file and row.
    """
    rows = _csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    column = next((i for i, cell in enumerate(header) if cell in _NAME_COLUMNS), None)
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
            _check_name(name, "\t")
            file.write(f"{name}\t{json.dumps(row)}\n")


def read_points(
    path: Path, dtype: type[np.floating], *, delimiters: str, prefixes: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """The names (N) and the points (N, P, 2) of any table with one picture a row; NaN = empty.

    Args, Raises:
        As `read_blocks`.
    """
    names: list[str] = []
    blocks: list[np.ndarray] = []
    for some_names, some_points in read_blocks(
        path, dtype, delimiters=delimiters, prefixes=prefixes
    ):
        names += some_names
        blocks.append(some_points)
    return names, joined(blocks, dtype)


def read_blocks(
    path: Path,
    dtype: type[np.floating],
    *,
    delimiters: str = DELIMITERS,
    prefixes: Sequence[str] = PREFIXES,
    progress: bool = False,
    watch: Callable[[bytes], object] = len,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """A table with one picture a row, block by block: names (n), and points (n, P, 2).

    Separated by TAB or comma, with or without a byte order mark, LF or CRLF; the first column may
    be called filename and the points Point_M0_X; numbers are whole or decimal, and a landmark
    with both cells empty is unlabelled. The points of a block are int16, with `UNLABELLED` for
    empty cells, or of the given type, with NaN for these. Threads parse some blocks ahead.

    Args:
        dtype: of the points, unless they are whole and small.
        delimiters: the separators that may be used, the likeliest first.
        prefixes: what may stand before the number in a point's column.
        progress: show a bar once the reading has taken a second.
        watch: is shown all bytes of the file, in their order.

    Raises:
        ValueError: anything else; the message names file, row and column.
    """
    require_file(path)
    with path.open("rb") as file, reading_bar(path, "Reading", progress) as bar:

        def see(text: bytes) -> None:
            watch(text)
            bar.update(len(text))

        header = file.readline()
        see(header)
        delimiter, columns = read_header(path, header, delimiters, prefixes)
        parse = partial(_parse_block, path, delimiter, columns, dtype)
        rows_by_name: dict[str, int] = {}
        for first_row, (names, points) in _ahead(parse, _blocks_of_text(path, file, see)):
            for row, name in enumerate(names, first_row):
                add_name(rows_by_name, name, row, path)
            yield names, points
    if not rows_by_name:
        raise ValueError(f"{path}: the table has a header but no rows")


def _blocks_of_text(
    path: Path, file: BinaryIO, see: Callable[[bytes], None]
) -> Iterator[tuple[int, bytes]]:
    """The rest of the file in blocks of whole rows without blank ones: the first one's number, and
    the rows, with line ends between them."""
    row, blank_row = 2, None
    while text := file.read(_BLOCK) + file.readline():
        see(text)
        if rows := text.rstrip(b" \r\n"):
            if blank_row is not None:
                raise _blank(path, blank_row)
            yield row, rows
            row += rows.count(b"\n") + 1
        ends = text.count(b"\n", len(rows)) + (not text.endswith(b"\n"))
        num_blank = ends - 1 if rows else ends
        if blank_row is None and num_blank:
            blank_row = row
        row += num_blank


def _ahead(
    parse: Callable[[int, bytes], T], blocks: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, T]]:
    """The blocks in order, parsed, with the first one's number; threads are some blocks ahead."""
    parsing = deque[tuple[int, Future[T]]]()
    with ThreadPoolExecutor(_THREADS) as pool:
        for row, text in blocks:
            parsing.append((row, pool.submit(parse, row, text)))
            if len(parsing) > 2 * _THREADS:
                first_row, result = parsing.popleft()
                yield first_row, result.result()
        for first_row, result in parsing:
            yield first_row, result.result()


def _parse_block(
    path: Path,
    delimiter: str,
    columns: Sequence[str],
    dtype: type[np.floating],
    first_row: int,
    text: bytes,
) -> tuple[list[str], np.ndarray]:
    """The names (n) and the points (n, P, 2) of these rows."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    names, lines, separator = list[str](), text.split(b"\n"), delimiter.encode()
    rows = [line.partition(separator) for line in lines]
    for row, (name, _, cells) in enumerate(rows, first_row):
        if not cells and not name.strip(b" \r"):
            raise _blank(path, row)
        where = f"{path}, row {row}"
        names.append(checked_name(decoded(name, where), where))
    num_cells = len(columns) - 1
    numbers = parse_rows([cells for *_, cells in rows], num_cells, separator, dtype, _FARTHEST)
    if numbers is None:
        numbers = np.empty((len(rows), num_cells), dtype)
        for index, (_, _, cells) in enumerate(rows):
            parsed = _parse_numbers(cells, delimiter, dtype)
            if parsed is None or len(parsed) != num_cells:
                where = f"{path}, row {first_row + index}"
                parsed = parse_cells(decoded(lines[index], where).split(delimiter), columns, where)
            numbers[index] = parsed
    return names, numbers.reshape(len(names), -1, 2)


def _blank(path: Path, row: int) -> ValueError:
    return ValueError(f"{path}, row {row}: the row is blank, but others follow it")


def write_points(
    path: Path,
    names: Sequence[str],
    points: np.ndarray,
    *,
    delimiter: str,
    prefix: str,
    decimals: int = 4,
) -> None:
    """Writes a table with one picture a row, in the form that `read_points` reads.

    Args:
        points: (N, P, 2); integers are written as such if all are integral, NaN as empty cells.
        prefix: what stands before the number in a point's column.
        decimals: places that numbers are written to.

    Raises:
        ValueError: a name or a point that could not be read back.
    """
    if np.isinf(points).any() or (np.isnan(points[..., 0]) != np.isnan(points[..., 1])).any():
        raise ValueError(
            f"{path}: cannot write points that are infinite or of which only x or only y is known"
        )
    whole = bool((np.isnan(points) | (points == np.rint(points))).all())
    number = "%d" if whole else f"%.{decimals}f"
    columns = [f"{prefix}{index}_{axis}" for index in range(points.shape[1]) for axis in "XY"]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(delimiter.join(["file_name", *columns]) + "\n")
        for name, row in zip(names, points, strict=True):
            _check_name(name, delimiter)
            # Adding zero turns the -0 of a rounded -0.00000001 into 0.
            values = (np.round(row.ravel().astype(np.float64), decimals) + 0.0).tolist()
            cells = ["" if value != value else number % value for value in values]
            file.write(delimiter.join([name, *cells]) + "\n")


def require_file(path: Path) -> None:
    """
    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such table")


def decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not text in UTF-8 ({error.reason})") from error


def read_header(
    path: Path, line: bytes, delimiters: str, prefixes: Sequence[str]
) -> tuple[str, list[str]]:
    """The separator and the columns, after checking that they are the expected ones in order."""
    text = decoded(line.removeprefix(_BYTE_ORDER_MARK), f"{path}, row 1").strip("\r\n ")
    if not text:
        raise ValueError(f"{path}, row 1: the file is empty or begins with a blank row")
    delimiter = next((delimiter for delimiter in delimiters if delimiter in text), None)
    if text in _NAME_COLUMNS:
        raise ValueError(f"{path}, row 1: there are no landmark columns, such as {prefixes[0]}0_X")
    if '"' in text:
        raise ValueError(f"{path}, row 1: the cells are in quotes; write the table without them")
    if delimiter is None:
        wanted = " or ".join({"\t": "TAB", ",": "comma"}[delimiter] for delimiter in delimiters)
        raise ValueError(f"{path}, row 1: the header is not separated by {wanted}: {text[:60]!r}")

    columns = [cell.strip() for cell in text.split(delimiter)]
    if columns[0] not in _NAME_COLUMNS:
        raise ValueError(
            f"{path}, row 1, column 1: expected {_NAME_COLUMNS[0]!r}, found {columns[0]!r}"
        )
    prefix = next((prefix for prefix in prefixes if columns[1] == f"{prefix}0_X"), prefixes[0])
    for position, column in enumerate(columns[1:]):
        expected = f"{prefix}{position // 2}_{'XY'[position % 2]}"
        if column != expected:
            raise ValueError(
                f"{path}, row 1, column {position + 2}: expected {expected!r}, found {column!r}"
            )
    if len(columns) % 2 == 0:
        raise ValueError(
            f"{path}, row 1: the header ends with {columns[-1]!r}; its Y column is missing"
        )
    return delimiter, columns


def checked_name(cell: str, where: str) -> str:
    """The file name of a cell, unless it is a wrong one."""
    name = cell.strip()
    wrong = _what_is_wrong(name)
    if wrong:
        raise ValueError(f"{where}, column file_name: {name!r} {wrong}")
    return name


def add_name(rows_by_name: dict[str, int], name: str, row: int, path: Path) -> None:
    """Notes in which row a name stands, unless it stands in one already."""
    first = rows_by_name.setdefault(name, row)
    if first != row:
        raise ValueError(
            f"{path}, row {row}, column file_name: {name!r} stands in row {first} already"
        )


def _what_is_wrong(name: str) -> str | None:
    """What is wrong with a file name, which must be relative and stay inside its folder."""
    parts = name.replace("\\", "/").split("/")
    if name == "":
        return "is empty"
    if parts[0] == "" or parts[0][1:2] == ":":
        return "is an absolute path; it must be relative to the images folder"
    if ".." in parts:
        return "may lead out of the images folder"
    return None


def _check_name(name: str, delimiter: str) -> None:
    wrong = _what_is_wrong(name)
    if wrong:
        raise ValueError(f"cannot write a table: the file name {name!r} {wrong}")
    if name != name.strip() or any(mark in name for mark in (delimiter, '"', "\r", "\n")):
        raise ValueError(
            f"cannot write a table: the file name {name!r} begins or ends with a space, or holds "
            "a separator, a quote or a line end"
        )


def _parse_numbers(cells: bytes, delimiter: str, dtype: type[np.floating]) -> np.ndarray | None:
    """The numbers of a row, or None unless every cell holds one that can be a coordinate.

    numpy's C reader also takes spaces, plus signs and exponents.
    """
    if not cells:
        return None
    try:
        # Reading integers is twice as fast, and nearly all tables hold nothing else.
        numbers = np.loadtxt([cells], np.int32, delimiter=delimiter, comments=None, ndmin=1)
    except ValueError:
        try:
            numbers = np.loadtxt([cells], dtype, delimiter=delimiter, comments=None, ndmin=1)
        except ValueError:
            return None
    return numbers if max(-numbers.min(), numbers.max()) <= _FARTHEST else None


def parse_cells(cells: Sequence[str], columns: Sequence[str], where: str) -> np.ndarray:
    """The numbers of a row read cell by cell: empty ones are NaN, and what is wrong is named."""
    if len(cells) != len(columns):
        raise ValueError(f"{where}: {len(cells)} cells where the header has {len(columns)}")
    numbers = np.empty(len(columns) - 1)
    for position, column in enumerate(columns[1:]):
        try:
            numbers[position] = _parse_cell(cells[position + 1].strip())
        except ValueError as error:
            raise ValueError(f"{where}, column {column}: {error}") from error
    empty = np.isnan(numbers)
    half_empty = np.flatnonzero(empty[0::2] != empty[1::2])
    if len(half_empty):
        x, y = columns[1 + 2 * half_empty[0] :][:2]
        lacking, given = (x, y) if empty[2 * half_empty[0]] else (y, x)
        raise ValueError(
            f"{where}, column {lacking}: the cell is empty, but {given} is not; an unlabelled "
            "landmark leaves both empty"
        )
    return numbers


def parse_number(text: str, where: str) -> float:
    """The number of a cell that must hold one."""
    try:
        number = _parse_cell(text.strip())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if np.isnan(number):
        raise ValueError(f"{where}: the cell is empty")
    return number


def _parse_cell(text: str) -> float:
    if not text:
        return np.nan
    if text.lower().lstrip("+-") == "nan":
        raise ValueError(f"{text!r} is not a number; leave an unlabelled landmark's cells empty")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text!r} is not finite")
    if abs(number) > _FARTHEST:
        raise ValueError(f"{text!r} is no coordinate in a picture; is a decimal point missing?")
    return number


def _csv_rows(path: Path) -> list[list[str]]:
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
