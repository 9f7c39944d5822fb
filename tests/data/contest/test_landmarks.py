"""Compact names and points behave like lists and arrays."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from heatmap.data.contest import LandmarkTable, Points
from heatmap.data.contest.landmarks import UNLABELLED, Names, fingerprint_of


@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 1030])
def test_names_behave_like_a_list(count: int) -> None:
    given = [f"père {row}/{'é' * (row % 5)}{row}.jpg" for row in range(count)]
    names = Names.of(given)
    assert len(names) == count
    assert list(names) == given
    assert [names[row] for row in np.arange(count)] == given
    assert names[-1] == given[-1]
    assert names[:3] == given[:3]
    assert names[::-100] == given[::-100]
    assert names == given
    assert names != given[:-1]
    assert names != [*given[:-1], "other"]
    for row in (count, -count - 1):
        with pytest.raises(IndexError):
            names[row]


WHOLE = np.array([[[1, 2], [-3, 4], [UNLABELLED] * 2], [[5, 6], [7, 8], [32767, 0]]], np.int16)
NUMBERS = np.where(WHOLE == UNLABELLED, np.nan, WHOLE).astype(np.float32)


@pytest.mark.parametrize("stored", [WHOLE, NUMBERS, NUMBERS + 0.5])
def test_points_index_like_a_float32_array(stored: np.ndarray) -> None:
    points = Points(stored)
    expected = stored if stored.dtype == np.float32 else NUMBERS
    assert (len(points), points.shape) == (2, (2, 3, 2))
    parts = [1, -1, slice(1), slice(None), [1, 0, 1], np.array([0]), (..., 0), (0, 2), (1, 2, 0)]
    for part in [*parts, np.array([True, False])]:
        actual = points[part]
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected[part])
    np.testing.assert_array_equal(np.isnan(points), np.isnan(expected))
    assert np.asarray(points, np.float64).dtype == np.float64
    points[0][:] = 99  # a copy
    np.testing.assert_array_equal(points[0], expected[0])


def test_names_and_points_can_be_pickled(tmp_path: Path) -> None:
    np.tile(WHOLE, (9, 1, 1)).tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", np.int16, "r", shape=(18, 3, 2))
    for points in (Points(NUMBERS), Points(mapped), Points(mapped[4:9]), Points(mapped[1:][::2])):
        again = pickle.loads(pickle.dumps(points))
        np.testing.assert_array_equal(again[:], points[:])
    names = Names.of(["a.jpg", "é.jpg"])
    assert pickle.loads(pickle.dumps(names)) == names


@pytest.mark.parametrize("num_rows", [1, 512, 1025])
def test_fingerprint_hashes_names_and_float32_points(num_rows: int) -> None:
    """Checkpoints store it, so it must never change."""
    given, stored = [f"{row}.jpg" for row in range(num_rows)], np.resize(WHOLE, (num_rows, 3, 2))
    numbers = np.resize(NUMBERS, (num_rows, 3, 2))
    digest = hashlib.sha256("\n".join(given).encode())
    digest.update(numbers.tobytes())
    names = Names.of(given)
    for points in (Points(stored), Points(numbers)):
        table = LandmarkTable(
            Path("a.csv"), names, points, fingerprint_of(names, points.in_blocks())
        )
        assert table.fingerprint == digest.hexdigest()
        assert table.num_landmarks == 3
    assert fingerprint_of(Names.of([*given[:-1], "other"]), points.in_blocks()) != table.fingerprint
