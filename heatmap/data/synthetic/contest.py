"""Writes a synthetic contest: drawn faces in the contest's own files, the solution withheld."""

import hashlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from heatmap.data.contest import write_answers, write_asked_points, write_landmarks
from heatmap.data.synthetic.chance import sample_face
from heatmap.data.synthetic.drawing import draw
from heatmap.runtime.files import folder_when_complete
from heatmap.runtime.parallel import in_processes

NUM_ASKED = 30

# Test faces stand this far along the series of faces, out of the way of any number to train on.
_FIRST_TEST_FACE = 10**9


def make_contest(
    out: Path,
    *,
    count: int,
    seed: int,
    test_count: int | None = None,
    workers: int = 1,
    progress: bool = False,
) -> None:
    """Draws `count` faces to train on and `test_count` to be tested on, with all their files.

    Their layout is that of `data.contest`; the sample submission is all zeros. The bytes depend
    on `count`, `test_count` and `seed` only, and those of an image and its row on `seed` and its
    place: a larger contest begins with the smaller one. The folder appears when it is complete.

    Args:
        test_count: a tenth of `count` if None, but at least 1.
        workers: processes that draw.

    Raises:
        ValueError: `out` is there already and not empty, or a number is out of range.
    """
    test_count = max(1, count // 10) if test_count is None else test_count
    for name, value in {"count": count, "test_count": test_count, "workers": workers}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be at least 0")
    with folder_when_complete(out) as folder:
        train_images, test_images = folder / "train" / "images", folder / "test" / "images"
        for images in (train_images, test_images, folder / "withheld"):
            images.mkdir(parents=True)
        jobs = [(train_images, index) for index in range(count)]
        jobs += [(test_images, _FIRST_TEST_FACE + index) for index in range(test_count)]
        names = [_file_name(seed, index) for _, index in jobs]

        drawn = in_processes(partial(_write_image, seed), jobs, workers)
        bar = tqdm(drawn, "drawing", len(jobs), unit="face", disable=not progress)
        points = np.stack(list(bar))
        train_names, test_names = names[:count], names[count:]
        asked = _asked_points(seed, test_count, points.shape[1])
        answers = np.take_along_axis(points[count:], asked[..., None], 1)
        write_landmarks(folder / "train" / "landmarks.csv", train_names, points[:count])
        write_asked_points(folder / "test" / "test_points.csv", test_names, asked)
        write_answers(folder / "sampleSubmission.csv", test_names, np.zeros_like(answers))
        write_answers(folder / "withheld" / "solution.csv", test_names, answers)


def _file_name(seed: int, index: int) -> str:
    return hashlib.md5(f"{seed} {index}".encode(), usedforsecurity=False).hexdigest() + ".jpg"


def _asked_points(seed: int, num_rows: int, num_landmarks: int) -> np.ndarray:
    """(N, 30) int64 landmarks to ask for, unsorted, each row its own; a few rows repeat one."""
    rows = []
    for row in range(num_rows):
        rng = np.random.default_rng((seed, _FIRST_TEST_FACE + row))
        indices = rng.permutation(num_landmarks)[:NUM_ASKED]
        if rng.random() < 0.1:
            indices[rng.integers(1, NUM_ASKED)] = indices[0]
        rows.append(indices)
    return np.stack(rows)


def _write_image(seed: int, job: tuple[Path, int]) -> np.ndarray:
    """Draws one face into a folder of images; (971, 2) int64, its landmarks as the contest's."""
    folder, index = job
    face = sample_face(seed, index)
    image, points_image = draw(face)
    quality = [cv2.IMWRITE_JPEG_QUALITY, face.camera.jpeg_quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    (folder / _file_name(seed, index)).write_bytes(data.tobytes())
    return np.round(points_image).astype(np.int64)
