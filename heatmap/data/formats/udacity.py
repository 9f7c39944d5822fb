"""Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks, in two tables.

    training_frames_keypoints.csv   comma; an unnamed column with the file name; then 0, 1, 2, 3,
                                    ...: x and y of landmark 0, of landmark 1, ...
    test_frames_keypoints.csv       the same
    training/, test/                the images

Coordinates are 0-indexed pixels, as here. An empty cell is unlabelled. Tables and folders are in
the project's `data` folder. https://github.com/udacity/P1_Facial_Keypoints (data_load.py)
"""

from collections.abc import Iterator
from pathlib import Path

from heatmap.data.formats.labelled import (
    LabelledFace,
    LabelledFaces,
    gather,
    image_name,
    parse_points,
    read_cells,
)
from heatmap.errors import UserError


def read(source: Path) -> LabelledFaces:
    """Reads one or both tables in `source` or `source`/data."""
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace]:
    names = ("training_frames_keypoints.csv", "test_frames_keypoints.csv")
    for folder in (source, source / "data"):
        if tables := [folder / name for name in names if (folder / name).is_file()]:
            for table in tables:
                yield from _faces_in_table(table)
            return
    raise UserError(f"{source}: expected {' or '.join(names)} in it or in its data folder")


def _faces_in_table(path: Path) -> Iterator[LabelledFace]:
    part = path.name.partition("_")[0]
    rows = read_cells(path)
    _, header = next(rows, ("", []))
    columns = [column.strip() for column in header[1:]]
    if len(columns) < 2 or len(columns) % 2 or columns != [str(n) for n in range(len(columns))]:
        raise UserError(
            f"{path}, row 1: expected a column for the file name and pairs of columns 0, 1, 2, 3, "
            f"..., found {','.join(header)[:60]!r}"
        )
    for where, (cell, *coordinates) in rows:
        name = image_name(cell.strip())
        if not name:
            raise UserError(f"{where}, column 1: the file name is empty")
        points_image = parse_points(coordinates, where)
        image = path.parent / part / name
        yield LabelledFace(where, name, image, points_image, is_test=part == "test")
