"""Helen as its authors labelled it: 194 landmarks, one file of text a picture.

    annotation/1.txt ...            row 1: the picture's name without its ending, 100032540_1; then
                                    a row a landmark: 340.475 , 1081.01
    trainnames.txt, testnames.txt   the names of each part, one a row
    *.jpg                           in as many folders as there were archives

http://www.ifp.illinois.edu/~vuongle2/helen/ (Le et al., Interactive Facial Feature Localization,
ECCV 2012). The authors do not say where their pixels begin; OpenCV's trainer, which was made for
these files (cv::face::loadTrainingData), takes the numbers as they are, and so they are here. The
format knows no unlabelled landmark; here it is "nan , nan".
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from heatmap.data.formats.labelled import (
    PICTURE_SUFFIXES,
    Face,
    LabelledFaces,
    gather,
    require_folder,
)
from heatmap.data.formats.pictures import place
from heatmap.data.formats.text import parse_points, read_lines
from heatmap.runtime.files import folder_when_complete

_LISTS = {"trainnames.txt": False, "testnames.txt": True}
_POINT = re.compile(r"[-+.\deE]+\s*,\s*[-+.\deE]+")
_UNLISTED = "annotations in neither trainnames.txt nor testnames.txt"


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of all files in `source`/annotation.

    Without lists of names, all faces are to train on.

    Args:
        source: the folder that holds `annotation`, the lists and, in it or in folders in it, the
            pictures.

    Raises:
        ValueError: a file is missing, or something in one is wrong: file and row are named.
    """
    require_folder(source)
    if not (source / "annotation").is_dir():
        raise ValueError(f"{source}: expected the folder annotation in it")
    left_out = {_UNLISTED: 0}
    return gather(source, _faces(source, left_out, progress), left_out=left_out)


def write(faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False) -> None:
    """Writes the annotations, numbered from 1, both lists, and the pictures into `images`.

    Raises:
        ValueError: `out` is there already and not empty, two pictures would have one name without
            its ending, or a picture cannot be placed.
    """
    owners: dict[str, str] = {}
    ids = []
    for name in faces.names:
        path = Path(name)
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"{name}: this format finds pictures by their names' endings; expected one of "
                f"{', '.join(PICTURE_SUFFIXES)}"
            )
        ids.append(path.with_suffix("").as_posix())
        if ids[-1] in owners:
            raise ValueError(
                f"{owners[ids[-1]]} and {name} would both be {ids[-1]!r} here, where names have no "
                "ending and both parts one folder; rename one of them"
            )
        owners[ids[-1]] = name
    with folder_when_complete(out) as folder:
        (folder / "annotation").mkdir()
        pairs = zip(ids, faces.points_image, strict=True)
        bar = tqdm(pairs, "Writing annotations", len(ids), delay=1, disable=not progress)
        for number, (picture_id, points) in enumerate(bar, start=1):
            rows = "".join(f"{x:.6f} , {y:.6f}\n" for x, y in points.tolist())
            path = folder / "annotation" / f"{number}.txt"
            path.write_text(f"{picture_id}\n{rows}", encoding="utf-8", newline="\n")
        for file, is_test in _LISTS.items():
            listed = [ids[row] for row in np.flatnonzero(faces.is_test == is_test)]
            text = "".join(f"{picture_id}\n" for picture_id in listed)
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        targets = [folder / "images" / name for name in faces.names]
        place(faces.pictures, targets, link=link, progress=progress)


def _faces(source: Path, left_out: dict[str, int], progress: bool) -> Iterator[Face]:
    parts = _read_parts(source)
    pictures = _Pictures(source)
    files = sorted((source / "annotation").glob("*.txt"), key=lambda path: (len(path.stem), path))
    unread = dict(parts or {})
    for path in tqdm(files, "Reading annotations", unit="file", delay=1, disable=not progress):
        picture_id, points = _read_annotation(path)
        if parts is not None and picture_id not in parts:
            left_out[_UNLISTED] += 1
            continue
        unread.pop(picture_id, None)
        picture = pictures.find(picture_id, path)
        yield Face(
            where=str(path),
            name=picture_id + picture.suffix,
            picture=picture,
            points_image=points,
            is_test=parts is not None and parts[picture_id],
        )
    if unread:
        raise ValueError(
            f"{source / 'annotation'}: there is no annotation of {next(iter(unread))!r}, which the "
            f"lists name, and of {len(unread) - 1} others"
        )


def _read_parts(source: Path) -> dict[str, bool] | None:
    """The names of the lists, and whether each is in the test; None if there is no list."""
    parts: dict[str, bool] = {}
    lists = {source / file: is_test for file, is_test in _LISTS.items()}
    for path, is_test in lists.items():
        for row, name in enumerate(read_lines(path) if path.is_file() else [], start=1):
            if name in parts:
                raise ValueError(f"{path}, row {row}: {name!r} stands in the lists already")
            parts[name] = is_test
    return parts if any(path.is_file() for path in lists) else None


def _read_annotation(path: Path) -> tuple[str, np.ndarray]:
    """The picture's name without ending, and its (P, 2) float64 landmarks."""
    lines = read_lines(path)
    if len(lines) < 2 or not lines[0] or _POINT.fullmatch(lines[0]):
        raise ValueError(f"{path}, row 1: expected a picture's name, and rows 'x , y' after it")
    points = []
    for row, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2:
            raise ValueError(f"{path}, row {row}: expected 'x , y', found {line[:60]!r}")
        points.append(parse_points(cells, f"{path}, row {row}", row - 2))
    return lines[0], np.concatenate(points)


class _Pictures:
    """The pictures in a folder and the folders in it, found by name without ending."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._by_stem = defaultdict[str, list[Path]](list)
        self._owners: dict[Path, Path] = {}
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                self._by_stem[path.stem].append(path)

    def find(self, picture_id: str, annotation: Path) -> Path:
        """The picture whose path ends with this name; of several, that in the fewest folders."""
        fitting = [
            path
            for path in self._by_stem[picture_id.rpartition("/")[2]]
            if f"/{path.relative_to(self._source).with_suffix('').as_posix()}".endswith(
                f"/{picture_id}"
            )
        ]
        fitting.sort(key=lambda path: len(path.parts))
        if not fitting:
            raise ValueError(
                f"{annotation}, row 1: there is no picture {picture_id!r} in {self._source}"
            )
        if len(fitting) > 1 and len(fitting[0].parts) == len(fitting[1].parts):
            raise ValueError(
                f"{annotation}, row 1: {picture_id!r} may be {fitting[0]} or {fitting[1]}"
            )
        owner = self._owners.setdefault(fitting[0], annotation)
        if owner != annotation:
            raise ValueError(f"{annotation}, row 1: {fitting[0]} is the picture of {owner} already")
        return fitting[0]
