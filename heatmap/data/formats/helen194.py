"""Helen as its authors labelled it: 194 landmarks, one file of text an image.

    annotation/1.txt ...            row 1: the image's name without its ending, 100032540_1; then
                                    a row a landmark: 340.475 , 1081.01
    trainnames.txt, testnames.txt   the names of each part, one a row
    *.jpg                           in as many folders as there were archives

http://www.ifp.illinois.edu/~vuongle2/helen/ (Le et al., Interactive Facial Feature Localization,
ECCV 2012). The authors do not say where their pixels begin; OpenCV's trainer, which was made for
these files (cv::face::loadTrainingData), takes the numbers as they are, and so they are here.
"nan , nan" is an unlabelled landmark, which the format itself does not know.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from heatmap.data.formats.labelled import (
    IMAGE_SUFFIXES,
    Face,
    LabelledFaces,
    gather,
    parse_points,
    read_lines,
    require_folder,
)

_POINT = re.compile(r"[-+.\deE]+\s*,\s*[-+.\deE]+")


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of all files in `source`/annotation; without lists, all of them are to train on.

    The images may lie in whatever folders of `source`.
    """
    require_folder(source)
    if not (source / "annotation").is_dir():
        raise ValueError(f"{source}: expected the folder annotation in it")
    left_out = Counter[str]()
    return gather(source, _faces(source, left_out), left_out=left_out, progress=progress)


def _faces(source: Path, left_out: Counter[str]) -> Iterator[Face]:
    parts = _read_parts(source)
    images = defaultdict[str, list[Path]](list)  # by their names without folders and endings
    for path in sorted(source.rglob("*"), key=lambda path: (len(path.parts), path)):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.stem].append(path)
    files = sorted((source / "annotation").glob("*.txt"), key=lambda path: (len(path.stem), path))
    unread = dict(parts or {})
    for path in files:
        image_id, points_image = _read_annotation(path)
        if parts is not None and image_id not in parts:
            left_out["annotations in neither trainnames.txt nor testnames.txt"] += 1
            continue
        unread.pop(image_id, None)
        image = _find(image_id, images[image_id.rpartition("/")[2]], path)
        yield Face(
            where=str(path),
            name=image_id + image.suffix,
            path=image,
            points_image=points_image,
            is_test=parts is not None and parts[image_id],
        )
    if unread:
        raise ValueError(
            f"{source / 'annotation'}: there is no annotation of {next(iter(unread))!r}, which the "
            f"lists name, and of {len(unread) - 1} others"
        )


def _read_parts(source: Path) -> dict[str, bool] | None:
    """The names of the lists, and whether each is in the test; None if there is no list."""
    parts: dict[str, bool] = {}
    lists = {source / "trainnames.txt": False, source / "testnames.txt": True}
    for path, is_test in lists.items():
        for row, name in enumerate(read_lines(path) if path.is_file() else [], start=1):
            if name in parts:
                raise ValueError(f"{path}, row {row}: {name!r} stands in the lists already")
            parts[name] = is_test
    return parts if any(path.is_file() for path in lists) else None


def _read_annotation(path: Path) -> tuple[str, np.ndarray]:
    """The image's name without ending, and its (P, 2) float64 landmarks."""
    lines = read_lines(path)
    if len(lines) < 2 or not lines[0] or _POINT.fullmatch(lines[0]):
        raise ValueError(f"{path}, row 1: expected an image's name, and rows 'x , y' after it")
    points = []
    for row, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2:
            raise ValueError(f"{path}, row {row}: expected 'x , y', found {line[:60]!r}")
        points.append(parse_points(cells, f"{path}, row {row}", row - 2))
    return lines[0], np.concatenate(points)


def _find(image_id: str, candidates: Sequence[Path], annotation: Path) -> Path:
    """The image whose path ends with this name; of several, that in the fewest folders.

    candidates: those in fewer folders first.
    """
    where = f"{annotation}, row 1"
    fitting = [
        path
        for path in candidates
        if f"/{path.with_suffix('').as_posix()}".endswith(f"/{image_id}")
    ]
    if not fitting:
        raise ValueError(f"{where}: there is no image {image_id!r}")
    if len(fitting) > 1 and len(fitting[0].parts) == len(fitting[1].parts):
        raise ValueError(f"{where}: {image_id!r} may be {fitting[0]} or {fitting[1]}")
    return fitting[0]
