"""iBUG's .pts files: 300-W, Helen, LFPW, AFW and others, one file next to each image.

    version: 1
    n_points:  68
    {
    212.716603 499.771793
    ...
    }

image_0001.png or .jpg is next to image_0001.pts. **The first pixel is 1**: "the re-annotated data
for this challenge are saved in the matlab convention of 1 being the first index, i.e. the
coordinates of the top left pixel in an image are x=1, y=1" (https://ibug.doc.ic.ac.uk/resources/
300-W/; menpo's pts_importer subtracts 1, too), so 1 is subtracted from every coordinate. "nan nan"
is an unlabelled landmark, an extension of the original format.

The first known folder on a face's path decides its part: `testset`, `ibug`, `01_Indoor` and
`02_Outdoor` are 300-W's test part, `trainset` and `afw` its training part (Sagonas et al., 300
Faces in-the-Wild Challenge, ICCVW 2013). All other faces are for training. A top folder `trainset`
or `testset` is dropped from the file's name.
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
    """Reads all .pts files in a folder and its subfolders.

    Skips mirrored copies, NAME_mirror.pts next to NAME.pts: training mirrors the images itself.
    """
    return gather(source, _faces(source))


def _faces(source: Path) -> Iterator[LabelledFace | str]:
    for path in sorted(source.rglob("*.pts")):
        if path.stem.endswith("_mirror") and path.with_stem(path.stem[:-7]).is_file():
            yield "mirrored copies (NAME_mirror.pts)"
            continue
        image = _adjacent_image(path)
        name = image.relative_to(source)
        folders = [folder.lower() for folder in name.parts[:-1]]
        if folders and folders[0] in _TOP:
            name = name.relative_to(name.parts[0])
        is_test = next((_IS_TEST[folder] for folder in folders if folder in _IS_TEST), False)
        yield LabelledFace(str(path), name.as_posix(), image, _read_points(path) - 1, is_test)


def _adjacent_image(path: Path) -> Path:
    suffixes = [*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)]
    images = [image for suffix in suffixes if (image := path.with_suffix(suffix)).is_file()]
    if not images:
        raise UserError(f"{path}: no image next to it, such as {path.stem}.jpg")
    for image in images:
        if not image.samefile(images[0]):
            raise UserError(f"{path}: {images[0].name} and {image.name} are both next to it")
    return images[0]


def _read_points(path: Path) -> np.ndarray:
    """(P, 2) float64 as in the file, where the first pixel is 1."""
    lines = read_lines(path)
    match = _HEAD.match("\n".join(lines))
    if not match:
        start = " ".join(lines[:3])[:60]
        raise UserError(f"{path}: expected 'version: 1', 'n_points: 68' and '{{', found {start!r}")
    rows = lines[3:-1]
    if lines[-1] != "}" or "}" in rows:
        raise UserError(f"{path}: expected }} in the last row; is the file cut short?")
    if len(rows) != int(match[1]) or not rows:
        raise UserError(f"{path}, row 2: n_points is {match[1]}, but {len(rows)} rows follow")
    return parse_rows(rows, None, path, 4)
