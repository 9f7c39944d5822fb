"""The contest's tables of landmarks, read strictly and written whole.

Rows are counted as an editor shows them: the header is row 1, so the image with index i stands
in row i + 2. Blank rows are an error except at the end of a file, which keeps that true.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from heatmap.data.contest.landmarks import UNLABELLED, as_numbers
from heatmap.errors import UserError
from heatmap.runtime.files import reading_bar, write_atomically


class Form(NamedTuple):
    """The form of a table with one image a row.

    delimiters, prefixes: what may separate the cells, and stand before the number in a landmark's
    column; the first of each is written. decimals: places that are written.
    """

    delimiters: str
    prefixes: tuple[str, ...]
    decimals: int


LANDMARKS = Form("\t,", ("Point_", "Point_M"), 6)
ANSWERS = Form(",", ("Point_M",), 4)
NAME_COLUMNS = ("file_name", "filename")
_BLOCK = 1 << 20  # bytes of text parsed at once
_FARTHEST = 1e6  # pixels from the origin; no image is so large
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)


def count_landmarks(path: Path) -> int:
    """The number of landmarks that the header of a table names.

    Raises:
        UserError: no such table, or not the header of one.
    """
    require_file(path)
    with path.open("rb") as file:
        _, columns = read_header(path, file.readline())
    return (len(columns) - 1) // 2


def read_points(
    path: Path, dtype: type[np.floating], form: Form = LANDMARKS, progress: bool = False
) -> tuple[list[str], np.ndarray]:
    """The names (N) and the points (N, P, 2) of a table, as `read_blocks` gives their parts.

    The points are int16 with `UNLABELLED` if all are whole and small, else `dtype` with NaN.
    """
    names: list[str] = []
    blocks: list[np.ndarray] = []
    for some_names, some_points in read_blocks(path, dtype, form, progress):
        names += some_names
        blocks.append(some_points)
    if any(block.dtype != np.int16 for block in blocks):
        blocks = [block if block.dtype == dtype else as_numbers(block, dtype) for block in blocks]
    return names, np.concatenate(blocks)


def read_blocks(
    path: Path, dtype: type[np.floating], form: Form = LANDMARKS, progress: bool = False
) -> Iterator[tuple[list[str], np.ndarray]]:
    """A table with one image a row, block by block: names (n), and points (n, P, 2).

    A byte order mark and CRLF are taken, and "filename" for the first column; numbers are whole or
    decimal, and a landmark with both cells empty is unlabelled. The points of a block are int16
    with `UNLABELLED` if they are whole and small, else `dtype` with NaN.

    Args:
        progress: show a bar once the reading has taken a second.

    Raises:
        UserError: anything else; the message names file, row and column.
    """
    require_file(path)
    rows_by_name: dict[str, int] = {}
    with path.open("rb") as file, reading_bar(path, "Reading", progress) as bar:
        header = file.readline()
        bar.update(len(header))
        delimiter, columns = read_header(path, header, form)
        for first_row, lines in _lines_in_blocks(path, file, bar):
            names, cells = [], []
            for row, line in enumerate(lines, first_row):
                name, _, rest = line.partition(delimiter.encode())
                names.append(add_name(rows_by_name, name, row, path))
                cells.append(rest)
            numbers = parse_numbers(cells, len(columns) - 1, delimiter, dtype)
            if numbers is None:  # something unusual or wrong
                numbers = np.empty((len(lines), len(columns) - 1), dtype)
                for index, line in enumerate(lines):
                    where = f"{path}, row {first_row + index}"
                    numbers[index] = parse_row(line, delimiter, columns, where, dtype)
            yield names, numbers.reshape(len(names), -1, 2)
    if not rows_by_name:
        raise UserError(f"{path}: the table has a header but no rows")


def _lines_in_blocks(path: Path, file: BinaryIO, bar: tqdm) -> Iterator[tuple[int, list[bytes]]]:
    """The rows of the rest of the file, some at a time, with the number of the first."""
    row, blank = 2, 0  # at the end of what was read
    while text := file.read(_BLOCK) + file.readline():
        bar.update(len(text))
        lines = [line.rstrip(b" \r") for line in text.removesuffix(b"\n").split(b"\n")]
        lines, blank = [b""] * blank + lines, 0
        while lines and not lines[-1]:
            lines.pop()
            blank += 1
        if b"" in lines:
            raise UserError(blank_row(path, row + lines.index(b"")))
        if lines:
            yield row, lines
        row += len(lines)


def blank_row(path: Path, row: int) -> str:
    return f"{path}, row {row}: the row is blank, but others follow it"


def parse_row(
    line: bytes, delimiter: str, columns: Sequence[str], where: str, dtype: type[np.floating]
) -> np.ndarray:
    """The numbers (cells,) of a row, NaN where unlabelled; what is wrong is named."""
    cells = line.partition(delimiter.encode())[2]
    numbers = parse_numbers([cells], len(columns) - 1, delimiter, dtype)
    if numbers is None:
        return parse_cells(decoded(line, where).split(delimiter), columns, where)
    return as_numbers(numbers[0], dtype)


def parse_numbers(
    rows: Sequence[bytes], num_cells: int, delimiter: str, dtype: type[np.floating]
) -> np.ndarray | None:
    """The numbers (n, num_cells) of rows of cells, or None where they need a closer look.

    That is where a cell is no coordinate, or only one of a landmark's two cells is empty; numpy's
    reader takes spaces, plus signs and exponents, too.

    Returns:
        int16 with `UNLABELLED` for empty cells where all numbers are whole and small, else `dtype`
        with NaN.
    """
    separator, filler, num_empty = delimiter.encode(), b"%d" % UNLABELLED, 0
    text = b"\n".join([b"", *rows, b""])
    if filler in text or b"\n\n" in text:
        return None
    if any(ends in text for ends in (2 * separator, separator + b"\n", b"\n" + separator)):
        rows = [separator.join([cell or filler for cell in row.split(separator)]) for row in rows]
        num_empty = sum(row.count(filler) for row in rows)
    is_decimal = any(mark in text for mark in b".eE")
    for kind in (dtype,) if is_decimal else (np.int16, dtype):
        try:
            numbers = np.loadtxt(rows, kind, delimiter=delimiter, comments=None, ndmin=2)
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
        if not (np.abs(numbers) <= _FARTHEST).all():  # which nan is not either
            return None
        numbers[empty] = np.nan
    return numbers


def write_landmarks(
    path: Path, names: Sequence[str], points: np.ndarray, form: Form = LANDMARKS
) -> None:
    """Writes a table with one image a row, which `read_points` reads.

    Args:
        points: (N, P, 2); integers are written as such if all are integral, NaN as empty cells.

    Raises:
        UserError: a name or a point that could not be read back.
    """
    if np.isinf(points).any() or (np.isnan(points[..., 0]) != np.isnan(points[..., 1])).any():
        raise UserError(
            f"{path}: cannot write points that are infinite or of which only x or only y is known"
        )
    delimiter, prefix, decimals = form.delimiters[0], form.prefixes[0], form.decimals
    whole = bool((np.isnan(points) | (points == np.rint(points))).all())
    number = "%d" if whole else f"%.{decimals}f"

    def rows() -> Iterator[list[str]]:
        for name, row in zip(names, points, strict=True):
            check_name(name, delimiter)
            # Adding zero turns the -0 of a rounded -0.00000001 into 0.
            values = (np.round(row.ravel().astype(np.float64), decimals) + 0.0).tolist()
            yield [name, *("" if value != value else number % value for value in values)]

    write_rows(path, _columns("file_name", prefix, points.shape[1]), rows(), delimiter)


def write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ","
) -> None:
    """Writes any table of the contest."""
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _columns(name: str, prefix: str, num_landmarks: int) -> list[str]:
    return [name, *(f"{prefix}{index}_{axis}" for index in range(num_landmarks) for axis in "XY")]


def require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: there is no such table")


def decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not text in UTF-8 ({error.reason})") from error


def read_header(path: Path, line: bytes, form: Form = LANDMARKS) -> tuple[str, list[str]]:
    """The separator and the columns, after checking that they are the expected ones in order."""
    where = f"{path}, row 1"
    text = decoded(line.removeprefix(_BYTE_ORDER_MARK), where).strip("\r\n ")
    if not text:
        raise UserError(f"{where}: the file is empty or begins with a blank row")
    if text in NAME_COLUMNS:
        raise UserError(f"{where}: there are no landmark columns, such as {form.prefixes[0]}0_X")
    if '"' in text:
        raise UserError(f"{where}: the cells are in quotes; write the table without them")
    delimiter = next((delimiter for delimiter in form.delimiters if delimiter in text), None)
    if delimiter is None:
        wanted = " or ".join({"\t": "TAB", ",": "comma"}[one] for one in form.delimiters)
        raise UserError(f"{where}: the header is not separated by {wanted}: {text[:60]!r}")

    columns = [cell.strip() for cell in text.split(delimiter)]
    prefix = next((one for one in form.prefixes if columns[1] == f"{one}0_X"), form.prefixes[0])
    name = columns[0] if columns[0] in NAME_COLUMNS else NAME_COLUMNS[0]
    expected = _columns(name, prefix, len(columns))
    for position, (column, wanted) in enumerate(zip(columns, expected, strict=False), start=1):
        if column != wanted:
            raise UserError(f"{where}, column {position}: expected {wanted!r}, found {column!r}")
    if len(columns) % 2 == 0:
        raise UserError(f"{where}: the header ends with {columns[-1]!r}; its Y column is missing")
    return delimiter, columns


def add_name(rows_by_name: dict[str, int], cell: str | bytes, row: int, path: Path) -> str:
    """The file name of a cell, whose row is noted; a wrong or a repeated one is named."""
    where = f"{path}, row {row}"
    name = (decoded(cell, where) if isinstance(cell, bytes) else cell).strip()
    wrong = _what_is_wrong(name)
    if wrong:
        raise UserError(f"{where}, column file_name: {name!r} {wrong}")
    first = rows_by_name.setdefault(name, row)
    if first != row:
        raise UserError(f"{where}, column file_name: {name!r} stands in row {first} already")
    return name


def _what_is_wrong(name: str) -> str | None:
    """What is wrong with a file name, which must be relative and stay inside its folder."""
    parts = name.replace("\\", "/").split("/")
    if name == "":
        return "is empty"
    if parts[0] == "" or parts[0][1:2] == ":":
        return "is an absolute path; it must be relative to the images folder"
    return "may lead out of the images folder" if ".." in parts else None


def check_name(name: str, delimiter: str) -> None:
    """Refuses a name that could not be read back."""
    wrong = _what_is_wrong(name)
    if not wrong and (name != name.strip() or any(mark in name for mark in f'{delimiter}"\r\n')):
        wrong = "begins or ends with a space, or holds a separator, a quote or a line end"
    if wrong:
        raise UserError(f"cannot write a table: the file name {name!r} {wrong}")


def parse_cells(cells: Sequence[str], columns: Sequence[str], where: str) -> np.ndarray:
    """The numbers of a row read cell by cell: empty ones are NaN, and what is wrong is named."""
    if len(cells) != len(columns):
        raise UserError(f"{where}: {len(cells)} cells where the header has {len(columns)}")
    places = [f"{where}, column {column}" for column in columns[1:]]
    numbers = np.array(list(map(_parse_cell, cells[1:], places)))
    empty = np.isnan(numbers)
    for x in 2 * np.flatnonzero(empty[0::2] != empty[1::2])[:1]:
        lacking, given = (x, x + 1) if empty[x] else (x + 1, x)
        raise UserError(
            f"{places[lacking]}: the cell is empty, but {columns[1 + given]} is not; an unlabelled "
            "landmark leaves both empty"
        )
    return numbers


def parse_number(text: str, where: str) -> float:
    """The number of a cell that must hold one."""
    number = _parse_cell(text, where)
    if math.isnan(number):
        raise UserError(f"{where}: the cell is empty")
    return number


def _parse_cell(text: str, where: str) -> float:
    text = text.strip()
    if not text:
        return math.nan
    here = f"{where}: {text!r}"
    if text.lower().lstrip("+-") == "nan":
        raise UserError(f"{here} is not a number; leave an unlabelled landmark's cells empty")
    if not _NUMBER.fullmatch(text):
        raise UserError(f"{here} is not a number")
    number = float(text)
    if math.isinf(number):
        raise UserError(f"{here} is not finite")
    if abs(number) > _FARTHEST:
        raise UserError(f"{here} is no coordinate in an image; is a decimal point missing?")
    return number
