"""Landmark tables, parsed strictly and written atomically.

Rows are counted as an editor shows them: the header is row 1, so image i, from 0, is in row i + 2.
Blank rows are an error except at the end of a file, so the count always holds.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import IO, AnyStr, NamedTuple

import numpy as np

from heatmap.data.contest.landmarks import UNLABELLED, as_floats
from heatmap.errors import UserError
from heatmap.runtime.files import open_file, reading_bar, write_atomically


class Form(NamedTuple):
    """Format of a table with one image per row; readers accept every delimiter and prefix."""

    delimiters: str  # between cells; the first is written
    prefixes: tuple[str, ...]  # of a landmark's columns, before its index; the first is written
    decimals: int  # places written


class RowError(UserError):
    """An error in a row of a table."""

    def __init__(self, message: str, kind: str = "table") -> None:
        super().__init__(message)
        self.kind = kind  # category in `heatmap.curation.check`


Errors = list[RowError]
LANDMARKS = Form("\t,", ("Point_", "Point_M"), 6)
ANSWERS = Form(",", ("Point_M",), 4)
NAME_COLUMNS = ("file_name", "filename")
_BLOCK = 1 << 20  # bytes of text parsed at once
_LONGEST_ROW = 1 << 22  # characters, enough for 100,000 landmarks
_FARTHEST = 1e6  # pixels from the origin; no image is that large
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_IN_NUMBERS = b"0123456789+-.eE \n"


def count_landmarks(path: Path) -> int:
    """Returns the number of landmarks in a table's header, or raises a UserError."""
    _, columns, _ = open_table(path)
    return (len(columns) - 1) // 2


def read_points(
    path: Path, dtype: type[np.floating], form: Form = LANDMARKS, progress: bool = False
) -> tuple[list[str], np.ndarray]:
    """Reads a whole table as `read_blocks` does, with `dtype` instead of float64."""
    names, blocks = list[str](), list[np.ndarray]()
    for block_names, points in read_blocks(path, form, progress):
        names += block_names
        blocks.append(points if points.dtype == np.int16 else points.astype(dtype, copy=False))
    if any(block.dtype != np.int16 for block in blocks):
        blocks = [as_floats(block, dtype) for block in blocks]
    return names, np.concatenate(blocks)


def read_blocks(
    path: Path, form: Form = LANDMARKS, progress: bool = False
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Reads a table with one image per row, block by block: n names and points (n, P, 2).

    Accepts a byte order mark, CRLF, and "filename" for the first column. A landmark with both cells
    empty is unlabelled. The points of a block are int16 with `UNLABELLED` if all are integers that
    fit, else float64 with NaN.

    Args:
        progress: show a bar if reading takes more than a second.

    Raises:
        UserError: the table is malformed; the message names file, row and column.
    """
    delimiter, columns, rows = open_table(path, form, "Reading", progress)
    rows_by_name: dict[str, int] = {}
    rows_per_block = max(1, _BLOCK // (5 * len(columns)))
    while block := list(islice(rows, rows_per_block)):
        names, cells = [], []
        for row, _, line in block:
            if not line:
                raise blank_row(path, row)
            name, _, rest = line.partition(delimiter.encode())
            names.append(add_name(rows_by_name, name, row, path))
            cells.append(rest)
        numbers = _parse_numbers(cells, len(columns) - 1, delimiter)
        if numbers is None:
            numbers = np.stack([
                parse_row(line, delimiter, columns, f"{path}, row {row}") for row, _, line in block
            ])  # fmt: skip
        yield names, numbers.reshape(len(names), -1, 2)


def open_table(
    path: Path, form: Form = LANDMARKS, label: str = "", progress: bool = False
) -> tuple[str, list[str], Iterator[tuple[int, int, bytes]]]:
    """Returns a table's delimiter, columns, and rows: number, first byte in the file, and text.

    Trailing spaces are stripped, and blank rows at the end of the file are left out.

    Raises:
        UserError: the table is missing, its header is wrong, or it has no rows.
    """
    with open_file(path, "table") as file:
        header = next(bounded_lines(file, path), b"")
    delimiter, columns = _read_header(path, header, form)
    return delimiter, columns, _rows(path, len(header), label, progress)


def _rows(path: Path, start: int, label: str, progress: bool) -> Iterator[tuple[int, int, bytes]]:
    with open_file(path, "table") as file, reading_bar(path, label, progress) as bar:
        file.seek(start)
        bar.update(start)
        row, blank = 1, list[tuple[int, int, bytes]]()
        for row, line in enumerate(bounded_lines(file, path, 2), start=2):
            bar.update(len(line))
            text = line.rstrip(b" \r\n")
            blank.append((row, start, text))
            start += len(line)
            if text:
                yield from blank
                blank.clear()
        if row - len(blank) == 1:
            raise UserError(f"{path}: the table has a header but no rows")


def bounded_lines(file: IO[AnyStr], name: object, first: int = 1) -> Iterator[AnyStr]:
    """Yields the lines of an open file, the `first` of which is numbered so in messages.

    Raises:
        UserError: a line is longer than any table's row; it is not read to its end.
    """
    for number in count(first):
        line = file.readline(_LONGEST_ROW + 1)
        if len(line) > _LONGEST_ROW:
            raise UserError(f"{name}, row {number}: longer than {_LONGEST_ROW} characters")
        if not line:
            return
        yield line


def blank_row(path: Path, row: int) -> RowError:
    return RowError(f"{path}, row {row}: the row is blank, but others follow it", "blank row")


def parse_row(
    line: bytes, delimiter: str, columns: Sequence[str], where: str, errors: Errors | None = None
) -> np.ndarray:
    """Parses a row into (cells,) float64, NaN where unlabelled; errors as in `parse_cells`."""
    cells = line.partition(delimiter.encode())[2]
    numbers = _parse_numbers([cells], len(columns) - 1, delimiter)
    if numbers is None:
        return parse_cells(decode(line, where).split(delimiter), columns, where, errors)
    return as_floats(numbers[0], np.float64)


def _parse_numbers(rows: Sequence[bytes], num_cells: int, delimiter: str) -> np.ndarray | None:
    """Parses rows of cells at once into (n, num_cells), or returns None if a cell may be malformed.

    The numbers are int16 with `UNLABELLED` for empty cells if all are integers that fit, else
    float64 with NaN.
    """
    separator, filler, num_empty = delimiter.encode(), b"%d" % UNLABELLED, 0
    text = b"\n".join([b"", *rows, b""])
    # NumPy strips bytes that are spaces in Latin-1, such as A0
    if text.translate(None, _IN_NUMBERS + separator) or filler in text or b"\n\n" in text:
        return None
    if any(gap in text for gap in (2 * separator, separator + b"\n", b"\n" + separator)):
        rows = [separator.join([cell or filler for cell in row.split(separator)]) for row in rows]
        num_empty = sum(row.count(filler) for row in rows)
    is_decimal = any(mark in text for mark in b".eE")
    for dtype in (np.float64,) if is_decimal else (np.int16, np.float64):
        try:
            numbers = np.loadtxt(rows, dtype, delimiter=delimiter, comments=None, ndmin=2)
            break
        except ValueError:
            continue
    else:
        return None
    empty = numbers == UNLABELLED
    if numbers.shape != (len(rows), num_cells) or np.count_nonzero(empty) != num_empty:
        return None
    if (empty[:, 0::2] != empty[:, 1::2]).any():
        return None
    if numbers.dtype != np.int16:
        if not (np.abs(numbers) <= _FARTHEST).all():  # also false for NaN
            return None
        numbers[empty] = np.nan
    return numbers


def write_landmarks(
    path: Path, names: Sequence[str], points: np.ndarray, form: Form = LANDMARKS
) -> None:
    """Writes a table for `read_points`.

    Args:
        points: (N, P, 2), finite or both NaN, which become empty cells. No decimals are written if
            all are integers.

    Raises:
        UserError: a name could not be read back.
    """
    assert not np.isinf(points).any()
    assert (np.isnan(points[..., 0]) == np.isnan(points[..., 1])).all()
    delimiter, prefix, decimals = form.delimiters[0], form.prefixes[0], form.decimals
    is_whole = (np.isnan(points) | (points == np.rint(points))).all()
    number = "%d" if is_whole else f"%.{decimals}f"

    def rows() -> Iterator[list[str]]:
        for name, row in zip(names, points, strict=True):
            check_name(name, delimiter)
            # adding 0 turns -0.0 into 0.0
            values = (np.round(row.ravel().astype(np.float64), decimals) + 0.0).tolist()
            yield [name, *("" if value != value else number % value for value in values)]

    write_rows(path, _columns("file_name", prefix, points.shape[1]), rows(), delimiter)


def write_rows(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    delimiter: str = ",",
    *,
    replaces: Sequence[Sequence[str]] | None = None,
) -> None:
    """Writes a table with a header.

    Args:
        replaces: columns of the tables that may be replaced; by default any file.

    Raises:
        UserError: another file would be replaced.
    """
    if replaces is not None and path.is_file():
        with open_file(path) as existing:
            header = existing.readline().decode(errors="replace").strip("\r\n")
        if header not in ("", *map(delimiter.join, replaces)):
            raise UserError(
                f"{path} exists and holds something else; choose another name, or remove it"
            )
    with write_atomically(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _columns(name: str, prefix: str, num_landmarks: int) -> list[str]:
    return [name, *(f"{prefix}{index}_{axis}" for index in range(num_landmarks) for axis in "XY")]


def decode(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 text ({error.reason})", "not UTF-8") from error


def _read_header(path: Path, line: bytes, form: Form = LANDMARKS) -> tuple[str, list[str]]:
    """Checks a header and returns its delimiter and columns."""
    where = f"{path}, row 1"
    text = decode(line.removeprefix(_BYTE_ORDER_MARK), where).strip("\r\n ")
    if not text:
        raise UserError(f"{where}: the file is empty or begins with a blank row")
    if form is ANSWERS and re.match(r"\w+[\t,] *Point_0_X\b", text):
        raise UserError(
            f"{where}: this is a table of landmarks, not a solution or submission; expected "
            "file_name,Point_M0_X,Point_M0_Y,... with the requested landmarks only, as in "
            "withheld/solution.csv"
        )
    delimiter = next((delimiter for delimiter in form.delimiters if delimiter in text), None)
    if delimiter is None:
        expected = "TAB or comma" if "\t" in form.delimiters else "comma"
        raise UserError(f"{where}: the columns are not separated by {expected}: {text[:60]!r}")
    columns = [cell.strip() for cell in text.split(delimiter)]
    prefix = next((p for p in form.prefixes if columns[1] == f"{p}0_X"), form.prefixes[0])
    name = columns[0] if columns[0] in NAME_COLUMNS else NAME_COLUMNS[0]
    pairs = zip(columns, _columns(name, prefix, len(columns)), strict=False)
    for position, (column, wanted) in enumerate(pairs, start=1):
        if column != wanted:
            raise UserError(f"{where}, column {position}: expected {wanted!r}, found {column!r}")
    if len(columns) % 2 == 0:
        raise UserError(f"{where}: the header ends with {columns[-1]!r}; its Y column is missing")
    return delimiter, columns


def add_name(rows_by_name: dict[str, int], cell: str | bytes, row: int, path: Path) -> str:
    """Returns a row's file name and records it; raises a RowError if it is bad or repeated."""
    where = f"{path}, row {row}"
    name = (decode(cell, where) if isinstance(cell, bytes) else cell).strip()
    problem = _name_problem(name)
    if problem:
        raise RowError(f"{where}, column file_name: {name!r} {problem}", "file name")
    first = rows_by_name.setdefault(name, row)
    if first != row:
        message = f"{where}, column file_name: {name!r} is already in row {first}"
        raise RowError(message, "name twice")
    return name


def _name_problem(name: str) -> str | None:
    """Returns what is wrong with a file name, which must be relative and stay inside its folder."""
    parts = name.replace("\\", "/").split("/")
    if name == "":
        return "is empty"
    if parts[0] == "" or parts[0][1:2] == ":":
        return "is an absolute path; it must be relative to the images folder"
    return "may lead out of the images folder" if ".." in parts else None


def check_name(name: str, delimiter: str) -> None:
    """Raises a UserError if a file name could not be read back."""
    problem = _name_problem(name)
    if not problem and (name != name.strip() or any(mark in name for mark in f'{delimiter}"\r\n')):
        problem = "begins or ends with a space, or contains a delimiter, a quote or a line break"
    if not problem and name.encode(errors="ignore").decode() != name:
        problem = "is not Unicode text"
    if problem:
        raise UserError(f"cannot write a table: the file name {name!r} {problem}")


def parse_cells(
    cells: Sequence[str], columns: Sequence[str], where: str, errors: Errors | None = None
) -> np.ndarray:
    """Parses a row's cells after the first, two for each landmark; empty ones become NaN.

    Args:
        errors: collects the error of each wrong landmark; without it, the first is raised.
    """
    if len(cells) != len(columns):
        message = f"{where}: {len(cells)} cells where the header has {len(columns)}"
        raise RowError(message, "number of cells")
    numbers = np.full(len(cells) - 1, np.nan)
    for x in range(1, len(cells), 2):
        try:
            numbers[x - 1 : x + 1] = _parse_landmark(cells[x : x + 2], columns[x : x + 2], where)
        except RowError as error:
            if errors is None:
                raise
            errors.append(error)
    return numbers


def _parse_landmark(cells: Sequence[str], columns: Sequence[str], where: str) -> list[float]:
    x, y = map(_parse_cell, cells, [f"{where}, column {column}" for column in columns])
    if math.isnan(x) != math.isnan(y):
        empty, filled = columns if math.isnan(x) else columns[::-1]
        message = f"the cell is empty, but {filled} is not; leave both empty if unlabelled"
        raise RowError(f"{where}, column {empty}: {message}", "half a landmark")
    return [x, y]


def parse_number(text: str, where: str) -> float:
    """Parses a cell that must not be empty."""
    number = _parse_cell(text, where)
    if math.isnan(number):
        raise RowError(f"{where}: the cell is empty", "number")
    return number


def _parse_cell(text: str, where: str) -> float:
    text = text.strip(" \t\r\n")
    if not text:
        return math.nan
    if not _NUMBER.fullmatch(text):
        hint = "; leave an unlabelled landmark's cells empty" if "nan" in text.lower() else ""
        raise RowError(f"{where}: {text!r} is not a number{hint}", "number")
    if abs(float(text)) > _FARTHEST:
        expected = "a coordinate in an image; is a decimal point missing?"
        raise RowError(f"{where}: {text!r} is not {expected}", "number")
    return float(text)
