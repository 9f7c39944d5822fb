"""Numbers read many rows at once are the ones that Python reads, or none at all."""

import random

import numpy as np
import pytest

from heatmap.data.contest.digits import parse_rows
from heatmap.data.contest.landmarks import UNLABELLED

FARTHEST = 1e6


def parsed(*rows: str, num_cells: int, dtype: type[np.floating] = np.float32) -> np.ndarray | None:
    return parse_rows([row.encode() for row in rows], num_cells, b",", dtype, FARTHEST)


def test_small_whole_numbers_are_int16() -> None:
    found = parsed("1,-2,,", "32767,-32767,0,4096", "10,200,3000,-4000", num_cells=4)
    assert found is not None and found.dtype == np.int16
    expected = [[1, -2, UNLABELLED, UNLABELLED], [32767, -32767, 0, 4096], [10, 200, 3000, -4000]]
    assert found.tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_numbers_are_floats(dtype: type[np.floating]) -> None:
    for cells, expected in (
        ("32768,-32768,1,000000", [32768, -32768, 1, 0]),
        ("1.5,-0.25,,", [1.5, -0.25, np.nan, np.nan]),
        ("12,-0.0,007.50,1000000", [12, -0.0, 7.5, 1e6]),
    ):
        found = parsed(cells, num_cells=4, dtype=dtype)
        assert found is not None and found.dtype == dtype
        np.testing.assert_array_equal(found[0], np.array(expected, dtype))
        np.testing.assert_array_equal(np.signbit(found[0]), np.signbit(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("places", [0, 1, 4, 6, 7, 8, 9, 11, 12, 13, 14])
def test_every_number_is_rounded_as_python_does(places: int, dtype: type[np.floating]) -> None:
    """Also near the middle between two float32; none is read that cannot be told for certain."""
    draw = random.Random(places)
    below = np.array([draw.uniform(2000, 8000) for _ in range(300)], np.float32)
    middles = (below.astype(float) + np.nextafter(below, np.float32(np.inf))) / 2
    cells = [f"{number:.{places}f}" for number in middles]
    cells += [f"{draw.uniform(-9, 9):.{places}f}" for _ in range(300)]
    num_read = 0
    for cell in cells:
        found = parsed(f"{cell},1.5", num_cells=2, dtype=dtype)
        if found is not None:
            assert found[0, 0] == np.float64(cell).astype(dtype), cell
            num_read += 1
    fits = max(int(cell.replace(".", "").strip("-")) for cell in cells) < 2**53
    assert fits == (places <= 12)
    assert num_read == len(cells) if fits else 0 < num_read < len(cells)


def test_the_longest_numbers_that_python_writes_are_read() -> None:
    draw = random.Random(0)
    cells = [repr(draw.uniform(0.01, most)) for most in (1, 10, 1000) for _ in range(700)]
    assert max(len(cell.split(".")[1]) for cell in cells) == 18
    found = parsed(*(f"{cell},-{cell}" for cell in cells), num_cells=2)
    assert found is not None
    np.testing.assert_array_equal(found[:, 0], np.array(cells, np.float64).astype(np.float32))
    np.testing.assert_array_equal(found[:, 1], -found[:, 0])


@pytest.mark.parametrize(
    "row",
    [
        *("1,2,3", "1,2,3,4,5", "", ",1,2,3", "1,2,3,", "1,,2,3"),  # not all in pairs
        *("+1,2,3,4", " 1,2,3,4", "1 ,2,3,4", "1,2,3,4\r", "1e2,2,3,4", "nan,nan,3,4"),
        *("-,2,3,4", "1-,2,3,4", "1-2,2,3,4", "--1,2,3,4", "1,2,3,-"),
        *(
            ".5,2,3,4",
            "5.,2,3,4",
            "1.2.3,2,3,4",
            "1..2,2,3,4",
            "-.5,2,3,4",
            "1.-5,2,3,4",
            ".,2,3,4",
        ),
        *("1000001,2,3,4", "-1000000.01,2,3,4", "1" * 19 + ",2,3,4", "1" * 30 + ",2,3,4"),
        *("1\t2,2,3,4", "1\0,2,3,4", "\u0661,2,3,4", "1;2,2,3,4", "1/2,3,4,5", "1:2,3,4,5"),
    ],
)
def test_what_needs_a_closer_look_is_not_read(row: str) -> None:
    assert parsed(row, num_cells=4) is None
    assert parsed("1,2,3,4", row, "5,6,7,8", num_cells=4) is None
    assert parsed("1.5,2,3,4", row, "5,6,7,8.25", num_cells=4) is None


def test_a_cell_too_many_in_one_row_does_not_make_up_for_one_too_few_in_another() -> None:
    assert parsed("1,2,3", "4,5,6,7,8", num_cells=4) is None
    assert parsed("1,2,3,4,5", "6,7,8", num_cells=4) is None
