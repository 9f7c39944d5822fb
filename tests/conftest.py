"""Shared set-up: an environment without network, and small datasets."""

import os

# Set before torch is imported. Threads that spin while waiting slow down the other processes, and
# the suite runs in two, so one thread each is enough.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compilation takes seconds per process; its own tests switch it on.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import csv
import runpy
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatmap.data.contest import Folder, write_asked_points, write_landmarks
from heatmap.data.formats.kaggle15 import LANDMARKS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with many slow tests first, so that none is left over for one process at the end.

    So test_resume.py starts the fork server, with everything imported that its processes need.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary cache folder instead of the user's, also in subprocesses."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "heatmap"


@pytest.fixture(scope="session")
def faces68() -> Path:
    """Folder of real faces with 68 landmarks; not in the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "faces68"
    if not folder.is_dir():
        pytest.skip(f"the real faces are missing ({folder})")
    return folder


@pytest.fixture(scope="session")
def faces15() -> Path:
    """Folder of real faces in the form of Kaggle's facial keypoints; not in the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "faces15"
    if not folder.is_dir():
        pytest.skip(f"the real faces are missing ({folder})")
    return folder


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs a tool from another folder, as a user would; returns the exit code."""
    tools = Path(__file__).resolve().parents[1] / "tools"
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(tools / f"{name}.py"), run_name="__main__")
        return int(stopped.value.code or 0)

    return run


@pytest.fixture(scope="session")
def kaggle15_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in Kaggle's facial keypoints format with 10 training and 4 test images; read-only.

    Training images 3 and 6 have only four landmarks. The shuffled lookup table requests all
    coordinates of the first two test images and two coordinates of the others.
    """
    folder = tmp_path_factory.mktemp("kaggle15")
    generator = np.random.default_rng(15)
    columns = [f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"]
    images = [" ".join(map(str, generator.integers(0, 256, 96 * 96))) for _ in range(14)]
    training: list[list[object]] = [[*columns, "Image"]]
    for row, image in enumerate(images[:10]):
        numbers = [f"{number:.6f}" for number in generator.uniform(10, 86, 30)]
        if row in (2, 5):
            numbers[4:20] = [""] * 16
            numbers[22:28] = [""] * 6
        training.append([*numbers, image])
    test = [["ImageId", "Image"], *enumerate(images[10:], start=1)]
    asked = [(image, column) for image in (1, 2) for column in columns]
    asked += [(image, column) for image in (3, 4) for column in ("nose_tip_x", "nose_tip_y")]
    lookup: list[list[object]] = [["RowId", "ImageId", "FeatureName", "Location"]]
    for row, place in enumerate(generator.permutation(len(asked)).tolist(), start=1):
        lookup.append([row, *asked[place], ""])
    for name, rows in (("training", training), ("test", test), ("IdLookupTable", lookup)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    for name in ("training", "test"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(folder / f"{name}.csv", f"{name}.csv")
        (folder / f"{name}.csv").unlink()
    return folder


@pytest.fixture(scope="session")
def tiny_contest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset with 12 training and 5 test images; read-only.

    It has 7 landmarks, each a dot of its own colour, images of many sizes and several per person.
    One landmark of the third image is unlabelled. 3 landmarks per test image are requested.
    """
    contest = Folder(root=tmp_path_factory.mktemp("tiny_contest"))
    contest.train_images.mkdir(parents=True)
    contest.test_images.mkdir(parents=True)
    generator = np.random.default_rng(7)
    names = [f"{person}_{k}.jpg" for person in ("ada", "bo", "cy", "dee") for k in range(3)]
    points = np.stack([_draw_dots(contest.train_images / name, generator) for name in names])
    points[2, 4] = np.nan
    write_landmarks(contest.train_table, names, points)

    names = [f"eve_{k}.jpg" for k in range(5)]
    for name in names:
        _draw_dots(contest.test_images / name, generator)
    write_asked_points(contest.test_points, names, generator.integers(0, 7, (5, 3)))
    return contest.root


def _draw_dots(path: Path, generator: np.random.Generator) -> np.ndarray:
    """Writes an image of 7 dots in a ring; returns their (7, 2) centres."""
    height, width = generator.integers(60, 130, 2)
    angle = np.arange(7) * 2 * np.pi / 7 + generator.uniform(-0.3, 0.3)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1) * generator.uniform(0.2, 0.35)
    points = np.array([width, height]) / 2 + ring * min(height, width)
    image = np.full((height, width, 3), generator.integers(20, 90, 3), np.uint8)
    for index, (x, y) in enumerate(points):
        colour = [80 + 170 * (index + 1 >> bit & 1) for bit in range(3)]
        centre = round(x * 16), round(y * 16)  # 4 fractional bits
        cv2.circle(image, centre, min(height, width) * 16 // 20, colour, -1, cv2.LINE_AA, 4)
    assert cv2.imwrite(str(path), image)
    return points
