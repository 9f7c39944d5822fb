"""Contest folders, written from labelled faces and read back.

Images are copied or linked byte by byte, never re-encoded.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from heatmap.data import contest
from heatmap.data.formats.labelled import LabelledFace, LabelledFaces
from heatmap.errors import UserError
from heatmap.runtime.files import folder_when_complete

_MAX_LANDMARKS = 100_000  # for folders without a training table


def write_contest(labelled: LabelledFaces, out: Path, *, link: bool = False) -> None:
    """Writes a contest folder, which appears once it is complete.

        out/train/landmarks.csv, out/train/images/      6 decimals
        out/test/test_points.csv, out/test/images/      all landmarks
        out/withheld/solution.csv                       landmarks of the test part, 4 decimals
        out/boxes.csv                                   boxes of both parts, if there are any

    Args:
        link: whether to hard-link the images instead of copying them.

    Raises:
        UserError: `out` exists and is not empty, a table cannot hold a name, or an image cannot be
            copied or linked.
    """
    with folder_when_complete(out) as root:
        folder = contest.Folder(root=root)
        sources, boxes = dict[Path, Path](), list[np.ndarray]()
        # Writing the tables checks the names, before any image is written under one.
        for is_test, images in ((False, folder.train_images), (True, folder.test_images)):
            faces = [face for face in labelled.faces if face.is_test == is_test]
            if not faces:
                continue
            names, points = [face.name for face in faces], np.stack([f.points_image for f in faces])
            if is_test:
                all_landmarks = np.broadcast_to(np.arange(points.shape[1]), points.shape[:2])
                contest.write_asked_points(folder.test_points, names, all_landmarks)
                contest.write_answers(folder.solution, names, points)
            else:
                contest.write_landmarks(folder.train_table, names, points)
            sources |= {images / face.name: face.path for face in faces}
            boxes += [face.box_image for face in faces if face.box_image is not None]
        if boxes:
            names = [image.relative_to(root).as_posix() for image in sources]
            contest.write_boxes(folder.boxes, names, np.stack(boxes))
        place_images(sources, link=link)


def read_contest(root: Path, *, boxes: Path | None = None) -> LabelledFaces:
    """Reads the labelled faces of a contest folder, the training part first.

    Test landmarks that test_points.csv does not list are unlabelled. Without a training table, the
    highest listed index gives the number of landmarks.

    Args:
        boxes: table of the boxes; default: `root`/boxes.csv if it exists.

    Raises:
        UserError: a table is malformed, an image is missing, or no face is labelled.
    """
    folder = contest.find_folder(root)
    faces, left_out = list[LabelledFace](), Counter[str]()
    num_landmarks = None
    if folder.train_table.is_file():
        table = contest.read_landmarks(folder.train_table, progress=True)
        num_landmarks = table.num_landmarks
        paths = contest.image_paths(folder.train_images, table.names, folder.train_table)
        faces += _faces(folder.train_table, table.names, paths, table.points_image[:], False)
    if folder.test_points.is_file():
        asked = contest.read_asked_points(folder.test_points, num_landmarks or _MAX_LANDMARKS)
        if folder.solution.is_file():
            points = _read_test_points(folder.solution, asked, num_landmarks)
            paths = contest.image_paths(folder.test_images, asked.names, asked.path)
            faces += _faces(folder.solution, asked.names, paths, points, True)
        else:
            left_out[f"test images without landmarks ({folder.solution})"] = len(asked.names)
    if not faces:
        raise UserError(f"{root}: no labelled face, and no {folder.solution}")
    if boxes is not None or folder.boxes.is_file():
        boxes_image = contest.read_boxes(boxes or folder.boxes, [face.path for face in faces])
        faces = [replace(f, box_image=box) for f, box in zip(faces, boxes_image, strict=True)]
    return LabelledFaces(faces, left_out)


def _faces(
    table: Path, names: Sequence[str], paths: Sequence[Path], points: np.ndarray, is_test: bool
) -> Iterator[LabelledFace]:
    for name, path, face in zip(names, paths, points, strict=True):
        yield LabelledFace(f"{table}, {name}", name, path, face, is_test)


def _read_test_points(
    path: Path, asked: contest.AskedPoints, num_landmarks: int | None
) -> np.ndarray:
    """(N, P, 2) float32 landmarks of the test images, NaN for those not asked for."""
    solution = contest.read_solution(path)
    different = sorted(set(asked.names) ^ set(solution.names))
    if different:
        raise UserError(f"{path} and {asked.path} list different images, such as {different[0]}")
    count, expected = solution.points_image.shape[1], asked.indices.shape[1]
    if count != expected:
        raise UserError(f"{path} has {count} points per image, but {asked.path} has {expected}")
    answers = dict(zip(solution.names, solution.points_image, strict=True))
    num_landmarks = num_landmarks or int(asked.indices.max()) + 1
    points = np.full((len(asked.names), num_landmarks, 2), np.nan, np.float32)
    for face, name, indices in zip(points, asked.names, asked.indices, strict=True):
        face[indices] = answers[name]
    return points


def place_images(sources: Mapping[Path, Path], *, link: bool) -> None:
    """Copies or hard-links images to their targets and makes the folders.

    An image with several targets is stored once if the file system supports hard links.

    Args:
        sources: the file to copy, by target path.
        link: whether to link instead of copying.

    Raises:
        UserError: two targets are the same file on this disk, or a link cannot be made.
    """
    copies: dict[Path, Path] = {}
    for target, path in tqdm(sources.items(), "Placing images", unit="img", delay=1):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise UserError(
                f"{path}: another image's name differs from {target.name} only in upper and lower "
                "case, which this disk ignores; rename one of them"
            )
        # Resolved, because a hard link to a symbolic link is a symbolic link.
        original = path.resolve() if link else copies.setdefault(path, target)
        try:
            if original != target:
                os.link(original, target)
                continue
        except OSError as error:  # for example no hard links on this file system
            if link:
                raise UserError(
                    f"{path}: cannot be linked ({error.strerror}); copy the images, without --link"
                ) from error
        shutil.copyfile(path, target)
