"""Corrections are applied to a copy of the table, and only to the table they were made for."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatmap.curation.apply import columns
from heatmap.data import contest

Tool = Callable[..., int]
NUM = 7  # landmarks of the tiny contest


def write(path: Path, table: str, *rows: tuple[str, str, dict[int, tuple[float, float]]]) -> None:
    """Writes corrections as the page does: (file name, review, new points by landmark)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns(NUM))
        for name, review, moved in rows:
            points = [cell for index in range(NUM) for cell in moved.get(index, ("", ""))]
            writer.writerow([review, table, " ".join(map(str, moved)), name, *points])


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_only_corrected_landmarks_change(
    tiny_contest: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = contest.read_landmarks(tiny_contest / "train" / "landmarks.csv")
    before = files_of(tiny_contest)
    x, y = old.points_image[0, 3].tolist()
    corrected = {3: (x + 3, y + 4), 5: old.points_image[0, 5].tolist()}
    write(
        tmp_path / "corrections.csv", old.fingerprint, (old.names[0], "corrected", corrected),
        (old.names[1], "good", {}), (old.names[2], "corrected", {4: (40.25, 50)}),
        (old.names[3], "bad", {}),
    )  # fmt: skip
    assert tool("data", "apply", tiny_contest, "corrections.csv", "--out", "new") == 0
    output = capsys.readouterr().out
    assert "4 reviewed: 1 good, 1 bad, 2 corrected; 25 % were false alarms" in output
    assert ["ada_0.jpg", "corrected", "2", "2.5", "5.0"] in [
        line.split() for line in output.splitlines()
    ]
    assert files_of(tiny_contest) == before

    new = contest.read_landmarks(tmp_path / "new" / "train" / "landmarks.csv")
    expected = old.points_image[:]
    expected[0, 3] += [3, 4]
    expected[2, 4] = [40.25, 50]
    expected[3] = np.nan
    assert np.allclose(new.points_image[:], expected, atol=0.006, equal_nan=True)
    lines, new_lines = (
        (root / "train" / "landmarks.csv").read_text().splitlines()
        for root in (tiny_contest, tmp_path / "new")
    )
    assert new_lines[2] == lines[2] and new_lines[5:] == lines[5:]
    assert (tmp_path / "new" / "train" / "images").readlink() == tiny_contest / "train" / "images"
    assert (tmp_path / "new" / "test" / "test_points.csv").is_file()


@pytest.mark.parametrize(
    ("table", "name", "review", "message"),
    [
        ("another", "ada_0.jpg", "good", "row 2: made for another table"),
        ("", "none.jpg", "good", "row 2, column file_name: 'none.jpg' is not in"),
        ("", "ada_0.jpg", "fine", "row 2: the review must be one of good, bad, corrected"),
        ("", "ada_0.jpg", "bad", "row 2: reviewed as bad, but it has corrected landmarks"),
        ("", "ada_1.jpg", "good", "row 3, column file_name: 'ada_1.jpg' is already in row 2"),
    ],
)
def test_wrong_corrections_are_refused(
    tiny_contest: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    table: str, name: str, review: str, message: str,
) -> None:  # fmt: skip
    fingerprint = contest.read_landmarks(tiny_contest / "train" / "landmarks.csv").fingerprint
    moved = {0: (1.0, 2.0)} if review == "bad" else {}
    rows = [(name, review, moved), ("ada_1.jpg", "good", {})]
    write(tmp_path / "corrections.csv", table or fingerprint, *rows)
    assert tool("data", "apply", tiny_contest, "corrections.csv", "--out", "new") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_table_that_is_not_of_corrections_is_refused(
    tiny_contest: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit.csv").write_text("rank,file_name\n1,ada_0.jpg\n")
    assert tool("data", "apply", tiny_contest, "audit.csv", "--out", "new") == 1
    assert "audit.csv, row 1: expected corrections of 7 landmarks" in capsys.readouterr().err
