"""No input vanishes, and no output replaces a file that the command did not write."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from heatmap.inference.media import Outputs, find_files


def files(folder: Path, *names: str) -> list[Path]:
    """Empty files."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def write(outputs: Outputs, *names: str) -> None:
    with outputs:
        for name in names:
            path = outputs.claim(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            outputs.written.append(path)


def test_every_file_of_a_folder_is_taken_or_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heatmap")
    taken = files(tmp_path, "a.JPG", "b.heic", "c.jxl", "clip.mp4")
    files(tmp_path, "notes.txt", "face", ".hidden.jpg", "._clip.mov")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    found = find_files([str(tmp_path)])
    assert found == sorted([*taken, tmp_path / "pipe.png", tmp_path / "broken.jpg"])
    (listed,) = caplog.messages
    assert listed == f"{tmp_path}: skipped 2 files of other types: face, notes.txt"


def test_only_folders_with_subfolders_get_a_hint_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heatmap")
    files(tmp_path, "a.jpg")
    find_files([str(tmp_path)])
    assert not caplog.messages
    (deeper,) = files(tmp_path, "deeper/b.jpg")
    assert find_files([str(tmp_path)]) == [tmp_path / "a.jpg"]
    assert f"for subfolders, pass '{tmp_path}/**/*.jpg'" in caplog.text
    assert deeper in find_files([f"{tmp_path}/**/*.jpg"])


def test_a_pattern_matches_pipes_but_no_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ValueError, match="no file matches"):
        find_files([f"{tmp_path}/*.jpg"])
    os.mkfifo(tmp_path / "b.jpg")
    assert find_files([f"{tmp_path}/*.jpg"]) == [tmp_path / "b.jpg"]


def test_only_files_that_the_command_wrote_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        write(Outputs(out), "a.png", "deeper/b.png")
    files(out, "c.png")
    (out / "a.png").write_text("changed")
    for name, reason in (("a.png", "has changed since"), ("c.png", "exists, and this command did")):
        with pytest.raises(ValueError, match=rf"{name} {reason} .* replace it with --overwrite"):
            Outputs(out).claim(name)
    write(Outputs(out, overwrite=True), "a.png", "c.png")
    write(Outputs(out), "a.png", "deeper/b.png", "c.png")


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    original, inner, link = files(tmp_path, "x.jpg", "sub/x.jpg", "out/y.jpg")
    link.unlink()
    link.symlink_to(original)
    for out, inputs in ((tmp_path, [inner, original]), (tmp_path / "out", [link])):
        with pytest.raises(ValueError, match="is an input, not to be overwritten"):
            Outputs(out, inputs, overwrite=True).copies()


def test_two_inputs_never_share_an_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, out = tmp_path / "in", tmp_path / "out"
    inputs = files(mine, "a.bmp", "a.bmp.png", "A.BMP", "b.jpg", "B.jpg", "b.png", "c.avi", "c.mp4",
                   "c.avi.mp4", "e\u0301.png", "\u00e9.png", "deeper/b.jpg")  # fmt: skip
    inputs += [mine / "deeper" / ".." / "c.jpg", mine / "d.png"]
    inputs[-1].symlink_to("b.png")  # the same file twice
    files(out, "d.png")
    (out / "c.jpg").symlink_to("d.png")  # two names of one output
    caplog.set_level("INFO", "heatmap")
    copies = Outputs(out, inputs, overwrite=True).copies()
    assert [copies[path].relative_to(out).as_posix() for path in inputs] == [
        "a.bmp-2.png", "a.bmp.png", "A.BMP-3.png", "b.jpg", "B-2.jpg", "b.png", "c.avi-2.mp4",
        "c.mp4", "c.avi.mp4", "e\u0301.png", "\u00e9-2.png", "deeper/b.jpg", "c.jpg", "d-2.png",
    ]  # fmt: skip
    assert f"{inputs[0]}: written to {out / 'a.bmp-2.png'}" in caplog.text


def test_outputs_stay_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inputs = [Path("../x.jpg"), Path("sub/y.jpg")]
    copies = Outputs(Path("out"), inputs).copies()
    assert list(copies.values()) == [Path("out/x.jpg"), Path("out/here/sub/y.jpg")]


def test_the_name_of_a_copy_is_cut_if_it_would_be_too_long(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "a" * 251 + ".bmp")
    copy = Outputs(tmp_path, [path]).copies()[path]
    assert copy.name == "a" * 251 + ".png"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_files_are_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a (folder|pipe); only a file"):
        Outputs(tmp_path, overwrite=True).claim("a.png")
