"""Kaggle's "facial-keypoints-detection": its files become a contest folder, and are answered.

    training.zip       training.csv: 30 columns left_eye_center_x, left_eye_center_y, ... and Image,
                       the 96 x 96 grey values, row after row, separated by spaces
    test.zip           test.csv: ImageId, Image
    IdLookupTable.csv  RowId, ImageId, FeatureName, Location (empty): the coordinates asked for

They lie in one folder, or in facial-keypoints-detection.zip as Kaggle sends it. Kaggle counts
coordinates in pixel indices, as everything here does, from 0 to 96. Landmark k is `LANDMARKS[k]`;
left and right are the person's own. https://www.kaggle.com/c/facial-keypoints-detection
"""

import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from heatmap.data.contest.folder import Folder
from heatmap.data.contest.small_tables import write_asked_points
from heatmap.data.contest.submission import Rounding, rounded
from heatmap.data.contest.table import parse_cells, parse_number, write_landmarks
from heatmap.data.formats.labelled import Table, read_cells
from heatmap.runtime.files import folder_when_complete, write_atomically

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
SIDE = 96  # of every image, in pixels

_COORDINATES = [f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"]
_GREY_VALUES = {str(value): value for value in range(256)}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Numbers of what `convert` wrote; num_complete: training images with all 15 landmarks."""

    num_training: int
    num_complete: int
    num_test: int
    num_asked: int | None  # coordinates that a submission holds, None without a lookup table


@dataclass(frozen=True)
class Lookup:
    """The coordinates that a submission holds, in the order of the table.

    asked: by RowId the file name of the image, the landmark, and 0 for x or 1 for y.
    """

    path: Path
    asked: dict[int, tuple[str, int, int]]


def convert(
    source: Path,
    out: Path,
    *,
    incomplete: Literal["keep", "drop"] = "keep",
    limit: int | None = None,
    progress: bool = False,
) -> Converted:
    """Writes a contest folder with the images as PNG, the values unchanged.

    Training images are named by their row of training.csv (00002.png is the first), test images by
    ImageId. There is a test part where there is a test table; all 15 landmarks are asked for, and
    the lookup table is copied to test/IdLookupTable.csv. The folder appears when it is complete.

    Args:
        source: training.zip or training.csv, the others being looked for beside it; or the folder
            or the zip archive that holds them.
        incomplete: whether to keep training images that lack landmarks, with these unlabelled.
        limit: only so many training images, the first.
        progress: show a bar for tables that take more than two seconds.

    Raises:
        ValueError: a file is missing, damaged or malformed, with row and column; or `out` is there
            already and not empty.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but must be at least 1")
    training, test, lookup = _find(source)
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        points_image = _convert_training(training, folder, incomplete, limit, progress)
        names = [] if test is None else _convert_test(test, folder, progress)
        num_asked = None
        if names and lookup is not None:
            num_asked = len(_read_asked(lookup, names))
            folder.lookup_table.write_bytes(lookup.read_bytes())
    return Converted(
        num_training=len(points_image),
        num_complete=int(np.isfinite(points_image).all((1, 2)).sum()),
        num_test=len(names),
        num_asked=num_asked,
    )


def read_lookup(path: Path, images: Collection[str]) -> Lookup:
    """Which coordinates of the test images a submission holds.

    Args:
        images: file names of the test images, as `convert` gives them.

    Raises:
        ValueError: the table is malformed or names an image that is not among them; the message
            names row and column.
    """
    return Lookup(path, _read_asked(path, images))


def write_submission(
    path: Path,
    lookup: Lookup,
    names: Sequence[str],
    points_image: np.ndarray,
    *,
    rounding: Rounding = "none",
) -> None:
    """Writes RowId, Location for every row of the lookup table, in its order.

    Locations are clipped to the image, 0 to 96. The file is read back and compared.

    Args:
        names: N file names of the predictions, in any order.
        points_image: (N, 15, 2), in image pixels.
        rounding: of the locations; "none" writes 4 decimals.

    Raises:
        ValueError: there are not 15 landmarks, an image's prediction is missing, or a location is
            not finite.
    """
    if points_image.shape[1:] != (len(LANDMARKS), 2):
        raise ValueError(
            f"{lookup.path} asks for {len(LANDMARKS)} landmarks, but the predictions hold "
            f"{points_image.shape[1]}"
        )
    points = dict(zip(names, points_image.astype(np.float64), strict=True))
    missing = sorted({name for name, _, _ in lookup.asked.values()} - points.keys())
    if missing:
        raise ValueError(
            f"{lookup.path}: {len(missing)} images have no prediction, such as {missing[0]}"
        )
    locations = {}
    for row_id, (name, landmark, axis) in lookup.asked.items():
        location = points[name][landmark, axis]
        if not np.isfinite(location):
            raise ValueError(f"{path}: not written, the prediction for {name!r} is not finite")
        locations[row_id] = float(location.clip(0, SIDE))
    _write_locations(path, locations, rounding)


def is_submission(path: Path) -> bool:
    """Whether the file's header is that of this contest's submissions: RowId, Location.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such submission")
    with path.open("rb") as file:
        return b"RowId" in file.readline()


def average(submissions: Sequence[Path], out: Path, rounding: Rounding) -> int:
    """The part of `average_submissions` that is about this form; returns the number of RowIds."""
    found = [_read_locations(path) for path in submissions]
    for path, locations in zip(submissions, found, strict=True):
        different = sorted(found[0].keys() ^ locations.keys())
        if different:
            where = path if different[0] in locations else submissions[0]
            raise ValueError(
                f"{path} and {submissions[0]} answer different rows: {len(different)} RowIds are "
                f"in one alone, such as {different[0]} in {where}"
            )
    means = {row_id: sum(each[row_id] for each in found) / len(found) for row_id in found[0]}
    _write_locations(out, means, rounding)
    return len(means)


def _read_locations(path: Path) -> dict[int, float]:
    """The locations of a submission by their RowIds."""
    locations: dict[int, float] = {}
    for _, where, cells in _rows(path, ["RowId", "Location"], ids="RowId"):
        number = parse_number(cells["Location"], f"{where}, column Location")
        locations[int(cells["RowId"])] = number
    return locations


def _write_locations(path: Path, locations: Mapping[int, float], rounding: Rounding) -> None:
    """Writes the rounded locations, and reads them back before the file gets its name."""
    numbers = rounded(np.array(list(locations.values())), rounding)
    form = "%d,%.4f" if rounding == "none" else "%d,%d"
    with write_atomically(path) as temporary:
        rows = [form % row for row in zip(locations, numbers, strict=True)]
        temporary.write_text("\n".join(["RowId,Location", *rows, ""]), newline="\n")
        written = _read_locations(temporary)
        # Four decimals are half of 1e-4 off at most.
        is_same = list(written) == list(locations)
        if not is_same or np.abs(list(written.values()) - numbers).max() > 1e-4:
            raise OSError(f"{path}: not written, what was written does not read back the same")


def _find(source: Path) -> tuple[Table, Table | None, Table | None]:
    """The training table, the test table and the lookup table."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    folder = source if source.is_dir() else source.parent
    files: dict[str, Table] = {path.name: path for path in folder.iterdir() if path.is_file()}
    if source.is_file() and source.suffix.lower() == ".zip":
        members = _members(source)
        files = {**files, **members} if "training.csv" in members else {**members}
    elif source.is_file():
        files["training.csv"] = source
    for name in ("training", "test"):  # NAME.csv, or else that in NAME.zip
        archive = files.get(f"{name}.zip")
        if f"{name}.csv" not in files and archive is not None:
            members = _members(archive)
            if f"{name}.csv" not in members:
                raise ValueError(f"{archive}: expected {name}.csv in it, found {_some(members)}")
            files[f"{name}.csv"] = members[f"{name}.csv"]
    if "training.csv" not in files:
        raise ValueError(
            f"{source}: expected training.zip or training.csv in it, found {_some(files)}"
        )
    return files["training.csv"], files.get("test.csv"), files.get("IdLookupTable.csv")


def _members(file: Table) -> dict[str, zipfile.Path]:
    """The files in a zip archive, which may itself be in one, by their names without folders."""
    try:
        archive = zipfile.ZipFile(file if isinstance(file, Path) else file.open("rb"))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{file}: not a zip archive, or cut short; download it again") from error
    return {PurePosixPath(name).name: zipfile.Path(archive, name) for name in archive.namelist()}


def _some(files: Collection[str]) -> str:
    return ", ".join(sorted(files)[:5]) or "nothing"


def _convert_training(
    table: Table,
    folder: Folder,
    incomplete: Literal["keep", "drop"],
    limit: int | None,
    progress: bool,
) -> np.ndarray:
    """Writes images and landmarks; (N, 15, 2) the landmarks in image pixels, NaN = unlabelled."""
    folder.train_images.mkdir(parents=True)
    points: dict[str, np.ndarray] = {}
    for row, where, cells in _rows(table, [*_COORDINATES, "Image"], progress=progress):
        coordinates = [cells[column] for column in _COORDINATES]
        numbers = parse_cells(["", *coordinates], ["", *_COORDINATES], where)
        outside = np.flatnonzero((numbers < 0) | (numbers > SIDE))
        if len(outside):
            raise ValueError(
                f"{where}, column {_COORDINATES[outside[0]]}: {numbers[outside[0]]:g} lies outside "
                f"the image, expected 0 to {SIDE}; correct it, or leave both cells empty"
            )
        if incomplete == "drop" and np.isnan(numbers).any():
            continue
        points[_file_name(row)] = numbers.reshape(-1, 2)
        _write_image(folder.train_images / _file_name(row), cells["Image"], where)
        if len(points) == limit:
            break
    if not points:
        raise ValueError(
            f"{table}: no row has all {len(LANDMARKS)} landmarks; keep incomplete ones"
        )
    points_image = np.stack(list(points.values()))
    write_landmarks(folder.train_table, list(points), points_image)
    return points_image


def _convert_test(table: Table, folder: Folder, progress: bool) -> list[str]:
    """Writes images and the table that asks for all their landmarks; the images' names."""
    folder.test_images.mkdir(parents=True)
    names = []
    for _, where, cells in _rows(table, ["ImageId", "Image"], ids="ImageId", progress=progress):
        names.append(_file_name(int(cells["ImageId"])))
        _write_image(folder.test_images / names[-1], cells["Image"], where)
    every_landmark = np.tile(np.arange(len(LANDMARKS)), (len(names), 1))
    write_asked_points(folder.test_points, names, every_landmark)
    return names


def _read_asked(table: Table, images: Collection[str]) -> dict[int, tuple[str, int, int]]:
    """What a lookup table asks for, as in `Lookup`."""
    columns = ["RowId", "ImageId", "FeatureName", "Location"]
    images = set(images)
    asked = {}
    for _, where, cells in _rows(table, columns, ids="RowId"):
        name = _file_name(_parse_id(cells["ImageId"], f"{where}, column ImageId"))
        feature = cells["FeatureName"].strip()
        if name not in images:
            raise ValueError(
                f"{where}, column ImageId: there is no test image {cells['ImageId']} ({name}); do "
                "test and lookup table belong together?"
            )
        if feature not in _COORDINATES:
            raise ValueError(
                f"{where}, column FeatureName: expected a column of training.csv such as "
                f"{_COORDINATES[0]!r}, found {feature[:60]!r}"
            )
        asked[int(cells["RowId"])] = (name, *divmod(_COORDINATES.index(feature), 2))
    return asked


def _file_name(number: int) -> str:
    """Of an image; without a "_", which would tell a person (`contest.split_rows`)."""
    return f"{number:05}.png"


def _write_image(path: Path, values: str, where: str) -> None:
    cells = values.split()
    try:
        grey = bytes(map(_GREY_VALUES.__getitem__, cells))
    except KeyError as error:
        raise ValueError(
            f"{where}, column Image, value {cells.index(error.args[0]) + 1}: expected a whole "
            f"number from 0 to 255, found {error.args[0][:20]!r}"
        ) from None
    if len(grey) != SIDE * SIDE:
        raise ValueError(f"{where}, column Image: {len(grey)} grey values, expected {SIDE * SIDE}")
    image = np.frombuffer(grey, np.uint8).reshape(SIDE, SIDE)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _parse_id(text: str, where: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{where}: expected a whole number from 1, found {text[:20]!r}")
    return int(text)


def _rows(
    table: Table, columns: Sequence[str], *, ids: str | None = None, progress: bool = False
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Every row's number from 2 on, its place for messages, and its cells by column.

    The table may have its columns in another order, but no others. ids: a column of whole numbers
    from 1, none of which may stand there twice.
    """
    rows = read_cells(table)
    header = [column.strip() for column in next(rows, ("", []))[1]]
    if sorted(header) != sorted(columns):
        wrong = [repr(column[:60]) for column in sorted({*header} ^ {*columns})[:4]]
        raise ValueError(
            f"{table}, row 1: expected {len(columns)} columns, {columns[0]} to {columns[-1]}, "
            f"separated by commas, found {len(header)}; missing or unknown: "
            f"{', '.join(wrong) or 'none, but some stand twice'}"
        )
    row, rows_by_id = 1, dict[int, int]()
    bar = tqdm(rows, f"Reading {table.name}", unit="row", delay=2, disable=not progress)
    for row, (where, cells) in enumerate(bar, start=2):
        named = dict(zip(header, cells, strict=True))
        if ids is not None:
            number = _parse_id(named[ids], f"{where}, column {ids}")
            if rows_by_id.setdefault(number, row) != row:
                raise ValueError(
                    f"{where}, column {ids}: {number} stands in row {rows_by_id[number]} already"
                )
        yield row, where, named
    if row == 1:
        raise ValueError(f"{table}: the table has a header but no rows")
