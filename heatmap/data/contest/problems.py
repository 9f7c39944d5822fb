"""Reads the contest's tables and collects every error, where the readers stop at the first.

Rows are parsed by the readers' own functions, so both report the same errors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.small_tables import parse_asked_points
from heatmap.data.contest.table import (
    RowError,
    add_name,
    blank_row,
    parse_row,
    read_header,
    require_file,
)
from heatmap.errors import UserError
from heatmap.runtime.files import reading_bar


@dataclass(frozen=True)
class CheckedRow:
    """A row of a table and everything wrong with it."""

    row: int  # as an editor counts, the header being 1
    name: str | None  # None if it cannot be used
    points_image: np.ndarray | None  # (P, 2) float64, NaN = unlabelled; None after an error
    start: int  # byte of the file at which the row begins
    errors: list[RowError]

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Kinds, and messages with file, row and column."""
        return [(error.kind, str(error)) for error in self.errors]


def check_landmarks(path: Path, progress: bool = False) -> Iterator[CheckedRow]:
    """Yields all rows of a training table, checked as `read_landmarks` reads them.

    Raises:
        UserError: the table is missing, its header is wrong, or it has no rows.
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
                blank.append(CheckedRow(row, None, None, start, [blank_row(path, row)]))
            else:
                yield from blank  # blank rows are no error at the end of a file
                blank.clear()
                yield _check_row(line.rstrip(b" \r\n"), header, rows_by_name, row, start, path)
            start += len(line)
        if row - len(blank) == 1:
            raise UserError(f"{path}: the table has a header but no rows")


def _check_row(
    line: bytes,
    header: tuple[str, list[str]],
    rows_by_name: dict[str, int],
    row: int,
    start: int,
    path: Path,
) -> CheckedRow:
    name, points, errors = None, None, list[RowError]()
    try:
        name = add_name(rows_by_name, line.partition(header[0].encode())[0], row, path)
    except RowError as error:
        errors.append(error)
    try:
        numbers = parse_row(line, *header, f"{path}, row {row}", errors)
        points = None if errors else numbers.reshape(-1, 2)
    except RowError as error:
        errors.append(error)
    return CheckedRow(row, name, points, start, errors)


def read_rows(path: Path, starts: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields the (P, 2) float64 points of the error-free rows that begin at these bytes."""
    with path.open("rb") as file:
        header = read_header(path, file.readline())
        for start in starts:
            file.seek(start)
            line = file.readline().rstrip(b" \r\n")
            yield parse_row(line, *header, str(path)).reshape(-1, 2)


def check_asked_points(path: Path, num_landmarks: int) -> Iterator[CheckedRow]:
    """Yields all rows of a table of asked points, checked as `read_asked_points` reads them.

    Raises:
        UserError: the table is missing, its header is wrong, or it has no rows.
    """
    for row, name, indices in parse_asked_points(path, num_landmarks):
        errors = [indices] if isinstance(indices, RowError) else []
        yield CheckedRow(row, name or None, None, 0, errors)
