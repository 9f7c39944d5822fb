"""Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks, in two tables.

    training_frames_keypoints.csv   comma; a column without a name: the file; then 0, 1, 2, 3, ...:
                                    x and y of landmark 0, of landmark 1, ...
    test_frames_keypoints.csv       the same
    training/, test/                the images

Coordinates are pixel indices of the image; they are not shifted. An empty cell is unlabelled.
The tables and folders lie in `data/` of the project's folder.
https://github.com/udacity/P1_Facial_Keypoints (data_load.py reads column 0 as the name and the rest
as pairs)
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from heatmap.data.formats.labelled import Face, LabelledFaces, gather, parse_points, require_folder


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of both tables, or of the one that is there.

    Args:
        source: the folder that holds the tables, or one whose `data/` does.

    Raises:
        ValueError: no table is there, or something in it is wrong: file, row and column are named.
    """
    require_folder(source)
    for folder in (source, source / "data"):
        tables = [folder / f"{part}_frames_keypoints.csv" for part in ("training", "test")]
        tables = [table for table in tables if table.is_file()]
        if tables:
            return gather(
                source, (face for table in tables for face in _faces(table)), progress=progress
            )
    raise ValueError(
        f"{source}: expected training_frames_keypoints.csv or test_frames_keypoints.csv in it or "
        "in its folder data"
    )


def _faces(path: Path) -> Iterator[Face]:
    part = path.name.partition("_")[0]
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        row = 0
        try:
            header = next(reader, [])
            _check_header(path, header)
            for row, cells in enumerate(reader, start=2):
                where = f"{path}, row {row}"
                if len(cells) != len(header):
                    raise ValueError(
                        f"{where}: {len(cells)} cells where the header has {len(header)}"
                    )
                name = cells[0].strip()
                if not name:
                    raise ValueError(f"{where}, column 1: the file name is empty")
                yield Face(
                    where=where,
                    name=name,
                    path=path.parent / part / name,
                    points_image=parse_points(cells[1:], where),
                    is_test=part == "test",
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
