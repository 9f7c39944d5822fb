"""iBUG's .pts files: 300-W, Helen, LFPW, AFW and others, one file beside each picture.

    version: 1
    n_points:  68
    {
    212.716603 499.771793
    ...
    }

image_0001.png or .jpg lies beside image_0001.pts. **The first pixel is 1**: "the re-annotated data
for this challenge are saved in the matlab convention of 1 being the first index, i.e. the
coordinates of the top left pixel in an image are x=1, y=1" (https://ibug.doc.ic.ac.uk/resources/
300-W/; menpo's pts_importer subtracts 1 as well), so 1 is taken from every coordinate, and added on
the way back. The format knows no unlabelled landmark; here it is "nan nan".

Which part a face is in is told by the first folder on its path that tells it: `testset`, `ibug`,
`01_Indoor` and `02_Outdoor` are 300-W's test, `trainset` and `afw` its training (Sagonas et al.,
300 Faces in-the-Wild Challenge, ICCVW 2013); everything else trains. A folder `trainset` or
`testset` at the top says no more than that, and is not part of the file's name.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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

_TOP = {"trainset": False, "testset": True}
_IS_TEST = {**_TOP, "afw": False, "ibug": True, "01_indoor": True, "02_outdoor": True}


def read(source: Path, *, progress: bool = False) -> LabelledFaces:
    """The faces of all .pts files in a folder and the folders in it.

    Mirrored copies, NAME_mirror.pts beside NAME.pts, are left out: training mirrors by itself.

    Raises:
        ValueError: there is no .pts file, or something in one is wrong: file and row are named.
    """
    require_folder(source)
    left_out = {"mirrored copies (NAME_mirror.pts)": 0}
    return gather(source, _faces(source, left_out, progress), left_out=left_out)


def write(faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False) -> None:
    """Writes a .pts file beside every picture; the part is told by a folder as `read` takes it.

    Raises:
        ValueError: `out` is there already and not empty, two pictures would share a .pts file, or a
            picture cannot be placed.
    """
    with folder_when_complete(out) as folder:
        targets = [
            folder / _with_part(name, bool(is_test))
            for name, is_test in zip(faces.names, faces.is_test, strict=True)
        ]
        owners: dict[Path, str] = {}
        for name, target in zip(faces.names, targets, strict=True):
            if target.suffix.lower() not in PICTURE_SUFFIXES:
                raise ValueError(
                    f"{name}: this format finds pictures by their names' endings; expected one of "
                    f"{', '.join(PICTURE_SUFFIXES)}"
                )
            owner = owners.setdefault(target.with_suffix(".pts"), name)
            if owner != name:
                raise ValueError(
                    f"{owner} and {name} would share one .pts file; rename one of them"
                )
        place(faces.pictures, targets, link=link, progress=progress)
        pairs = zip(targets, faces.points_image, strict=True)
        bar = tqdm(pairs, "Writing .pts", len(targets), delay=1, disable=not progress)
        for target, points in bar:
            rows = "".join(
                f"{x:.6f} {y:.6f}\n" for x, y in (points.astype(np.float64) + 1).tolist()
            )
            text = f"version: 1\nn_points: {len(points)}\n{{\n{rows}}}\n"
            target.with_suffix(".pts").write_text(text, encoding="utf-8", newline="\n")


def _faces(source: Path, left_out: dict[str, int], progress: bool) -> Iterator[Face]:
    paths = sorted(source.rglob("*.pts"))
    for path in tqdm(paths, "Reading .pts", unit="file", delay=1, disable=not progress):
        if path.stem.endswith("_mirror") and path.with_stem(path.stem[:-7]).is_file():
            left_out["mirrored copies (NAME_mirror.pts)"] += 1
            continue
        picture = _picture(path)
        name = picture.relative_to(source).as_posix()
        is_test = bool(_is_test(name))
        top, _, rest = name.partition("/")
        yield Face(
            where=str(path),
            name=rest if top.lower() in _TOP else name,
            picture=picture,
            points_image=_read_points(path) - 1,
            is_test=is_test,
        )


def _picture(path: Path) -> Path:
    """The picture beside a .pts file."""
    beside = [path.with_suffix(suffix) for suffix in PICTURE_SUFFIXES]
    beside += [path.with_suffix(suffix.upper()) for suffix in PICTURE_SUFFIXES]
    found = [picture for picture in beside if picture.is_file()]
    if not found:
        raise ValueError(
            f"{path}: there is no picture beside it, such as {path.with_suffix('.jpg').name}"
        )
    if not all(picture.samefile(found[0]) for picture in found):
        raise ValueError(f"{path}: {found[0].name} and {found[1].name} are both beside it")
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
    rows = [line.split() for line in lines[3:-1]]
    if len(rows) != int(count) or not rows:
        raise ValueError(f"{path}, row 2: n_points is {count}, but {len(rows)} rows follow")
    for row, cells in enumerate(rows, start=4):
        if len(cells) != 2:
            raise ValueError(f"{path}, row {row}: expected x and y, found {' '.join(cells)[:60]!r}")
    return np.concatenate(
        [parse_points(cells, f"{path}, row {row}", row - 4) for row, cells in enumerate(rows, 4)]
    )


def _is_test(name: str) -> bool | None:
    """What the folders of a name tell of its part; None if nothing."""
    folders = [folder.lower() for folder in PurePosixPath(name).parts[:-1]]
    return next((_IS_TEST[folder] for folder in folders if folder in _IS_TEST), None)


def _with_part(name: str, is_test: bool) -> str:
    """The name, in a folder that tells its part unless it tells it already."""
    top = name.partition("/")[0].lower()
    if _is_test(name) is is_test and top not in _TOP:
        return name
    return f"{'testset' if is_test else 'trainset'}/{name}"
