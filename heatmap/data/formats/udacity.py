"""Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks, in two tables.

    training_frames_keypoints.csv   comma; a column without a name: the file; then 0, 1, 2, 3, ...:
                                    x and y of landmark 0, of landmark 1, ...
    test_frames_keypoints.csv       the same
    training/, test/                the pictures

Coordinates are pixel indices of the picture; they are not shifted. An empty cell is unlabelled.
The tables and folders lie in `data/` of the project's folder.
https://github.com/udacity/P1_Facial_Keypoints (data_load.py reads column 0 as the name and the rest
as pairs)
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from heatmap.data.formats.labelled import Face, LabelledFaces, gather, require_folder
from heatmap.data.formats.pictures import place
from heatmap.data.formats.text import parse_points
from heatmap.runtime.files import folder_when_complete

PARTS = {"training": False, "test": True}  # which of the two is the test part


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of both tables, or of the one that is there.

    Args:
        source: the folder that holds the tables, or one whose `data/` does.

    Raises:
        ValueError: no table is there, or something in it is wrong: file, row and column are named.
    """
    require_folder(source)
    if not any(_table(source, part).is_file() for part in PARTS):
        source, given = source / "data", source
        if not any(_table(source, part).is_file() for part in PARTS):
            raise ValueError(
                f"{given}: expected training_frames_keypoints.csv or test_frames_keypoints.csv in "
                "it or in its folder data"
            )
    return gather(
        source,
        (
            face
            for part in PARTS
            if _table(source, part).is_file()
            for face in _faces(source, part, progress)
        ),
    )


def write(faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False) -> None:
    """Writes both tables, or one if the other part is empty; integers if all numbers are whole.

    Raises:
        ValueError: `out` is there already and not empty, or a picture cannot be placed.
    """
    with folder_when_complete(out) as folder:
        for part, is_test in PARTS.items():
            rows = np.flatnonzero(faces.is_test == is_test)
            if len(rows):
                names = [faces.names[row] for row in rows]
                _write_table(_table(folder, part), names, faces.points_image[rows], progress)
        parts = ["test" if is_test else "training" for is_test in faces.is_test]
        targets = [folder / part / name for part, name in zip(parts, faces.names, strict=True)]
        place(faces.pictures, targets, link=link, progress=progress)


def _table(folder: Path, part: str) -> Path:
    return folder / f"{part}_frames_keypoints.csv"


def _faces(source: Path, part: str, progress: bool) -> Iterator[Face]:
    path = _table(source, part)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        row = 0
        try:
            header = next(reader, [])
            _check_header(path, header)
            bar = tqdm(reader, f"Reading {path.name}", unit="row", delay=1, disable=not progress)
            for row, cells in enumerate(bar, start=2):
                where = f"{path}, row {row}"
                if len(cells) != len(header):
                    raise ValueError(
                        f"{where}: {len(cells)} cells where the header has {len(header)}"
                    )
                if not cells[0].strip():
                    raise ValueError(f"{where}, column 1: the file name is empty")
                yield Face(
                    where=where,
                    name=cells[0].strip(),
                    picture=source / part / cells[0].strip(),
                    points_image=parse_points(cells[1:], where),
                    is_test=PARTS[part],
                )
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}, near row {row + 1}: not a table in UTF-8: {error}") from None


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) < 3 or len(header) % 2 == 0:
        raise ValueError(
            f"{path}, row 1: expected a column for the file and pairs of columns 0, 1, 2, 3, ... "
            f"separated by commas, found {len(header)} columns"
        )
    for index, column in enumerate(header[1:]):
        if column.strip() != str(index):
            raise ValueError(
                f"{path}, row 1, column {index + 2}: expected '{index}', found {column[:60]!r}"
            )


def _write_table(path: Path, names: list[str], points: np.ndarray, progress: bool) -> None:
    whole = bool((np.isnan(points) | (points == np.rint(points))).all())
    number = "%d" if whole else "%.6f"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["", *range(2 * points.shape[1])])
        pairs = zip(names, points, strict=True)
        what = f"Writing {path.name}"
        for name, row in tqdm(pairs, what, len(names), delay=1, disable=not progress):
            values = row.ravel().tolist()
            table.writerow([name, *("" if value != value else number % value for value in values)])
