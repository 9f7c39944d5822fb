"""Both editions of the contest folder are found."""

from pathlib import Path

import pytest

from heatmap.data.contest import find_folder


def make(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_2020_edition_is_found_in_the_root(tmp_path: Path) -> None:
    make(tmp_path, "train/landmarks.csv", "test/test_points.csv", "sampleSubmission.csv")
    folder = find_folder(tmp_path)
    assert folder.root == tmp_path
    assert folder.train_table == tmp_path / "train/landmarks.csv"
    assert folder.train_images == tmp_path / "train/images"
    assert folder.test_points == tmp_path / "test/test_points.csv"
    assert folder.test_images == tmp_path / "test/images"


def test_2021_edition_is_found_from_outside_and_inside(tmp_path: Path) -> None:
    make(tmp_path, "contest01_data/train/landmarks.csv", "contest01_data/test/test_points.csv")
    inner = tmp_path / "contest01_data"
    assert find_folder(tmp_path).root == find_folder(inner).root
    assert find_folder(tmp_path).test_images == inner / "test/images"


@pytest.mark.parametrize("table", ["train/landmarks.csv", "test/test_points.csv"])
def test_one_of_the_two_tables_is_enough(tmp_path: Path, table: str) -> None:
    make(tmp_path, table)
    assert find_folder(tmp_path).root == tmp_path


def test_error_names_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"landmarks\.csv.*test_points\.csv") as error:
        find_folder(tmp_path)
    assert str(tmp_path / "contest01_data") in str(error.value)


def test_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: no such folder"):
        find_folder(tmp_path / "absent")
