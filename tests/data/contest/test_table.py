"""Every accepted form of a landmark table is read; errors name their place."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tables import TABLE, save

from heatmap.data.contest import (
    read_asked_points,
    read_landmarks,
    write_asked_points,
    write_landmarks,
)
from heatmap.data.contest import table as module
from heatmap.runtime import files

FACES68 = Path(__file__).parents[4] / "shared" / "data" / "faces68"

NAMES = ["a.jpg", "b.jpg", "sub/c.jpg"]
POINTS = np.array([[[1, 2], [-3, 4]], [[50, 60], [70, 80]], [[9, 8], [7, 1308]]], np.float32)


@pytest.fixture(params=[1, 50, 1 << 20])
def any_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads tables row by row, two rows at a time, and whole."""
    monkeypatch.setattr(module, "_BLOCK", request.param)


def refuses(path: Path, *fragments: str) -> None:
    """Asserts that reading fails with a message that names the file and has all fragments."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_landmarks(path)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TABLE, id="tab"),
        pytest.param(TABLE.replace("\t", ","), id="comma"),
        pytest.param("\ufeff" + TABLE, id="byte order mark"),
        pytest.param(TABLE.replace("\n", "\r\n"), id="crlf"),
        pytest.param(("\ufeff" + TABLE).replace("\n", "\r\n").replace("\t", ","), id="all three"),
        pytest.param(TABLE.replace("file_name", "filename"), id="filename"),
        pytest.param(TABLE.replace("Point_", "Point_M"), id="Point_M"),
        pytest.param(TABLE.replace("50", "50.0").replace("80", "8e1"), id="decimals"),
        pytest.param(TABLE.replace("\t60\t", "\t +60 \t"), id="spaces and plus"),
        pytest.param(TABLE.removesuffix("\n"), id="no newline at the end"),
        pytest.param(TABLE + "\r\n\n", id="blank rows at the end"),
        pytest.param(TABLE + "  ", id="spaces at the end"),
    ],
)
@pytest.mark.usefixtures("any_blocks")
def test_every_accepted_form_reads_the_same(tmp_path: Path, text: str) -> None:
    table = read_landmarks(save(tmp_path, text))
    assert table.path == tmp_path / "landmarks.csv"
    assert table.names == NAMES
    assert table.points_image[:].dtype == np.float32
    assert table.num_landmarks == 2
    np.testing.assert_array_equal(table.points_image, POINTS)


@pytest.mark.parametrize("places", [1, 4, 7, 9, 14, 17])
def test_decimals_are_rounded_as_python_rounds_them(tmp_path: Path, places: int) -> None:
    """Also halfway between two float32 numbers."""
    draw = np.random.default_rng(places)
    below = draw.uniform(2000, 8000, 400).astype(np.float32)
    middles = (below.astype(float) + np.nextafter(below, np.float32(np.inf))) / 2
    cells = [
        f"{sign}{middle:.{places}f}" for middle, sign in zip(middles, "+- " * 200, strict=False)
    ]
    lines = [f"{row}.jpg\t{cells[row]}\t{cells[row + 200]}\n" for row in range(200)]
    table = read_landmarks(save(tmp_path, "file_name\tPoint_0_X\tPoint_0_Y\n" + "".join(lines)))
    expected = np.array(cells, np.float64).astype(np.float32).reshape(2, 200).T
    np.testing.assert_array_equal(table.points_image[:, 0], expected)


@pytest.mark.parametrize("number", ["-32768", "-032768", "-32768.0", "-3.2768e4"])
@pytest.mark.parametrize("other", ["", "1"])
def test_unlabelled_sentinel_is_read_as_a_number(tmp_path: Path, number: str, other: str) -> None:
    text = TABLE.replace("50\t60", f"{number}\t60").replace("9\t8", f"{other}\t{other}")
    points_image = read_landmarks(save(tmp_path, text)).points_image
    assert points_image[1, 0].tolist() == [-32768, 60]
    assert np.isnan(points_image[2, 0]).all() == (other == "")


def test_whole_and_decimal_rows_may_be_mixed(tmp_path: Path) -> None:
    table = read_landmarks(save(tmp_path, TABLE.replace("50", "40000").replace("9\t8", "9.5\t8")))
    expected = POINTS.copy()
    expected[1, 0, 0], expected[2, 0, 0] = 40_000, 9.5
    np.testing.assert_array_equal(table.points_image, expected)


def test_empty_cells_are_unlabelled(tmp_path: Path) -> None:
    text = TABLE.replace("70\t80", "\t").replace("9\t8\t7\t1308", "\t\t \t ")
    expected = POINTS.copy()
    expected[1, 1] = expected[2] = np.nan
    np.testing.assert_array_equal(read_landmarks(save(tmp_path, text)).points_image, expected)


@pytest.mark.parametrize("num_landmarks", [1, 15, 971])
@pytest.mark.parametrize("step", [1, 0.25])
def test_written_table_reads_back(tmp_path: Path, num_landmarks: int, step: float) -> None:
    random = np.random.default_rng(0)
    points = random.integers(-90, 5000, (3, num_landmarks, 2)) * float(step)
    points[1, 0] = np.nan
    path = tmp_path / "landmarks.csv"
    write_landmarks(path, NAMES, points)
    table = read_landmarks(path)
    assert table.names == NAMES
    np.testing.assert_array_equal(table.points_image, points.astype(np.float32))


def test_whole_numbers_are_written_as_in_the_contest(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    write_landmarks(path, NAMES, POINTS)
    assert path.read_bytes() == TABLE.encode()
    write_landmarks(path, NAMES[:1], np.array([[[-0.25, -0.0000001], [np.nan, np.nan]]]))
    assert path.read_text().splitlines()[1] == "a.jpg\t-0.250000\t0.000000\t\t"


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\n.jpg", " a.jpg", "../a.jpg", "", "\udcff.jpg"])
def test_unreadable_names_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        write_landmarks(tmp_path / "landmarks.csv", [name], np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        write_asked_points(tmp_path / "test_points.csv", [name], np.ones((1, 2), int))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("file_name", "name", ["row 1, column 1", "'file_name'", "'name'"]),
        ("file_name", "", ["row 1, column 1", "'file_name'", "''"]),
        ("Point_0_X", "Point_1_X", ["row 1, column 2", "'Point_0_X'", "'Point_1_X'"]),
        ("Point_0_Y", "Point_0_X", ["row 1, column 3", "'Point_0_Y'", "found 'Point_0_X'"]),
        ("Point_1_X", "Point_2_X", ["row 1, column 4", "'Point_1_X'", "'Point_2_X'"]),
        ("Point_1_X", "Point_M1_X", ["row 1, column 4", "'Point_1_X'", "'Point_M1_X'"]),
        ("\tPoint_1_Y", "", ["row 1", "ends with 'Point_1_X'", "Y column"]),
        ("Point_1_Y\n", "Point_1_Y\t\n", ["row 1, column 6", "'Point_2_X'", "found ''"]),
        ("\t", ";", ["row 1", "TAB or comma"]),
        ("b.jpg\t50", "b.jpg", ["row 3", "4 cells", "header has 5"]),
        ("\t80", "\t80\t", ["row 3", "6 cells", "header has 5"]),
        ("b.jpg\t50\t60\t70\t80", "b.jpg", ["row 3", "1 cells", "header has 5"]),
        ("b.jpg\t50\t60\t70\t80", "\t\t\t\t", ["row 3, column file_name", "is empty"]),
        ("b.jpg\t50\t60\t70\t80", "", ["row 3", "blank"]),
        ("\t70\t", "\t7o\t", ["row 3, column Point_1_X", "'7o' is not a number"]),
        ("\t70\t", "\t7_0\t", ["row 3, column Point_1_X", "'7_0' is not a number"]),
        ("\t70\t", "\t7 0\t", ["row 3, column Point_1_X", "'7 0' is not a number"]),
        ("\t70\t", "\t7,0\t", ["row 3, column Point_1_X", "'7,0' is not a number"]),
        ("\t70\t", "\t-\t", ["row 3, column Point_1_X", "'-' is not a number"]),
        ("\t70\t", "\t٧\t", ["row 3, column Point_1_X", "'٧' is not a number"]),
        ("\t70\t", '\t"70"\t', ["row 3, column Point_1_X", "'\"70\"' is not a number"]),
        ("1308", "1308 px", ["row 4, column Point_1_Y", "'1308 px' is not a number"]),
        ("1308", "nan", ["row 4, column Point_1_Y", "'nan'", "leave", "empty"]),
        ("1308", "-NaN", ["row 4, column Point_1_Y", "'-NaN'", "leave", "empty"]),
        # takes 60 s with an expression that backtracks
        ("\t70\t", "\t" + "0" * 100_000 + "x\t", ["row 3", "'0000", "...", "00000x' is not"]),
        ("\t50\t", "\tinf\t", ["row 3, column Point_0_X", "'inf' is not a number"]),
        ("\t50\t", "\t-Infinity\t", ["row 3, column Point_0_X", "'-Infinity' is not a number"]),
        ("\t50\t", "\t1e999\t", ["row 3, column Point_0_X", "'1e999' is not a coordinate"]),
        ("\t50\t", "\t1e39\t", ["row 3, column Point_0_X", "'1e39' is not a coordinate"]),
        ("\t70\t80", "\t\t80", ["row 3, column Point_1_X", "empty", "Point_1_Y is not"]),
        ("\t70\t80", "\t70\t", ["row 3, column Point_1_Y", "empty", "Point_1_X is not"]),
        ("sub/c.jpg", "a.jpg", ["row 4, column file_name", "'a.jpg'", "row 2"]),
        ("b.jpg", "", ["row 3, column file_name", "is empty"]),
        ("b.jpg", "../b.jpg", ["row 3, column file_name", "'../b.jpg'", "out of the images"]),
        ("b.jpg", "x/../../b.jpg", ["row 3, column file_name", "out of the images folder"]),
        ("b.jpg", "..", ["row 3, column file_name", "out of the images folder"]),
        ("b.jpg", "..\\b.jpg", ["row 3, column file_name", "out of the images folder"]),
        ("b.jpg", "/b.jpg", ["row 3, column file_name", "'/b.jpg'", "absolute"]),
        ("b.jpg", "\\b.jpg", ["row 3, column file_name", "absolute"]),
        ("b.jpg", "\\\\host\\b.jpg", ["row 3, column file_name", "absolute"]),
        ("b.jpg", "C:\\b.jpg", ["row 3, column file_name", "absolute"]),
        ("b.jpg", "C:b.jpg", ["row 3, column file_name", "absolute"]),
    ],
)
@pytest.mark.usefixtures("any_blocks")
def test_malformed_table_is_refused(
    tmp_path: Path, old: str, new: str, fragments: list[str]
) -> None:
    assert old in TABLE
    refuses(save(tmp_path, TABLE.replace(old, new)), *fragments)


def test_comma_table_is_checked_like_a_tab_table(tmp_path: Path) -> None:
    table = TABLE.replace("\t", ",")
    refuses(save(tmp_path, table.replace(",70,", ",,")), "row 3, column Point_1_X", "empty")
    refuses(save(tmp_path, table.replace(",70,", ",7 0,")), "row 3, column Point_1_X", "'7 0'")
    refuses(save(tmp_path, table.replace(",70,", ",7,0,")), "row 3", "6 cells")


@pytest.mark.parametrize("text", ["", "\n", "\n\n \n", "\ufeff"])
def test_blank_file_is_refused(tmp_path: Path, text: str) -> None:
    refuses(save(tmp_path, text), "row 1", "empty")


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_table_without_rows_is_refused(tmp_path: Path, end: str) -> None:
    refuses(save(tmp_path, TABLE.split("\n")[0] + end), "no rows")


def test_header_without_points_is_refused(tmp_path: Path) -> None:
    refuses(save(tmp_path, "file_name\na.jpg\n"), "row 1", "TAB or comma: 'file_name'")


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    refuses(save(tmp_path, TABLE.encode("utf-16")), "row 1", "UTF-8")
    refuses(save(tmp_path, TABLE.replace("b.jpg", "é.jpg").encode("latin-1")), "row 3", "UTF-8")


@pytest.mark.parametrize("byte", [b"\xa0", b"\x85", b"\x1f", b"\0", b"\xc2\xa0"])
@pytest.mark.usefixtures("any_blocks")
def test_bytes_beside_a_number_are_refused(tmp_path: Path, byte: bytes) -> None:
    path = save(tmp_path, TABLE)
    path.write_bytes(TABLE.encode().replace(b"\t70\t", b"\t" + byte + b"70\t"))
    refuses(path, "row 3")


def test_a_row_longer_than_any_table_s_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, TABLE + "d.jpg\t" + "1\t" * 3_000_000)
    tracemalloc.start()
    refuses(path, "row 5: longer than")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_reading_needs_little_memory_beyond_the_result(tmp_path: Path) -> None:
    num_rows = 900
    names = [f"{row}.jpg" for row in range(num_rows)]
    path = tmp_path / "landmarks.csv"
    points = np.random.default_rng(0).integers(0, 999, (40, 971, 2))
    write_landmarks(path, names, np.resize(points, (num_rows, 971, 2)))
    text_bytes, array_bytes = path.stat().st_size, num_rows * 971 * 2 * 2  # int16
    tracemalloc.start()
    table = read_landmarks(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table.points_image) == num_rows
    # a block of 1 MiB and its numbers
    assert peak < 2 * array_bytes + 10 * 2**20 < array_bytes + 3 * text_bytes
    assert peak > array_bytes


def test_progress_bar_covers_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, TABLE)
    read_landmarks(path, progress=True)
    assert capsys.readouterr().err == ""  # reading takes less than a second

    shown = files.tqdm
    monkeypatch.setattr(files, "tqdm", lambda **options: shown(**{**options, "delay": 0}))
    read_landmarks(path, progress=True)
    assert "landmarks.csv: 100%" in capsys.readouterr().err
    read_landmarks(path)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not FACES68.is_dir(), reason="the faces68 data are missing")
def test_real_tables_are_read() -> None:
    table = read_landmarks(FACES68 / "train" / "landmarks.csv")
    assert len(table.names) == 3629
    assert table.points_image.shape == (3629, 68, 2)
    assert np.isfinite(table.points_image).all()
    asked = read_asked_points(FACES68 / "test" / "test_points.csv", table.num_landmarks)
    assert asked.indices.shape == (598, 30)
    assert not set(asked.names) & set(table.names)
    assert set(asked.names) == {path.name for path in (FACES68 / "test" / "images").iterdir()}
