"""Averaged submissions are matched by name and rounded once, or not written."""

from pathlib import Path

import numpy as np
import pytest

from heatmap.data.contest import read_submission, write_answers
from heatmap.inference.submit import average_submissions

NAMES = ["b.jpg", "a.jpg", "c.jpg"]


def submissions(folder: Path, count: int = 3) -> tuple[list[Path], np.ndarray]:
    """Files in different orders, and their (count, 3, 5, 2) points in the order of the first."""
    generator = np.random.default_rng(count)
    points = generator.integers(-9, 900, (count, 3, 5, 2)).astype(float)
    paths = [folder / f"{k}.csv" for k in range(count)]
    for k, path in enumerate(paths):
        order = np.roll(np.arange(3), k)
        write_answers(path, [NAMES[row] for row in order], points[k, order])
    return paths, points


def test_the_mean_is_per_image_in_the_order_of_the_first(tmp_path: Path) -> None:
    paths, points = submissions(tmp_path)
    for rounding, expected in (
        ("auto", np.rint(points.mean(0))),
        ("truncate", np.trunc(points.mean(0))),
        ("none", points.mean(0)),
    ):
        out = tmp_path / "out" / f"{rounding}.csv"
        assert average_submissions(paths, out, rounding=rounding) == 3
        found = read_submission(out)
        assert found.names == NAMES
        np.testing.assert_allclose(found.points_image, expected, atol=1e-4, rtol=0)
    assert (tmp_path / "out" / "auto.csv").read_text().splitlines()[1].count(".") == 1  # the name's


def test_submissions_are_weighted(tmp_path: Path) -> None:
    paths, points = submissions(tmp_path, 2)
    ids = [row_ids(tmp_path / f"ids{k}.csv", {1: 4.0 * k, 2: 8.0}) for k in range(2)]
    out = tmp_path / "out.csv"
    average_submissions(paths, out, rounding="none", weights=(3, 1))
    expected = np.average(points, 0, (3, 1))
    np.testing.assert_allclose(read_submission(out).points_image, expected, atol=1e-4, rtol=0)
    average_submissions(ids, out, weights=(3, 1))
    assert out.read_text() == "RowId,Location\n1,1.0000\n2,8.0000\n"


def test_the_output_may_replace_an_input(tmp_path: Path) -> None:
    paths, points = submissions(tmp_path, 2)
    average_submissions(paths, paths[1], rounding="none")
    np.testing.assert_allclose(read_submission(paths[1]).points_image, points.mean(0), atol=1e-4)


def row_ids(path: Path, answers: dict[int, float]) -> Path:
    lines = [f"{row_id},{location}" for row_id, location in answers.items()]
    path.write_text("\n".join(["RowId,Location", *lines]) + "\n")
    return path


def test_row_ids_are_matched_and_keep_decimals(tmp_path: Path) -> None:
    one = row_ids(tmp_path / "one.csv", {7: 10.5, 2: 20, 9: 96})
    other = row_ids(tmp_path / "other.csv", {9: 95, 7: 11.25, 2: 21})
    out = tmp_path / "out.csv"
    assert average_submissions([one, other], out) == 3
    assert out.read_text() == "RowId,Location\n7,10.8750\n2,20.5000\n9,95.5000\n"
    average_submissions([one, other], out, rounding="round")
    assert out.read_text() == "RowId,Location\n7,11\n2,20\n9,96\n"


def test_mismatched_files_are_refused_by_name(tmp_path: Path) -> None:
    (first, _), _ = submissions(tmp_path, 2)
    numbers = row_ids(tmp_path / "numbers.csv", {1: 2.5, 3: 4})
    fewer, short = tmp_path / "fewer.csv", tmp_path / "short.csv"
    write_answers(fewer, NAMES, np.zeros((3, 4, 2)))
    write_answers(short, NAMES[:2], np.zeros((2, 5, 2)))
    for others, words in (
        ([first, fewer], r"fewer\.csv has 4 points per image, .*0\.csv has 5"),
        ([first, short], r"short\.csv, joined to .*0\.csv: 1 image missing: c\.jpg"),
        ([short, first], r"0\.csv, joined to .*short\.csv: 1 image not asked for: c\.jpg"),
        ([first, numbers], r"numbers\.csv has columns RowId and Location, but .*0\.csv does not"),
        ([numbers, first], r"numbers\.csv has columns RowId and Location, but .*0\.csv does not"),
        ([first, tmp_path / "no.csv"], r"no\.csv: the submission does not exist"),
        ([numbers, row_ids(tmp_path / "n.csv", {1: 2, 4: 4})], r"2 RowIds .* such as 3 in .*numb"),
        (
            [numbers, row_ids(tmp_path / "m.csv", {1: 2})],
            r"m\.csv and .*numbers\.csv .* 1 RowId in",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            average_submissions(others, tmp_path / "out.csv")
    for text, words in (
        ("1,2\n1,3\n", r"row 3, column RowId: 1 is already in row 2"),
        ("1,2\n3,\n", r"row 3, column Location: the cell is empty"),
        ("1,2\n3,x\n", r"row 3, column Location: 'x' is not a number"),
        ("1,2\n-3,1\n", r"row 3, column RowId: expected a positive whole number"),
    ):
        (tmp_path / "bad.csv").write_text("RowId,Location\n" + text)
        with pytest.raises(ValueError, match=rf"bad\.csv, {words}"):
            average_submissions([numbers, tmp_path / "bad.csv"], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
