"""Small tables are read in every accepted form; errors name their place."""

import re
from pathlib import Path

import numpy as np
import pytest
from tables import TABLE, save

from heatmap.data.contest import (
    read_asked_points,
    read_boxes,
    read_excluded,
    read_landmarks,
    write_asked_points,
    write_excluded,
    write_split,
)

ASKED = "file_name\tpoint_index_list\na.jpg\t[7, 3, 0]\nb.jpg\t[1, 1, 2]\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ASKED, id="tab"),
        pytest.param(ASKED.replace("\t[", ',"[').replace("]", ']"').replace("\t", ","), id="comma"),
        pytest.param(ASKED.replace("\t[", '\t"[').replace("]", ']"'), id="tab with quotes"),
        pytest.param(("\ufeff" + ASKED).replace("\n", "\r\n"), id="byte order mark, crlf"),
        pytest.param(ASKED.replace("file_name", "filename"), id="filename"),
        pytest.param(ASKED.replace(", ", ","), id="no spaces in the list"),
        pytest.param(ASKED + "\n\n", id="blank rows at the end"),
    ],
)
def test_every_form_of_asked_points_reads_the_same(tmp_path: Path, text: str) -> None:
    asked = read_asked_points(save(tmp_path, text), num_landmarks=8)
    assert asked.names == ["a.jpg", "b.jpg"]
    assert asked.indices.dtype == np.int64
    assert asked.indices.tolist() == [[7, 3, 0], [1, 1, 2]]


def test_asked_points_are_written_as_in_the_contest(tmp_path: Path) -> None:
    path = tmp_path / "test_points.csv"
    write_asked_points(path, ["a.jpg", "b.jpg"], np.array([[7, 3, 0], [1, 1, 2]]))
    assert path.read_bytes() == ASKED.encode()


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("point_index_list", "points", ["row 1", "point_index_list", "points"]),
        ("file_name", "image", ["row 1", "file_name", "image"]),
        ("\t", ";", ["row 1", "TAB or a comma"]),
        ("\t", ",", ["row 2", "4 cells", "quotes"]),
        ("b.jpg\t[1, 1, 2]", "b.jpg", ["row 3", "1 cells"]),
        ("a.jpg\t[7, 3, 0]", "", ["row 2", "blank"]),
        ("[1, 1, 2]", "[1, 1, 2", ["row 3, column point_index_list", "'[1, 1, 2'"]),
        ("[1, 1, 2]", "1 1 2", ["row 3, column point_index_list", "'1 1 2'"]),
        ("[1, 1, 2]", "5", ["row 3, column point_index_list", "'5'"]),
        ("[1, 1, 2]", "", ["row 3, column point_index_list", "''"]),
        ("[1, 1, 2]", "[]", ["row 3, column point_index_list", "'[]'"]),
        ("[1, 1, 2]", "{}", ["row 3, column point_index_list", "'{}'"]),
        ("[1, 1, 2]", "exit()", ["row 3, column point_index_list", "'exit()'"]),
        ("[1, 1, 2]", "[" * 99999, ["row 3, column point_index_list", "[[["]),
        ("[1, 1, 2]", "[1, 8, 2]", ["row 3, column point_index_list", "index 8", "0 to 7"]),
        ("[1, 1, 2]", "[1, -1, 2]", ["row 3, column point_index_list", "index -1", "0 to 7"]),
        ("[1, 1, 2]", "[1, 1.0, 2]", ["row 3, column point_index_list", "an integer, not 1.0"]),
        ("[1, 1, 2]", "[1, true, 2]", ["row 3, column point_index_list", "an integer, not True"]),
        ("[1, 1, 2]", '[1, "1", 2]', ["row 3, column point_index_list", "an integer, not '1'"]),
        ("[1, 1, 2]", "[1, [1], 2]", ["row 3, column point_index_list", "an integer, not [1]"]),
        ("[1, 1, 2]", "[1, NaN, 2]", ["row 3, column point_index_list", "NaN is not"]),
        ("[1, 1, 2]", "[1, 2]", ["row 3, column point_index_list", "2 indices", "3"]),
        ("b.jpg", "a.jpg", ["row 3, column file_name", "'a.jpg'", "row 2"]),
        ("b.jpg", "../b.jpg", ["row 3, column file_name", "out of the images folder"]),
        ("b.jpg", "", ["row 3, column file_name", "is empty"]),
        ("a.jpg\t[7, 3, 0]\nb.jpg\t[1, 1, 2]\n", "", ["no rows"]),
        (ASKED, "", ["row 1"]),
        ("b.jpg", '"b.jpg', ["not a table"]),
        ("b.jpg", "x" * 200_000, ["not a table"]),
    ],
)
def test_malformed_asked_points_are_refused(
    tmp_path: Path, old: str, new: str, fragments: list[str]
) -> None:
    assert old in ASKED
    path = save(tmp_path, ASKED.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_asked_points(path, num_landmarks=8)
    for fragment in fragments:
        assert fragment in str(error.value)


BOXES = """file_name,x0,y0,x1,y1
a.jpg,1,2,30,40.5
test/images/b.jpg,-3,0,7,9
train/images/b.jpg,5,6,7,8
"""
IMAGES = [Path("/data/train/images/b.jpg"), Path("/data/x/a.jpg"), Path("test/images/b.jpg")]


@pytest.mark.parametrize("text", [BOXES, BOXES.replace(",", "\t"), "\ufeff" + BOXES + "\n\n"])
def test_boxes_are_matched_by_the_longest_name(tmp_path: Path, text: str) -> None:
    boxes = read_boxes(save(tmp_path, text), IMAGES)
    assert boxes.dtype == np.float64
    assert boxes.tolist() == [[5, 6, 7, 8], [1, 2, 30, 40.5], [-3, 0, 7, 9]]


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("x0,y0", "x,y", ["row 1", "file_name, x0, y0, x1, y1"]),
        ("x0,y0", "x0,x0", ["row 1", "once each, found 'file_name,x0,x0"]),
        ("a.jpg,1,2,30", "a.jpg,1,2", ["row 2", "4 cells where the header has 5"]),
        ("a.jpg,1,2,30", "a.jpg,1,two,30", ["row 2, column y0", "'two' is not a number"]),
        ("a.jpg,1,2,30", "a.jpg,1,,30", ["row 2, column y0", "empty"]),
        ("a.jpg,1,2,30", "a.jpg,30,2,30", ["row 2", "the box from (30, 2) to (30, 40.5)"]),
        ("a.jpg,1,2,30", "a.jpg,1,nan,30", ["row 2, column y0"]),
        ("a.jpg", "train/images/b.jpg", ["row 4, column file_name", "row 2"]),
        ("train/images/b.jpg", "c.jpg", ["no row for /data/train/images/b.jpg"]),
        (BOXES, "", ["row 1"]),
    ],
)
def test_malformed_boxes_are_refused(
    tmp_path: Path, old: str, new: str, fragments: list[str]
) -> None:
    assert old in BOXES
    path = save(tmp_path, BOXES.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_boxes(path, IMAGES)
    for fragment in fragments:
        assert fragment in str(error.value)


# exclusions

EXCLUDED = "why,file_name\nblurred,sub/c.jpg\ntwo faces, a.jpg \nand cut,a.jpg\n"


@pytest.mark.parametrize(
    "text",
    [
        EXCLUDED,
        EXCLUDED.replace(",", "\t"),
        "\ufeff" + EXCLUDED.replace("\n", "\r\n") + "\n",
        "filename\na.jpg\nsub/c.jpg",
        "sub/c.jpg\na.jpg\n",
        "gone.jpg,blurred\n\nsub/c.jpg,\na.jpg,",
    ],
)
def test_excluded_images_become_rows(tmp_path: Path, text: str) -> None:
    table = read_landmarks(save(tmp_path, TABLE))
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode())
    assert read_excluded(path, table).tolist() == [0, 2]
    path.write_text("file_name\n")
    assert read_excluded(path, table).tolist() == []


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("file_name", "image", ["row 1", "columns file_name", "image"]),
        ("why", "filename", ["row 1", "once each, found 'file_name,file_name'"]),
        ("blurred", "blurred" * 700_000, ["row 2: longer than"]),
        ("two faces", "two, faces", ["row 3", "3 cells where the header has 2"]),
        (EXCLUDED, "", ["row 1"]),
    ],
)
def test_malformed_exclusions_are_refused(
    tmp_path: Path, old: str, new: str, fragments: list[str]
) -> None:
    assert old in EXCLUDED
    table = read_landmarks(save(tmp_path, TABLE))
    path = tmp_path / "bad.csv"
    path.write_text(EXCLUDED.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_excluded(path, table)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_excluded_images_that_are_not_there_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_landmarks(save(tmp_path, TABLE))
    path = tmp_path / "bad.csv"
    path.write_text("file_name\na.jpg\ngone.jpg\n")
    assert read_excluded(path, table).tolist() == [0]
    assert f"bad.csv, row 3: 'gone.jpg' is not in {table.path}" in caplog.text
    path.write_text("gone.jpg\n")
    with pytest.raises(ValueError, match=r"row 1: 'gone.jpg' is not in .*is the list"):
        read_excluded(path, table)


def test_a_table_replaces_only_tables_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    write_excluded(path, {"a.jpg": ["blurred"]})
    write_excluded(path, {"b.jpg": ["dark"]})
    assert path.read_text() == "file_name,reasons\nb.jpg,dark\n"
    with pytest.raises(ValueError, match=r"some\.csv exists and holds something else"):
        write_split(path, ["a.jpg", "b.jpg"], np.array([0, 1]))
    assert path.read_text() == "file_name,reasons\nb.jpg,dark\n"
