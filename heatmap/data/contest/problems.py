"""The contest's tables with all that is wrong in them, where the readers stop at the first.

The rules are the readers' own: every row goes through the functions that `table` reads with, and
what they raise is collected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.small_tables import asked_rows, parse_asked_row
from heatmap.data.contest.table import (
    add_name,
    blank_row,
    parse_cells,
    parse_row,
    read_header,
    require_file,
)
from heatmap.errors import UserError
from heatmap.runtime.files import reading_bar


@dataclass(frozen=True)
class CheckedRow:
    """A row of a table and all that is wrong with it."""

    row: int  # as an editor counts, the header being 1
    name: str | None  # None where it cannot be used
    points_image: np.ndarray | None  # (P, 2) float64, NaN = unlabelled, or None where unreadable
    start: int  # the byte of the file that the row begins with
    problems: list[tuple[str, str]]  # kinds, and messages with file, row and column


def check_landmarks(path: Path, progress: bool = False) -> Iterator[CheckedRow]:
    """All rows of a training table, as `read_landmarks` would read them one by one.

    Raises:
        UserError: no such table, its header is wrong, or it has no rows.
    """
    require_file(path)
    with path.open("rb") as file, reading_bar(path, "Checking", progress) as bar:
        header = read_header(path, file.readline())
        rows_by_name: dict[str, int] = {}
        start, row, blank = file.tell(), 1, list[CheckedRow]()
        bar.update(start)
        for row, line in enumerate(file, start=2):
            bar.update(len(line))
            if not line.strip(b" \r\n"):
                problem = "blank row", blank_row(path, row)
                blank.append(CheckedRow(row, None, None, start, [problem]))
            else:
                yield from blank  # blank rows are no problem at the end of a file
                blank, name = [], None
                points, problems = _read_points(line, header, f"{path}, row {row}")
                cell = line.partition(header[0].encode())[0]
                is_repeated = cell.decode(errors="replace").strip() in rows_by_name
                try:
                    name = add_name(rows_by_name, cell, row, path)
                except UserError as error:
                    problem = "name twice" if is_repeated else "file name", str(error)
                    problems.insert(0, problem)
                yield CheckedRow(row, name, points, start, problems)
            start += len(line)
        if row - len(blank) == 1:
            raise UserError(f"{path}: the table has a header but no rows")


def read_rows(path: Path, starts: Sequence[int]) -> Iterator[np.ndarray]:
    """The (P, 2) float64 points of the rows without problems that begin at these bytes."""
    with path.open("rb") as file:
        header = read_header(path, file.readline())
        for start in starts:
            file.seek(start)
            line = file.readline().rstrip(b" \r\n")
            yield parse_row(line, *header, str(path), np.float64).reshape(-1, 2)


def check_asked_points(path: Path, num_landmarks: int) -> Iterator[CheckedRow]:
    """All rows of a table of asked points, as `read_asked_points` would read them one by one.

    Raises:
        UserError: no such table, its header is wrong, or it has no rows.
    """
    rows_by_name: dict[str, int] = {}
    rows, num_asked = asked_rows(path)
    for row, cells in enumerate(rows, start=2):
        name = cells[0].strip() if cells else ""
        is_repeated, problems = name in rows_by_name, []
        try:
            parse_asked_row(cells, rows_by_name, num_landmarks, num_asked, path, row)
        except UserError as error:
            kind = "blank row" if not cells else "asked points"
            if len(cells) == 2 and rows_by_name.get(name) != row:
                kind = "name twice" if is_repeated else "file name"
            problems.append((kind, str(error)))
        is_named = rows_by_name.get(name) == row
        yield CheckedRow(row, name if is_named else None, None, 0, problems)


def _read_points(
    line: bytes, header: tuple[str, list[str]], where: str
) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    """The row's (P, 2) points, or None, and all the landmarks that are wrong."""
    line, (delimiter, columns) = line.rstrip(b" \r\n"), header
    try:
        return parse_row(line, *header, where, np.float64).reshape(-1, 2), []
    except UserError as error:
        cells = line.decode(errors="replace").split(delimiter)
        is_text = error.__cause__ is None
        if not is_text or len(cells) != len(columns):
            return None, [("number of cells" if is_text else "not UTF-8", str(error))]
    problems = []
    for x in range(1, len(columns), 2):
        both = slice(x, x + 2)
        try:
            parse_cells(["", *cells[both]], ["", *columns[both]], where)
        except UserError as error:
            is_half_empty = any(not cell.strip() for cell in cells[both])
            problems.append(("half a landmark" if is_half_empty else "number", str(error)))
    return None, problems
