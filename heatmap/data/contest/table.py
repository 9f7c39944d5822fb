"""The contest's tables, read strictly and written whole.

Rows are counted as an editor shows them: the header is row 1, so the picture with index i stands
in row i + 2. Blank rows are an error except at the end of a file, which keeps that true.
"""

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from heatmap.data.contest.digits import parse_rows
from heatmap.data.contest.landmarks import joined
from heatmap.runtime.files import reading_bar, write_atomically

T = TypeVar("T")

_BLOCK = 1 << 18  # bytes of text parsed at once; what is made of them stays in a core's cache
_THREADS = min(4, os.cpu_count() or 1)  # more would wait for the one that reads
DELIMITERS, PREFIXES = "\t,", ("Point_", "Point_M")  # of a landmark table
_FARTHEST = 1e6  # pixels from the origin; no picture is so large
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NAME_COLUMNS = ("file_name", "filename")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)


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
            check_name(name, delimiter)
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
    if text in NAME_COLUMNS:
        raise ValueError(f"{path}, row 1: there are no landmark columns, such as {prefixes[0]}0_X")
    if '"' in text:
        raise ValueError(f"{path}, row 1: the cells are in quotes; write the table without them")
    if delimiter is None:
        wanted = " or ".join({"\t": "TAB", ",": "comma"}[delimiter] for delimiter in delimiters)
        raise ValueError(f"{path}, row 1: the header is not separated by {wanted}: {text[:60]!r}")

    columns = [cell.strip() for cell in text.split(delimiter)]
    if columns[0] not in NAME_COLUMNS:
        raise ValueError(
            f"{path}, row 1, column 1: expected {NAME_COLUMNS[0]!r}, found {columns[0]!r}"
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


def check_name(name: str, delimiter: str) -> None:
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
