"""COCO keypoints and COCO-WholeBody faces: one JSON file with images and labelled people.

    images        id, file_name, width, height
    annotations   image_id, category_id, keypoints [x, y, v, x, y, v, ...], num_keypoints (v > 0),
                  bbox [x, y, w, h], iscrowd; v is 0 for unlabelled, 1 for labelled but hidden, 2
                  for visible
    categories    id, name, keypoints (their names)

https://cocodataset.org/#format-data. COCO-WholeBody adds face_kpts (68 landmarks, where v may be a
fraction), face_box and face_valid to each person (https://github.com/jin-s13/COCO-WholeBody,
data_format.md; Jin et al., ECCV 2020).

Keypoints are 0-indexed pixels, as here. Boxes span the image's area, from 0 to its width, so half a
pixel is subtracted from their corners: "COCO's segmentation coordinates are floating points in
[0, H or W], but keypoint coordinates are integers in [0, H-1 or W-1]"
(detectron2/data/datasets/coco.py).
"""

import filecmp
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from tqdm import tqdm

from heatmap.data.contest import read_image
from heatmap.data.formats.labelled import (
    LabelledFace,
    LabelledFaces,
    bounds,
    gather,
    image_name,
    usable_box,
)
from heatmap.data.formats.layout import place_images
from heatmap.errors import UserError
from heatmap.runtime.files import folder_when_complete, read_bytes

Points = Literal["keypoints", "face"]
_FIELDS = {"keypoints": ("keypoints", "bbox"), "face": ("face_kpts", "face_box")}
_FACE_NUMBER = re.compile(r"(?<=.)#[1-9]\d*(?=(\.[^./#]*)?$)")  # added by `gather`


def read(
    source: Path, images: Path | None, test: Path | None, test_images: Path | None, points: Points
) -> LabelledFaces:
    """Reads people and their boxes, image by image.

    Skips crowds, annotations without a labelled landmark and, for "face", invalid faces.

    Args:
        source: JSON file of the training part.
        images: folder that its file names are relative to; default: the JSON file's folder.
        test: JSON file of the test part, or None.
        test_images: folder of the test images; default: `images`.
        points: "keypoints", or "face" for COCO-WholeBody's face_kpts and face_box.
    """
    images = images or source.parent
    faces = _faces(source, images, False, points)
    if test is not None:
        faces = chain(faces, _faces(test, test_images or images, True, points))
    return gather(source, faces, several=True)


def write(labelled: LabelledFaces, out: Path, *, link: bool = False) -> None:
    """Writes annotations/train.json and annotations/test.json, and images to train/ and test/.

    A part without faces gets no file. Image sizes are measured after the EXIF rotation. A face
    without a box gets the bounding box of its landmarks.

    Raises:
        UserError: `out` exists and is not empty, a face has no box and its landmarks span none, or
            an image cannot be read or copied.
    """
    with folder_when_complete(out) as folder:
        (folder / "annotations").mkdir()
        sources: dict[Path, Path] = {}
        for part, is_test in (("train", False), ("test", True)):
            faces = [face for face in labelled.faces if face.is_test == is_test]
            if faces:
                images = _write_part(folder / "annotations" / f"{part}.json", faces)
                sources |= {folder / part / name: path for name, path in images.items()}
        place_images(sources, link=link)


def _faces(path: Path, folder: Path, is_test: bool, points: Points) -> Iterator[LabelledFace | str]:
    images, annotations, counts = _load(path)
    by_image = defaultdict[Any, list[tuple[str, dict[str, Any]]]](list)
    for index, annotation in enumerate(annotations):
        where = f"{path}, annotation {annotation.get('id', f'number {index}')}"
        image_id = annotation.get("image_id")
        if _key(image_id) not in images:
            raise UserError(f"{where}, image_id: the file has no image {str(image_id)[:60]}")
        if annotation.get("iscrowd"):
            yield "crowds (iscrowd)"
        elif points == "face" and not annotation.get("face_valid", True):
            yield "people whose face is not valid (face_valid)"
        else:
            by_image[image_id].append((where, annotation))
    keypoints_field, box_field = _FIELDS[points]
    for image_id, name in images.items():
        for where, annotation in by_image[image_id]:
            keypoints = annotation.get(keypoints_field) or []
            points_image = _points(keypoints, f"{where}, {keypoints_field}")
            if points == "keypoints" and keypoints:
                _check_flags(annotation, counts, f"{where}, keypoints")
            if not np.isfinite(points_image).any():
                yield "annotations without a labelled landmark"
                continue
            box_image = _box(annotation.get(box_field))
            yield LabelledFace(where, name, folder / name, points_image, is_test, box_image)


def _load(path: Path) -> tuple[dict[Any, str], list[dict[str, Any]], dict[Any, int]]:
    """Reads file names by image id, the annotations, and numbers of keypoints by category id."""
    data = read_bytes(path, "JSON file of the annotations")
    try:  # not `parse_json`, which refuses the NaN of unlabelled landmarks
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut short ({error})") from error
    for key, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = content.get(key, default) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: expected a list {key!r} of objects, as in COCO keypoints")
    images: dict[Any, str] = {}
    for index, image in enumerate(content["images"]):
        image_id, name = image.get("id"), image.get("file_name")
        if not isinstance(image_id, int | str) or not isinstance(name, str) or image_id in images:
            raise UserError(f"{path}, image number {index}: expected a unique id and a file_name")
        images[image_id] = image_name(name)
    counts = {
        _key(category.get("id")): len(category["keypoints"])
        for category in content.get("categories", [])
        if isinstance(category.get("keypoints"), list)
    }
    return images, content["annotations"], counts


def _key(value: Any) -> int | str | None:
    return value if isinstance(value, int | str) else None


def _box(values: Any) -> np.ndarray | None:
    """Returns the box (4,), or None unless the values are one."""
    if not isinstance(values, list) or len(values) != 4 or not all(map(_is_number, values)):
        return None
    x, y, width, height = values
    return usable_box(x - 0.5, y - 0.5, x - 0.5 + width, y - 0.5 + height)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def _points(values: Any, where: str) -> np.ndarray:
    """Returns keypoints x, y, v, x, y, v, ... as (P, 2) float64, NaN where v is 0.

    Raises UserError where v is not 0, and x, y or v is not a number.
    """
    if not isinstance(values, list):
        raise UserError(f"{where}: expected a list of numbers, found {str(values)[:60]!r}")
    if len(values) % 3:
        raise UserError(f"{where}: {len(values)} numbers, expected triples x, y, v")
    points = np.full((len(values) // 3, 2), np.nan)
    for landmark in range(len(points)):
        x, y, flag = values[3 * landmark : 3 * landmark + 3]
        for name, value in {"v": flag, "x": x, "y": y}.items() if flag != 0 else ():
            if not _is_number(value):
                found = f"expected a number up to 1e6, found {str(value)[:60]!r}"
                raise UserError(f"{where}, {name} of landmark {landmark}: {found}")
        if flag > 0:
            points[landmark] = x, y
    return points


def _check_flags(annotation: dict[str, Any], counts: dict[Any, int], where: str) -> None:
    """Raises UserError if v or the number of keypoints is not what the annotation says."""
    flags = annotation["keypoints"][2::3]
    expected = counts.get(_key(annotation.get("category_id")), len(flags))
    if len(flags) != expected:
        raise UserError(f"{where}: {len(flags)} triples x, y, v; the category has {expected}")
    for landmark, flag in enumerate(flags):
        if flag not in (0, 1, 2):
            raise UserError(f"{where}, v of landmark {landmark}: expected 0, 1 or 2, found {flag}")
    count, stated = sum(flag > 0 for flag in flags), annotation.get("num_keypoints")
    if stated not in (None, count):
        raise UserError(f"{where}: v is above 0 in {count}, but num_keypoints is {stated!r}")


def _image_names(faces: Sequence[LabelledFace]) -> list[str]:
    """Names each face's image: "a#2.jpg" becomes "a.jpg" if both are the same image."""
    paths = {face.name: face.path for face in faces}
    names = []
    for face in faces:
        name = _FACE_NUMBER.sub("", face.name)
        path = paths.get(name)
        is_same = path is not None and (
            path.samefile(face.path) or filecmp.cmp(path, face.path, shallow=False)
        )
        names.append(name if is_same else face.name)
    return names


def _write_part(path: Path, faces: Sequence[LabelledFace]) -> dict[str, Path]:
    """Writes one part's JSON file; returns the images' source files by name."""
    names = _image_names(faces)
    images = {name: face.path for name, face in zip(names, faces, strict=True)}
    ids = {name: number for number, name in enumerate(images, start=1)}
    landmarks = [str(landmark) for landmark in range(len(faces[0].points_image))]
    category = {"id": 1, "name": "face", "supercategory": "person", "keypoints": landmarks}
    bar = tqdm(images.items(), "Reading sizes", unit="img", delay=1)
    numbered = enumerate(zip(faces, names, strict=True), start=1)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        head = {
            "info": {"description": "exported by heatmap"},  # pycocotools needs it
            "licenses": [],
            "categories": [category | {"skeleton": []}],
        }
        file.write(json.dumps(head).removesuffix("}"))
        _write_list(file, "images", (_image(name, image, ids[name]) for name, image in bar))
        annotations = (_annotation(face, number, ids[name]) for number, (face, name) in numbered)
        _write_list(file, "annotations", annotations)
        file.write("}\n")
    return images


def _write_list(file: TextIO, key: str, entries: Iterable[dict[str, Any]]) -> None:
    """Writes entry by entry: 393,930 faces with 971 landmarks do not fit into memory."""
    file.write(f',\n"{key}": [')
    for index, entry in enumerate(entries):
        file.write(",\n" if index else "\n")
        json.dump(entry, file, separators=(",", ":"))
    file.write("]")


def _image(name: str, path: Path, image_id: int) -> dict[str, Any]:
    height, width, _ = read_image(path).shape
    return {"id": image_id, "file_name": name, "width": width, "height": height}


def _annotation(face: LabelledFace, number: int, image_id: int) -> dict[str, Any]:
    points = face.points_image.astype(np.float64)
    labelled = points[np.isfinite(points[:, 0])]
    keypoints: list[float] = []
    for x, y in points.round(6).tolist():
        keypoints += [0, 0, 0] if math.isnan(x) else [*_short(x, y), 2]
    box_image = face.box_image
    if box_image is None:
        box_image = bounds(points)
        if box_image is None:
            raise UserError(
                f"{face.name}: COCO needs a box, but the landmarks span none; pass --boxes"
            )
    x0, y0, x1, y1 = (box_image + 0.5).round(6).tolist()
    width, height = round(x1 - x0, 6), round(y1 - y0, 6)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": len(labelled),
        "bbox": _short(x0, y0, width, height),
        "area": round(width * height, 6),
    }


def _short(*numbers: float) -> list[float]:
    """Drops the ".0" of whole numbers, as COCO does."""
    return [int(number) if number.is_integer() else number for number in numbers]
