"""Files are written completely or not at all."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from heatmap.runtime.files import write_atomically, write_image


def test_the_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_only(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), write_atomically(path) as temporary:
        temporary.write_text("ha")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    synced_before_naming = []
    monkeypatch.setattr("os.fsync", lambda _: synced_before_naming.append(not path.exists()))
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
    assert synced_before_naming == [True, False]  # the file, then its folder


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with (
        pytest.raises(OSError, match="No space left") as error,
        write_atomically(path) as temporary,
        Path("/dev/full").open("w") as file,
    ):
        temporary.touch()
        file.write("more")
        file.flush()
    assert error.value.filename == str(path) and not list(tmp_path.iterdir())


def test_an_image_keeps_its_colours(tmp_path: Path) -> None:
    image = np.full((7, 9, 3), (250, 120, 10), np.uint8)
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / name, image)
        written = cv2.imread(str(tmp_path / name))[..., ::-1]
        assert np.abs(written.astype(int) - image).max() <= 3
