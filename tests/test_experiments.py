"""Every experiment runs, by the commands that a user types."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatmap.cli.running import load_experiment
from heatmap.config import DenseUNet
from heatmap.data import contest
from heatmap.data.synthetic.contest import make_contest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("[!_]*.py"))

Tool = Callable[..., int]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset with 971 landmarks: 15 training and 4 test images."""
    root = tmp_path_factory.mktemp("faces") / "contest"
    make_contest(root, count=15, seed=5, test_count=4)
    return root


@pytest.fixture(scope="module")
def trained(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a short training on the tiny dataset."""
    from heatmap.cli.train import main

    run = tmp_path_factory.mktemp("trained") / "run"
    options = ["--model.encoder", "resnet18", "--model.width", "8", "--augment.mirror", "0"]
    arguments = [str(ROOT / "experiments" / "unet.py"), "--out", str(run), *options]
    assert main([*arguments, *short(tiny_contest)]) == 0
    return run


def short(data: Path) -> list[str]:
    """Options for two steps of training on the CPU."""
    return [
        "--data.root", str(data), "--data.workers", "0", "--model.weights", "none",
        "--train.max-steps", "2", "--train.batch", "4", "--train.device", "cpu",
        "--crop.height", "64", "--crop.width", "64", "--wandb.mode", "off",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_trains_evaluates_and_submits(
    experiment: Path, tool: Tool, faces: Path, tmp_path: Path
) -> None:
    run, submission = tmp_path / "run", tmp_path / "submission.csv"
    model = load_experiment(experiment).model
    small = "densenet121" if isinstance(model, DenseUNet) else "tu-test_resnet"
    options = [*short(faces), "--model.encoder", small]
    assert tool("train", experiment, "--out", run, *options) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    assert tool("evaluate", run, "--device", "cpu", "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 3 and scores["mse"] > 0
    assert tool("submit", run, "--out", submission, "--device", "cpu") == 0
    solution = faces / "withheld" / "solution.csv"
    assert contest.score_submission(submission, solution).mse > 0
    assert tool("evaluate", submission, "--solution", solution) == 0


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_docstring_has_its_five_parts(experiment: Path) -> None:
    text = experiment.read_text()
    question, _, rest = text.removeprefix('"""').partition("\n")
    assert question.endswith(("?", "."))
    for word in ("Run ", "Against ", "Cost ", "Outcome "):
        assert f"\n{word}" in rest, word


def test_evaluation_writes_the_scores_of_a_run(trained: Path, tool: Tool) -> None:
    assert tool("evaluate", trained, "--device", "cpu") == 0
    scores = json.loads((trained / "evaluation.json").read_text())
    rows = list(csv.DictReader((trained / "per_image.csv").read_text().splitlines()))
    assert np.mean([float(row["mse"]) for row in rows]) == pytest.approx(scores["mse"], abs=1e-5)
    assert {row["file_name"] for row in rows} == set(
        json.loads((trained / "split.json").read_text())["validation"]
    )
    best = json.loads((trained / "summary.json").read_text())["best_mse"]
    assert scores["mse"] == pytest.approx(best, rel=1e-6)
    assert np.load(trained / "errors.npz")["distance"].shape == (len(rows), 7)


def test_other_data_is_scored_completely_and_separately(
    trained: Path, tool: Tool, tiny_contest: Path, tmp_path: Path
) -> None:
    other = contest.Folder(root=tmp_path / "other")
    other.train_table.parent.mkdir(parents=True)
    mine = contest.Folder(root=tiny_contest)
    other.train_images.symlink_to(mine.train_images)
    table = contest.read_landmarks(mine.train_table)
    contest.write_landmarks(other.train_table, table.names[:5], table.points_image[:5] + 1)
    assert tool("evaluate", trained, "--data", other.root, "--device", "cpu") == 0
    scores = json.loads((trained / "evaluation-other" / "evaluation.json").read_text())
    assert scores["images"] == 5


def test_submission_has_the_requested_names_in_order(
    trained: Path, tool: Tool, tiny_contest: Path, tmp_path: Path
) -> None:
    for rounding in ("round", "truncate", "none"):
        out = tmp_path / f"{rounding}.csv"
        assert tool("submit", trained, "--out", out, "--rounding", rounding, "--device", "cpu") == 0
    asked = contest.read_asked_points(contest.Folder(root=tiny_contest).test_points, 7)
    exact, rounded, cut = (
        contest.read_submission(tmp_path / f"{name}.csv") for name in ("none", "round", "truncate")
    )
    assert exact.names == rounded.names == asked.names
    np.testing.assert_array_equal(np.trunc(exact.points_image), cut.points_image)
    assert np.abs(exact.points_image - rounded.points_image).max() <= 0.5001
    same = asked.indices[:, :, None] == asked.indices[:, None, :]
    for row, first, second in np.argwhere(same):
        np.testing.assert_array_equal(
            exact.points_image[row, first], exact.points_image[row, second]
        )


@pytest.mark.slow
def test_kaggle_facial_keypoints_work_from_conversion_to_submission(
    tool: Tool, kaggle15_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    assert tool("data", "convert", "kaggle15", kaggle15_files, data) == 0
    output = capsys.readouterr().out
    assert "10 training images, 8 with all 15 landmarks" in output
    assert "train with --data.split random" in output
    options = ["--model.encoder", "resnet18", "--model.width", "8", "--augment.mirror", "0.5"]
    experiment = ROOT / "experiments" / "unet.py"
    assert tool("train", experiment, "--out", run, *options, *short(data)) == 0
    answers = {}
    for rounding in ("auto", "round"):
        out = tmp_path / f"{rounding}.csv"
        assert tool("submit", run, "--out", out, "--rounding", rounding, "--device", "cpu") == 0
        answers[rounding] = list(csv.DictReader(out.read_text().splitlines()))
    lookup = (kaggle15_files / "IdLookupTable.csv").read_text().splitlines()
    asked = list(csv.DictReader(lookup))
    for rows in answers.values():
        assert [row["RowId"] for row in rows] == [row["RowId"] for row in asked]
    exact, rounded = (
        np.array([float(row["Location"]) for row in rows]) for rows in answers.values()
    )
    assert exact.min() >= 0 and exact.max() <= 96 and (exact != np.rint(exact)).any()
    np.testing.assert_allclose(rounded, exact, atol=0.5001, rtol=0)
    assert (rounded == np.rint(rounded)).all()

    table = data / "test" / "IdLookupTable.csv"
    table.write_text(table.read_text().replace(",4,nose_tip_x", ",5,nose_tip_x"))
    assert tool("submit", run, "--out", tmp_path / "no.csv", "--device", "cpu") == 1
    assert "no test image 5 (00005.png)" in capsys.readouterr().err
    assert not (tmp_path / "no.csv").exists()


def test_run_on_all_rows_submits_and_is_last_in_the_results(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    everything, fold, bad = (tmp_path / name for name in ("everything", "fold", "bad.csv"))
    bad.write_text("file_name\nada_0.jpg\ncy_2.jpg\n")
    common = (
        "train", ROOT / "experiments" / "unet.py", *short(tiny_contest), "--augment.mirror", "0",
        "--model.encoder", "tu-test_resnet", "--model.width", "8", "--data.exclude", bad,
    )  # fmt: skip
    assert tool(*common, "--out", everything, "--data.validation", "0") == 0
    assert "10 training and 0 validation images, 2 excluded, 7 landmarks" in caplog.text
    assert "split         none, all rows train" in caplog.text
    assert "trained on all rows, without a score" in caplog.text
    folds = ["--data.split", "person", "--data.folds", "4", "--data.fold", "3"]
    assert tool(*common, "--out", fold, *folds) == 0
    assert "by person (fold 3 of 4: 4 people, 1 in validation)" in caplog.text
    assert len(json.loads((fold / "split.json").read_text())["validation"]) == 3

    submission = tmp_path / "submission.csv"
    assert tool("submit", everything, "--out", submission, "--device", "cpu") == 0
    assert contest.read_submission(submission).names == [f"eve_{k}.jpg" for k in range(5)]
    assert tool("evaluate", everything, "--device", "cpu") == 1
    assert "no validation rows" in capsys.readouterr().err
    assert tool("results", everything, fold) == 0
    *_, scored, unscored = capsys.readouterr().out.splitlines()
    assert float(scored.split(" | ")[3].strip("*")) > 0
    assert unscored.split(" | ")[3:5] == ["-", "-"]

    bad.write_text("file_name\nzoe_0.jpg\n")
    assert tool(*common, "--out", tmp_path / "no") == 1
    assert "bad.csv: 1 of 1 image not in " in capsys.readouterr().err
    assert not (tmp_path / "no").exists()

    answers = [everything, submission, tmp_path / "mean.csv"]
    average = ("submit", "--average", *answers[:2], "--weights", "2", "1", "--out", answers[2])
    assert tool(*average, "--rounding", "none") == 0
    assert tool("submit", everything, "--out", tmp_path / "exact.csv", "--rounding", "none") == 0
    whole, mean, exact = (
        contest.read_submission(tmp_path / f"{name}.csv").points_image
        for name in ("submission", "mean", "exact")
    )
    np.testing.assert_allclose(mean, (2 * exact + whole) / 3, atol=1e-3)


def test_unreadable_test_image_stops_or_gets_the_mean_shape(
    trained: Path, tool: Tool, tiny_contest: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    mine, torn = contest.Folder(root=tiny_contest), contest.Folder(root=tmp_path / "torn")
    torn.test_images.mkdir(parents=True)
    torn.test_points.write_bytes(mine.test_points.read_bytes())
    for path in mine.test_images.iterdir():
        content = path.read_bytes()
        (torn.test_images / path.name).write_bytes(
            content[: len(content) // 2] if path.name == "eve_3.jpg" else content
        )
    out = tmp_path / "submission.csv"
    common = ("submit", trained, "--data", torn.root, "--out", out, "--device", "cpu")
    assert tool(*common) == 1
    assert "eve_3.jpg" in capsys.readouterr().err and not out.exists()
    assert tool(*common, "--missing", "mean-shape") == 0
    assert "eve_3.jpg" in caplog.text
    assert contest.read_submission(out).names == [f"eve_{k}.jpg" for k in range(5)]


def test_predictions_are_drawn_on_test_images(
    trained: Path, tool: Tool, tiny_contest: Path, faces: Path, tmp_path: Path
) -> None:
    for data, count, shown in ((tiny_contest, 3, 3), (faces, 9, 4)):
        out = tmp_path / f"{count}.png"
        common = ("predict", trained, "--data", data, "--test", "--out", out, "--device", "cpu")
        assert tool(*common, "--count", count) == 0
        assert cv2.imread(str(out)).shape == (256, shown * 196 - 4, 3)


def test_wrong_usage_is_explained(
    trained: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("evaluate", tmp_path / "nothing") == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert tool("evaluate", trained, "--solution", tmp_path / "solution.csv") == 2
    assert "it takes no --solution" in capsys.readouterr().err
    assert tool("submit", trained, "--roundin", "none") == 2
    assert "--rounding" in capsys.readouterr().err
    assert tool("results", trained) == 0
    assert "| unet | UNet resnet18" in capsys.readouterr().out
    assert tool("results", tmp_path) == 1
    assert "not a run (no config.json)" in capsys.readouterr().err


def test_other_number_of_landmarks_is_refused(
    trained: Path, tool: Tool, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "submission.csv"
    assert tool("submit", trained, "--data", faces, "--out", out, "--device", "cpu") == 1
    assert "971 landmarks" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nothing_here", "ModuleNotFoundError"),
        ("EXPERIMENT = 1 +", "SyntaxError"),
        ("from heatmap.config import Train\nEXPERIMENT = Train(epoch=3)", "epoch"),
        (
            "from heatmap.config import Train\nEXPERIMENT = Train(precision='fp16')",
            "broken.py: train.precision must be fp32 or bf16, not 'fp16'; did you mean",
        ),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("x = 1", "no EXPERIMENT"),
    ],
)
def test_broken_experiment_file_is_named(
    content: str, words: str, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content)
    assert tool("train", file) == 2
    message = capsys.readouterr().err
    assert str(file) in message and words in message


def test_negative_seed_is_a_usage_error(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("train", ROOT / "experiments" / "unet.py", "--seed", "-1") == 2
    assert "seed must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.encoder", "resnet35"], "unknown encoder 'resnet35'; did you mean"),
        (["--model.encoder", "tu-resnet35"], "model.encoder 'tu-resnet35'"),
        (["--data.folds", "100"], "would be empty; use fewer folds"),
        (["--data.split", "person", "--data.person-pattern", "("], "the person pattern"),
        (["--crop.rule", "box"], "pass --data.boxes"),
    ],
)
def test_wrong_usage_that_is_found_late_has_its_exit_code(
    options: list[str], message: str, tool: Tool, tiny_contest: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    experiment, run = ROOT / "experiments" / "unet.py", tmp_path / "run"
    common = [*short(tiny_contest), "--augment.mirror", "0"]
    assert tool("train", experiment, "--out", run, *common, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not run.exists()


def test_validation_without_labels_is_refused_before_training(
    tool: Tool, tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank, mine = contest.Folder(root=tmp_path / "blank"), contest.Folder(root=tiny_contest)
    blank.train_table.parent.mkdir(parents=True)
    blank.train_images.symlink_to(mine.train_images)
    table = contest.read_landmarks(mine.train_table)
    points = table.points_image[:]
    points[9:] = np.nan
    contest.write_landmarks(blank.train_table, table.names, points)
    run, options = tmp_path / "run", ["--data.split", "order", "--augment.mirror", "0"]
    experiment = ROOT / "experiments" / "baseline.py"
    assert tool("train", experiment, "--out", run, *short(blank.root), *options) == 1
    assert "3 validation rows" in capsys.readouterr().err and not run.exists()
