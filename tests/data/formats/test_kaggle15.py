"""Kaggle's facial keypoints, from the downloaded archives to the submission."""

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from heatmap import schemes
from heatmap.data.contest import Folder, read_asked_points, read_image, read_landmarks, split_rows
from heatmap.data.formats.kaggle15 import LANDMARKS, Lookup, convert, read_lookup, write_submission

TEST_NAMES = [f"0000{number}.png" for number in range(1, 5)]


@pytest.fixture
def files(kaggle15_files: Path, tmp_path: Path) -> Path:
    """A folder with `kaggle15_files` as plain tables that a test may change."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("training", "test"):
        with zipfile.ZipFile(kaggle15_files / f"{name}.zip") as archive:
            archive.extract(f"{name}.csv", folder)
    shutil.copy(kaggle15_files / "IdLookupTable.csv", folder)
    return folder


def pack(archive: Path, *files: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for file in files:
            writer.write(file, file.name)
    return archive


def cells_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def set_cell(path: Path, row: int, column: int, cell: str) -> None:
    """Sets one cell of a table; rows count from 1 as in messages, columns from 0."""
    cells = cells_of(path)
    cells[row - 1][column] = cell
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(cells)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------------------ conversion


def test_converted_images_and_landmarks_match_the_tables(files: Path, tmp_path: Path) -> None:
    done = convert(files, tmp_path / "out")
    assert (done.num_training, done.num_complete, done.num_test, done.num_asked) == (10, 8, 4, 64)
    folder = Folder(root=tmp_path / "out")
    table = read_landmarks(folder.train_table)
    assert table.names == [f"{row:05}.png" for row in range(2, 12)]
    assert table.points_image.shape == (10, 15, 2)
    for row, (*numbers, grey_values) in enumerate(cells_of(files / "training.csv")[1:]):
        expected = [float(number or "nan") for number in numbers]
        np.testing.assert_allclose(table.points_image[row].ravel(), expected, atol=5e-6, rtol=0)
        image = read_image(folder.train_images / table.names[row])
        grey = np.array(grey_values.split(), int).reshape(96, 96, 1)
        np.testing.assert_array_equal(image, np.broadcast_to(grey, (96, 96, 3)))
    assert np.isnan(table.points_image[..., 0]).sum(1).tolist() == [0, 0, 11, 0, 0, 11, 0, 0, 0, 0]

    asked = read_asked_points(folder.test_points, 15)
    assert asked.names == TEST_NAMES
    assert asked.indices.tolist() == [list(range(15))] * 4
    for row, (_, grey_values) in enumerate(cells_of(files / "test.csv")[1:]):
        stored = cv2.imread(str(folder.test_images / TEST_NAMES[row]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, np.array(grey_values.split(), int).reshape(96, 96))
    assert folder.lookup_table.read_bytes() == (files / "IdLookupTable.csv").read_bytes()


def test_decimals_are_kept_digit_by_digit(files: Path, tmp_path: Path) -> None:
    convert(files, tmp_path / "out")
    written = (tmp_path / "out" / "train" / "landmarks.csv").read_text().splitlines()
    given = cells_of(files / "training.csv")
    assert [line.split("\t")[1:] for line in written[1:]] == [cells[:-1] for cells in given[1:]]


@pytest.mark.parametrize(
    "layout", ["outer zip", "training.zip", "training.csv", "one zip", "mixed"]
)
def test_every_source_layout_gives_the_same_folder(
    files: Path, kaggle15_files: Path, tmp_path: Path, layout: str
) -> None:
    tables = [files / "training.csv", files / "test.csv", files / "IdLookupTable.csv"]
    if layout == "outer zip":
        everything = sorted(kaggle15_files.iterdir())
        assert len(everything) == 3
        source = pack(tmp_path / "facial-keypoints-detection.zip", *everything)
    elif layout == "one zip":
        source = pack(tmp_path / "mine.zip", *tables)
    elif layout == "mixed":  # a cleaned table next to Kaggle's archives
        source = tmp_path / "mixed" / "cleaned.csv"
        shutil.copytree(kaggle15_files, source.parent)
        shutil.copy(files / "training.csv", source)
        (source.parent / "training.zip").write_bytes(b"not used")
    else:
        source = kaggle15_files / layout if layout.endswith("zip") else files / layout
    convert(files, tmp_path / "expected")
    convert(source, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")


def test_columns_may_come_in_any_order(files: Path, tmp_path: Path) -> None:
    convert(files, tmp_path / "expected")
    for name in ("training", "test"):
        cells = [list(reversed(row)) for row in cells_of(files / f"{name}.csv")]
        with (files / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(cells)
    convert(files, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")


@pytest.mark.parametrize(
    ("incomplete", "limit", "rows"),
    [
        ("keep", 4, [2, 3, 4, 5]),
        ("drop", 4, [2, 3, 5, 6]),
        ("drop", None, [2, 3, 5, 6, 8, 9, 10, 11]),
        ("drop", 200, [2, 3, 5, 6, 8, 9, 10, 11]),
    ],
)
def test_limit_counts_only_the_kept_rows(
    files: Path,
    tmp_path: Path,
    incomplete: Literal["keep", "drop"],
    limit: int | None,
    rows: list[int],
) -> None:
    done = convert(files, tmp_path / "out", incomplete=incomplete, limit=limit)
    folder = Folder(root=tmp_path / "out")
    names = [f"{row:05}.png" for row in rows]
    assert done.num_training == len(rows) and done.num_test == 4
    assert read_landmarks(folder.train_table).names == names
    assert sorted(path.name for path in folder.train_images.iterdir()) == names


def test_without_test_data_no_test_part_is_written(files: Path, tmp_path: Path) -> None:
    (files / "IdLookupTable.csv").unlink()
    assert convert(files, tmp_path / "unasked").num_asked is None
    assert not Folder(root=tmp_path / "unasked").lookup_table.exists()
    assert len(list(Folder(root=tmp_path / "unasked").test_images.iterdir())) == 4
    (files / "test.csv").unlink()
    assert convert(files, tmp_path / "out").num_test == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]


def test_landmark_names_agree_with_the_mirror_permutation() -> None:
    swap = {"left": "right", "right": "left"}
    mirrored = [re.sub("left|right", lambda side: swap[side[0]], name) for name in LANDMARKS]
    assert [LANDMARKS[k] for k in schemes.mirror_permutation(15)] == mirrored


def test_file_names_name_no_person_without_a_pattern(files: Path, tmp_path: Path) -> None:
    convert(files, tmp_path / "out")
    names = read_landmarks(tmp_path / "out" / "train" / "landmarks.csv").names
    assert split_rows(names).rule == "by order (the last 2 of 10 rows)"
    assert split_rows(names, person_pattern="(.+)").rule.startswith("by person (10 people, 2 in")


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("spoil", "words"),  # table, then row, column and cell, or old and new text
    [
        (("training", 4, 20, "12,5"), ["training.csv, row 4, column nose_tip_x", "not a number"]),
        (("training", 4, 1, ""), ["row 4, column left_eye_center_y", "leave both empty"]),
        (("training", 5, 0, "660"), ["row 5, column left_eye_center_x", "outside the image, 0"]),
        (("training", 6, 30, "1 2 x 4"), ["row 6, column Image, value 3", "0 to 255", "'x'"]),
        (("training", 6, 30, "0 256"), ["row 6, column Image, value 2", "'256'"]),
        (("training", 6, 30, "1 2 3"), ["row 6, column Image", "3 grey values", "9216"]),
        (("test", 3, 0, "1"), ["test.csv, row 3, column ImageId", "1 is already in row 2"]),
        (("test", 3, 0, "1" * 5000), ["row 3, column ImageId", "positive whole number"]),
        (("test", 3, 0, "one"), ["row 3, column ImageId", "positive whole number", "'one'"]),
        (("IdLookupTable", 7, 1, "9"), ["row 7, column ImageId", "no test image 9"]),
        (("IdLookupTable", 7, 2, "nose"), ["row 7, column FeatureName", "'nose'"]),
        (("IdLookupTable", 7, 0, "2"), ["row 7, column RowId", "2 is already in row 3"]),
        (("training", "nose_tip_x", "nose_x"), ["row 1", "or repeated: 'nose_tip_x', 'nose_x'"]),
        (("test", "\n3,", "\n\n3,"), ["test.csv, row 4", "blank"]),
    ],
)
def test_errors_name_their_place_and_leave_no_folder(
    files: Path, tmp_path: Path, spoil: tuple[Any, ...], words: list[str]
) -> None:
    table, *change = spoil
    path = files / f"{table}.csv"
    if len(change) == 2:
        path.write_text(path.read_text().replace(*change))
    else:
        set_cell(path, *change)
    with pytest.raises(ValueError) as error:
        convert(files, tmp_path / "out")
    for word in words:
        assert word in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_damaged_and_wrong_archives_are_named(
    files: Path, kaggle15_files: Path, tmp_path: Path
) -> None:
    good, out = (kaggle15_files / "training.zip").read_bytes(), tmp_path / "out"
    source = tmp_path / "training.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_STORED) as archive:
        archive.write(files / "training.csv", "training.csv")
    stored = source.read_bytes()
    for content, words in (
        (good[:-5000], "not a zip archive, or cut short"),
        (b"<!DOCTYPE html>", "not a zip archive"),
        (stored.replace(b"200", b"201"), "training.csv: the archive is damaged"),
    ):
        source.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{source}") + f".*{words}"):
            convert(source, out)
    for compression, flag, words in (
        (zipfile.ZIP_LZMA, 0, "is not compressed with Deflate"),
        (zipfile.ZIP_BZIP2, 0, "is not compressed with Deflate"),
        (zipfile.ZIP_STORED, 1, "needs a password"),
    ):
        with zipfile.ZipFile(source, "w", compression) as archive:
            archive.write(files / "training.csv", "training.csv")
        content = bytearray(source.read_bytes())
        content[content.rindex(b"PK\x01\x02") + 8] |= flag
        source.write_bytes(content)
        with pytest.raises(ValueError, match=rf"training\.csv: the archive {words}; unpack it"):
            convert(source, out)
    pack(source, kaggle15_files / "test.zip")
    with pytest.raises(
        ValueError, match=r"expected training.zip or training.csv in it, found 'test"
    ):
        convert(source, out)
    shutil.copy(source, files / "test.zip")
    (files / "test.csv").unlink()
    with pytest.raises(ValueError, match=r"test\.zip: expected test\.csv in it, found 'test\.zip'"):
        convert(files, out)
    with pytest.raises(ValueError, match="no such file"):
        convert(tmp_path / "nothing.zip", out)
    page = tmp_path / "page.csv"
    page.write_text("<!DOCTYPE html>\n")
    with pytest.raises(ValueError, match=r"page.csv, row 1: expected 31 columns, left_eye.*Image"):
        convert(page, out)
    assert not out.exists()


def test_a_row_that_would_fill_memory_is_not_read(files: Path, tmp_path: Path) -> None:
    header, *_ = (files / "training.csv").read_text().splitlines()
    archive = tmp_path / "training.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("training.csv", f"{header}\n" + "1," * 3_000_000)
    with pytest.raises(ValueError, match=r"training\.csv, row 2: longer than 4194304 characters"):
        convert(archive, tmp_path / "out")


# ------------------------------------------------------------------------------------ submission


@pytest.fixture
def lookup(kaggle15_files: Path) -> Lookup:
    return read_lookup(kaggle15_files / "IdLookupTable.csv", TEST_NAMES)


def predictions() -> np.ndarray:
    """(4, 15, 2), all numbers different: image + landmark / 100, and 50 more for y."""
    image, landmark, axis = np.indices((4, 15, 2))
    return image + landmark / 100 + 50 * axis


def test_a_submission_has_the_rows_of_the_lookup_table_in_order(
    lookup: Lookup, kaggle15_files: Path, tmp_path: Path
) -> None:
    order = [2, 0, 3, 1]
    names = [TEST_NAMES[row] for row in order]
    write_submission(tmp_path / "s.csv", lookup, names, predictions()[order], "none")
    (header, *rows), asked = (
        cells_of(tmp_path / "s.csv"),
        cells_of(kaggle15_files / "IdLookupTable.csv")[1:],
    )
    assert header == ["RowId", "Location"]
    assert [row[0] for row in rows] == [row[0] for row in asked] and len(rows) == 64
    for (_, image, feature, _), (_, location) in zip(asked, rows, strict=True):
        landmark = LANDMARKS.index(feature[:-2])
        expected = int(image) - 1 + landmark / 100 + 50 * (feature[-1] == "y")
        assert float(location) == pytest.approx(expected, abs=1e-6)


def test_locations_are_clipped_to_the_image(lookup: Lookup, tmp_path: Path) -> None:
    write_submission(tmp_path / "s.csv", lookup, TEST_NAMES, predictions() * 3 - 3, "none")
    locations = np.array([float(row[1]) for row in cells_of(tmp_path / "s.csv")[1:]])
    assert (locations.min(), locations.max()) == (0, 96)
    assert ((locations > 0) & (locations < 96)).any()
    write_submission(tmp_path / "r.csv", lookup, TEST_NAMES, predictions(), "round")
    assert {row[1] for row in cells_of(tmp_path / "r.csv")[1:]} == {
        "0", "1", "2", "3", "50", "51", "52", "53"
    }  # fmt: skip


def test_missing_and_non_finite_predictions_leave_no_file(lookup: Lookup, tmp_path: Path) -> None:
    path, points = tmp_path / "s.csv", predictions()
    with pytest.raises(ValueError, match=r"no prediction for 1 image, such as 00004.png"):
        write_submission(path, lookup, TEST_NAMES[:3], points[:3], "none")
    with pytest.raises(ValueError, match="expected 15 landmarks per prediction, got 68"):
        write_submission(path, lookup, TEST_NAMES, np.zeros((4, 68, 2)), "none")
    for value in (np.nan, np.inf):
        points[1, 7, 1] = value
        with pytest.raises(ValueError, match=r"the prediction for '00002.png' is not finite"):
            write_submission(path, lookup, TEST_NAMES, points, "none")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- the real faces


@pytest.mark.slow
def test_the_command_converts_real_faces(faces15: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tool = Path(__file__).resolve().parents[3] / "tools" / "data.py"
    command = [sys.executable, tool, "convert", "kaggle15", faces15 / "training.zip", out]
    options = ["--incomplete", "drop", "--limit", "200"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "200 training images, 200 with all 15 landmarks" in done.stdout
    assert "300 test images, 9000 coordinates asked for" in done.stdout
    points = read_landmarks(out / "train" / "landmarks.csv").points_image
    assert np.isfinite(points).all()
    left_eye, right_eye, nose, lip = (points[:, k].mean(0) for k in (0, 1, 10, 14))
    assert right_eye[0] < nose[0] < left_eye[0]  # the person's own left is the image's right
    assert max(left_eye[1], right_eye[1]) < nose[1] < lip[1]

    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 1 and "not an empty folder" in done.stderr


@pytest.mark.parametrize("name", ["training.zip", "training.csv"])
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name}: the (archive|table) is a pipe"):
            convert(source, tmp_path / "out")
