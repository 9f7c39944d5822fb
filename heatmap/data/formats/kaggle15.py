"""Kaggle's "facial-keypoints-detection": converted to a contest folder, and its submissions.

    training.zip       training.csv: 30 columns left_eye_center_x, left_eye_center_y, ... and Image,
                       the 96 x 96 grey values, row by row, separated by spaces
    test.zip           test.csv: ImageId, Image
    IdLookupTable.csv  RowId, ImageId, FeatureName, Location (empty): the coordinates to submit

They are in one folder, or in facial-keypoints-detection.zip as Kaggle serves it. Coordinates are
0-indexed pixels, as here, from 0 to 96. Landmark k is `LANDMARKS[k]`; left and right are the
person's own. https://www.kaggle.com/c/facial-keypoints-detection
"""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from heatmap.data.contest.folder import Folder
from heatmap.data.contest.small_tables import write_asked_points
from heatmap.data.contest.submission import Rounding, rounded
from heatmap.data.contest.table import parse_cells, parse_number, write_landmarks, write_rows
from heatmap.data.formats.labelled import Table, open_binary, read_cells
from heatmap.errors import UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.files import folder_when_complete, open_file, write_atomically

LANDMARKS = (
    "left_eye_center", "right_eye_center",
    "left_eye_inner_corner", "left_eye_outer_corner",
    "right_eye_inner_corner", "right_eye_outer_corner",
    "left_eyebrow_inner_end", "left_eyebrow_outer_end",
    "right_eyebrow_inner_end", "right_eyebrow_outer_end",
    "nose_tip",
    "mouth_left_corner", "mouth_right_corner",
    "mouth_center_top_lip", "mouth_center_bottom_lip",
)  # fmt: skip
SIDE = 96  # of each image, in pixels

_COORDINATES = [f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"]
_GREY_VALUES = {str(value): value for value in range(256)}

Incomplete = Literal["keep", "drop"]
# RowId -> (image file name, landmark, axis: 0 for x, 1 for y)
Lookup = dict[int, tuple[str, int, int]]


class Converted(NamedTuple):
    """How much `convert` wrote."""

    num_training: int
    num_complete: int  # training images with all 15 landmarks
    num_test: int
    num_asked: int | None  # coordinates in a submission, None without a lookup table


def convert(
    source: Path, out: Path, *, incomplete: Incomplete = "keep", limit: int | None = None
) -> Converted:
    """Writes a contest folder with PNG images, which appears once it is complete.

    Training images are named by their row in training.csv (00002.png is the first), test images by
    ImageId. test_points.csv lists all 15 landmarks; the lookup table is copied.

    Args:
        source: the folder or zip archive with all files, or training.zip or training.csv with the
            other files next to it.
        incomplete: whether to keep training images with missing landmarks, as unlabelled.
        limit: maximum number of training images.

    Raises:
        UserError: a file is missing, damaged or malformed, or `out` exists and is not empty.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    files = _find_files(source)
    lookup = files.get("IdLookupTable.csv")
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        points_image = _convert_training(files["training.csv"], folder, incomplete, limit)
        names = _convert_test(files["test.csv"], folder) if "test.csv" in files else []
        num_asked = None
        if names and lookup is not None:
            num_asked = len(read_lookup(lookup, names))
            with open_binary(lookup) as file:
                folder.lookup_table.write_bytes(file.read())
    num_complete = int(np.isfinite(points_image).all((1, 2)).sum())
    return Converted(len(points_image), num_complete, len(names), num_asked)


def read_lookup(table: Table, images: Collection[str]) -> Lookup:
    """Reads the coordinates of a submission, in the table's order.

    Args:
        table: IdLookupTable.csv.
        images: file names of the test images, as written by `convert`.

    Raises:
        UserError: the table is malformed or contains an unknown image.
    """
    columns = ["RowId", "ImageId", "FeatureName", "Location"]
    images = set(images)
    lookup = {}
    for row_id, where, cells in _rows(table, columns, ids="RowId"):
        name = _file_name(_parse_id(cells["ImageId"], f"{where}, column ImageId"))
        feature = cells["FeatureName"].strip()
        if name not in images:
            raise UserError(f"{where}, column ImageId: no test image {cells['ImageId']} ({name})")
        if feature not in _COORDINATES:
            raise UserError(f"{where}, column FeatureName: unknown coordinate {feature[:60]!r}")
        lookup[row_id] = (name, *divmod(_COORDINATES.index(feature), 2))
    return lookup


def write_submission(
    path: Path, lookup: Lookup, names: Sequence[str], points_image: np.ndarray, rounding: Rounding
) -> None:
    """Writes RowId, Location for every coordinate in `lookup`, clipped to the image.

    The file is read back and compared.

    Args:
        names: N file names, in any order.
        points_image: (N, 15, 2) predicted landmarks in image pixels.
        rounding: rounding of the locations; "none" writes 4 decimals.

    Raises:
        UserError: there are not 15 landmarks, or a prediction is missing or not finite.
    """
    count = points_image.shape[1]
    if count != len(LANDMARKS):
        raise UserError(f"{path}: expected 15 landmarks per prediction, got {count}")
    points = dict(zip(names, points_image.astype(np.float64), strict=True))
    missing = sorted({name for name, _, _ in lookup.values()} - points.keys())
    if missing:
        raise UserError(
            f"{path}: no prediction for {counted(len(missing), 'image')}, such as {missing[0]}"
        )
    locations = {}
    for row_id, (name, landmark, axis) in lookup.items():
        location = points[name][landmark, axis]
        if not np.isfinite(location):
            raise UserError(f"{path}: the prediction for {name!r} is not finite")
        locations[row_id] = float(location.clip(0, SIDE))
    _write_locations(path, locations, rounding)


def is_submission(path: Path) -> bool:
    """Whether the header contains RowId; raises UserError if there is no such file."""
    with open_file(path, "submission") as file:
        return b"RowId" in file.readline(1000)


def average(
    submissions: Sequence[Path], out: Path, rounding: Rounding, weights: Sequence[float]
) -> int:
    """Writes the weighted mean of several submissions; returns the number of rows."""
    tables = [_read_locations(path) for path in submissions]
    for path, table in zip(submissions, tables, strict=True):
        if different := sorted(tables[0].keys() ^ table.keys()):
            where = path if different[0] in table else submissions[0]
            raise UserError(
                f"{path} and {submissions[0]} have different rows: "
                f"{counted(len(different), 'RowId')} in only one of them, such as {different[0]} "
                f"in {where}"
            )
    locations = np.array([[table[row_id] for row_id in tables[0]] for table in tables])
    means = weights @ locations / sum(weights)
    _write_locations(out, dict(zip(tables[0], means.tolist(), strict=True)), rounding)
    return len(means)


def _read_locations(path: Path) -> dict[int, float]:
    return {
        row_id: parse_number(cells["Location"], f"{where}, column Location")
        for row_id, where, cells in _rows(path, ["RowId", "Location"], ids="RowId")
    }


def _write_locations(path: Path, locations: Mapping[int, float], rounding: Rounding) -> None:
    """Writes the rounded locations and reads them back before the file appears."""
    numbers = rounded(np.array(list(locations.values())), rounding)
    form = "%.4f" if rounding == "none" else "%d"
    with write_atomically(path) as temporary:
        rows = zip(locations, (form % number for number in numbers), strict=True)
        write_rows(temporary, ["RowId", "Location"], rows)
        written = _read_locations(temporary)
        difference = np.abs(list(written.values()) - numbers).max()
        if list(written) != list(locations) or difference > 1e-4:  # 4 decimals: at most 5e-5
            raise OSError(f"{path}: not written, because the file read back differs")


def _find_files(source: Path) -> dict[str, Table]:
    """Returns the files by name: training.csv, and perhaps test.csv and IdLookupTable.csv."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    folder = source if source.is_dir() else source.parent
    files: dict[str, Table] = {path.name: path for path in folder.iterdir() if not path.is_dir()}
    if not source.is_dir() and source.suffix.lower() == ".zip":
        members = _members(source)
        files = (files if "training.csv" in members else {}) | members
    elif not source.is_dir():
        files["training.csv"] = source
    for table, archive in (("training.csv", "training.zip"), ("test.csv", "test.zip")):
        if table not in files and archive in files:
            files[table] = _require(table, _members(files[archive]), files[archive])
    _require("training.csv", files, source, "training.zip or training.csv")
    return files


def _require(name: str, files: Mapping[str, Table], where: Table, expected: str = "") -> Table:
    if name not in files:
        found = ", ".join(sorted(files)[:5]) or "nothing"
        raise UserError(f"{where}: expected {expected or name} in it, found {found!r}")
    return files[name]


def _members(file: Table) -> dict[str, Table]:
    """Returns the files in a zip archive, which may be in another archive, by base name."""
    try:
        if isinstance(file, Path):
            open_file(file, "archive").close()  # not passed on, as ZipFile would not close it
        archive = zipfile.ZipFile(file if isinstance(file, Path) else open_binary(file))
        # at the end of an archive that is cut short, zipfile may find one of the archives in it
        if min((member.header_offset for member in archive.infolist()), default=0) > 0:
            raise zipfile.BadZipFile
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{file}: not a zip archive, or cut short; download it again") from error
    return {PurePosixPath(name).name: zipfile.Path(archive, name) for name in archive.namelist()}


def _convert_training(
    table: Table, folder: Folder, incomplete: Incomplete, limit: int | None
) -> np.ndarray:
    """Writes images and table; returns (N, 15, 2) landmarks in image pixels, NaN = unlabelled."""
    folder.train_images.mkdir(parents=True)
    points: dict[str, np.ndarray] = {}
    for row, where, cells in _rows(table, [*_COORDINATES, "Image"]):
        coordinates = [cells[column] for column in _COORDINATES]
        numbers = parse_cells(["", *coordinates], ["", *_COORDINATES], where)
        for column in np.flatnonzero((numbers < 0) | (numbers > SIDE)):
            raise UserError(
                f"{where}, column {_COORDINATES[column]}: {numbers[column]:g} is outside the "
                f"image, 0 to {SIDE}; correct it, or leave both cells empty"
            )
        if incomplete == "drop" and np.isnan(numbers).any():
            continue
        points[_file_name(row)] = numbers.reshape(-1, 2)
        _write_image(folder.train_images / _file_name(row), cells["Image"], where)
        if len(points) == limit:
            break
    if not points:
        raise UserError(f"{table}: no row has all 15 landmarks; pass --incomplete keep")
    points_image = np.stack(list(points.values()))
    write_landmarks(folder.train_table, list(points), points_image)
    return points_image


def _convert_test(table: Table, folder: Folder) -> list[str]:
    """Writes images and test_points.csv; returns the images' names."""
    folder.test_images.mkdir(parents=True)
    names = []
    for image_id, where, cells in _rows(table, ["ImageId", "Image"], ids="ImageId"):
        names.append(_file_name(image_id))
        _write_image(folder.test_images / names[-1], cells["Image"], where)
    all_landmarks = np.tile(np.arange(len(LANDMARKS)), (len(names), 1))
    write_asked_points(folder.test_points, names, all_landmarks)
    return names


def _file_name(number: int) -> str:
    """Without a "_", which would name a person (`contest.split_rows`)."""
    return f"{number:05}.png"


def _write_image(path: Path, values: str, where: str) -> None:
    cells = values.split()
    where = f"{where}, column Image"
    for index, cell in enumerate(cells, start=1):
        if cell not in _GREY_VALUES:
            raise UserError(f"{where}, value {index}: expected 0 to 255, found {cell[:20]!r}")
    if len(cells) != SIDE * SIDE:
        raise UserError(f"{where}: {len(cells)} grey values, expected {SIDE * SIDE}")
    grey = np.array([_GREY_VALUES[cell] for cell in cells], np.uint8)
    path.write_bytes(cv2.imencode(".png", grey.reshape(SIDE, SIDE))[1].tobytes())


def _parse_id(text: str, where: str) -> int:
    text = text.strip()
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        raise UserError(f"{where}: expected a positive whole number, found {text[:20]!r}")
    return int(text)


def _rows(
    table: Table, columns: Sequence[str], *, ids: str | None = None
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yields each row's number, file and row for messages, and cells by column.

    The number is the row's, from 2 on, or the unique positive number in the column `ids`.
    """
    rows = read_cells(table)
    header = [column.strip() for column in next(rows, ("", []))[1]]
    excess = Counter(header)
    excess.subtract(columns)
    if wrong := sorted(repr(column[:60]) for column, count in excess.items() if count):
        raise UserError(
            f"{table}, row 1: expected {len(columns)} columns, {columns[0]} to {columns[-1]}, "
            f"separated by commas; missing, unknown or repeated: {', '.join(wrong[:4])}"
        )
    row, rows_by_number = 1, dict[int, int]()
    bar = tqdm(rows, f"Reading {table.name}", unit="row", delay=2)
    for row, (where, cells) in enumerate(bar, start=2):
        named = dict(zip(header, cells, strict=True))
        number = row if ids is None else _parse_id(named[ids], f"{where}, column {ids}")
        if rows_by_number.setdefault(number, row) != row:
            first = rows_by_number[number]
            raise UserError(f"{where}, column {ids}: {number} is already in row {first}")
        yield number, where, named
    if row == 1:
        raise UserError(f"{table}: the table has a header but no rows")
