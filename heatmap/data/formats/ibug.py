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

In MERL-RAV, "-1 -1" is a landmark hidden by the face itself, unlabelled, and another "-x -y" is one
at (x, y) behind something else (https://github.com/abhi1kumar/MERL-RAV_dataset; Kumar et al., LUVLi
Face Alignment, CVPR 2020). Elsewhere, a landmark below 0 lies outside the image.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

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

Negative = Literal["keep", "unlabelled", "occluded"]
_HEAD = re.compile(r"version\s*:.*\n\s*n_points\s*:\s*(\d+)\n\{\n")
_TOP = {"trainset": False, "testset": True}
_IS_TEST = {**_TOP, "afw": False, "ibug": True, "01_indoor": True, "02_outdoor": True}


def read(
    source: Path, *, images: Path | None = None, negative: Negative | None = None
) -> LabelledFaces:
    """Reads all .pts files in a folder and its subfolders.

    Skips mirrored copies, NAME_mirror.pts next to NAME.pts: training mirrors the images itself.

    Args:
        source: folder with the .pts files.
        images: folder of the images, with the subfolders of `source` or with one image of each
            name at any depth; default: each image is next to its .pts file.
        negative: what x and y below 0 mean: "keep", a landmark outside the image; "unlabelled"; or
            "occluded", as in MERL-RAV. None is "keep", but they must not recur.

    Raises:
        UserError: `negative` is None and x and y below 0 recur; or as `gather`.
    """
    return gather(source, _faces(source, images, negative))


def _faces(
    source: Path, images: Path | None, negative: Negative | None
) -> Iterator[LabelledFace | str]:
    root = (images or source).absolute()
    available = Images(root)
    places: dict[tuple[float, float], str] = {}
    for path in files_below(source, [".pts"]):
        if path.stem.endswith("_mirror") and path.with_stem(path.stem[:-7]).is_file():
            yield "mirrored copies (NAME_mirror.pts)"
            continue
        stem = path.relative_to(source).with_suffix("")
        image = available.find(root / stem, str(path))
        if image is None and images is not None:
            image = available.find(Path(stem.name), str(path))
        if image is None:
            place = f"in {images}" if images else "next to it; pass its folder with --images"
            raise UserError(f"{path}: no image {stem.name}.jpg or the like {place}")
        name = image.relative_to(root)
        folders = [folder.lower() for folder in (*stem.parts[:-1], *name.parts[:-1])]
        if len(name.parts) > 1 and name.parts[0].lower() in _TOP:
            name = name.relative_to(name.parts[0])
        is_test = next((_IS_TEST[folder] for folder in folders if folder in _IS_TEST), False)
        points = _read_points(path)
        below = np.flatnonzero((points < 0).all(1))
        if negative is None:
            _check_negative(points, below, path, places)
        elif negative != "keep":
            hidden = -points[below]
            hidden[(hidden == 1).all(1) | (negative == "unlabelled")] = np.nan
            points[below] = hidden
        yield LabelledFace(str(path), name.as_posix(), image, points - 1, is_test)


def _check_negative(
    points: np.ndarray, below: np.ndarray, path: Path, places: dict[tuple[float, float], str]
) -> None:
    """Records the points below 0 in `places`; raises UserError if one is there already."""
    for landmark in below.tolist():
        x, y = points[landmark].tolist()
        where = f"{path}, landmark {landmark}"
        first = places.setdefault((x, y), where)
        if first != where:
            raise UserError(
                f"{where}: {x:g} {y:g}, as in {first}; if that marks hidden landmarks, pass "
                "--negative unlabelled or --negative occluded, else --negative keep"
            )


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
