import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
from heatmap.config import *

EXPERIMENT = Experiment(name="tiny", crop=Crop(height=40, width=64), augment=Augment(mirror=0.5))
"""


def show(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs tools/data.py show as a person would."""
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "data.py", "show", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "questions" / "tiny.py"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.slow
def test_changed_training_crops_are_shown_with_their_landmarks(
    experiment: Path, tiny_contest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheets" / "sheet.png"
    done = show(
        experiment, "--data.root", tiny_contest, "--out", out, "--count", "3", "--epoch", "2",
        "--augment.mirror", "0", "--augment.rotate-deg", "180", "--augment.fill", "edge",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    sheet = cv2.imread(str(out))
    assert sheet.shape == (160, 3 * (256 + 4) - 4, 3)
    # the colour that all landmarks of a scheme without groups are drawn in
    assert (np.abs(sheet.astype(int) - (64, 214, 255)).sum(-1) < 30).sum() > 3 * 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "the first argument must be an experiment file, got nothing"),
        (["--count", "3"], 2, "the first argument must be an experiment file, got '--count'"),
        (["nothing.py"], 2, "nothing.py: no such experiment file"),
        (["EXPERIMENT", "--coun", "3"], 2, "--count"),
        (["EXPERIMENT", "--augment.hue", "2"], 2, "augment.hue must be in [0, 0.5]"),
        (["EXPERIMENT", "--count", "0", "--data.root", "nowhere"], 2, "--count"),
    ],
)
def test_wrong_uses_say_what_is_wrong(
    experiment: Path, arguments: list[str], code: int, words: str
) -> None:
    done = show(*(experiment if word == "EXPERIMENT" else word for word in arguments))
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_real_faces_are_shown(experiment: Path, faces68: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    done = show(experiment, "--data.root", faces68, "--out", out, "--augment.erase", "0.5")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(out)).shape == (2 * (160 + 4) - 4, 8 * (256 + 4) - 4, 3)
