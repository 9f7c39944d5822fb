"""The errors of every image that a run was scored on: per_image.csv and errors.npz."""

import csv
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from heatmap.errors import UserError
from heatmap.runtime.files import write_atomically
from heatmap.shape import nanmean


@dataclass(frozen=True)
class Errors:
    """What a network got wrong in N images with P landmarks, in the order of the table's rows.

    Of 100,000 images with 971 landmarks it takes 1 GB; so signed errors are kept as their mean.

    rows: (N,); mse: (N,) float64 mean squared error over labelled coordinates, px² of the image;
    nme: (N,) mean point error over the normaliser; normaliser: its name; distance: (N, P) float32
    point errors in px, NaN where unlabelled; peak: (N, P) heights of the heatmap peaks; spread:
    (N, P) float16 px, as `metrics.spread_px` gives it; both are NaN on the direct road;
    mean_shape_mse: (N,) as mse, for the mean training shape; image_hw: (N, 2); bias: (P, 2) mean of
    predicted minus true landmark, px, NaN where no image has it labelled; groups: of the landmarks.
    """

    rows: np.ndarray
    mse: np.ndarray
    nme: np.ndarray
    normaliser: str
    distance: np.ndarray
    peak: np.ndarray
    spread: np.ndarray
    mean_shape_mse: np.ndarray
    image_hw: np.ndarray
    bias: np.ndarray
    groups: dict[str, range]

    def group_mse(self) -> dict[str, np.ndarray]:
        """By landmark group the (N,) px² of every image; all at once in float64 would be large."""
        return {
            name: nanmean(self.distance[:, part.start : part.stop].astype(np.float64) ** 2 / 2, 1)
            for name, part in self.groups.items()
        }

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of per_image.csv after file_name, (N,) each.

        mse: mean squared error over the image's labelled coordinates, px² of the image; nme: mean
        point error over the normaliser; mean_shape_mse: as mse, for the mean training shape;
        mean_peak: of the heatmaps, NaN on the direct road; width, height: px; mse GROUP: as mse, of
        one landmark group, where there are several.
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
    """Writes errors.npz: the arrays by name, the groups as JSON."""
    groups = {name: [part.start, part.stop] for name, part in errors.groups.items()}
    with write_atomically(path) as temporary, temporary.open("wb") as binary:
        np.savez_compressed(binary, **vars(errors) | {"groups": json.dumps(groups)})


def read_errors(path: Path) -> Errors:
    """The errors that `write_errors` wrote.

    Raises:
        UserError: there are none, or the file is damaged or lacks something.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            values = {field.name: arrays[field.name] for field in fields(Errors)}
            groups = json.loads(str(values["groups"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a readable file of errors ({error}); tools/evaluate.py writes it anew"
        ) from None
    values["groups"] = {name: range(*bounds) for name, bounds in groups.items()}
    return Errors(**values | {"normaliser": str(values["normaliser"])})


def write_per_image(path: Path, names: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
    """Writes per_image.csv, a row for each image; a number that is not finite is an empty cell.

    Args:
        names: N file names; columns: (N,) each, as `Errors.columns` gives them.
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
        UserError: missing, or not such a table; the message names the row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table of errors ({error})") from None
    if header[:2] != ["file_name", "mse"]:
        raise UserError(f"{path}, row 1: expected file_name, mse, ..., found {', '.join(header)}")
    numbers = np.empty((len(rows), len(header) - 1))
    for index, row in enumerate(rows):
        try:
            numbers[index] = [float(cell or "nan") for cell in row[1:]]
        except ValueError as error:  # also where there are too few or too many cells
            raise UserError(f"{path}, row {index + 2}: {error}") from None
    return [row[0] for row in rows], dict(zip(header[1:], numbers.T, strict=True))
