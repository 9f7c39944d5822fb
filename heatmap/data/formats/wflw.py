"""WFLW, Wider Facial Landmarks in-the-wild: lists with 98 landmarks, a box and attributes a row.

    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt   and ..._test.txt
    WFLW_images/0--Parade/0_Parade_Parade_0_861.jpg

A row holds x0 y0 ... x97 y97; x_min y_min x_max y_max, "coordinates of upper left corner and lower
right corner of detection rectangle"; pose, expression, illumination, make-up, occlusion and blur,
each 0 or 1; and the image (README of the annotations, https://wywu.github.io/projects/LAB/
WFLW.html; Wu et al., Look at Boundary, CVPR 2018). Its authors do not say where pixels begin; the
data set's users count them from 0, the box's corners too, so nothing is shifted here. An image
stands in as many rows as it shows labelled faces. The list's name says how many landmarks there
are. "nan nan" is an unlabelled landmark, which the format itself does not know. Attributes are not
taken over.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from heatmap.data.contest.table import parse_number
from heatmap.data.formats.labelled import (
    LabelledFace,
    LabelledFaces,
    checked_box,
    gather,
    parse_points,
    read_lines,
)
from heatmap.errors import UserError

_BOX = ("x_min", "y_min", "x_max", "y_max")
_ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
_LIST = re.compile(r"list_(\d+)pt_rect_attr_(train|test)\.txt")


def read(source: Path, *, images: Path | None = None) -> LabelledFaces:
    """The faces of both lists, or of the one that is there, with their boxes.

    Args:
        source: a folder that holds the lists, in whatever folders.
        images: the folder of the images, by default `source`/WFLW_images.
    """
    return gather(source, _faces(source, images or source / "WFLW_images"), several=True)


def _faces(source: Path, images: Path) -> Iterator[LabelledFace]:
    if not images.is_dir():
        raise UserError(f"{images}: there is no such folder; name that of the images")
    lists: dict[str, Path] = {}
    for path in sorted(source.rglob("list_*pt_rect_attr_*.txt"), reverse=True):  # train before test
        if match := _LIST.fullmatch(path.name):
            other = lists.setdefault(match[2], path)
            if other != path:
                raise UserError(f"{other} and {path} are both there; name a folder with one")
            yield from _faces_of_list(path, int(match[1]), images, match[2] == "test")
    if not lists:
        raise UserError(
            f"{source}: expected list_98pt_rect_attr_train.txt or list_98pt_rect_attr_test.txt in "
            "it or in a folder in it"
        )


def _faces_of_list(
    path: Path, num_landmarks: int, images: Path, is_test: bool
) -> Iterator[LabelledFace]:
    num_numbers = 2 * num_landmarks + len(_BOX) + len(_ATTRIBUTES)
    for row, line in enumerate(read_lines(path), start=1):
        where = f"{path}, row {row}"
        cells = line.split(maxsplit=num_numbers)
        if len(cells) != num_numbers + 1:
            expected = f"{num_landmarks} landmarks, a box, 6 attributes and a name"
            raise UserError(f"{where}: {len(cells)} cells where {expected} are {num_numbers + 1}")
        *coordinates, name = cells
        points, box, attributes = coordinates[:-10], coordinates[-10:-6], coordinates[-6:]
        for attribute, cell in zip(_ATTRIBUTES, attributes, strict=True):
            if cell not in ("0", "1"):
                raise UserError(f"{where}, {attribute}: expected 0 or 1, found {cell[:20]!r}")
        sides = zip(_BOX, box, strict=True)
        x0, y0, x1, y1 = (parse_number(cell, f"{where}, {side}") for side, cell in sides)
        yield LabelledFace(
            where=where,
            name=name,
            path=images / name,
            points_image=parse_points(points, where),
            is_test=is_test,
            box_image=checked_box(x0, y0, x1, y1, where),
        )
