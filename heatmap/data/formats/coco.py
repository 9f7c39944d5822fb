"""COCO keypoints, and the faces of COCO-WholeBody: JSON with photographs and labelled people.

    images        id, file_name, width, height
    annotations   image_id, keypoints [x, y, v, x, y, v, ...], num_keypoints, bbox [x, y, w, h],
                  iscrowd; v is 0 where unlabelled, 1 where labelled but hidden, 2 where visible
    categories    id, name, keypoints (their names)

https://cocodataset.org/#format-data. COCO-WholeBody adds face_kpts (68 landmarks), face_box and
face_valid to each person (https://github.com/jin-s13/COCO-WholeBody, data_format.md; Jin et al.,
ECCV 2020).

Keypoints are 0-indexed pixels, so their numbers are those used here. Boxes are measured on the
picture's plane, which reaches from 0 to its width: half a pixel is taken off their corners
(detectron2's loader states the difference, and adds 0.5 to keypoints: "COCO's segmentation
coordinates are floating points in [0, H or W], but keypoint coordinates are integers in [0, H-1 or
W-1]", detectron2/data/datasets/coco.py).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from tqdm import tqdm

from heatmap.data.contest import read_image
from heatmap.data.formats.labelled import Face, LabelledFaces, check_box, gather
from heatmap.data.formats.pictures import place
from heatmap.runtime.files import folder_when_complete

_FIELDS = {"keypoints": ("keypoints", "bbox"), "face": ("face_kpts", "face_box")}
_CROWDS = "crowds (iscrowd)"
_INVALID = "people whose face is not valid (face_valid)"
_EMPTY = "annotations without a labelled landmark"


def read(
    source: Path,
    *,
    images: Path | None = None,
    test: Path | None = None,
    test_images: Path | None = None,
    points: Literal["keypoints", "face"] = "keypoints",
    progress: bool = False,
) -> LabelledFaces:
    """The people of one or two files, those of a photograph one after the other, with their boxes.

    Left out are crowds, annotations without a labelled landmark, and for "face" people whose face
    is not valid.

    Args:
        source: the JSON of the training part.
        images: the folder that its file names are relative to, by default that of the JSON.
        test: the JSON of the test part.
        test_images: the folder of its pictures, by default `images`.
        points: "face" takes COCO-WholeBody's face_kpts and face_box.

    Raises:
        ValueError: a file is missing or damaged, or something in it is wrong: the annotation is
            named.
    """
    images = images or source.parent
    parts = [(source, images, False)]
    if test is not None:
        parts.append((test, test_images or images, True))
    left_out = {_CROWDS: 0, _INVALID: 0, _EMPTY: 0}
    faces = (
        face
        for path, folder, is_test in parts
        for face in _faces(path, folder, is_test, points, left_out, progress)
    )
    return gather(source, faces, several=True, left_out=left_out)


def write(faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False) -> None:
    """Writes annotations/train.json, annotations/test.json, and the pictures into train and test.

    A part without faces has no file. Every photograph is decoded for its size, turned as its EXIF
    says. Without boxes, bbox is that of the landmarks.

    Raises:
        ValueError: `out` is there already and not empty, a face has no box, or a picture cannot be
            read or placed.
    """
    boxes = faces.boxes_or_bounds()
    names = faces.photographs()
    with folder_when_complete(out) as folder:
        (folder / "annotations").mkdir()
        for part, is_test in (("train", False), ("test", True)):
            rows = np.flatnonzero(faces.is_test == is_test).tolist()
            if rows:
                pictures = {names[row]: faces.pictures[row] for row in rows}
                ids = {name: number for number, name in enumerate(pictures, start=1)}
                annotations = (
                    _annotation(number, ids[names[row]], faces.points_image[row], boxes[row])
                    for number, row in enumerate(rows, start=1)
                )
                path = folder / "annotations" / f"{part}.json"
                with path.open("w", encoding="utf-8", newline="\n") as file:
                    file.write('{"categories": ')
                    json.dump([_category(faces.points_image.shape[1])], file)
                    _write_list(file, "images", _images(pictures, ids, progress))
                    _write_list(file, "annotations", annotations)
                    file.write("}\n")
        targets = [
            folder / ("test" if is_test else "train") / name
            for name, is_test in zip(names, faces.is_test, strict=True)
        ]
        place(faces.pictures, targets, link=link, progress=progress)


def _faces(
    path: Path,
    folder: Path,
    is_test: bool,
    points: Literal["keypoints", "face"],
    left_out: dict[str, int],
    progress: bool,
) -> Iterator[Face]:
    images, annotations = _load(path)
    by_image = defaultdict[Any, list[tuple[str, dict[str, Any]]]](list)
    for index, annotation in enumerate(annotations):
        where = f"{path}, annotation {annotation.get('id', f'number {index}')}"
        if annotation.get("image_id") not in images:
            raise ValueError(
                f"{where}, image_id: there is no image {annotation.get('image_id')!r} in the file"
            )
        if annotation.get("iscrowd"):
            left_out[_CROWDS] += 1
        elif points == "face" and not annotation.get("face_valid", True):
            left_out[_INVALID] += 1
        else:
            by_image[annotation["image_id"]].append((where, annotation))
    keypoints_field, box_field = _FIELDS[points]
    bar = tqdm(images.items(), f"Reading {path.name}", delay=1, disable=not progress)
    for image_id, name in bar:
        for where, annotation in by_image[image_id]:
            points_image = _points(
                annotation.get(keypoints_field, []), f"{where}, {keypoints_field}"
            )
            if np.isnan(points_image).all():
                left_out[_EMPTY] += 1
                continue
            yield Face(
                where=where,
                name=name,
                picture=folder / name,
                points_image=points_image,
                is_test=is_test,
                box_image=_box(annotation.get(box_field), f"{where}, {box_field}"),
            )


def _load(path: Path) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    """File names by the images' ids, and the annotations."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected the JSON of the annotations")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    lists = []
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: expected a list {key!r} as in COCO's keypoints")
        lists.append(entries)
    images: dict[Any, str] = {}
    for index, image in enumerate(lists[0]):
        image_id, name = image.get("id"), image.get("file_name")
        if not isinstance(image_id, int | str) or not isinstance(name, str):
            raise ValueError(f"{path}, image number {index}: expected an id and a file_name")
        if image_id in images:
            raise ValueError(f"{path}, image number {index}: the id {image_id!r} is taken already")
        images[image_id] = name
    return images, lists[1]


def _points(keypoints: Any, where: str) -> np.ndarray:
    """(K, 2) float64 of [x, y, v, ...], NaN where v is 0."""
    values = _numbers(keypoints, where)
    if len(values) % 3:
        raise ValueError(f"{where}: {len(values)} numbers, but each keypoint has x, y and v")
    values = values.reshape(-1, 3)
    return np.where(values[:, 2:] > 0, values[:, :2], np.nan)


def _box(box: Any, where: str) -> np.ndarray | None:
    if box is None:
        return None
    values = _numbers(box, where)
    if len(values) != 4:
        raise ValueError(f"{where}: expected x, y, width and height, found {len(values)} numbers")
    x, y, width, height = values - [0.5, 0.5, 0, 0]
    box_image = np.array([x, y, x + width, y + height])
    check_box(box_image, where)
    return box_image


def _numbers(values: Any, where: str) -> np.ndarray:
    """A list of numbers that can be coordinates, as float64."""
    if not isinstance(values, list):
        raise ValueError(f"{where}: expected a list of numbers, found {str(values)[:60]!r}")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e6:
            raise ValueError(f"{where}, number {index}: {str(value)[:60]!r} is no coordinate")
    return np.array(values, np.float64)


def _category(num_landmarks: int) -> dict[str, Any]:
    names = [str(landmark) for landmark in range(num_landmarks)]
    return {"id": 1, "name": "face", "supercategory": "person", "keypoints": names, "skeleton": []}


def _images(
    pictures: dict[str, Path], ids: dict[str, int], progress: bool
) -> Iterator[dict[str, Any]]:
    bar = tqdm(pictures.items(), "Reading sizes", unit="picture", delay=1, disable=not progress)
    for name, picture in bar:
        height, width, _ = read_image(picture).shape
        yield {"id": ids[name], "file_name": name, "width": width, "height": height}


def _annotation(
    number: int, image_id: int, points_image: np.ndarray, box_image: np.ndarray
) -> dict[str, Any]:
    keypoints: list[float] = []
    for x, y in points_image.astype(np.float64).round(6).tolist():
        keypoints += [0, 0, 0] if x != x else [_short(x), _short(y), 2]
    x0, y0, x1, y1 = (box_image + 0.5).round(6).tolist()
    width, height = round(x1 - x0, 6), round(y1 - y0, 6)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": int(np.isfinite(points_image[:, 0]).sum()),
        "bbox": [_short(x0), _short(y0), _short(width), _short(height)],
        "area": round(width * height, 6),
    }


def _short(number: float) -> float:
    """A whole number without its ".0", as COCO writes it."""
    return int(number) if number.is_integer() else number


def _write_list(file: TextIO, key: str, entries: Iterable[dict[str, Any]]) -> None:
    """Entry by entry: a list of 393,930 faces with 971 landmarks does not fit into memory."""
    file.write(f',\n"{key}": [')
    for index, entry in enumerate(entries):
        file.write(",\n" if index else "\n")
        json.dump(entry, file, separators=(",", ":"))
    file.write("]")
