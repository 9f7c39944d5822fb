"""Channels are measured exactly, of whole images or training crops; plots are drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatmap.config import Crop
from heatmap.curation.stats import measure_contest
from heatmap.data.contest import Folder, read_image, read_landmarks, write_landmarks
from heatmap.data.samples import Samples

Tool = Callable[..., int]


def made(root: Path, images: dict[str, np.ndarray], points: np.ndarray) -> Path:
    """A contest without test images; points as fractions of each image's width and height."""
    folder = Folder(root=root)
    folder.train_images.mkdir(parents=True)
    for name, image in images.items():
        assert cv2.imwrite(str(folder.train_images / name), image[..., ::-1])
    sizes = np.array([image.shape[1::-1] for image in images.values()])
    write_landmarks(folder.train_table, [*images], points * sizes[:, None] - 0.5)
    return root


def test_channels_are_exact_for_any_number_of_workers(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.json"
    options = "--json", out, "--out", tmp_path / "s.png", "--workers", "2"
    assert tool("data", "stats", tiny_contest, *options) == 0
    channels = json.loads(out.read_text())["channels"]
    pixels = {
        part: np.concatenate([
            read_image(path).reshape(-1, 3).astype(np.int64)
            for path in (tiny_contest / part / "images").iterdir()
        ])
        for part in ("train", "test")
    }  # fmt: skip
    pixels["both"] = np.concatenate([*pixels.values()])
    assert list(channels) == ["train", "test", "both"]
    for part, values in pixels.items():
        assert channels[part]["pixels"] == len(values)
        assert channels[part]["sums"] == values.sum(0).tolist()
        assert channels[part]["squares"] == (values**2).sum(0).tolist()
        np.testing.assert_allclose(channels[part]["mean"], values.mean(0) / 255, rtol=1e-12)
        np.testing.assert_allclose(channels[part]["std"], values.std(0) / 255, rtol=1e-12)
    *_, train, _, both, name = capsys.readouterr().out.splitlines()
    assert [float(cell) for cell in train.split()[1:4]] == np.round(
        channels["train"]["mean"], 5
    ).tolist()
    assert both.split()[-2:] == ["17", f"{len(pixels['both']):,}"]
    assert len(train) == len(both)
    assert name == str(tmp_path / "s.png")
    alone = measure_contest(tiny_contest).to_json()["channels"]
    assert json.loads(json.dumps(alone)) == channels


def test_border_is_trimmed_and_crop_is_cut_as_in_training(tmp_path: Path) -> None:
    bordered = np.zeros((90, 70, 3), np.uint8)
    bordered[20:80, 10:60] = 200, 100, 50
    wide = np.zeros((64, 200, 3), np.uint8)
    wide[:, 68:132] = 255  # what a square crop shows
    points = np.full((1, 4, 2), 0.5)
    root = made(tmp_path / "bordered", {"a.png": bordered}, points)
    whole, trimmed = (
        measure_contest(root).channels["train"],
        measure_contest(root, trim_border=9).channels["train"],
    )
    assert whole.pixels == 90 * 70 and trimmed.pixels == 60 * 50
    assert trimmed.mean() == pytest.approx([200 / 255, 100 / 255, 50 / 255], rel=1e-12)
    assert trimmed.std() == [0, 0, 0]
    assert whole.mean()[0] == pytest.approx(200 / 255 * 3000 / 6300, rel=1e-12)

    root = made(tmp_path / "wide", {"b.png": wide}, points)
    cropped = measure_contest(root, crop_hw=(32, 32)).channels["train"]
    assert cropped.pixels == 32 * 32 and cropped.mean()[1] > 0.97
    assert measure_contest(root).channels["train"].mean()[1] == pytest.approx(0.32)


def test_crops_equal_training_crops(tiny_contest: Path) -> None:
    folder = Folder(root=tiny_contest)
    table = read_landmarks(folder.train_table)
    paths = [folder.train_images / name for name in table.names]
    samples = Samples(paths, table.points_image, Crop(height=48, width=36, trim_border=30))
    crops = np.stack([samples[row].crop.numpy() for row in range(len(paths))]).astype(np.int64)
    channels = measure_contest(tiny_contest, trim_border=30, crop_hw=(48, 36)).channels["train"]
    assert channels.pixels == 12 * 48 * 36
    assert list(channels.sums) == crops.sum((0, 2, 3)).tolist()
    assert list(channels.squares) == (crops**2).sum((0, 2, 3)).tolist()


def test_sizes_and_positions_are_measured(tmp_path: Path) -> None:
    images = {"a.png": np.ones((40, 50, 3), np.uint8), "b.png": np.ones((60, 90, 3), np.uint8)}
    points = np.array(
        [[[0.1, 0.2], [0.5, 0.6], [0.9, 0.4]], [[0.3, 0.2], [np.nan, np.nan], [0, 1]]]
    )
    statistics = measure_contest(made(tmp_path / "sized", images, points))
    assert statistics.sizes["train"].tolist() == [[40, 50], [60, 90]]
    np.testing.assert_allclose(
        statistics.positions, [[0.1, 0.2], [0.5, 0.6], [0.9, 0.4], [0.3, 0.2], [0, 1]], atol=1e-5
    )
    assert len(statistics.turns) == len(statistics.rolls_deg) == 0  # of a single whole face


def test_unreadable_images_are_left_out_and_reported(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_contest, tmp_path / "contest"))
    (root / "train" / "images" / "ada_0.jpg").write_bytes(b"")
    (root / "test" / "images" / "eve_4.jpg").write_bytes(b"no image")
    options = "--workers", "1", "--out", tmp_path / "s.png"
    assert tool("data", "stats", root, *options) == 0
    printed = capsys.readouterr().out
    assert "2 images left out as unreadable" in printed and "ada_0.jpg" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("both")]
    assert row.split()[-2] == "15"
    shutil.rmtree(root / "test")
    for path in (root / "train" / "images").iterdir():
        path.write_bytes(b"")
    assert tool("data", "stats", root, *options) == 1
    assert "no image can be read" in capsys.readouterr().err


def test_plots_show_the_parts_that_exist(tool: Tool, tiny_contest: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "plots" / "all.png", tmp_path / "train.png"
    assert tool("data", "stats", tiny_contest, "--workers", "1", "--out", out) == 0
    drawn = cv2.imread(str(out))
    assert drawn.shape[1] > drawn.shape[0] > 700
    orange = (np.abs(drawn.astype(int) - (14, 127, 255)) < 12).all(-1)
    assert orange.sum() > 100, "test images have their own colour"
    root = Path(shutil.copytree(tiny_contest, tmp_path / "contest"))
    shutil.rmtree(root / "test")
    assert tool("data", "stats", root, "--workers", "1", "--out", other) == 0
    train_alone = cv2.imread(str(other))
    assert not (np.abs(train_alone.astype(int) - (14, 127, 255)) < 12).all(-1).any()
    shutil.rmtree(root)
    shutil.copytree(tiny_contest / "test", root / "test")
    assert tool("data", "stats", root, "--workers", "1", "--out", other) == 0


@pytest.mark.parametrize(
    "options",
    [("--workers", "0"), ("--out", "s.jpg"), ("--crop", "16", "64"), ("--trim-border", "255")],
)
def test_invalid_options_are_usage_errors(
    tool: Tool, tiny_contest: Path, options: tuple[str, ...]
) -> None:
    assert tool("data", "stats", tiny_contest, *options) == 2
