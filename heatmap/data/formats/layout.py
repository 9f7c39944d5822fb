"""The contest's own layout, written from labelled faces and read back into them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from heatmap.data.contest import (
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
from heatmap.data.formats.labelled import LabelledFaces
from heatmap.data.formats.pictures import place
from heatmap.runtime.files import folder_when_complete

_MOST_LANDMARKS = 100_000  # where no training table says how many there are


def write_contest(
    faces: LabelledFaces, out: Path, *, link: bool = False, progress: bool = False
) -> None:
    """Writes a contest folder; it appears when it is complete.

        out/train/landmarks.csv, out/train/images/      decimals to 6 places
        out/test/test_points.csv, out/test/images/      every landmark is asked for
        out/withheld/solution.csv                       of the test part, decimals to 4 places
        out/boxes.csv                                   of both parts, where there are boxes

    Args:
        link: hard links to the pictures in place of copies.
        progress: show a bar for the pictures once it has taken a second.

    Raises:
        ValueError: `out` is there already and not empty, a name cannot stand in a table, or a
            picture cannot be placed.
    """
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        # The tables check the names, and come before anything is written under these.
        train, test = np.flatnonzero(~faces.is_test), np.flatnonzero(faces.is_test)
        if len(train):
            write_landmarks(folder.train_table, _of(faces, train), faces.points_image[train])
        if len(test):
            num_landmarks = faces.points_image.shape[1]
            every = np.broadcast_to(np.arange(num_landmarks), (len(test), num_landmarks))
            write_asked_points(folder.test_points, _of(faces, test), every)
            write_answers(folder.solution, _of(faces, test), faces.points_image[test])
        images = [
            folder.test_images if is_test else folder.train_images for is_test in faces.is_test
        ]
        targets = [folder / name for folder, name in zip(images, faces.names, strict=True)]
        if faces.boxes_image is not None:
            names = [target.relative_to(root).as_posix() for target in targets]
            write_boxes(folder.boxes, names, faces.boxes_image)
        place(faces.pictures, targets, link=link, progress=progress)


def read_contest(root: Path, *, boxes: Path | None = None, progress: bool = False) -> LabelledFaces:
    """The labelled faces of a contest folder, the training part first.

    Of the test part, landmarks that were not asked for are unlabelled. Without a training table
    there are as many landmarks as the highest index asked for says.

    Args:
        boxes: the table of the boxes, by default `root`/boxes.csv if there is one.
        progress: show a bar for the table once it has taken a second.

    Raises:
        ValueError: a table is malformed, a picture is missing, or nothing is labelled.
    """
    folder = find_folder(root)
    names, pictures = list[str](), list[Path]()
    points, is_test = list[np.ndarray](), list[np.ndarray]()
    left_out = {}
    num_landmarks = None
    if folder.train_table.is_file():
        table = read_landmarks(folder.train_table, progress=progress)
        num_landmarks = table.num_landmarks
        names += table.names
        pictures += image_paths(folder.train_images, table.names, folder.train_table)
        points.append(table.points_image[:])
        is_test.append(np.zeros(len(table.names), bool))
    if folder.test_points.is_file():
        test_names, test_points = _read_test(folder, num_landmarks)
        if test_points is None:
            left_out[f"test pictures without landmarks ({folder.solution})"] = len(test_names)
        else:
            names += test_names
            pictures += image_paths(folder.test_images, test_names, folder.test_points)
            points.append(test_points)
            is_test.append(np.ones(len(test_names), bool))
    if not points:
        raise ValueError(
            f"{root}: nothing is labelled; there is neither {folder.train_table} nor "
            f"{folder.solution}"
        )
    if boxes is None and folder.boxes.is_file():
        boxes = folder.boxes
    return LabelledFaces(
        names=names,
        pictures=pictures,
        points_image=points[0] if len(points) == 1 else np.concatenate(points),
        is_test=np.concatenate(is_test),
        boxes_image=None if boxes is None else read_boxes(boxes, pictures),
        left_out=left_out,
    )


def _of(faces: LabelledFaces, rows: np.ndarray) -> list[str]:
    return [faces.names[row] for row in rows]


def _read_test(
    folder: Folder, num_landmarks: int | None
) -> tuple[Sequence[str], np.ndarray | None]:
    """The names of the test pictures, and (N, P, 2) float32 landmarks where they are known."""
    asked = read_asked_points(folder.test_points, num_landmarks or _MOST_LANDMARKS)
    if not folder.solution.is_file():
        return asked.names, None
    solution = read_solution(folder.solution)
    rows = {name: row for row, name in enumerate(solution.names)}
    missing = [name for name in asked.names if name not in rows]
    if missing or len(rows) != len(asked.names):
        raise ValueError(
            f"{folder.solution} answers other pictures than {folder.test_points} asks for"
            + (f"; {missing[0]} is not in it" if missing else "")
        )
    answers = solution.points_image[[rows[name] for name in asked.names]]
    if answers.shape[1] != asked.indices.shape[1]:
        raise ValueError(
            f"{folder.solution} holds {answers.shape[1]} points for each picture, but "
            f"{folder.test_points} asks for {asked.indices.shape[1]}"
        )
    num_landmarks = num_landmarks or int(asked.indices.max()) + 1
    points = np.full((len(asked.names), num_landmarks, 2), np.nan, np.float32)
    points[np.arange(len(asked.names))[:, None], asked.indices] = answers
    return asked.names, points
