"""Splits are stored and read, and images and people in several parts are reported."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatmap import config
from heatmap.cli.train import main
from heatmap.config import Data, Experiment
from heatmap.data.contest import find_folder, read_landmarks
from heatmap.training.data import read_data

Tool = Callable[..., int]


def rows_of(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row[0]: row[1] for row in list(csv.reader(file))[1:]}


@pytest.fixture
def contest(tiny_contest: Path, tmp_path: Path) -> Path:
    """A copy of the tiny contest that a test may change."""
    return Path(shutil.copytree(tiny_contest, tmp_path / "contest"))


def test_split_by_person_is_stored_and_read_by_training(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split.csv"
    options = "--rule", "person", "--share", "0.25", "--workers", "1", "--out", out
    assert tool("data", "split", tiny_contest, *options) == 0
    parts = rows_of(out)
    assert list(parts) == read_landmarks(find_folder(tiny_contest).train_table).names
    validating = {name for name, part in parts.items() if part == "validation"}
    assert len(validating) == 3 and len({name.split("_")[0] for name in validating}) == 1
    printed = capsys.readouterr().out
    assert "split by person" in printed
    assert [
        line.split() for line in printed.splitlines() if line.startswith(("train", "vali"))
    ] == [
        ["train", "9", "3"],
        ["validation", "3", "1"],
    ]
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("  ")][1:] == [
        "0", "0",
    ]  # fmt: skip

    images = read_data(Experiment(name="x", data=Data(root=tiny_contest, split_file=out)))
    names = images.table.names
    assert {names[row] for row in images.validation_rows} == validating
    assert images.split_rule == f"from {out} (3 of 12 rows)"


def test_every_fold_of_a_stored_split_validates(
    tool: Tool, tiny_contest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folds.csv"
    options = "--rule", "person", "--folds", "4", "--workers", "2", "--out", out
    assert tool("data", "split", tiny_contest, *options) == 0
    folds = rows_of(out)
    assert set(folds.values()) == set("0123")
    data = Data(root=tiny_contest, split_file=out, fold=3)
    images = read_data(Experiment(name="x", data=data))
    names = images.table.names
    assert {names[row] for row in images.validation_rows} == {n for n in folds if folds[n] == "3"}


def test_the_same_image_under_two_names_is_reported(
    tool: Tool, contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = contest / "train" / "images", tmp_path / "split.csv"
    common = "data", "split", contest, "--share", "0.25", "--workers", "1", "--out", out
    assert tool(*common, "--rule", "order") == 0
    assert rows_of(out)["ada_0.jpg"] != rows_of(out)["dee_2.jpg"]
    shutil.copy(images / "ada_0.jpg", images / "dee_2.jpg")
    (images / "bo_1.jpg").unlink()
    capsys.readouterr()
    assert tool(*common, "--rule", "order") == 0
    printed = capsys.readouterr().out
    assert "images      1  such as ada_0.jpg = dee_2.jpg" in printed
    assert "images not compared because they cannot be read: 1, such as 'bo_1.jpg'" in printed

    for person in ("ada", "bo", "cy"):  # one of the four validates
        shutil.copy(images / "dee_0.jpg", images / f"{person}_0.jpg")
    assert tool(*common, "--rule", "person") == 1
    assert "1 image in several parts under different names" in capsys.readouterr().err
    assert len(rows_of(out)) == 12


def test_people_on_both_sides_are_counted(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--rule", "random", "--share", "0.5", "--workers", "1"
    assert tool("data", "split", tiny_contest, "--out", tmp_path / "s.csv", *options) == 0
    parts = rows_of(tmp_path / "s.csv")
    people = {
        person: {parts[f"{person}_{k}.jpg"] for k in range(3)}
        for person in ("ada", "bo", "cy", "dee")
    }
    split_people = [person for person, sides in people.items() if len(sides) == 2]
    assert f"  people      {len(split_people)}  such as {', '.join(split_people[:3])}" in (
        capsys.readouterr().out
    )


def test_a_share_of_zero_is_a_usage_error(tool: Tool, tiny_contest: Path) -> None:
    assert tool("data", "split", tiny_contest, "--share", "0") == 2


def train(root: Path, run: Path, *options: object) -> None:
    experiment = Path(__file__).parents[2] / "experiments" / "unet.py"
    assert main([
        str(experiment), "--out", str(run), "--data.root", str(root), "--data.workers", "0",
        "--model.weights", "none", "--model.encoder", "tu-test_resnet", "--model.width", "8",
        "--augment.mirror", "0", "--train.max-steps", "1", "--train.batch", "4",
        "--train.device", "cpu", "--crop.height", "64", "--crop.width", "64", "--wandb.mode", "off",
        *map(str, options),
    ]) == 0  # fmt: skip


def test_a_run_records_its_split_and_another_run_can_use_it(
    tiny_contest: Path, tmp_path: Path
) -> None:
    names = read_landmarks(find_folder(tiny_contest).train_table).names
    path, run = tmp_path / "split.csv", tmp_path / "run"
    lines = [f"{name}\t{'validation' if name.endswith('_1.jpg') else 'train'}" for name in names]
    path.write_text("\n".join(["file_name\tpart", *reversed(lines)]))
    bad = tmp_path / "bad.csv"
    bad.write_text("file_name\nada_0.jpg\n")
    train(tiny_contest, run, "--data.split-file", path, "--data.exclude", bad)
    split = json.loads((run / "split.json").read_text())
    assert split["kind"] == "file"
    assert split["rule"] == f"from {path} (4 of 12 rows)"
    assert split["validation"] == ["ada_1.jpg", "bo_1.jpg", "cy_1.jpg", "dee_1.jpg"]
    assert split["excluded"] == ["ada_0.jpg"]
    assert json.loads((run / "summary.json").read_text())["best_mse"] > 0
    saved = config.from_dict(Experiment, json.loads((run / "config.json").read_text()))
    assert saved.data.split_file == path

    first = read_data(saved)
    data = Data(root=tiny_contest, split_file=run / "split.json")
    second = read_data(Experiment(name="x", data=data))
    assert second.split_rule == f"from {run / 'split.json'} (4 of 12 rows)"
    for part in ("training_rows", "validation_rows", "excluded_rows"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
