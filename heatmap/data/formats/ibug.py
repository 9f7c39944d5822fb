"""iBUG's .pts files: 300-W, Helen, LFPW, AFW and others, one file beside each image.

    version: 1
    n_points:  68
    {
    212.716603 499.771793
    ...
    }

image_0001.png or .jpg lies beside image_0001.pts. **The first pixel is 1**: "the re-annotated data
for this challenge are saved in the matlab convention of 1 being the first index, i.e. the
coordinates of the top left pixel in an image are x=1, y=1" (https://ibug.doc.ic.ac.uk/resources/
300-W/; menpo's pts_importer subtracts 1 as well), so 1 is taken from every coordinate. "nan nan" is
an unlabelled landmark, which the format itself does not know.

Which part a face is in is told by the first folder on its path that tells it: `testset`, `ibug`,
`01_Indoor` and `02_Outdoor` are 300-W's test, `trainset` and `afw` its training (Sagonas et al.,
300 Faces in-the-Wild Challenge, ICCVW 2013); everything else trains. A folder `trainset` or
`testset` at the top says no more than that, and is not part of the file's name.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from heatmap.data.formats.labelled import (
    IMAGE_SUFFIXES,
    LabelledFace,
    LabelledFaces,
    gather,
    parse_rows,
    read_lines,
)
from heatmap.errors import UserError

_HEAD = re.compile(r"version\s*:.*\n\s*n_points\s*:\s*(\d+)\n\{\n")
_TOP = {"trainset": False, "testset": True}
_IS_TEST = {**_TOP, "afw": False, "ibug": True, "01_indoor": True, "02_outdoor": True}


def read(source: Path) -> LabelledFaces:
    """The faces of all .pts files in a folder and the folders in it.

    Mirrored copies, NAME_mirror.pts beside NAME.pts, are left out: training mirrors by itself.
    """
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace | str]:
    for path in sorted(source.rglob("*.pts")):
        if path.stem.endswith("_mirror") and path.with_stem(path.stem[:-7]).is_file():
            yield "mirrored copies (NAME_mirror.pts)"
            continue
        image = _image_beside(path)
        name = image.relative_to(source)
        folders = [folder.lower() for folder in name.parts[:-1]]
        if folders and folders[0] in _TOP:
            name = name.relative_to(name.parts[0])
        yield LabelledFace(
            where=str(path),
            name=name.as_posix(),
            path=image,
            points_image=_read_points(path) - 1,
            is_test=next((_IS_TEST[folder] for folder in folders if folder in _IS_TEST), False),
        )


def _image_beside(path: Path) -> Path:
    suffixes = [*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)]
    found = [image for suffix in suffixes if (image := path.with_suffix(suffix)).is_file()]
    if not found:
        raise UserError(f"{path}: there is no image beside it, such as {path.stem}.jpg")
    for image in found:
        if not image.samefile(found[0]):
            raise UserError(f"{path}: {found[0].name} and {image.name} are both beside it")
    return found[0]


def _read_points(path: Path) -> np.ndarray:
    """(P, 2) float64, counted from 1 as the file does."""
    lines = read_lines(path)
    match = _HEAD.match("\n".join(lines))
    if not match:
        found = f"found {' '.join(lines[:3])[:60]!r}"
        raise UserError(f"{path}: expected 'version: 1', 'n_points: 68' and '{{', {found}")
    rows = lines[3:-1]
    if lines[-1] != "}" or "}" in rows:
        raise UserError(f"{path}: expected }} in the last row; is the file cut short?")
    if len(rows) != int(match[1]) or not rows:
        raise UserError(f"{path}, row 2: n_points is {match[1]}, but {len(rows)} rows follow")
    return parse_rows(rows, None, path, 4)
