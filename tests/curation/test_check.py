"""All problems of a folder are reported at once, and bad images can be excluded."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from heatmap.curation.check import check
from heatmap.curation.check_report import Problem, format_report
from heatmap.data.contest import (
    Folder,
    find_folder,
    read_asked_points,
    read_excluded,
    read_image,
    read_landmarks,
)

Tool = Callable[..., int]


@pytest.fixture
def contest(tiny_contest: Path, tmp_path: Path) -> Folder:
    """A copy of the tiny contest that a test may damage."""
    return Folder(root=Path(shutil.copytree(tiny_contest, tmp_path / "contest")))


def replaced(path: Path, *changes: tuple[int, int, str]) -> None:
    """Changes cells of a TAB-separated table, given as row (the header being 1), column, text."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    for row, column, cell in changes:
        rows[row - 1][column] = cell
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")


def places(problems: list[Problem], severity: str = "error") -> list[tuple[str, str, int | None]]:
    return [(p.kind, p.part, p.row) for p in problems if p.severity == severity]


def test_a_valid_folder_has_no_errors(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "check.json", tmp_path / "bad.csv"
    options = "--workers", "1", "--json", out, "--exclude-to", bad
    assert tool("data", "check", tiny_contest, *options) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert not [p for p in report["problems"] if p["severity"] == "error"]
    table = read_landmarks(find_folder(tiny_contest).train_table)
    sizes = [read_image(tiny_contest / "train" / "images" / n).shape for n in table.names]
    train = report["statistics"]["train"]
    assert train["rows"] == train["images"] == 12 and report["statistics"]["test"]["rows"] == 5
    for axis, name in enumerate(("height", "width")):
        values = [size[axis] for size in sizes]
        assert train[name] == {
            "min": min(values), "median": np.median(values), "max": max(values)
        }  # fmt: skip
    assert train["grey"] == train["with_border"] == train["landmarks_outside"] == 0
    lines = [line for line in printed.splitlines() if "min / median / max" in line]
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    assert read_excluded(bad, table).tolist() == []


def test_all_problems_of_a_table_are_reported_at_once(contest: Folder) -> None:
    replaced(
        contest.train_table,
        (2, 3, "4 0"), (2, 14, "nan"),  # two landmarks of one row
        (4, 0, "ada_0.jpg"),
        (5, 0, "../bo_0.jpg"), (5, 1, ""),
        (6, 5, "1e7"),
        (8, 14, "50\t60"),
        (9, 0, ""),
        (10, 14, "70\n  "),
    )  # fmt: skip
    replaced(contest.test_points, (3, 1, "[1, 2]"), (4, 1, "[1, 2, 7]"), (5, 0, "eve_0.jpg"))
    report = check(contest.root)
    assert places(report.problems) == [
        ("number", "train", 2),
        ("number", "train", 2),
        ("name twice", "train", 4),
        ("file name", "train", 5),
        ("half a landmark", "train", 5),
        ("number", "train", 6),
        ("number of cells", "train", 8),
        ("file name", "train", 9),
        ("blank row", "train", 11),
        ("asked points", "test", 3),
        ("asked points", "test", 4),
        ("name twice", "test", 5),
    ]
    messages = "\n".join(problem.message for problem in report.problems)
    for essential in (
        f"{contest.train_table}, row 2, column Point_1_X: '4 0' is not a number",
        "row 2, column Point_6_Y: 'nan' is not a number",
        "row 4, column file_name: 'ada_0.jpg' is already in row 2",
        "row 5, column Point_0_X: the cell is empty, but Point_0_Y is not",
        "row 8: 16 cells where the header has 15",
        "row 11: the row is blank",
        f"{contest.test_points}, row 3, column point_index_list: 2 indices, but other rows",
        "row 4, column point_index_list: index 7 is out of range; there are 7 landmarks",
    ):
        assert essential in messages
    # images of rows with problems are read too
    assert report.statistics["train"]["images"] == 9
    unnamed = [p.images[0] for p in report.problems if p.kind == "unnamed image"]
    assert sorted(unnamed) == ["ada_2.jpg", "bo_0.jpg", "cy_1.jpg", "eve_3.jpg"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("file_name", "name"),
        ("Point_2_X", "Point_X"),
        ("\tPoint_6_Y", ""),
        ("bo_1.jpg", "/bo_1.jpg"),
        ("bo_1.jpg", "ada_0.jpg"),
        ("bo_1.jpg\t", "bo_1.jpg\t\t"),
        ("bo_1.jpg\t", "bo_1.jpg\tx"),
        ("bo_1.jpg\t", "bo_1.jpg\t+-"),
        ("bo_1.jpg\t", "bo_1.jpg\t1234567"),
        ("bo_1.jpg\t", "bo_1.jpg\tinf"),
        ("bo_1.jpg\t", "\n\nbo_1.jpg\t"),
        ("bo_1.jpg\t", "b\udcff.jpg\t"),
        ("bo_1.jpg\t", "bo_1.jpg\t\udcff"),
    ],
)
def test_landmark_reader_errors_are_reported_verbatim(contest: Folder, old: str, new: str) -> None:
    table = contest.train_table.read_text()
    assert old in table
    table = table.replace(old, new, 1)
    contest.train_table.write_bytes(table.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=str(contest.train_table)) as refused:
        read_landmarks(contest.train_table)
    report = check(contest.root)
    assert str(refused.value) in [p.message for p in report.problems if p.severity == "error"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("file_name\tpoint", "name\tpoint"),
        ("eve_1.jpg\t[", "eve_1.jpg\t"),
        ("eve_1.jpg\t[", "eve_1.jpg\t[8,"),
        ("eve_1.jpg\t", "eve_1.jpg\t\t"),
        ("eve_1.jpg", "../e.jpg"),
        ("eve_1.jpg", "eve_0.jpg"),
        ("eve_1.jpg", "\neve_1.jpg"),
    ],
)
def test_errors_of_the_asked_points_reader_are_reported_verbatim(
    contest: Folder, old: str, new: str
) -> None:
    table = contest.test_points.read_text()
    assert old in table
    contest.test_points.write_text(table.replace(old, new))
    with pytest.raises(ValueError, match=str(contest.test_points)) as refused:
        read_asked_points(contest.test_points, 7)
    assert str(refused.value) in [problem.message for problem in check(contest.root).problems]


def test_other_table_formats_have_no_errors(contest: Folder) -> None:
    table = contest.train_table.read_text().replace("\t", ",").replace("\n", "\r\n")
    table = table.replace("Point_", "Point_M").replace("file_name", "filename")
    contest.train_table.write_bytes(("\ufeff" + table + "\r\n \r\n").encode())
    report = check(contest.root)
    assert not places(report.problems)
    assert report.statistics["train"]["rows"] == 12


def test_bad_images_are_reported_and_can_be_excluded_from_training(
    tool: Tool, contest: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = contest.train_images
    (images / "ada_0.jpg").unlink()
    data = (images / "ada_1.jpg").read_bytes()
    (images / "ada_1.jpg").write_bytes(data[: len(data) // 2])
    (images / "bo_0.jpg").write_text("<html>not found</html>")
    (images / "dee_2.jpg").write_bytes(b"")  # a validation image
    (images / "cy_0.jpg").rename(contest.root / "cy_0.jpg")
    (images / "cy_0.jpg").symlink_to(contest.root / "cy_0.jpg")
    (images / "extra.png").write_bytes(b"")
    replaced(contest.train_table, (9, 5, "812"))
    bad, out = tmp_path / "bad.csv", tmp_path / "check.json"
    options = "--workers", "1", "--exclude-to", bad, "--json", out
    assert tool("data", "check", contest.root, *options) == 1
    captured = capsys.readouterr()
    assert "error: training or a submission would stop at 5 of these problems" in captured.err
    problems = json.loads(out.read_text())["problems"]
    kinds = Counter((p["severity"], p["kind"]) for p in problems)
    assert kinds["error", "missing image"] == 2
    assert kinds["error", "unreadable image"] == 3
    assert kinds["warning", "far outside"] == 1
    assert kinds["note", "unnamed image"] == 1
    (far,) = [p for p in problems if p["kind"] == "far outside"]
    assert far["row"] == 9 and "row 9: landmark 2 lies far outside" in far["message"]
    assert "at x = 812; the image is" in far["message"]
    assert "row 8, column file_name: 'cy_0.jpg' leads out of" in captured.out
    assert "row 2, column file_name: the image 'ada_0.jpg' in " in captured.out
    assert "row 5: " in captured.out and "this is text, not an image" in captured.out

    table = read_landmarks(contest.train_table)
    excluded = [table.names[row] for row in read_excluded(bad, table)]
    assert excluded == ["ada_0.jpg", "ada_1.jpg", "bo_0.jpg", "cy_0.jpg", "cy_1.jpg", "dee_2.jpg"]
    assert "cy_1.jpg,far outside" in bad.read_text().splitlines()

    experiment = Path(__file__).parents[2] / "experiments" / "unet.py"
    training = (
        "train", experiment, "--data.root", contest.root, "--data.workers", "0",
        "--data.split", "order", "--data.validation", "0.25", "--model.weights", "none",
        "--model.encoder", "tu-test_resnet", "--model.width", "8", "--augment.mirror", "0",
        "--train.max-steps", "2", "--train.batch", "4", "--train.device", "cpu",
        "--crop.height", "64", "--crop.width", "64", "--wandb.mode", "off",
    )  # fmt: skip
    assert tool(*training, "--out", tmp_path / "no") == 1
    assert "the image 'ada_0.jpg' in " in capsys.readouterr().err
    run = tmp_path / "run"
    assert tool(*training, "--out", run, "--data.exclude", bad) == 0
    split = json.loads((run / "split.json").read_text())
    assert split["validation"] == ["dee_0.jpg", "dee_1.jpg"]
    assert split["excluded"] == excluded
    assert tool("evaluate", run, "--device", "cpu") == 0


def test_special_files_and_long_names_and_cells_do_not_stop_the_check(contest: Folder) -> None:
    long = "a" * 300
    replaced(contest.train_table, (2, 0, "n\0l.jpg"), (3, 0, long), (5, 1, "0" * 99_999 + "x"))
    image = contest.train_images / "cy_0.jpg"
    image.unlink()
    os.mkfifo(image)
    report = check(contest.root)
    missing = [problem for problem in report.problems if problem.kind == "missing image"]
    words = "a NUL character is in its name", "File name too long", "is a pipe"
    for problem, row, reason in zip(missing, (2, 3, 8), words, strict=True):
        assert f"row {row}, column file_name: the image" in problem.message
        assert reason in problem.message
    (number,) = [problem for problem in report.problems if problem.kind == "number"]
    assert number.row == 5 and "000...000" in number.message
    assert max(len(problem.message) for problem in report.problems) < 500
    assert report.statistics["train"]["images"] == 9
    contest.train_table.rename(contest.train_table.with_name("other.csv"))
    os.mkfifo(contest.train_table)
    errors = [p.message for p in check(contest.root).problems if p.severity == "error"]
    assert any("landmarks.csv: the table is a pipe, not a regular file" in e for e in errors)


def test_repeated_images_are_grouped_within_and_between_train_and_test(
    contest: Folder, tmp_path: Path
) -> None:
    train, test = contest.train_images, contest.test_images
    generator = np.random.default_rng(2)
    for path in [*train.iterdir(), *test.iterdir()]:  # images that do not look alike
        coarse = generator.integers(0, 255, (8, 8, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (120, 100), interpolation=cv2.INTER_CUBIC))
    shutil.copy(train / "ada_0.jpg", train / "bo_1.jpg")  # with other labels
    shutil.copy(train / "bo_2.jpg", test / "eve_3.jpg")
    small = cv2.resize(cv2.imread(str(train / "cy_0.jpg")), (90, 75), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(train / "dee_0.jpg"), small)
    table = read_landmarks(contest.train_table)
    cells = [f"{number * 0.75:.6f}" for number in table.points_image[6].ravel()]  # cy_0's
    replaced(contest.train_table, *((11, 1 + place, cell) for place, cell in enumerate(cells)))

    report = check(contest.root)
    same = [(group.train, group.test) for group in report.same]
    assert same == [(["ada_0.jpg", "bo_1.jpg"], []), (["bo_2.jpg"], ["eve_3.jpg"])]
    distance = report.same[0].label_distance
    first, second = table.points_image[0], table.points_image[4]
    diagonal = np.linalg.norm(first.max(0) - first.min(0))
    expected = np.linalg.norm(first - second, axis=1).mean() / diagonal
    assert distance == pytest.approx(expected, rel=1e-5)
    assert [(group.train, group.test) for group in report.near] == [(["cy_0.jpg", "dee_0.jpg"], [])]
    assert (report.near[0].label_distance or 1) < 0.01  # only their sizes differ
    assert places(report.problems, "warning") == [
        ("same image, other labels", "train", 2),
        ("same image, train and test", "train", 7),
    ]
    assert ("alike, twice", "train", 8) in places(report.problems, "note")
    assert report.excluded() == {
        name: ["same image, other labels"] for name in ("ada_0.jpg", "bo_1.jpg")
    }

    replaced(contest.train_table, *((11, 1 + place, "60") for place in range(13)))
    (other,) = [p for p in check(contest.root).problems if p.kind == "alike, other labels"]
    assert other.row == 8 and "train cy_0.jpg, train dee_0.jpg look alike, but" in other.message


def test_a_partly_damaged_image_is_reported(contest: Folder) -> None:
    """The decoder returns an image, and only prints a warning."""
    names = read_landmarks(contest.train_table).names
    path = contest.train_images / names[3]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    (problem,) = [p for p in check(contest.root).problems if p.kind == "damaged image"]
    assert (problem.severity, problem.row, problem.images) == ("warning", 5, (names[3],))
    assert "Corrupt JPEG data" in problem.message


def test_images_that_are_not_used_as_stored_are_listed(contest: Folder) -> None:
    names, images = read_landmarks(contest.train_table).names, contest.train_images
    twelve_bits = read_image(images / names[0]).astype(np.uint16) << 4
    (images / names[0]).write_bytes(cv2.imencode(".png", twelve_bits)[1].tobytes())
    frames = [Image.fromarray(np.full((90, 70, 3), grey, np.uint8)) for grey in (50, 200)]
    frames[0].save(images / names[1], "GIF", save_all=True, append_images=frames[1:])
    problems = check(contest.root).problems
    stretched, animated = [p for p in problems if p.kind == "converted image"]
    assert (stretched.row, animated.row) == (2, 3)
    assert stretched.severity == "note" and "12-bit values" in stretched.message
    assert "only the first frame" in animated.message


def test_only_the_wrong_row_of_the_asked_points_is_reported(contest: Folder) -> None:
    replaced(contest.test_points, (2, 1, "[1, 1]"))
    problems = places(check(contest.root).problems)
    assert problems == [("asked points", "test", 2)]


def test_image_properties_are_measured(contest: Folder) -> None:
    bordered = np.zeros((60, 80, 3), np.uint8)
    bordered[5:50, 12:77] = 200
    cv2.imwrite(str(contest.train_images / "ada_0.jpg"), bordered)
    for name in ("ada_1.jpg", "ada_2.jpg"):
        cv2.imwrite(str(contest.train_images / name), np.full((30, 40, 3), 90, np.uint8))
    report = check(contest.root)
    train = report.statistics["train"]
    assert train["grey"] == 3
    assert train["with_border"] == 1
    assert train["border"] == {"min": 12, "median": 12, "max": 12}
    assert train["height"]["min"] == 30
    assert train["landmarks_outside"] >= 1  # the labels of ada_1 and ada_2 are for larger images
    printed = format_report(report)
    assert "grey" in printed and "3 (25.0 %)" in printed


def test_unusable_labels_are_reported(contest: Folder, tmp_path: Path) -> None:
    replaced(contest.train_table, *((3, column, "20") for column in range(1, 15)))
    replaced(contest.train_table, *((6, column, "") for column in range(1, 15)))
    report = check(contest.root)
    assert ("all at one point", "train", 3) in places(report.problems, "warning")
    assert ("unlabelled row", "train", 6) in places(report.problems, "note")
    for row in range(2, 14):
        replaced(contest.train_table, *((row, column, "") for column in range(1, 15)))
    assert ("no labels", "train", None) in places(check(contest.root).problems)


def test_an_incomplete_folder_is_checked(
    tool: Tool, contest: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(contest.root / "test")
    assert tool("data", "check", contest.root, "--workers", "1") == 0
    assert "does not exist, so a submission cannot be made" in capsys.readouterr().out
    shutil.rmtree(contest.train_images)
    assert tool("data", "check", contest.root, "--workers", "1") == 1
    assert "does not exist, but" in capsys.readouterr().out
    assert tool("data", "check", contest.root / "test") == 1
    assert tool("data", "check", contest.root, "--workers", "0") == 2


def test_the_real_faces_can_be_trained_on(faces68: Path, tmp_path: Path) -> None:
    """The first rows of the real table, with links to their images."""
    small = Folder(root=tmp_path / "small")
    small.train_images.mkdir(parents=True)
    real = Folder(root=faces68)
    lines = real.train_table.read_text().splitlines()[:121]
    small.train_table.write_text("\n".join(lines) + "\n")
    for line in lines[1:]:
        name = line.partition("\t")[0]
        shutil.copy(real.train_images / name, small.train_images / name)
    report = check(small.root)
    assert not places(report.problems)
    assert report.statistics["train"]["images"] == 120
    assert report.near and not report.same
    people = [{name.rpartition("_")[0] for name in group.train} for group in report.near]
    assert all(len(group) == 1 for group in people), "only frames of the same person are alike"
