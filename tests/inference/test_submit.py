"""Submissions and scores of one run, of ensembles and of test-time augmentation."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import DIRECT, trained

from heatmap import config
from heatmap.data import contest
from heatmap.data.formats.kaggle15 import convert
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runs import checkpoint

CPU = torch.device("cpu")
Tool = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the tiny contest with different crops and seeds, and one without heatmaps.

    Their validation rows are the last 6, 3 and 6 of 12.
    """
    folder = tmp_path_factory.mktemp("runs")
    fewer = config.Data(root=tiny_contest, split="order", validation=0.25, workers=0)
    tall = config.Crop(height=40, width=36, rule="contain")
    return {
        "one": trained(folder / "one", tiny_contest),
        "two": trained(folder / "two", tiny_contest, seed=1, crop=tall, data=fewer),
        "direct": trained(folder / "direct", tiny_contest, model=DIRECT),
    }


@pytest.fixture(scope="module")
def fifteen(
    kaggle15_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Kaggle's facial keypoints converted, and two runs on it."""
    folder = tmp_path_factory.mktemp("fifteen")
    convert(kaggle15_files, folder / "data")
    first, second = (
        trained(folder / f"run{seed}", folder / "data", seed=seed) for seed in range(2)
    )
    return folder / "data", first, second


def points_of(path: Path) -> np.ndarray:
    return contest.read_submission(path).points_image


def assert_rounded(found: np.ndarray, exact: np.ndarray) -> None:
    """`exact` has four decimals only, so it may lie on the other side of a half."""
    near_half = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) < 1e-3
    np.testing.assert_array_equal(found[~near_half], np.rint(exact)[~near_half])
    assert np.abs(found - exact).max() < 0.502 and near_half.mean() < 0.1


def test_a_submission_of_runs_is_their_rounded_mean(
    runs: dict[str, Path], tool: Tool, tmp_path: Path
) -> None:
    for name, run in runs.items():
        out = tmp_path / f"{name}.csv"
        assert tool("submit", run, "--out", out, "--rounding", "none", "--device", "cpu") == 0
    together, out = list(runs.values()), tmp_path / "out.csv"
    assert tool("submit", *together, "--out", out, "--device", "cpu") == 0
    each = np.stack([points_of(tmp_path / f"{name}.csv") for name in runs])
    assert np.abs(each[0] - each[1]).max() > 1
    assert_rounded(points_of(out), each.mean(0))

    heatmaps = together[:2]
    for options in ([], ["--weighted"], ["--tta", "scale"], ["--tta=scale", "--weighted"]):
        options = [*options, "--rounding", "none", "--overwrite"]
        assert tool("submit", *heatmaps, "--out", out, *options) == 0
        each = np.concatenate([each, points_of(out)[None]])
    np.testing.assert_allclose(each[3], each[:2].mean(0), atol=2e-4)
    for i in range(3, 7):
        for j in range(i):
            assert np.abs(each[i] - each[j]).max() > 1e-3, "each option changes the answer"


def test_wrong_use_of_average_leaves_no_file(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in files:
        contest.write_answers(path, ["c.jpg"], np.zeros((1, 3, 2)))
    out = tmp_path / "out.csv"
    for arguments, code in (
        ([files[0]], 2),
        ([*files, "--weighted"], 2),
        ([*files, "--tta", "mirror"], 2),
        ([files[0], tmp_path / "no.csv"], 1),
    ):
        capsys.readouterr()
        assert tool("submit", "--average", *arguments, "--out", out) == code
        assert not out.exists() and capsys.readouterr().err


def test_test_time_augmentation_on_kaggles_facial_keypoints(
    fifteen: tuple[Path, Path, Path], tool: Tool, tmp_path: Path
) -> None:
    _, *both = fifteen
    answers = {}
    for name, options in (
        ("plain", []), ("mirror", ["--tta", "mirror"]), ("both", ["--tta", "mirror,scale"]),
    ):  # fmt: skip
        out = tmp_path / f"{name}.csv"
        assert tool("submit", *both, "--out", out, "--device", "cpu", *options) == 0
        answers[name] = np.loadtxt(out, delimiter=",", skiprows=1)
        assert answers[name].shape == (64, 2)
        assert np.array_equal(answers[name][:, 0], answers["plain"][:, 0])
    out = tmp_path / "average.csv"
    assert tool("submit", "--average", *(tmp_path / f"{n}.csv" for n in answers), "--out", out) == 0
    mean = np.mean(list(answers.values()), 0)
    np.testing.assert_allclose(np.loadtxt(out, delimiter=",", skiprows=1), mean, atol=1e-4)
    assert np.abs(answers["plain"] - answers["mirror"]).max() > 1e-3
    assert np.abs(answers["both"] - answers["mirror"]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "evaluation-with-two"),
        (["--weighted", "--tta", "scale"], "evaluation-with-two-scale-weighted"),
        (["--decoder", "parabola"], "evaluation-with-two-parabola"),
    ],
)
def test_ensembles_are_scored_on_common_validation_rows(
    runs: dict[str, Path], tool: Tool, tiny_contest: Path, options: list[str], name: str
) -> None:
    both = runs["one"], runs["two"]
    assert tool("evaluate", *both, "--device", "cpu", *options) == 0
    scores = json.loads((runs["one"] / name / "evaluation.json").read_text())
    rows = np.load(runs["one"] / name / "errors.npz")["rows"]
    assert rows.tolist() == [9, 10, 11] and scores["images"] == 3
    assert (runs["one"] / name / "per_image.csv").exists()

    tta, weighted = "scale" if "scale" in options else "none", "--weighted" in options
    ensemble = Ensemble.load(both, tta=tta, weighted=weighted)
    for run in ensemble.runs:
        run.network.landmark_decoder = "parabola" if "parabola" in options else "window"
    folder = contest.find_folder(tiny_contest)
    labels = contest.read_landmarks(folder.train_table)
    paths = contest.image_paths(folder.train_images, labels.names, labels.path)
    views = ensemble.views(paths, labels.points_image, CPU)
    (found,) = predict(views, rows, batch=9, workers=0, weighted=weighted)
    mse = contest.squared_errors(found.points_image, labels.points_image[rows]).mean()
    assert scores["mse"] == pytest.approx(mse, rel=1e-5)


def test_augmented_scores_do_not_replace_the_plain_ones(runs: dict[str, Path], tool: Tool) -> None:
    assert tool("evaluate", runs["two"], "--tta", "scale", "--device", "cpu") == 0
    assert not (runs["two"] / "evaluation.json").exists()
    assert (runs["two"] / "evaluation-scale" / "evaluation.json").exists()


def test_runs_of_different_folds_are_scored_together_only_on_other_data(
    runs: dict[str, Path], tool: Tool, tiny_contest: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    saved = checkpoint.load(runs["two"] / "best.pt")
    fold = tmp_path / "fold" / "best.pt"
    checkpoint.save(fold, replace(saved, validation_rows=torch.tensor([0, 4])))
    assert tool("evaluate", runs["one"], fold, "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "validates in all" in error and str(fold) in error and "--data" in error

    mine, other = contest.Folder(root=tiny_contest), contest.Folder(root=tmp_path / "other")
    other.train_table.parent.mkdir(parents=True)
    other.train_images.symlink_to(mine.train_images)
    table = contest.read_landmarks(mine.train_table)
    contest.write_landmarks(other.train_table, table.names, table.points_image[:] + 3)
    arguments = ["evaluate", runs["one"], fold, "--data", other.root, "--device", "cpu"]
    assert tool(*arguments) == 0
    folder = runs["one"] / "evaluation-other" / "evaluation-with-fold"
    assert json.loads((folder / "evaluation.json").read_text())["images"] == 12

    alien = tmp_path / "alien" / "best.pt"
    checkpoint.save(alien, replace(saved, table_hash="another"))
    assert tool("evaluate", runs["one"], alien, "--device", "cpu") == 1
    assert f"{alien} was trained on other labels than" in capsys.readouterr().err
    assert tool("evaluate", runs["one"], alien, "--data", tiny_contest, "--device", "cpu") == 0
    rows = np.load(runs["one"] / "evaluation-with-alien" / "errors.npz")["rows"]
    assert rows.tolist() == [6, 7, 8, 9, 10, 11], "training rows of the first run are left out"


def test_runs_that_cannot_be_merged_are_refused_by_name(
    runs: dict[str, Path], fifteen: tuple[Path, Path, Path], tool: Tool,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    one, direct = runs["one"], runs["direct"]
    again = direct / ".." / "one"
    for name in ("submit", "evaluate"):
        for code, arguments, words in (
            (1, [one, fifteen[1]], [f"{one}/best.pt predicts 7", f"{fifteen[1]}/best.pt predicts"]),
            (1, [one, "--tta", "mirror"], ["7 landmarks", "--tta mirror"]),
            (2, [one, direct, "--weighted"], [f"{direct}/best.pt", "no heatmaps", "--weighted"]),
            (2, [one, "--boxes", "b.csv"], ["--boxes", "crop.rule box", f"{one}/best.pt", "cover"]),
            (1, [one, tmp_path / "no"], ["no such checkpoint", str(tmp_path / "no")]),
            (2, [one, direct, again], [f"{again}/best.pt is listed twice; list each run once"]),
            (2, [one, one / "best.pt"], [f"{one}/best.pt is listed twice"]),
        ):
            assert tool(name, *arguments, "--device", "cpu") == code
            error = capsys.readouterr().err
            assert all(word in error for word in words), error
        assert tool(name, one, "--tta", "blur") == 2
        assert "'blur'" in capsys.readouterr().err
        assert tool(name) == 2
    assert not (tmp_path / "submission.csv").exists()
    assert tool("evaluate", "s.csv", "--solution", "t.csv", "--weighted") > 0
    assert "a submission (.csv) takes no options" in capsys.readouterr().err


def boxes_file(path: Path, names: list[str], left: float) -> Path:
    lines = [f"{name},{left},8,{left + 45},52" for name in names]
    path.write_text("\n".join(["file_name,x0,y0,x1,y1", *lines]) + "\n")
    return path


def test_boxes_replaces_the_table_of_the_run(
    runs: dict[str, Path], tool: Tool, tiny_contest: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = contest.find_folder(tiny_contest)
    names = contest.read_landmarks(folder.train_table).names
    asked = contest.read_asked_points(folder.test_points, 7).names
    training = boxes_file(tmp_path / "training.csv", names, 5)
    moved = boxes_file(tmp_path / "moved.csv", names, 12)
    test = boxes_file(tmp_path / "test.csv", asked, 9)
    run = trained(
        tmp_path / "boxed",
        tiny_contest,
        data=config.Data(root=tiny_contest, split="order", workers=0, boxes=training),
        crop=config.Crop(height=40, width=40, rule="box"),
    )
    out = tmp_path / "out.csv"
    assert tool("submit", run, "--out", out) == 1
    error = capsys.readouterr().err
    assert str(training) in error and asked[0] in error and "--boxes" in error
    assert tool("submit", run, runs["one"], "--boxes", test, "--out", out) == 0
    assert tool("evaluate", run) == 0 and tool("evaluate", run, "--boxes", moved) == 0
    apart = run / "evaluation-boxes-moved" / "evaluation.json"
    own, other = (json.loads(p.read_text())["mse"] for p in (run / "evaluation.json", apart))
    assert own != other
    sheets = []
    for boxes in (test, boxes_file(tmp_path / "again.csv", asked, 1)):
        sheet = tmp_path / f"{boxes.stem}.png"
        common = ["predict", run, "--data", tiny_contest, "--test", "--out", sheet, "--count", 2]
        assert tool(*common, "--boxes", boxes) == 0
        sheets.append(cv2.imread(str(sheet)))
    assert (sheets[0] != sheets[1]).any()


def test_a_missing_image_is_reported_with_its_row(
    runs: dict[str, Path], tool: Tool, tiny_contest: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = Path(shutil.copytree(tiny_contest, tmp_path / "contest"))
    folder = contest.find_folder(root)
    asked = contest.read_asked_points(folder.test_points, 7).names
    outside = shutil.copy(folder.test_images / asked[1], tmp_path / "outside.jpg")
    for name in asked[:2]:
        (folder.test_images / name).unlink()
    (folder.test_images / asked[1]).symlink_to(outside)
    common = runs["one"], "--data", root, "--device", "cpu", "--out"
    assert tool("submit", *common, tmp_path / "out.csv", "--missing", "mean-shape") == 1
    assert f"test_points.csv, row 3, column file_name: {asked[1]!r} leads out" in (
        capsys.readouterr().err
    )
