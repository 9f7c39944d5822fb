"""The contest's own folder, written from labelled faces and read back into them.

Images are copied or linked byte for byte; none is ever encoded again.
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

_MOST_LANDMARKS = 100_000  # where no training table says how many there are


def write_contest(labelled: LabelledFaces, out: Path, *, link: bool = False) -> None:
    """Writes a contest folder; it appears when it is complete.

        out/train/landmarks.csv, out/train/images/      decimals to 6 places
        out/test/test_points.csv, out/test/images/      every landmark is asked for
        out/withheld/solution.csv                       of the test part, decimals to 4 places
        out/boxes.csv                                   of both parts, where there are boxes

    Args:
        link: hard links to the images in place of copies.

    Raises:
        UserError: `out` is there already and not empty, a name cannot stand in a table, or an
            image cannot be placed.
    """
    with folder_when_complete(out) as root:
        folder = contest.Folder(root=root)
        placed, boxes = dict[Path, Path](), list[np.ndarray]()
        # The tables check the names, and come before anything is written under these.
        for is_test, images in ((False, folder.train_images), (True, folder.test_images)):
            faces = [face for face in labelled.faces if face.is_test == is_test]
            if not faces:
                continue
            names, points = [face.name for face in faces], np.stack([f.points_image for f in faces])
            if is_test:
                every_landmark = np.broadcast_to(np.arange(points.shape[1]), points.shape[:2])
                contest.write_asked_points(folder.test_points, names, every_landmark)
                contest.write_answers(folder.solution, names, points)
            else:
                contest.write_landmarks(folder.train_table, names, points)
            placed |= {images / face.name: face.path for face in faces}
            boxes += [face.box_image for face in faces if face.box_image is not None]
        if boxes:
            names = [image.relative_to(root).as_posix() for image in placed]
            contest.write_boxes(folder.boxes, names, np.stack(boxes))
        place(placed, link=link)


def read_contest(root: Path, *, boxes: Path | None = None) -> LabelledFaces:
    """The labelled faces of a contest folder, the training part first.

    Of the test part, landmarks that were not asked for are unlabelled. Without a training table
    there are as many landmarks as the highest index asked for says.

    Args:
        boxes: the table of the boxes, by default `root`/boxes.csv if there is one.

    Raises:
        UserError: a table is malformed, an image is missing, or nothing is labelled.
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
        asked = contest.read_asked_points(folder.test_points, num_landmarks or _MOST_LANDMARKS)
        if folder.solution.is_file():
            points = _read_truth(folder.solution, asked, num_landmarks)
            paths = contest.image_paths(folder.test_images, asked.names, asked.path)
            faces += _faces(folder.solution, asked.names, paths, points, True)
        else:
            left_out[f"test images without landmarks ({folder.solution})"] = len(asked.names)
    if not faces:
        raise UserError(f"{root}: nothing is labelled; there is no {folder.solution}")
    if boxes is not None or folder.boxes.is_file():
        boxes_image = contest.read_boxes(boxes or folder.boxes, [face.path for face in faces])
        faces = [replace(f, box_image=box) for f, box in zip(faces, boxes_image, strict=True)]
    return LabelledFaces(faces, left_out)


def _faces(
    table: Path, names: Sequence[str], paths: Sequence[Path], points: np.ndarray, is_test: bool
) -> Iterator[LabelledFace]:
    for name, path, face in zip(names, paths, points, strict=True):
        where = f"{table}, {name}"
        yield LabelledFace(where=where, name=name, path=path, points_image=face, is_test=is_test)


def _read_truth(path: Path, asked: contest.AskedPoints, num_landmarks: int | None) -> np.ndarray:
    """(N, P, 2) float32 landmarks of the test images, NaN where they were not asked for."""
    solution = contest.read_solution(path)
    different = sorted(set(asked.names) ^ set(solution.names))
    if different:
        raise UserError(f"{path} answers other images than {asked.path}, such as {different[0]}")
    given, wanted = solution.points_image.shape[1], asked.indices.shape[1]
    if given != wanted:
        raise UserError(f"{path} holds {given} points for each image, {asked.path} {wanted}")
    answers = dict(zip(solution.names, solution.points_image, strict=True))
    num_landmarks = num_landmarks or int(asked.indices.max()) + 1
    points = np.full((len(asked.names), num_landmarks, 2), np.nan, np.float32)
    for face, name, indices in zip(points, asked.names, asked.indices, strict=True):
        face[indices] = answers[name]
    return points


def place(images: Mapping[Path, Path], *, link: bool) -> None:
    """Copies images to their places, or links them there; folders are made as needed.

    An image that is placed several times is stored once where the file system can (hard links).

    Args:
        images: each place, and the file that belongs there.
        link: hard links in place of copies.

    Raises:
        UserError: the disk cannot tell two places apart, or links cannot be made.
    """
    copies: dict[Path, Path] = {}
    for target, path in tqdm(images.items(), "Placing images", unit="img", delay=1):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise UserError(
                f"{path}: another image's name differs from {target.name} in capital letters "
                "alone, and this disk cannot tell them apart; rename one of them"
            )
        # A link to a symbolic link would be one.
        linked = path.resolve() if link else copies.setdefault(path, target)
        try:
            if linked != target:
                os.link(linked, target)
                continue
        except OSError as error:  # such as a file system without hard links
            if link:
                raise UserError(
                    f"{path}: cannot be linked ({error.strerror}); copy the images, without --link"
                ) from error
        shutil.copyfile(path, target)
