"""Writes a synthetic contest: drawn faces in the contest's own files, the solution withheld."""

import hashlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from heatmap.data.contest import Folder, write_answers, write_asked_points, write_landmarks
from heatmap.data.synthetic.drawing import paint
from heatmap.data.synthetic.face import sample_face
from heatmap.errors import UserError
from heatmap.runtime.files import folder_when_complete
from heatmap.runtime.parallel import in_processes

_NUM_ASKED = 30
# Test faces stand this far along the series of faces, out of the way of any number to train on.
_FIRST_TEST_FACE = 10**9


def make_contest(
    out: Path, *, count: int, seed: int, test_count: int | None = None, workers: int = 1
) -> None:
    """Draws `count` faces to train on and `test_count` to be tested on, with all their files.

    The sample submission is all zeros. The bytes of an image and its row depend on `seed` and its
    place only: a larger contest begins with the smaller one.

    Args:
        test_count: a tenth of `count` if None, but at least 1.
        workers: processes that draw.

    Raises:
        UserError: `out` is there already and not empty, or a number is out of range.
    """
    test_count = max(1, count // 10) if test_count is None else test_count
    at_least = {"count": (count, 1), "test_count": (test_count, 1), "workers": (workers, 1)}
    for name, (value, least) in (at_least | {"seed": (seed, 0)}).items():
        if value < least:
            raise UserError(f"{name} is {value}, but must be at least {least}")
    with folder_when_complete(out) as root:
        folder = Folder(root=root)
        folder.train_images.mkdir(parents=True)
        folder.test_images.mkdir(parents=True)
        jobs = [(folder.train_images, index) for index in range(count)]
        jobs += [(folder.test_images, _FIRST_TEST_FACE + index) for index in range(test_count)]
        drawn = in_processes(partial(_write_image, seed), jobs, workers, "drawing")
        points = np.stack([*drawn])
        names = [_file_name(seed, index) for _, index in jobs]
        asked = _asked_points(seed, test_count, points.shape[1])
        answers = np.take_along_axis(points[count:], asked[..., None], 1)
        write_landmarks(folder.train_table, names[:count], points[:count])
        write_asked_points(folder.test_points, names[count:], asked)
        write_answers(root / "sampleSubmission.csv", names[count:], np.zeros_like(answers))
        write_answers(folder.solution, names[count:], answers)


def _file_name(seed: int, index: int) -> str:
    return hashlib.md5(f"{seed} {index}".encode(), usedforsecurity=False).hexdigest() + ".jpg"


def _asked_points(seed: int, num_rows: int, num_landmarks: int) -> np.ndarray:
    """(N, 30) int64 landmarks to ask for, unsorted, each row its own; a few rows repeat one."""
    rows = []
    for row in range(num_rows):
        rng = np.random.default_rng((seed, _FIRST_TEST_FACE + row))
        indices = rng.permutation(num_landmarks)[:_NUM_ASKED]
        if rng.random() < 0.1:
            indices[rng.integers(1, _NUM_ASKED)] = indices[0]
        rows.append(indices)
    return np.stack(rows)


def _write_image(seed: int, job: tuple[Path, int]) -> np.ndarray:
    """Draws one face into a folder of images; (971, 2) int64, its landmarks as the contest's."""
    folder, index = job
    face = sample_face(seed, index)
    image, points_image = paint(face)
    quality = [cv2.IMWRITE_JPEG_QUALITY, face.camera.jpeg_quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    (folder / _file_name(seed, index)).write_bytes(data.tobytes())
    return np.round(points_image).astype(np.int64)
