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

from collections.abc import Iterator
from pathlib import Path

from heatmap.data.formats.labelled import (
    LabelledFace,
    LabelledFaces,
    gather,
    parse_points,
    read_cells,
)
from heatmap.errors import UserError


def read(source: Path) -> LabelledFaces:
    """The faces of both tables, or of the one that is there, in `source` or `source`/data."""
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace]:
    names = ("training_frames_keypoints.csv", "test_frames_keypoints.csv")
    for folder in (source, source / "data"):
        if tables := [folder / name for name in names if (folder / name).is_file()]:
            for table in tables:
                yield from _faces_of_table(table)
            return
    raise UserError(f"{source}: expected {' or '.join(names)} in it or in its folder data")


def _faces_of_table(path: Path) -> Iterator[LabelledFace]:
    part = path.name.partition("_")[0]
    rows = read_cells(path)
    _, header = next(rows, ("", []))
    if len(header) < 3 or len(header) % 2 == 0:
        raise UserError(
            f"{path}, row 1: expected a column for the file and pairs of columns 0, 1, 2, 3, ..., "
            f"found {len(header)} columns"
        )
    for number, column in enumerate(header[1:]):
        if column.strip() != str(number):
            where = f"{path}, row 1, column {number + 2}"
            raise UserError(f"{where}: expected '{number}', found {column[:60]!r}")
    for where, (cell, *coordinates) in rows:
        name = cell.strip()
        if not name:
            raise UserError(f"{where}, column 1: the file name is empty")
        yield LabelledFace(
            where=where,
            name=name,
            path=path.parent / part / name,
            points_image=parse_points(coordinates, where),
            is_test=part == "test",
        )
