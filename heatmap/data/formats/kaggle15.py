"""Kaggle's "facial-keypoints-detection": its files become a contest folder, and are answered.

    training.zip       training.csv: 30 columns left_eye_center_x, left_eye_center_y, ... and Image,
                       the 96 x 96 grey values, row after row, separated by spaces
    test.zip           test.csv: ImageId, Image
    IdLookupTable.csv  RowId, ImageId, FeatureName, Location (empty): the coordinates asked for

They lie in one folder, or in facial-keypoints-detection.zip as Kaggle sends it. Kaggle counts
coordinates in pixel indices, as everything here does, from 0 to 96. Landmark k is `LANDMARKS[k]`;
left and right are the person's own. https://www.kaggle.com/c/facial-keypoints-detection
"""

import csv
import io
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import cv2
import numpy as np
from tqdm import tqdm

from heatmap.data.contest.folder import Folder
from heatmap.data.contest.small_tables import write_asked_points
from heatmap.data.contest.submission import Rounding, rounded
from heatmap.data.contest.table import parse_cells, parse_number, write_landmarks
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
SIDE = 96  # of every picture, in pixels

_COORDINATES = [f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"]
_GREY_VALUES = {str(value): value for value in range(256)}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What `convert` wrote.

    num_training, num_test: pictures; num_complete: training pictures with all 15 landmarks.
    num_asked: coordinates that a submission holds, None without a lookup table.
    """

    num_training: int
    num_complete: int
    num_test: int
    num_asked: int | None


@dataclass(frozen=True)
class Lookup:
    """The coordinates that a submission holds, N of them, in the order of the table.

    row_ids: by which Kaggle knows them; names: file names of the pictures, many times each.
    landmarks, axes: (N,) int64; axis 0 is x, 1 is y.
    """

    path: Path
    row_ids: list[int]
    names: list[str]
    landmarks: np.ndarray
    axes: np.ndarray


def convert(
    source: Path,
    out: Path,
    *,
    incomplete: Literal["keep", "drop"] = "keep",
    limit: int | None = None,
    progress: bool = False,
) -> Converted:
    """Writes a contest folder with the pictures as PNG, the values unchanged.

        out/train/landmarks.csv, out/train/images/00002.png: by the row of training.csv, from 2
        out/test/test_points.csv, out/test/images/00001.png: by ImageId; all 15 landmarks asked for
        out/test/IdLookupTable.csv: a copy

    The test part is written where there is a test table, the copy where a lookup table is there as
    well. The folder appears when it is complete.

    Args:
        source: training.zip or training.csv, the others being looked for beside it; or the folder
            or the zip archive that holds them.
        incomplete: what becomes of training pictures that lack some of the 15 landmarks; kept, they
            are unlabelled.
        limit: only so many training pictures, the first.
        progress: show bars for tables that take more than two seconds.

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
        num_test, num_asked = 0, None
        if test is not None:
            names = _convert_test(test, folder, progress)
            num_test = len(names)
            if lookup is not None:
                num_asked = len(_read_lookup(lookup, names).names)
                with lookup.open() as (binary, _), folder.lookup_table.open("wb") as copy:
                    shutil.copyfileobj(binary, copy)
    return Converted(
        num_training=len(points_image),
        num_complete=int(np.isfinite(points_image).all((1, 2)).sum()),
        num_test=num_test,
        num_asked=num_asked,
    )


def read_lookup(path: Path, pictures: Collection[str]) -> Lookup:
    """Which coordinates of the test pictures a submission holds.

    Args:
        pictures: file names of the test pictures, as `convert` gives them.

    Raises:
        ValueError: the table is malformed or names a picture that is not among them; the message
            names row and column.
    """
    return _read_lookup(_File(path), pictures)


def write_submission(
    path: Path,
    lookup: Lookup,
    names: Sequence[str],
    points_image: np.ndarray,
    *,
    rounding: Rounding = "none",
) -> None:
    """Writes RowId, Location for every row of the lookup table, in its order.

    Locations are clipped to the picture, 0 to 96. The file is read back and compared before it gets
    its name.

    Args:
        names: N file names of the predictions, in any order.
        points_image: (N, 15, 2), in image pixels.
        rounding: of the locations; "none" writes 4 decimals.

    Raises:
        ValueError: there are not 15 landmarks, a picture's prediction is missing, or a location is
            not finite.
    """
    if points_image.shape[1:] != (len(LANDMARKS), 2):
        raise ValueError(
            f"{lookup.path} asks for {len(LANDMARKS)} landmarks, but the predictions hold "
            f"{points_image.shape[1]}"
        )
    rows = dict(zip(names, range(len(points_image)), strict=True))
    missing = sorted(set(lookup.names) - rows.keys())
    if missing:
        raise ValueError(
            f"{lookup.path}: {len(missing)} pictures have no prediction, such as {missing[0]}"
        )
    found = points_image[[rows[name] for name in lookup.names], lookup.landmarks, lookup.axes]
    for name, location in zip(lookup.names, found, strict=True):
        if not np.isfinite(location):
            raise ValueError(f"{path}: not written, the prediction for {name!r} is not finite")
    locations = found.astype(np.float64).clip(0, SIDE)
    _write_locations(path, lookup.row_ids, locations, rounding)


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
    row_ids, total = _read_locations(submissions[0])
    for path in submissions[1:]:
        other_ids, locations = _read_locations(path)
        places = {row_id: place for place, row_id in enumerate(other_ids)}
        different = sorted(set(row_ids) ^ places.keys())
        if different:
            where = path if different[0] in places else submissions[0]
            raise ValueError(
                f"{path} and {submissions[0]} answer different rows: {len(different)} RowIds are "
                f"in one alone, such as {different[0]} in {where}"
            )
        total += locations[[places[row_id] for row_id in row_ids]]
    _write_locations(out, row_ids, total / len(submissions), rounding)
    return len(row_ids)


def _read_locations(path: Path) -> tuple[list[int], np.ndarray]:
    """The RowIds of a submission and their (N,) float64 locations."""
    rows_by_id: dict[int, int] = {}
    locations = []
    for row, (row_id_text, location) in _rows(_File(path), ["RowId", "Location"]):
        where = f"{path}, row {row}"
        row_id = _parse_id(row_id_text, f"{where}, column RowId")
        if row_id in rows_by_id:
            raise ValueError(
                f"{where}, column RowId: {row_id} stands in row {rows_by_id[row_id]} already"
            )
        rows_by_id[row_id] = row
        locations.append(parse_number(location, f"{where}, column Location"))
    return list(rows_by_id), np.array(locations)


def _write_locations(
    path: Path, row_ids: list[int], locations: np.ndarray, rounding: Rounding
) -> None:
    """Writes the rounded locations, and reads them back before the file gets its name."""
    locations = rounded(locations, rounding)
    number = "%.4f" if rounding == "none" else "%d"
    with write_atomically(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write("RowId,Location\n")
            for row_id, location in zip(row_ids, locations.tolist(), strict=True):
                file.write(f"{row_id},{number % location}\n")
        written_ids, written = _read_locations(temporary)
        # Four decimals are half of 1e-4 off at most.
        if written_ids != row_ids or np.abs(written - locations).max() > 1e-4:
            raise OSError(f"{path}: not written, what was written does not read back the same")


@dataclass(frozen=True)
class _File:
    """A file on the disk, or in a zip archive, or in one that is itself in an archive."""

    path: Path
    inside: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join([str(self.path), *self.inside])

    @contextmanager
    def open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The file, open for reading, and its size in bytes."""
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(self.path.open("rb"))
            size = self.path.stat().st_size
            try:
                for member in self.inside:
                    archive = stack.enter_context(zipfile.ZipFile(file))
                    size = archive.getinfo(member).file_size
                    file = stack.enter_context(archive.open(member))
                yield file, size
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ValueError(
                    f"{self}: the archive is damaged or cut short ({error}); download it again"
                ) from error

    def members(self) -> "dict[str, _File]":
        """The files in this zip archive, by their names without folders."""
        with self.open() as (binary, _):
            try:
                with zipfile.ZipFile(binary) as archive:
                    names = archive.namelist()
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{self}: not a zip archive, or cut short; download it again"
                ) from error
        return {PurePosixPath(name).name: _File(self.path, (*self.inside, name)) for name in names}


def _find(source: Path) -> tuple[_File, _File | None, _File | None]:
    """The training table, the test table and the lookup table."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    if source.is_dir():
        files = _files_in(source)
    elif source.suffix.lower() == ".zip":
        files = _File(source).members()
        if "training.csv" in files:
            files = _files_in(source.parent) | files
    else:
        files = _files_in(source.parent) | {"training.csv": _File(source)}
    training = _table(files, "training")
    if training is None:
        raise ValueError(
            f"{source}: expected training.zip or training.csv in it, found "
            f"{', '.join(sorted(files)[:5]) or 'nothing'}"
        )
    return training, _table(files, "test"), files.get("IdLookupTable.csv")


def _files_in(folder: Path) -> dict[str, _File]:
    return {path.name: _File(path) for path in folder.iterdir() if path.is_file()}


def _table(files: dict[str, _File], name: str) -> _File | None:
    """The table of that name, from NAME.csv or else from NAME.zip."""
    if f"{name}.csv" in files:
        return files[f"{name}.csv"]
    if f"{name}.zip" not in files:
        return None
    members = files[f"{name}.zip"].members()
    if f"{name}.csv" not in members:
        raise ValueError(
            f"{files[f'{name}.zip']}: expected {name}.csv in it, found "
            f"{', '.join(sorted(members)[:5]) or 'nothing'}"
        )
    return members[f"{name}.csv"]


def _convert_training(
    table: _File,
    folder: Folder,
    incomplete: Literal["keep", "drop"],
    limit: int | None,
    progress: bool,
) -> np.ndarray:
    """Writes pictures and landmarks; (N, 15, 2) the landmarks in image pixels, NaN = unlabelled."""
    folder.train_images.mkdir(parents=True)
    names: list[str] = []
    points: list[np.ndarray] = []
    for row, (*coordinates, picture) in _rows(table, [*_COORDINATES, "Image"], progress):
        where = f"{table}, row {row}"
        numbers = parse_cells(["", *coordinates], ["", *_COORDINATES], where)
        for column, number in zip(_COORDINATES, numbers, strict=True):
            if number < 0 or number > SIDE:
                raise ValueError(
                    f"{where}, column {column}: {number:g} lies outside the picture, expected 0 to "
                    f"{SIDE}; correct it, or leave the landmark's two cells empty"
                )
        if incomplete == "drop" and np.isnan(numbers).any():
            continue
        names.append(_file_name(row))
        points.append(numbers.reshape(-1, 2))
        _write_picture(folder.train_images / names[-1], picture, where)
        if len(names) == limit:
            break
    if not names:
        raise ValueError(
            f"{table}: no row has all {len(LANDMARKS)} landmarks; keep incomplete ones"
        )
    points_image = np.stack(points)
    write_landmarks(folder.train_table, names, points_image)
    return points_image


def _convert_test(table: _File, folder: Folder, progress: bool) -> list[str]:
    """Writes pictures and the table that asks for all their landmarks; the pictures' names."""
    folder.test_images.mkdir(parents=True)
    rows_by_name: dict[str, int] = {}
    for row, (image_id, picture) in _rows(table, ["ImageId", "Image"], progress):
        where = f"{table}, row {row}"
        name = _file_name(_parse_id(image_id, f"{where}, column ImageId"))
        if name in rows_by_name:
            raise ValueError(
                f"{where}, column ImageId: {image_id} stands in row {rows_by_name[name]} already"
            )
        rows_by_name[name] = row
        _write_picture(folder.test_images / name, picture, where)
    names = list(rows_by_name)
    every_landmark = np.broadcast_to(np.arange(len(LANDMARKS)), (len(names), len(LANDMARKS)))
    write_asked_points(folder.test_points, names, every_landmark)
    return names


def _file_name(number: int) -> str:
    """Of a picture; without a "_", which would tell a person (`contest.split_rows`)."""
    return f"{number:05}.png"


def _write_picture(path: Path, values: str, where: str) -> None:
    cells = values.split()
    try:
        grey = bytes(map(_GREY_VALUES.__getitem__, cells))
    except KeyError as error:
        wrong = error.args[0]
        raise ValueError(
            f"{where}, column Image, value {cells.index(wrong) + 1}: expected a whole number from "
            f"0 to 255, found {wrong[:20]!r}"
        ) from None
    if len(grey) != SIDE * SIDE:
        raise ValueError(
            f"{where}, column Image: {len(grey)} grey values, expected {SIDE * SIDE} ({SIDE} rows "
            f"of {SIDE})"
        )
    is_encoded, data = cv2.imencode(".png", np.frombuffer(grey, np.uint8).reshape(SIDE, SIDE))
    assert is_encoded
    path.write_bytes(data.tobytes())


def _read_lookup(table: _File, pictures: Collection[str]) -> Lookup:
    places = {column: place for place, column in enumerate(_COORDINATES)}
    known = set(pictures)
    rows_by_id: dict[int, int] = {}
    names: list[str] = []
    asked: list[int] = []
    for row, cells in _rows(table, ["RowId", "ImageId", "FeatureName", "Location"]):
        where = f"{table}, row {row}"
        row_id = _parse_id(cells[0], f"{where}, column RowId")
        name = _file_name(_parse_id(cells[1], f"{where}, column ImageId"))
        feature = cells[2].strip()
        if row_id in rows_by_id:
            raise ValueError(
                f"{where}, column RowId: {row_id} stands in row {rows_by_id[row_id]} already"
            )
        if name not in known:
            raise ValueError(
                f"{where}, column ImageId: there is no test picture {cells[1]} ({name}); do test "
                "and lookup table belong together?"
            )
        if feature not in places:
            raise ValueError(
                f"{where}, column FeatureName: expected a column of training.csv such as "
                f"{_COORDINATES[0]!r}, found {feature[:60]!r}"
            )
        rows_by_id[row_id] = row
        names.append(name)
        asked.append(places[feature])
    landmarks, axes = np.divmod(np.array(asked, np.int64), 2)
    return Lookup(table.path, list(rows_by_id), names, landmarks, axes)


def _parse_id(text: str, where: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{where}: expected a whole number from 1, found {text[:20]!r}")
    return int(text)


def _rows(
    table: _File, columns: Sequence[str], progress: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The number of every row, counted from 2, and its cells in the order of `columns`.

    The table may have its columns in another order, but no others.
    """
    with (
        table.open() as (binary, size),
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
        tqdm(
            desc=f"Reading {PurePosixPath(str(table)).name}",
            total=size,
            unit="B",
            unit_scale=True,
            delay=2,
            disable=not progress,
        ) as bar,
    ):
        reader = csv.reader(_counted(text, bar), strict=True)
        row = 1
        try:
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(table, header, columns)
            order = [header.index(column) for column in columns]
            for row, cells in enumerate(reader, start=2):
                where = f"{table}, row {row}"
                if not cells:
                    if any(reader):
                        raise ValueError(f"{where}: the row is blank, but others follow it")
                    row -= 1
                    break
                if len(cells) != len(header):
                    raise ValueError(
                        f"{where}: {len(cells)} cells where the header has {len(header)}; is the "
                        "file cut short?"
                    )
                yield row, [cells[place] for place in order]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{table}, near row {row + 1}: not a table in UTF-8: {error}"
            ) from None
        if row == 1:
            raise ValueError(f"{table}: the table has a header but no rows")


def _counted(lines: Iterator[str], bar: tqdm) -> Iterator[str]:
    for line in lines:
        bar.update(len(line))
        yield line


def _check_header(table: _File, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing or len(header) != len(columns):
        surplus = [column[:60] for column in header if column not in columns]
        twice = sorted({column for column in header if header.count(column) > 1})
        found = "; ".join(
            f"{what} {', '.join(map(repr, names[:3]))}{' ...' if len(names) > 3 else ''}"
            for what, names in (("missing", missing), ("unknown", surplus), ("repeated", twice))
            if names
        )
        raise ValueError(
            f"{table}, row 1: expected {len(columns)} columns, {columns[0]} to {columns[-1]}, "
            f"separated by commas; {found}"
        )
