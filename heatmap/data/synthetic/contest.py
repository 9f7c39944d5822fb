"""A synthetic contest: drawn faces in a contest folder, with the solution withheld."""

import hashlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from heatmap.data.contest import Folder, write_answers, write_asked_points, write_landmarks
from heatmap.data.synthetic.drawing import paint
from heatmap.data.synthetic.face import sample_face
from heatmap.runtime.files import folder_when_complete
from heatmap.runtime.parallel import in_processes

_NUM_ASKED = 30
_FIRST_TEST_FACE = 10**9  # face index, beyond any training face's


def make_contest(
    out: Path, *, count: int, seed: int, test_count: int | None = None, workers: int = 1
) -> None:
    """Draws training and test faces and writes all files of a contest.

    The sample submission is all zeros. An image's bytes and row depend only on `seed` and its
    index, so a larger contest begins with the smaller one.

    Args:
        count: number of training faces.
        test_count: number of test faces; default: a tenth of `count`, but at least 1.
        workers: number of processes that draw.

    Raises:
        UserError: `out` exists and is not empty.
    """
    test_count = max(1, count // 10) if test_count is None else test_count
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        folder.train_images.mkdir(parents=True)
        folder.test_images.mkdir(parents=True)
        jobs = [(folder.train_images, index) for index in range(count)]
        jobs += [(folder.test_images, _FIRST_TEST_FACE + index) for index in range(test_count)]
        points = np.stack([*in_processes(partial(_write_image, seed), jobs, workers, "drawing")])
        names = [_file_name(seed, index) for _, index in jobs]
        asked = np.stack([_asked_points(seed, row, points.shape[1]) for row in range(test_count)])
        answers = np.take_along_axis(points[count:], asked[..., None], 1)
        write_landmarks(folder.train_table, names[:count], points[:count])
        write_asked_points(folder.test_points, names[count:], asked)
        write_answers(root / "sampleSubmission.csv", names[count:], np.zeros_like(answers))
        write_answers(folder.solution, names[count:], answers)


def _file_name(seed: int, index: int) -> str:
    return hashlib.md5(f"{seed} {index}".encode(), usedforsecurity=False).hexdigest() + ".jpg"


def _asked_points(seed: int, row: int, num_landmarks: int) -> np.ndarray:
    """(30,) int64 random landmarks, unsorted; every tenth row repeats one, as in the contest."""
    rng = np.random.default_rng((seed, _FIRST_TEST_FACE + row))
    indices = rng.permutation(num_landmarks)[:_NUM_ASKED]
    if rng.random() < 0.1:
        indices[rng.integers(1, _NUM_ASKED)] = indices[0]
    return indices


def _write_image(seed: int, job: tuple[Path, int]) -> np.ndarray:
    """Draws a face into an image folder; returns its (971, 2) int64 landmarks, rounded."""
    folder, index = job
    face = sample_face(seed, index)
    image, points_image = paint(face)
    quality = [cv2.IMWRITE_JPEG_QUALITY, face.camera.jpeg_quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    (folder / _file_name(seed, index)).write_bytes(data.tobytes())
    return np.round(points_image).astype(np.int64)
