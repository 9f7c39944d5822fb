"""WFLW, Wider Facial Landmarks in-the-wild: lists with 98 landmarks, a box and attributes a row.

    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt   and ..._test.txt
    WFLW_images/0--Parade/0_Parade_Parade_0_861.jpg

A row holds x0 y0 ... x97 y97; x_min y_min x_max y_max, "coordinates of upper left corner and lower
right corner of detection rectangle"; pose, expression, illumination, make-up, occlusion and blur,
each 0 or 1; and the picture (README of the annotations, https://wywu.github.io/projects/LAB/
WFLW.html; Wu et al., Look at Boundary, CVPR 2018). Its authors do not say where pixels begin; the
data set's users count them from 0, the box's corners too, so nothing is shifted here. A photograph
stands in as many rows as it shows labelled faces. The list's name says how many landmarks there
are. The format knows no unlabelled landmark; here it is "nan nan". Attributes are not taken over,
and are written as 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from heatmap.data.contest.table import parse_number
from heatmap.data.formats.labelled import Face, LabelledFaces, check_box, gather, require_folder
from heatmap.data.formats.pictures import place
from heatmap.data.formats.text import parse_points, read_lines
from heatmap.runtime.files import folder_when_complete

_BOX = ("x_min", "y_min", "x_max", "y_max")
_ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
_LIST = re.compile(r"list_(\d+)pt_rect_attr_(train|test)\.txt")


def read(source: Path, *, images: Path | None = None, progress: bool = False) -> LabelledFaces:
    """The faces of both lists, or of the one that is there, with their boxes.

    Args:
        source: a folder that holds the lists, in whatever folders.
        images: the folder of the pictures, by default `source`/WFLW_images.

    Raises:
        ValueError: no list is there, or something in it is wrong: file, row and column are named.
    """
    require_folder(source)
    images = images or source / "WFLW_images"
    if not images.is_dir():
        raise ValueError(f"{images}: there is no such folder; name that of the pictures")
    lists = sorted(source.rglob("list_*pt_rect_attr_*.txt"), reverse=True)  # train before test
    lists = [path for path in lists if _LIST.fullmatch(path.name)]
    if not lists:
        raise ValueError(
            f"{source}: expected list_98pt_rect_attr_train.txt or list_98pt_rect_attr_test.txt in "
            "it or in a folder in it"
        )
    for part in ("train", "test"):
        found = [path for path in lists if path.stem.endswith(part)]
        if len(found) > 1:
            raise ValueError(f"{found[0]} and {found[1]} are both there; name a folder with one")
    faces = (face for path in lists for face in _faces(path, images, progress))
    return gather(source, faces, several=True)


def write(faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False) -> None:
    """Writes both lists, or one if the other part is empty, and the pictures once each.

    The list holds whole numbers for the box: each side is moved outwards to the next. Without boxes
    it is that of the landmarks.

    Raises:
        ValueError: `out` is there already and not empty, a face has no box, or a picture cannot be
            placed.
    """
    num_landmarks = faces.points_image.shape[1]
    boxes = faces.boxes_or_bounds()
    boxes = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).astype(int)
    names = faces.photographs()
    with folder_when_complete(out) as folder:
        annotations = folder / "WFLW_annotations" / f"list_{num_landmarks}pt_rect_attr_train_test"
        annotations.mkdir(parents=True)
        for part, is_test in (("train", False), ("test", True)):
            rows = np.flatnonzero(faces.is_test == is_test)
            if not len(rows):
                continue
            path = annotations / f"list_{num_landmarks}pt_rect_attr_{part}.txt"
            with path.open("w", encoding="utf-8", newline="\n") as file:
                for row in tqdm(rows, f"Writing {path.name}", delay=1, disable=not progress):
                    points = " ".join(f"{x:.6f}" for x in faces.points_image[row].ravel().tolist())
                    box = " ".join(map(str, boxes[row].tolist()))
                    file.write(f"{points} {box} {' '.join('0' * len(_ATTRIBUTES))} {names[row]}\n")
        targets = [folder / "WFLW_images" / name for name in names]
        place(faces.pictures, targets, link=link, progress=progress)


def _faces(path: Path, images: Path, progress: bool) -> Iterator[Face]:
    match = _LIST.fullmatch(path.name)
    assert match
    box_at = 2 * int(match[1])
    attributes_at = box_at + len(_BOX)
    name_at = attributes_at + len(_ATTRIBUTES)
    lines = read_lines(path)
    bar = tqdm(lines, f"Reading {path.name}", unit="row", delay=1, disable=not progress)
    for row, line in enumerate(bar, start=1):
        where = f"{path}, row {row}"
        cells = line.split(maxsplit=name_at)
        if len(cells) != name_at + 1:
            raise ValueError(
                f"{where}: {len(cells)} cells where {match[1]} landmarks, a box, 6 attributes and "
                f"a name are {name_at + 1}"
            )
        for attribute, cell in zip(_ATTRIBUTES, cells[attributes_at:name_at], strict=True):
            if cell not in ("0", "1"):
                raise ValueError(f"{where}, {attribute}: expected 0 or 1, found {cell[:20]!r}")
        box = np.array(
            [
                parse_number(cell, f"{where}, {side}")
                for side, cell in zip(_BOX, cells[box_at:attributes_at], strict=True)
            ]
        )
        check_box(box, where)
        yield Face(
            where=where,
            name=cells[name_at],
            picture=images / cells[name_at],
            points_image=parse_points(cells[:box_at], where),
            is_test=match[2] == "test",
            box_image=box,
        )
