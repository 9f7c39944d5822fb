"""WFLW, Wider Facial Landmarks in-the-wild: 98 landmarks, a box and attributes per face.

    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt   and ..._test.txt
    WFLW_images/0--Parade/0_Parade_Parade_0_861.jpg

A row holds x0 y0 ... x97 y97; x_min y_min x_max y_max, "coordinates of upper left corner and lower
right corner of detection rectangle"; pose, expression, illumination, make-up, occlusion and blur,
each 0 or 1; and the image (README of the annotations, https://wywu.github.io/projects/LAB/
WFLW.html; Wu et al., Look at Boundary, CVPR 2018). The authors do not state their pixel origin;
users of the data count from 0, so nothing is shifted here. An image has one row per labelled face.
A box may be empty (x_min = x_max); that of the landmarks replaces it.
The list's file name holds the number of landmarks. "nan nan" is an unlabelled landmark, an
extension of the original format. Attributes are dropped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from heatmap.data.contest.table import parse_number
from heatmap.data.formats.labelled import (
    LabelledFace,
    LabelledFaces,
    gather,
    image_name,
    parse_points,
    read_lines,
    usable_box,
)
from heatmap.errors import UserError

_BOX = ("x_min", "y_min", "x_max", "y_max")
_LIST = re.compile(r"list_(\d+)pt_rect_attr_(train|test)\.txt")


def read(source: Path, *, images: Path | None = None) -> LabelledFaces:
    """Reads one or both lists, with the faces' boxes.

    Args:
        source: folder that holds the lists at any depth.
        images: folder of the images; default: `source`/WFLW_images.
    """
    return gather(source, _faces(source, images or source / "WFLW_images"), several=True)


def _faces(source: Path, images: Path) -> Iterator[LabelledFace]:
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; pass the folder of the images with --images")
    lists: dict[str, Path] = {}
    for path in sorted(source.rglob("list_*pt_rect_attr_*.txt"), reverse=True):  # train before test
        if match := _LIST.fullmatch(path.name):
            first = lists.setdefault(match[2], path)
            if first != path:
                raise UserError(f"found both {first} and {path}; pass a folder with only one")
            yield from _faces_in_list(path, int(match[1]), images, match[2] == "test")
    if not lists:
        raise UserError(
            f"{source}: expected list_98pt_rect_attr_train.txt or list_98pt_rect_attr_test.txt in "
            "it or its subfolders"
        )


def _faces_in_list(
    path: Path, num_landmarks: int, images: Path, is_test: bool
) -> Iterator[LabelledFace]:
    num_numbers = 2 * num_landmarks + len(_BOX) + 6
    for row, line in enumerate(read_lines(path), start=1):
        where = f"{path}, row {row}"
        cells = line.split(maxsplit=num_numbers)
        if len(cells) != num_numbers + 1:
            expected = f"{num_landmarks} landmarks, a box, 6 attributes and a name"
            raise UserError(f"{where}: {len(cells)} cells, expected {num_numbers + 1}: {expected}")
        *coordinates, name = cells
        name = image_name(name)
        sides = zip(_BOX, coordinates[-10:-6], strict=True)
        x0, y0, x1, y1 = (parse_number(cell, f"{where}, {side}") for side, cell in sides)
        points_image = parse_points(coordinates[:-10], where)
        box_image = usable_box(x0, y0, x1, y1)
        yield LabelledFace(where, name, images / name, points_image, is_test, box_image)
