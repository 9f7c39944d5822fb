"""Reads the contest's tables and collects all errors; the readers stop at the first.

Rows are parsed by the readers' own functions, so both report the same errors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.small_tables import parse_asked_points
from heatmap.data.contest.table import RowError, add_name, blank_row, open_table, parse_row
from heatmap.runtime.files import open_file


@dataclass(frozen=True)
class CheckedRow:
    """A row of a table and everything wrong with it."""

    row: int  # as in an editor: the header is row 1
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
    delimiter, columns, rows = open_table(path, label="Checking", progress=progress)
    rows_by_name: dict[str, int] = {}
    for row, start, line in rows:
        if not line:
            yield CheckedRow(row, None, None, start, [blank_row(path, row)])
            continue
        name, points, errors = None, None, list[RowError]()
        try:
            name = add_name(rows_by_name, line.partition(delimiter.encode())[0], row, path)
        except RowError as error:
            errors.append(error)
        try:
            numbers = parse_row(line, delimiter, columns, f"{path}, row {row}", errors)
            points = None if errors else numbers.reshape(-1, 2)
        except RowError as error:
            errors.append(error)
        yield CheckedRow(row, name, points, start, errors)


def read_rows(path: Path, starts: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields the (P, 2) float64 points of the error-free rows that begin at these bytes."""
    delimiter, columns, _ = open_table(path)
    with open_file(path, "table") as file:
        for start in starts:
            file.seek(start)
            line = file.readline().rstrip(b" \r\n")
            yield parse_row(line, delimiter, columns, str(path)).reshape(-1, 2)


def check_asked_points(path: Path, num_landmarks: int) -> Iterator[CheckedRow]:
    """Yields all rows of test_points.csv, checked as `read_asked_points` reads them.

    Raises:
        UserError: the table is missing, its header is wrong, or it has no rows.
    """
    for row, name, indices in parse_asked_points(path, num_landmarks):
        errors = [indices] if isinstance(indices, RowError) else []
        yield CheckedRow(row, name or None, None, 0, errors)
