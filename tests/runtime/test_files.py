"""Only regular files are read, and files are written completely or not at all."""

import ast
import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import heatmap
from heatmap.errors import UserError
from heatmap.runtime.files import (
    append_text,
    folder_when_complete,
    read_bytes,
    read_text,
    write_atomically,
    write_image,
    write_text,
)


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("hidden", [False, True])
def test_an_error_of_the_disk_names_the_file_and_what_is_kept(
    tmp_path: Path, code: int, hidden: bool
) -> None:
    path, reason = tmp_path / "a.txt", os.strerror(code)

    def fail() -> None:
        try:
            raise OSError(code, reason)
        finally:
            if hidden:  # as torch does
                raise RuntimeError("unexpected pos 576 vs 534")

    for kept in ("", "; the earlier a.txt is unchanged"):
        with pytest.raises(OSError, match=reason) as error, write_atomically(path) as temporary:
            temporary.write_text("ha")
            fail()
        assert error.value.filename == str(path)
        assert error.value.strerror == f"cannot be written: {reason}{kept}"
        assert [file.name for file in tmp_path.iterdir()] == (["a.txt"] if kept else [])
        path.write_text("old")
    with pytest.raises(OSError, match=reason) as error, folder_when_complete(tmp_path / "b") as new:
        write_text(new / "c.txt", "new")
        fail()
    assert error.value.filename == str(tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error, write_atomically(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert error.value.filename == str(tmp_path / "b")


def test_text_is_appended_to_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"cannot be written: No such file"):
        append_text(path, "new")
    path.write_text("old\n")
    append_text(path, "new\n")
    assert path.read_text() == "old\nnew\n"


def test_an_image_keeps_its_colours(tmp_path: Path) -> None:
    image = np.full((7, 9, 3), (250, 120, 10), np.uint8)
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / name, image)
        written = cv2.imread(str(tmp_path / name))[..., ::-1]
        assert np.abs(written.astype(int) - image).max() <= 3


def test_an_image_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    image = np.zeros((65_536, 1, 3), np.uint8)
    with pytest.raises(ValueError, match=r"a\.jpg: 1 x 65536 pixels are too large"):
        write_image(tmp_path / "a.jpg", image)
    write_image(tmp_path / "a.png", image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_name_of_any_length_is_written(tmp_path: Path) -> None:
    for name in ("é" * 125 + ".json", "a" * 255):
        write_text(tmp_path / name, "{}")
        assert read_text(tmp_path / name) == "{}"


def test_links_to_what_is_written_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for link, target in (("file", "there/a.txt"), ("dangling", "new/b.txt"), ("folder", "c")):
        (tmp_path / link).symlink_to(target)
    write_text(tmp_path / "there" / "a.txt", "old")
    write_text(tmp_path / "file", "new")
    write_text(tmp_path / "dangling", "new")
    with folder_when_complete(tmp_path / "folder") as folder:
        write_text(folder / "d.txt", "new")
    assert all((tmp_path / link).is_symlink() for link in ("file", "dangling", "folder"))
    for name in ("there/a.txt", "new/b.txt", "c/d.txt"):
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pipe", "is a pipe, not a regular file"),
        ("zero", "is a device, not a regular file"),
        ("folder", "is a folder, not a regular file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("broken", "is a link to nowhere, which does not exist"),
        ("absent", "does not exist"),
        ("n\0l", "cannot be read: a NUL character is in its name"),
        ("a" * 256, "cannot be read: File name too long"),
        ("text/a", "cannot be read: Not a directory"),
    ],
)
def test_only_regular_files_are_read(tmp_path: Path, name: str, problem: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").touch()
    for link, target in (("zero", "/dev/zero"), ("loop", "loop"), ("broken", "nowhere")):
        (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError) as error:
        read_bytes(tmp_path / name, "table")
    assert str(error.value) == f"{tmp_path / name}: the table {problem}"


@pytest.mark.parametrize(
    ("name", "kind"), [("pipe", "a pipe"), ("null", "a device"), ("loop", "a link to itself")]
)
def test_only_regular_files_are_replaced(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"{name} is {kind}; only a file can be replaced"):
        write_text(tmp_path / name, "new")
    assert sorted(tmp_path.iterdir()) == before


def test_text_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("é", encoding="utf-8-sig")
    assert read_text(path) == "é"
    path.write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text"):
        read_text(path)


# Files of the operating system, members of archives and of this package, and of runs.
OTHER_DOORS = {"runtime/files.py", "runtime/machine.py", "data/synthetic/head.py"}
OTHER_DOORS |= {"data/formats/labelled.py"}


def test_every_file_is_opened_for_reading_by_one_function() -> None:
    package = Path(heatmap.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                opener = ast.unparse(node.func)
                modes = "".join(str(a.value) for a in node.args if isinstance(a, ast.Constant))
                reads = opener.endswith((".read_text", ".read_bytes"))
                opens = opener.endswith(".open") and opener not in ("av.open", "Image.open")
                if reads or (opens and not set(modes) & set("wax+")):
                    found.add(str(path.relative_to(package)))
    assert found <= OTHER_DOORS
