"""A submission holds the requested points of every test image, or is not written."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from heatmap.data.contest import (
    AskedPoints,
    contest_mse,
    read_submission,
    score_submission,
    squared_errors,
    write_answers,
    write_submission,
)
from heatmap.data.contest import submission as module
from heatmap.data.contest.table import Form

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
INDICES = np.array([[4, 0, 2, 2, 1], [3, 3, 1, 0, 4], [0, 1, 2, 3, 4]])
ASKED = AskedPoints(path=Path("test_points.csv"), names=NAMES, indices=INDICES)


def predictions() -> np.ndarray:
    """(3, 6, 2) float32; each number encodes its image, landmark and axis."""
    image, landmark, axis = np.mgrid[0:3, 0:6, 0:2]
    return (100 * image + 10 * landmark + axis - 0.375).astype(np.float32)


def picked(points: np.ndarray) -> np.ndarray:
    """The requested points."""
    return np.take_along_axis(points, INDICES[..., None], 1)


def test_submission_has_the_contests_format(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    asked = AskedPoints(path=Path(), names=["b.jpg", "a.jpg"], indices=np.array([[1, 0], [2, 2]]))
    points = predictions()[:2][::-1]
    write_submission(path, asked, np.take_along_axis(points, asked.indices[..., None], 1))
    assert path.read_bytes() == (
        b"file_name,Point_M0_X,Point_M0_Y,Point_M1_X,Point_M1_Y\n"
        b"b.jpg,110,111,100,101\n"
        b"a.jpg,20,21,20,21\n"
    )


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("round", "a.jpg,12,-12,1,-1,2,-2"),
        ("truncate", "a.jpg,11,-11,0,0,2,-2"),
        ("none", "a.jpg,11.7500,-11.7500,0.5500,-0.5500,2.5000,-2.0001"),
    ],
)
def test_rounding(
    tmp_path: Path, rounding: Literal["round", "truncate", "none"], expected: str
) -> None:
    path = tmp_path / "submission.csv"
    points = np.array([[[11.75, -11.75], [0.55, -0.55], [2.5, -2.00012]]])
    asked = AskedPoints(path=Path(), names=["a.jpg"], indices=np.array([[0, 1, 2]]))
    write_submission(path, asked, points, rounding=rounding)
    assert path.read_text().splitlines()[1] == expected


def test_decimals_read_back_to_a_ten_thousandth(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    points = np.random.default_rng(0).uniform(-30, 1400, (3, 6, 2))
    write_submission(path, ASKED, picked(points), rounding="none")
    expected = points[np.arange(3)[:, None], INDICES]
    np.testing.assert_allclose(read_submission(path).points_image, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("points", [predictions(), picked(predictions())[:2]])
def test_wrong_shape_leaves_no_file(tmp_path: Path, points: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"test_points.csv asks for 5 landmarks of 3 images, but"):
        write_submission(tmp_path / "s.csv", ASKED, points)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rounding", ["round", "truncate", "none"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_non_finite_point_leaves_the_old_file(
    tmp_path: Path, rounding: Literal["round", "truncate", "none"], value: float
) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old")
    points = predictions()
    points[1, 5] = value  # not asked for
    points[2, 3, 1] = value
    with pytest.raises(ValueError, match=r"s\.csv: not written.*'c\.jpg' is not finite"):
        write_submission(path, ASKED, picked(points), rounding=rounding)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_read_back_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module.write_landmarks

    def write_wrongly(path: Path, names: list[str], points: np.ndarray, form: Form) -> None:
        write(path, names, points + (np.arange(3) == 2)[:, None, None], form)

    monkeypatch.setattr(module, "write_landmarks", write_wrongly)
    with pytest.raises(OSError, match="the file read back differs"):
        write_submission(tmp_path / "s.csv", ASKED, picked(predictions()))
    assert list(tmp_path.iterdir()) == []


SUBMISSION = "file_name,Point_M0_X,Point_M0_Y,Point_M1_X,Point_M1_Y\na.jpg,1,2,3,4\nb.jpg,5,6,7,8\n"


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        (",", "\t", ["row 1", "comma"]),
        ("Point_M", "Point_", ["row 1", "a table of landmarks, not a solution", "Point_M0_X"]),
        ("Point_M1_X", "Point_M2_X", ["row 1, column 4", "'Point_M1_X'", "'Point_M2_X'"]),
        (",6,", ",,", ["row 3, column Point_M0_Y", "empty"]),
        (",5,6,", ",,,", ["row 3, column Point_M0_X", "empty", "every coordinate"]),
        (",6,", ",six,", ["row 3, column Point_M0_Y", "'six' is not a number"]),
        (",6,", ",nan,", ["row 3, column Point_M0_Y", "'nan' is not a number"]),
        (",6,", ",inf,", ["row 3, column Point_M0_Y", "'inf' is not a number"]),
        (",8\n", "\n", ["row 3", "4 cells", "header has 5"]),
        ("b.jpg", "a.jpg", ["row 3, column file_name", "'a.jpg'", "row 2"]),
    ],
)
def test_malformed_submission_is_refused(
    tmp_path: Path, old: str, new: str, fragments: list[str]
) -> None:
    assert old in SUBMISSION
    path = tmp_path / "s.csv"
    path.write_text(SUBMISSION.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_submission(path)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_submission_is_scored_by_file_name(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(-9, 999, (3, 5, 2)).astype(float)
    answers = truth + random.integers(-4, 5, truth.shape)
    truth[1, 2] = np.nan
    write_answers(tmp_path / "solution.csv", NAMES, truth)
    order = [1, 2, 0]
    write_answers(tmp_path / "s.csv", [NAMES[row] for row in order], answers[order])

    score = score_submission(tmp_path / "s.csv", tmp_path / "solution.csv")
    assert score.names == NAMES
    np.testing.assert_array_equal(score.per_image, squared_errors(answers, truth))
    assert score.mse == contest_mse(score.per_image)
    assert len(set(score.per_image.tolist())) == 3


@pytest.mark.parametrize(
    ("names", "num_points", "fragment"),
    [
        (["a.jpg", "b.jpg"], 5, "s.csv, scored by .*solution.csv: 1 image missing: c.jpg"),
        ([*NAMES, "x.jpg"], 5, "s.csv, scored by .*: 1 image not asked for: x.jpg"),
        ([f"{n}.jpg" for n in range(9)], 5, "3 images missing: a.jpg, b.jpg, c.jpg$"),
        (NAMES, 4, "s.csv has 4 points per image, .*solution.csv has 5"),
    ],
)
def test_submission_for_another_solution_is_refused(
    tmp_path: Path, names: list[str], num_points: int, fragment: str
) -> None:
    write_answers(tmp_path / "solution.csv", NAMES, np.zeros((3, 5, 2)))
    write_answers(tmp_path / "s.csv", names, np.zeros((len(names), num_points, 2)))
    with pytest.raises(ValueError, match=fragment):
        score_submission(tmp_path / "s.csv", tmp_path / "solution.csv")
