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

from heatmap.data.contest import (
    AskedPoints,
    Folder,
    find_folder,
    image_paths,
    read_asked_points,
    read_boxes,
    read_landmarks,
    read_solution,
    write_answers,
    write_asked_points,
    write_boxes,
    write_landmarks,
)
from heatmap.data.formats.labelled import Face, LabelledFaces
from heatmap.runtime.files import folder_when_complete

_MOST_LANDMARKS = 100_000  # where no training table says how many there are


def write_contest(
    labelled: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False
) -> None:
    """Writes a contest folder; it appears when it is complete.

        out/train/landmarks.csv, out/train/images/      decimals to 6 places
        out/test/test_points.csv, out/test/images/      every landmark is asked for
        out/withheld/solution.csv                       of the test part, decimals to 4 places
        out/boxes.csv                                   of both parts, where there are boxes

    Args:
        link: hard links to the images in place of copies.
        progress: show a bar for the images once it has taken a second.

    Raises:
        ValueError: `out` is there already and not empty, a name cannot stand in a table, or an
            image cannot be placed.
    """
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        train = [face for face in labelled.faces if not face.is_test]
        test = [face for face in labelled.faces if face.is_test]
        # The tables check the names, and come before anything is written under these.
        if train:
            points = np.stack([face.points_image for face in train])
            write_landmarks(folder.train_table, [face.name for face in train], points)
        if test:
            names, points = [face.name for face in test], np.stack([f.points_image for f in test])
            every_landmark = np.broadcast_to(np.arange(points.shape[1]), points.shape[:2])
            write_asked_points(folder.test_points, names, every_landmark)
            write_answers(folder.solution, names, points)
        images = {
            (folder.test_images if face.is_test else folder.train_images) / face.name: face
            for face in labelled.faces
        }
        boxes = [face.box_image for face in images.values() if face.box_image is not None]
        if boxes:
            names = [image.relative_to(root).as_posix() for image in images]
            write_boxes(folder.boxes, names, np.stack(boxes))
        place({image: face.path for image, face in images.items()}, link=link, progress=progress)


def read_contest(root: Path, *, boxes: Path | None = None, progress: bool = False) -> LabelledFaces:
    """The labelled faces of a contest folder, the training part first.

    Of the test part, landmarks that were not asked for are unlabelled. Without a training table
    there are as many landmarks as the highest index asked for says.

    Args:
        boxes: the table of the boxes, by default `root`/boxes.csv if there is one.
        progress: show a bar for the table once it has taken a second.

    Raises:
        ValueError: a table is malformed, an image is missing, or nothing is labelled.
    """
    folder = find_folder(root)
    faces, left_out = list[Face](), Counter[str]()
    num_landmarks = None
    if folder.train_table.is_file():
        table = read_landmarks(folder.train_table, progress=progress)
        num_landmarks = table.num_landmarks
        paths = image_paths(folder.train_images, table.names, folder.train_table)
        faces += _faces(folder.train_table, table.names, paths, table.points_image[:], False)
    if folder.test_points.is_file():
        asked = read_asked_points(folder.test_points, num_landmarks or _MOST_LANDMARKS)
        if folder.solution.is_file():
            points = _read_truth(folder.solution, asked, num_landmarks)
            paths = image_paths(folder.test_images, asked.names, asked.path)
            faces += _faces(folder.solution, asked.names, paths, points, True)
        else:
            left_out[f"test images without landmarks ({folder.solution})"] = len(asked.names)
    if not faces:
        raise ValueError(
            f"{root}: nothing is labelled; there is neither {folder.train_table} nor "
            f"{folder.solution}"
        )
    if boxes is None and folder.boxes.is_file():
        boxes = folder.boxes
    if boxes is not None:
        boxes_image = read_boxes(boxes, [face.path for face in faces])
        faces = [replace(f, box_image=box) for f, box in zip(faces, boxes_image, strict=True)]
    return LabelledFaces(faces, left_out)


def _faces(
    table: Path, names: Sequence[str], paths: Sequence[Path], points: np.ndarray, is_test: bool
) -> Iterator[Face]:
    for name, path, face in zip(names, paths, points, strict=True):
        yield Face(
            where=f"{table}, {name}", name=name, path=path, points_image=face, is_test=is_test
        )


def _read_truth(path: Path, asked: AskedPoints, num_landmarks: int | None) -> np.ndarray:
    """(N, P, 2) float32 landmarks of the test images, NaN where they were not asked for."""
    solution = read_solution(path)
    different = sorted(set(asked.names) ^ set(solution.names))
    if different:
        raise ValueError(
            f"{path} answers other images than {asked.path} asks for; such as {different[0]}"
        )
    if solution.points_image.shape[1] != asked.indices.shape[1]:
        raise ValueError(
            f"{path} holds {solution.points_image.shape[1]} points for each image, but "
            f"{asked.path} asks for {asked.indices.shape[1]}"
        )
    rows = {name: row for row, name in enumerate(solution.names)}
    answers = solution.points_image[[rows[name] for name in asked.names]]
    num_landmarks = num_landmarks or int(asked.indices.max()) + 1
    points = np.full((len(asked.names), num_landmarks, 2), np.nan, np.float32)
    points[np.arange(len(asked.names))[:, None], asked.indices] = answers
    return points


def place(images: Mapping[Path, Path], *, link: bool, progress: bool) -> None:
    """Copies images to their places, or links them there; folders are made as needed.

    An image that is placed several times is stored once where the file system can (hard links).

    Args:
        images: each place, and the file that belongs there.
        link: hard links in place of copies. They need no room, but who changes one changes the
            other.
        progress: show a bar once it has taken a second.

    Raises:
        ValueError: the disk cannot tell two places apart, or links cannot be made.
    """
    copies: dict[Path, Path] = {}
    bar = tqdm(images.items(), "Placing images", unit="img", delay=1, disable=not progress)
    for target, path in bar:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ValueError(
                f"{path}: there is another image whose name differs from {target.name} in "
                "capital letters alone, and this disk cannot tell them apart; rename one of them"
            )
        # A link to a symbolic link would be one.
        linked = path.resolve() if link else copies.setdefault(path, target)
        try:
            if linked != target:
                os.link(linked, target)
                continue
        except OSError as error:  # such as a file system without hard links
            if link:
                raise ValueError(
                    f"{path}: cannot be linked ({error.strerror}); copy the images, without --link"
                ) from error
        shutil.copyfile(path, target)
