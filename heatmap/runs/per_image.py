"""The errors of each scored image: per_image.csv and errors.npz."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heatmap.data.contest.small_tables import csv_rows
from heatmap.data.contest.table import add_name, write_rows
from heatmap.errors import UserError
from heatmap.runtime.files import write_atomically
from heatmap.shape import nanmean

REQUIRED = {"mse", "nme", "width", "height"}  # columns of per_image.csv
_CELL = re.compile(r"(-?[0-9]{1,100}(\.[0-9]{1,100})?)?")


@dataclass(frozen=True)
class Errors:
    """Errors of a network on N images with P landmarks, ordered by row of the table.

    100,000 images with 971 landmarks take 1 GB, so only the mean of signed errors is kept.
    """

    rows: np.ndarray  # (N,) rows of the table
    mse: np.ndarray  # (N,) float64, over labelled coordinates, image px²
    nme: np.ndarray  # (N,) mean point error divided by the normaliser
    normaliser: str  # its name
    distance: np.ndarray  # (N, P) float32 point errors, px; NaN where unlabelled
    peak: np.ndarray  # (N, P) heights of the heatmaps' peaks; NaN without heatmaps
    spread: np.ndarray  # (N, P) float16, px, by `metrics.spread_px`; NaN without heatmaps
    mean_shape_mse: np.ndarray  # (N,) mse of the mean training shape
    image_hw: np.ndarray  # (N, 2) px
    bias: np.ndarray  # (P, 2) mean of predicted minus true, px; NaN where never labelled
    groups: dict[str, range]  # of the landmarks

    def group_mse(self) -> dict[str, np.ndarray]:
        """Returns the (N,) mse of each landmark group, px²; one group at a time to save memory."""
        return {
            name: nanmean(self.distance[:, part.start : part.stop].astype(np.float64) ** 2 / 2, 1)
            for name, part in self.groups.items()
        }

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the (N,) columns of per_image.csv after file_name.

        mse, nme and mean_shape_mse are the fields; mean_peak is NaN without heatmaps; width and
        height are in px; if there are several landmark groups, `mse GROUP` is the mse of each.
        """
        groups = self.group_mse() if len(self.groups) > 1 else {}
        return {
            "mse": self.mse,
            "nme": self.nme,
            "mean_shape_mse": self.mean_shape_mse,
            "mean_peak": nanmean(self.peak, 1),
            "width": self.image_hw[:, 1],
            "height": self.image_hw[:, 0],
            **{f"mse {name}": mse for name, mse in groups.items()},
        }


def write_errors(path: Path, errors: Errors) -> None:
    """Writes errors.npz: the arrays by name, and the groups as JSON."""
    groups = {name: [part.start, part.stop] for name, part in errors.groups.items()}
    with write_atomically(path) as temporary:
        np.savez_compressed(temporary, **vars(errors) | {"groups": json.dumps(groups)})


def write_per_image(path: Path, names: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
    """Writes per_image.csv, one row per image, with empty cells for NaN and infinities.

    Args:
        names: N file names.
        columns: (N,) values by column, as from `Errors.columns`.
    """
    cells = [map(_format_cell, column.tolist()) for column in columns.values()]
    write_rows(path, ["file_name", *columns], zip(names, *cells, strict=True))


def _format_cell(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.6f}" if math.isfinite(value) else ""


def read_per_image(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Reads the file names and the (N,) float64 columns of per_image.csv; empty cells are NaN.

    Raises:
        UserError: the table is missing, lacks a column, or a row is not valid.
    """
    header, *rows = csv_rows(path)
    if header[:1] != ["file_name"] or not set(header) >= REQUIRED or len(set(header)) < len(header):
        raise UserError(
            f"{path}, row 1: expected file_name, mse, nme, width, height and others, each once, "
            f"found {', '.join(header)[:200]}; run heatmap evaluate again"
        )
    if not rows:
        raise UserError(f"{path}: the table has a header but no rows; run heatmap evaluate again")
    rows_by_name: dict[str, int] = {}
    values = np.empty((len(rows), len(header) - 1))
    for row, cells in enumerate(rows, start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        add_name(rows_by_name, cells[0], row, path)
        for column, cell in enumerate(cells[1:]):
            if not _CELL.fullmatch(cell):
                raise UserError(
                    f"{where}, column {header[column + 1]}: {cell[:60]!r} is not a number"
                )
            values[row - 2, column] = float(cell or "nan")
    return list(rows_by_name), dict(zip(header[1:], values.T, strict=True))
