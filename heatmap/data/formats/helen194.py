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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from heatmap.data.formats.labelled import (
    IMAGE_SUFFIXES,
    LabelledFace,
    LabelledFaces,
    gather,
    parse_rows,
    read_lines,
)
from heatmap.errors import UserError

_POINT = re.compile(r"[-+.\deE]+\s*,\s*[-+.\deE]+")


def read(source: Path) -> LabelledFaces:
    """The faces of all files in `source`/annotation; without lists, all of them are to train on.

    The images may lie in whatever folders of `source`.
    """
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace | str]:
    if not (source / "annotation").is_dir():
        raise UserError(f"{source}: expected the folder annotation in it")
    parts = _read_parts(source)
    images = defaultdict[str, list[Path]](list)  # by their names without folders and endings
    for path in sorted(source.rglob("*"), key=lambda path: (len(path.parts), path)):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.stem].append(path)
    files = sorted((source / "annotation").glob("*.txt"), key=lambda path: (len(path.stem), path))
    unread = dict(parts or {})
    for path in files:
        lines = read_lines(path)
        image_id = lines[0] if lines else ""
        if len(lines) < 2 or not image_id or _POINT.fullmatch(image_id):
            raise UserError(f"{path}, row 1: expected an image's name, and rows 'x , y' after it")
        if parts is not None and image_id not in parts:
            yield "annotations in neither trainnames.txt nor testnames.txt"
            continue
        unread.pop(image_id, None)
        image = _find(image_id, images[image_id.rpartition("/")[2]], path)
        yield LabelledFace(
            where=str(path),
            name=image_id + image.suffix,
            path=image,
            points_image=parse_rows(lines[1:], ",", path, 2),
            is_test=parts is not None and parts[image_id],
        )
    if unread:
        raise UserError(
            f"{source}: there is no annotation of {next(iter(unread))!r}, which the lists name, "
            f"and of {len(unread) - 1} others"
        )


def _read_parts(source: Path) -> dict[str, bool] | None:
    """The names of the lists, and whether each is in the test; None if there is no list."""
    parts: dict[str, bool] = {}
    lists = {source / "trainnames.txt": False, source / "testnames.txt": True}
    for path, is_test in lists.items():
        for row, name in enumerate(read_lines(path) if path.is_file() else [], start=1):
            if name in parts:
                raise UserError(f"{path}, row {row}: {name!r} stands in the lists already")
            parts[name] = is_test
    return parts if any(path.is_file() for path in lists) else None


def _find(image_id: str, candidates: Sequence[Path], annotation: Path) -> Path:
    """The image whose path ends with this name; of several, that in the fewest folders.

    candidates: those in fewer folders first.
    """
    where, parts = f"{annotation}, row 1", Path(image_id).parts
    fitting = [path for path in candidates if path.with_suffix("").parts[-len(parts) :] == parts]
    if not fitting:
        raise UserError(f"{where}: there is no image {image_id!r}")
    if len(fitting) > 1 and len(fitting[0].parts) == len(fitting[1].parts):
        raise UserError(f"{where}: {image_id!r} may be {fitting[0]} or {fitting[1]}")
    return fitting[0]
