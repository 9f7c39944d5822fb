"""With a cache of crops a run sees the same bits and no picture twice; what is broken is redone."""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from heatmap import config
from heatmap.data import crop_cache, samples
from heatmap.data.contest import Photograph, find_folder, image_paths, read_landmarks
from heatmap.data.crop_cache import CropCache
from heatmap.data.samples import Sample, Samples
from heatmap.training import prepare

CROP = config.Crop(height=48, width=36)
CPU = torch.device("cpu")
ROWS = np.arange(12)


@pytest.fixture
def contest(tiny_contest: Path, tmp_path: Path) -> Path:
    """A copy of the tiny contest, to be changed."""
    return Path(shutil.copytree(tiny_contest, tmp_path / "contest"))


def plain(root: Path, **settings: Any) -> Samples:
    folder = find_folder(root)
    table = read_landmarks(folder.train_table)
    paths = image_paths(folder.train_images, table.names, folder.train_table)
    return Samples(paths, table.points_image, **({"crop": CROP, "margin": 7} | settings))


def kept(root: Path, cache: Path, rows: np.ndarray = ROWS, **settings: Any) -> Samples:
    images = find_folder(root).train_images
    (one,) = samples.keep_crops(cache, images, [(plain(root, **settings), rows)])
    return one


def assert_same(found: Sample, expected: Sample) -> None:
    for name in Sample._fields:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and one.shape == other.shape, name
        assert one.numpy().tobytes() == other.numpy().tobytes(), name


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that are read and decoded, in this process, as it happens."""
    names: list[str] = []

    class Counted(Photograph):
        def pixels(self, reduction: int) -> tuple[np.ndarray, int]:
            names.append(self.path.name)
            return super().pixels(reduction)

    monkeypatch.setattr(samples, "Photograph", Counted)
    yield names


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"margin": 0, "zoom": 1.2},
        {"edge": True, "crop": replace(CROP, trim_border=30)},
        {
            "crop": replace(CROP, rule="box"),
            "boxes_image": np.arange(48.0).reshape(12, 4) * [[1, 1, 2, 3]] + [[0, 0, 9, 9]],
        },
    ],
    ids=["margin", "zoom", "border", "box"],
)
def test_a_sample_is_the_same_from_the_cache_bit_for_bit(
    contest: Path, tmp_path: Path, settings: dict, read: list[str]
) -> None:
    expected = [plain(contest, **settings)[row] for row in ROWS]
    some = kept(contest, tmp_path / "cache", **settings)
    for row in ROWS:
        assert_same(some[row], expected[row])
    read.clear()
    for again in (some, kept(contest, tmp_path / "cache", **settings)):
        for row in ROWS:
            assert_same(again[row], expected[row])
    assert not read


def test_two_workers_fill_it_and_a_second_pass_reads_no_picture(
    contest: Path, tmp_path: Path
) -> None:
    batches = [[3, 1, 4], [11, 5], [9, 2, 6], [0, 7]]
    expected = list(samples.load(plain(contest), batches, 0, CPU))
    some = kept(contest, tmp_path / "cache")
    for _ in range(2):
        for found, right in zip(samples.load(some, batches, 2, CPU), expected, strict=True):
            assert_same(found, right)
        for path in some.paths:  # as large, as old, and no JPEG any more
            stat = path.stat()
            path.write_bytes(bytes(stat.st_size))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_changed_picture_is_cut_anew_and_a_touched_one_is_not(
    contest: Path, tmp_path: Path, read: list[str]
) -> None:
    some = kept(contest, tmp_path / "cache")
    before = [some[row] for row in ROWS]
    other = cv2.imread(str(some.paths[4]))
    assert other is not None and cv2.imwrite(str(some.paths[4]), other[::-1])
    os.utime(some.paths[6])
    for changed in ([some.paths[4].name], []):
        read.clear()
        found = {row: some[row] for row in (4, 5, 6)}
        assert read == changed
        assert not torch.equal(found[4].crop, before[4].crop)
        assert_same(found[4], plain(contest)[4])
        assert_same(found[5], before[5])
        assert_same(found[6], before[6])


def test_rows_that_name_other_pictures_are_not_taken_for_them(
    contest: Path, tmp_path: Path
) -> None:
    paths = plain(contest).paths
    largest = max(path.stat().st_size for path in paths)
    for path in paths:  # all as large and as old
        path.write_bytes(path.read_bytes().ljust(largest, b"\0"))
        os.utime(path, ns=(0, 0))
    some = kept(contest, tmp_path / "cache")
    for row in ROWS:
        some[row]
    turned = replace(some, paths=[*some.paths][::-1])
    for row in ROWS:
        assert torch.equal(turned[row].crop, plain(contest)[11 - row].crop)


@pytest.mark.parametrize("kept_bytes", [0, 3, 200, -1])
def test_what_a_kill_left_of_a_row_is_not_used(
    contest: Path, tmp_path: Path, kept_bytes: int
) -> None:
    some = kept(contest, tmp_path / "cache")
    for row in ROWS:
        some[row]
    cache = some.cache_file()
    content = bytearray(cache.path.read_bytes())
    start, end = 5 * cache.row_bytes, 6 * cache.row_bytes
    start = end + kept_bytes if kept_bytes < 0 else start + kept_bytes
    content[start:end] = b"\x55" * (end - start)
    cache.path.write_bytes(content)
    for row in ROWS:
        assert_same(some[row], plain(contest)[row])
    assert content != cache.path.read_bytes()
    cache.path.write_bytes(content[: start + 1])  # rows are missing altogether
    for row in ROWS:
        assert_same(some[row], plain(contest)[row])


def test_a_process_killed_while_it_writes_leaves_no_wrong_row(
    contest: Path, tmp_path: Path
) -> None:
    some = kept(contest, tmp_path / "cache")
    file = some.cache_file().path

    def fill_again_and_again() -> None:
        while True:
            for row in ROWS:
                some.cut(row, Photograph(some.paths[row]))

    filling = multiprocessing.get_context("fork").Process(target=fill_again_and_again, daemon=True)
    filling.start()
    while file.stat().st_blocks == 0:
        time.sleep(0.001)
    filling.kill()
    filling.join()
    for row in ROWS:
        assert_same(some[row], plain(contest)[row])


def test_crops_cut_otherwise_or_of_other_pictures_have_files_of_their_own(
    contest: Path, tmp_path: Path
) -> None:
    box = {"crop": replace(CROP, rule="box"), "boxes_image": np.ones((12, 4))}
    ways: list[dict] = [
        {}, {"margin": 6}, {"edge": True}, {"zoom": 1.1}, {"crop": replace(CROP, trim_border=9)},
        {"crop": replace(CROP, rule="contain")}, box, box | {"boxes_image": np.zeros((12, 4))},
    ]  # fmt: skip
    files = {kept(contest, tmp_path / "cache", **way).cache_file().path for way in ways}
    other = Path(shutil.copytree(contest, tmp_path / "other"))
    files.add(kept(other, tmp_path / "cache").cache_file().path)
    assert len(files) == len(ways) + 1
    assert all(file.exists() for file in files)
    zoomed = replace(kept(contest, tmp_path / "cache"), zoom=1.3)  # no file was made for these
    assert_same(zoomed[3], plain(contest, zoom=1.3)[3])
    assert not zoomed.cache_file().path.exists()


def test_only_what_is_kept_takes_room(contest: Path, tmp_path: Path) -> None:
    some = kept(contest, tmp_path / "cache", crop=config.Crop(height=128, width=128))
    file = some.cache_file().path
    assert file.stat().st_size == 12 * some.cache_file().row_bytes
    assert file.stat().st_blocks == 0
    some[3]
    assert 0 < 512 * file.stat().st_blocks < 3 * some.cache_file().row_bytes


def test_a_disk_without_room_is_refused_before_anything_is_read(
    contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = 5 * CropCache(tmp_path, 62, 50).row_bytes
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free)
        )
        folder = tmp_path / f"{free}"
        if fits:
            kept(contest, folder, rows=ROWS[:5])
        else:
            with pytest.raises(ValueError, match=r"need 0\.00 GiB.*--data\.crop-cache"):
                kept(contest, folder, rows=ROWS[:5])
            assert not list(folder.rglob("*.crops"))
    monkeypatch.undo()
    some = kept(contest, tmp_path / f"{need}", rows=ROWS[:5])
    for row in range(5):
        some[row]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    kept(contest, tmp_path / f"{need}", rows=ROWS[:5])  # it is there already


def test_a_folder_that_cannot_be_made_is_refused(contest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file.*data\.crop_cache"):
        kept(contest, tmp_path / "file")


def test_a_disk_that_fills_up_does_not_stop_the_run(
    contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    some = kept(contest, tmp_path / "cache")

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    crop_cache._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "heatmap"):
        for row in ROWS:
            assert_same(some[row], plain(contest)[row])
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [
        "crops are no longer kept: No space left on device"
    ]


def test_a_missing_picture_is_named_though_its_crop_is_kept(contest: Path, tmp_path: Path) -> None:
    some = kept(contest, tmp_path / "cache")
    some[2]
    some.paths[2].unlink()
    with pytest.raises(ValueError, match=rf"{some.paths[2].name}: the picture cannot be read"):
        some[2]


def test_a_run_keeps_the_crops_that_it_trains_and_validates_on(
    contest: Path, tmp_path: Path, read: list[str]
) -> None:
    experiment = config.Experiment(
        name="cached",
        data=config.Data(root=contest, crop_cache=tmp_path / "cache"),
        crop=CROP,
        augment=config.Augment(rotate_deg=10),
    )
    reads = []
    for _ in range(2):
        read.clear()
        pictures = prepare.read_pictures(experiment)
        mean_shape = samples.mean_shape_crop(pictures.validation, pictures.training_rows)
        training = [pictures.training[row] for row in pictures.training_rows]
        validation = [pictures.validation[row] for row in pictures.validation_rows]
        reads.append(read.copy())

        other = prepare.read_pictures(replace(experiment, data=config.Data(root=contest)))
        assert np.array_equal(
            mean_shape, samples.mean_shape_crop(other.validation, other.training_rows)
        )
        for row, sample in zip(pictures.training_rows, training, strict=True):
            assert_same(sample, other.training[row])
        for row, sample in zip(pictures.validation_rows, validation, strict=True):
            assert_same(sample, other.validation[row])
    assert len(set(reads[0])) == 12
    assert not reads[1]
    assert len(list((tmp_path / "cache").rglob("*.crops"))) == 2
