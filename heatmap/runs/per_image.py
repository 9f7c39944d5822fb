"""per_image.csv: the errors of every picture that a run was scored on, a row each.

    file_name        of the picture, as in the table of landmarks
    mse              mean squared error over its labelled coordinates, px² of the picture
    nme              mean point error over the normaliser
    mean_shape_mse   as mse, for the mean training shape
    mean_peak        of its heatmaps; empty on the direct road
    width, height    of the picture
    mse NAME         as mse, of one landmark group

Training writes it for its best checkpoint, and tools/evaluate.py writes it anew. Cells are empty
where nothing is labelled.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from heatmap.runtime.files import write_atomically


def write_per_image(path: Path, names: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
    """Writes the table; a number that is not finite becomes an empty cell.

    Args:
        names: N file names; columns: (N,) each, integers or floating point.
    """
    cells = [[_cell(number) for number in column.tolist()] for column in columns.values()]
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", *columns])
        table.writerows(zip(names, *cells, strict=True))


def _cell(number: int | float) -> str:
    if isinstance(number, int):
        return str(number)
    return f"{number:.6f}" if math.isfinite(number) else ""


def read_per_image(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The file names and the columns, (N,) float64 with NaN for empty cells.

    Raises:
        ValueError: missing, or not such a table; the message names the row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable table of errors ({error})") from None
    if header[:2] != ["file_name", "mse"]:
        raise ValueError(f"{path}, row 1: expected file_name, mse, ..., found {', '.join(header)}")
    numbers = np.empty((len(rows), len(header) - 1))
    for index, row in enumerate(rows):
        try:
            numbers[index] = [float(cell or "nan") for cell in row[1:]]
        except ValueError as error:  # also where there are too few or too many cells
            raise ValueError(f"{path}, row {index + 2}: {error}") from None
    return [row[0] for row in rows], dict(zip(header[1:], numbers.T, strict=True))
