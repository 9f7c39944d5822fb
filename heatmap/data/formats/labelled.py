"""What every format is read into and written from: photographs, landmarks and boxes of faces."""

import filecmp
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

PICTURE_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip

_NUMBERED = re.compile(r"(.+)#([1-9]\d*)(\.[^./]*)?")


@dataclass(frozen=True, kw_only=True)
class Face:
    """One labelled face, as a format's reader finds it.

    where: file and row, for messages.
    name: file name of the photograph, relative, with "/" between folders.
    points_image: (P, 2) image pixels, NaN = unlabelled.
    box_image: x0, y0, x1, y1, opposite corners in image pixels.
    """

    where: str
    name: str
    picture: Path
    points_image: np.ndarray
    is_test: bool = False
    box_image: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledFaces:
    """N faces in photographs, with P landmarks each.

    names: file names, relative, with "/" between folders; unique among the faces of a part.
    pictures: the photographs; one that shows several faces stands here several times.
    points_image: (N, P, 2) float32 or float64, image pixels, NaN = unlabelled.
    is_test: (N,) bool, the part: True where a face belongs to the test.
    boxes_image: (N, 4) float64, x0, y0, x1, y1 in image pixels; None without boxes.
    left_out: what was not taken over, in words, and how many of it.
    """

    names: list[str]
    pictures: list[Path]
    points_image: np.ndarray
    is_test: np.ndarray
    boxes_image: np.ndarray | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def only(self, part: Literal["train", "test"]) -> "LabelledFaces":
        """The faces of one part, all of them to train on.

        Raises:
            ValueError: the part is empty.
        """
        rows = np.flatnonzero(self.is_test == (part == "test"))
        if not len(rows):
            raise ValueError(f"there are no faces in the part {part}")
        return replace(
            self,
            names=[self.names[row] for row in rows],
            pictures=[self.pictures[row] for row in rows],
            points_image=self.points_image[rows],
            is_test=np.zeros(len(rows), bool),
            boxes_image=None if self.boxes_image is None else self.boxes_image[rows],
        )

    def photographs(self) -> list[str]:
        """(N) names of the photographs: `gather`'s numbers taken off where they count its faces.

        "a#2.jpg" is "a.jpg" where it shows the same and is the second face of it.
        """
        found: list[str] = []
        pictures: dict[tuple[bool, str], Path] = {}
        counts: dict[tuple[bool, str], int] = {}
        for name, picture, is_test in zip(self.names, self.pictures, self.is_test, strict=True):
            match = _NUMBERED.fullmatch(name)
            key = bool(is_test), f"{match[1]}{match[3] or ''}" if match else name
            number = int(match[2]) if match else 0
            if key in counts and counts[key] + 1 == number and same(picture, pictures[key]):
                counts[key] += 1
            else:
                key = bool(is_test), name
                pictures[key], counts[key] = picture, 1
            found.append(key[1])
        return found

    def boxes_or_bounds(self) -> np.ndarray:
        """(N, 4) float64 boxes, or without any those of the landmarks, for formats that need one.

        Raises:
            ValueError: there are no boxes, and landmarks of a face span none.
        """
        if self.boxes_image is not None:
            return self.boxes_image
        bounds = np.full((len(self.names), 4), np.nan)
        for row, points in enumerate(self.points_image):
            labelled = points[np.isfinite(points[:, 0])]
            if len(labelled) and (labelled.min(0) < labelled.max(0)).all():
                bounds[row] = [*labelled.min(0), *labelled.max(0)]
            else:
                raise ValueError(
                    f"{self.names[row]}: this format needs a box, and the labelled landmarks span "
                    "none; give boxes (file_name, x0, y0, x1, y1)"
                )
        return bounds


def gather(
    source: Path,
    faces: Iterable[Face],
    *,
    several: bool = False,
    left_out: dict[str, int] | None = None,
) -> LabelledFaces:
    """The faces that a reader found, after checking what holds in every format.

    Args:
        source: what is read, for the message if there is no face.
        several: whether a photograph may show several faces. From the second on, they get names
            with a number, "a#2.jpg": the contest's table has one row a name, and a number after
            another "_" would tell another person (`contest.split_rows`).
        left_out: is filled by the reader while the faces come.

    Raises:
        ValueError: there are no faces, a picture is missing, a name comes twice, faces differ in
            the number of landmarks, or some have a box and others not.
    """
    found: dict[tuple[bool, str], Face] = {}
    counts: dict[tuple[bool, str], int] = {}
    first: Face | None = None
    for face in faces:
        first = first or face
        if not face.picture.is_file():
            raise ValueError(f"{face.where}: there is no picture {face.picture}")
        if len(face.points_image) != len(first.points_image):
            raise ValueError(
                f"{face.where}: {len(face.points_image)} landmarks, but {len(first.points_image)} "
                f"in {first.where}; every face needs the same number"
            )
        if (face.box_image is None) != (first.box_image is None):
            with_box, without = (first, face) if face.box_image is None else (face, first)
            raise ValueError(f"{without.where}: there is no box, but {with_box.where} has one")
        key = face.is_test, face.name
        if several:
            counts[key] = counts.get(key, 0) + 1
            key = face.is_test, _numbered(face.name, counts[key])
        if key in found:
            raise ValueError(f"{face.where}: {key[1]!r} is in {found[key].where} already")
        found[key] = face
    if first is None:
        raise ValueError(f"{source}: no labelled face is in it")
    boxes = [face.box_image for face in found.values() if face.box_image is not None]
    return LabelledFaces(
        names=[name for _, name in found],
        pictures=[face.picture for face in found.values()],
        points_image=np.stack([face.points_image for face in found.values()]),
        is_test=np.array([is_test for is_test, _ in found]),
        boxes_image=np.stack(boxes) if boxes else None,
        left_out={what: count for what, count in (left_out or {}).items() if count},
    )


def require_folder(source: Path) -> None:
    """
    Raises:
        ValueError: there is no such folder.
    """
    if source.is_file() and source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise ValueError(f"{source}: an archive; unpack it and name the folder")
    if not source.is_dir():
        raise ValueError(f"{source}: there is no such folder")


def check_box(box_image: np.ndarray, where: str) -> None:
    """
    Raises:
        ValueError: the box is empty.
    """
    if not (box_image[:2] < box_image[2:]).all():
        raise ValueError(
            f"{where}: the box from ({box_image[0]:g}, {box_image[1]:g}) to ({box_image[2]:g}, "
            f"{box_image[3]:g}) is empty; its right and lower sides must lie beyond the others"
        )


def same(picture: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return picture == other or picture.samefile(other) or filecmp.cmp(picture, other, shallow=False)


def _numbered(name: str, number: int) -> str:
    path = PurePosixPath(name)
    return name if number == 1 else str(path.with_name(f"{path.stem}#{number}{path.suffix}"))
