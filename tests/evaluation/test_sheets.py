from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

EXPERIMENT = """
from heatmap.config import *

EXPERIMENT = Experiment(name="tiny", crop=Crop(height=40, width=64), augment=Augment(mirror=0.5))
"""


Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs heatmap data show; returns the exit code, the output and the errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        return tool("data", "show", *arguments), *capsys.readouterr()

    return run


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "questions" / "tiny.py"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.slow
def test_augmented_training_crops_are_shown_with_their_landmarks(
    show: Show, experiment: Path, tiny_contest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheets" / "sheet.png"
    code, output, error = show(
        experiment, "--data.root", tiny_contest, "--out", out, "--count", "3", "--epoch", "2",
        "--augment.mirror", "0", "--augment.rotate-deg", "180", "--augment.fill", "edge",
    )  # fmt: skip
    assert code == 0, error
    assert output == f"{out}\n"
    sheet = cv2.imread(str(out))
    assert sheet.shape == (160, 3 * (256 + 4) - 4, 3)
    # the colour that all landmarks of a scheme without groups have
    assert (np.abs(sheet.astype(int) - (64, 214, 255)).sum(-1) < 30).sum() > 3 * 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "the first argument must be an experiment, got nothing"),
        (["--count", "3"], 2, "the first argument must be an experiment, got '--count'"),
        (["nothing.py"], 2, "nothing.py: no such experiment"),
        (["EXPERIMENT", "--coun", "3"], 2, "--count"),
        (["EXPERIMENT", "--augment.hue", "2"], 2, "augment.hue must be at most 0.5, not 2.0"),
        (["EXPERIMENT", "--count", "0", "--data.root", "nowhere"], 2, "--count"),
    ],
)
def test_wrong_options_are_named(
    show: Show, experiment: Path, arguments: list[str], code: int, words: str
) -> None:
    options = [experiment if word == "EXPERIMENT" else word for word in arguments]
    exit_code, _, error = show(*options)
    assert exit_code == code
    assert words in error and "Traceback" not in error
