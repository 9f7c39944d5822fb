"""Helen as its authors labelled it: 194 landmarks, one text file per image.

    annotation/1.txt ...            row 1: the image's name without its suffix, 100032540_1; then
                                    one row per landmark: 340.475 , 1081.01
    trainnames.txt, testnames.txt   the image names of each part, one per row
    *.jpg                           in any folders

http://www.ifp.illinois.edu/~vuongle2/helen/ (Le et al., Interactive Facial Feature Localization,
ECCV 2012). The authors do not state their pixel origin. OpenCV's trainer for these files
(cv::face::loadTrainingData) does not shift the numbers, and neither does this reader.
"nan , nan" is an unlabelled landmark, an extension of the original format.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from heatmap.data.formats.labelled import (
    Images,
    LabelledFace,
    LabelledFaces,
    files_below,
    gather,
    parse_rows,
    read_lines,
)
from heatmap.errors import UserError
from heatmap.runtime.columns import counted

_POINT = re.compile(r"[-+.\deE]+\s*,\s*[-+.\deE]+")


def read(source: Path) -> LabelledFaces:
    """Reads all files in `source`/annotation; without name lists, every face is for training."""
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace | str]:
    if not (source / "annotation").is_dir():
        raise UserError(f"{source}: expected a folder named annotation in it")
    is_test_by_name = _read_parts(source)
    images = Images(source)
    files = files_below(source / "annotation", [".txt"])
    files.sort(key=lambda path: (len(path.stem), path))
    missing = dict(is_test_by_name or {})
    for path in files:
        lines = read_lines(path)
        image_id = lines[0] if lines else ""
        if len(lines) < 2 or not image_id or _POINT.fullmatch(image_id):
            raise UserError(f"{path}, row 1: expected an image name, then rows 'x , y'")
        if is_test_by_name is not None and image_id not in is_test_by_name:
            yield "annotations in neither trainnames.txt nor testnames.txt"
            continue
        missing.pop(image_id, None)
        image = images.find(PurePosixPath(image_id), f"{path}, row 1")
        if image is None:
            raise UserError(f"{path}, row 1: no image {image_id!r}")
        points_image = parse_rows(lines[1:], ",", path, 2)
        is_test = is_test_by_name is not None and is_test_by_name[image_id]
        yield LabelledFace(str(path), image_id + image.suffix, image, points_image, is_test)
    if missing:
        raise UserError(
            f"{source}: {counted(len(missing), 'name')} in trainnames.txt and testnames.txt "
            f"without annotation, such as {next(iter(missing))!r}"
        )


def _read_parts(source: Path) -> dict[str, bool] | None:
    """Returns whether each listed name is in the test part; None without lists."""
    parts: dict[str, bool] = {}
    lists = {source / "trainnames.txt": False, source / "testnames.txt": True}
    for path, is_test in lists.items():
        for row, name in enumerate(read_lines(path) if path.is_file() else [], start=1):
            if name in parts:
                raise UserError(f"{path}, row {row}: {name!r} is listed twice")
            parts[name] = is_test
    return parts if any(path.is_file() for path in lists) else None
