"""Tables of text, read with the words of the contest's tables for what is wrong in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from heatmap.data.contest.table import parse_cells


def read_lines(path: Path) -> list[str]:
    """The lines of a file without spaces round them, and without blank ones at its end.

    Raises:
        ValueError: there is no such file, or it is not text in UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason})") from error
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def parse_points(cells: Sequence[str], where: str, first: int = 0) -> np.ndarray:
    """(P, 2) float64 from the cells x, y, x, y, ...; "nan", or nothing, twice is unlabelled.

    Args:
        where: file and row.
        first: number of the first landmark, for messages.

    Raises:
        ValueError: a cell is not a coordinate; the message names the landmark.
    """
    columns = [f"{'xy'[index % 2]} of landmark {first + index // 2}" for index in range(len(cells))]
    known = ["" if cell.lower() == "nan" else cell for cell in cells]
    return parse_cells(["", *known], ["", *columns], where).reshape(-1, 2)
