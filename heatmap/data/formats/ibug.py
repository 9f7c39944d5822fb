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

from collections import Counter
from collections.abc import Iterator
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

_TOP = {"trainset": False, "testset": True}
_IS_TEST = {**_TOP, "afw": False, "ibug": True, "01_indoor": True, "02_outdoor": True}


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of all .pts files in a folder and the folders in it.

    Mirrored copies, NAME_mirror.pts beside NAME.pts, are left out: training mirrors by itself.
    """
    require_folder(source)
    left_out = Counter[str]()
    return gather(source, _faces(source, left_out), left_out=left_out, progress=progress)


def _faces(source: Path, left_out: Counter[str]) -> Iterator[Face]:
    for path in sorted(source.rglob("*.pts")):
        if path.stem.endswith("_mirror") and path.with_stem(path.stem[:-7]).is_file():
            left_out["mirrored copies (NAME_mirror.pts)"] += 1
            continue
        image = _image_beside(path)
        name = image.relative_to(source)
        folders = [folder.lower() for folder in name.parts[:-1]]
        if folders and folders[0] in _TOP:
            name = name.relative_to(name.parts[0])
        yield Face(
            where=str(path),
            name=name.as_posix(),
            path=image,
            points_image=_read_points(path) - 1,
            is_test=next((_IS_TEST[folder] for folder in folders if folder in _IS_TEST), False),
        )


def _image_beside(path: Path) -> Path:
    beside = [path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    beside += [path.with_suffix(suffix.upper()) for suffix in IMAGE_SUFFIXES]
    found = [image for image in beside if image.is_file()]
    if not found:
        raise ValueError(
            f"{path}: there is no image beside it, such as {path.with_suffix('.jpg').name}"
        )
    for image in found:
        if not image.samefile(found[0]):
            raise ValueError(f"{path}: {found[0].name} and {image.name} are both beside it")
    return found[0]


def _read_points(path: Path) -> np.ndarray:
    """(P, 2) float64, counted from 1 as the file does."""
    lines = read_lines(path)
    head = ["".join(line.split()) for line in lines[:3]]
    count = head[1].removeprefix("n_points:") if len(head) > 1 else ""
    if len(head) < 3 or not head[0].startswith("version:") or not count.isdecimal():
        raise ValueError(
            f"{path}: expected 'version: 1', 'n_points: 68' and '{{' in rows 1 to 3, found "
            f"{' '.join(lines[:3])[:60]!r}"
        )
    if head[2] != "{" or lines[-1] != "}" or "}" in lines[:-1]:
        raise ValueError(f"{path}: expected {{ in row 3 and }} in the last; is the file cut short?")
    rows = lines[3:-1]
    if len(rows) != int(count) or not rows:
        raise ValueError(f"{path}, row 2: n_points is {count}, but {len(rows)} rows follow")
    points = []
    for index, row in enumerate(rows):
        where = f"{path}, row {index + 4}"
        if len(row.split()) != 2:
            raise ValueError(f"{where}: expected x and y, found {row[:60]!r}")
        points.append(parse_points(row.split(), where, index))
    return np.concatenate(points)
