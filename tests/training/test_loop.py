import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    ENCODER,
    STEPS_AN_EPOCH,
    changed,
    contest_of_faces,
    progress_of,
    trained,
    weights_of,
    without_times,
)

from heatmap import config
from heatmap.config import (
    Augment,
    Crop,
    Data,
    Direct,
    Experiment,
    Optimizer,
    Schedule,
    Train,
    UNet,
)
from heatmap.data import augment
from heatmap.data.contest import Folder
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import View, predict
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.training import loop
from heatmap.training.prepare import prepare


def test_max_steps_ends_the_run_inside_an_epoch(tiny: Experiment, tmp_path: Path) -> None:
    steps = STEPS_AN_EPOCH + 1
    run = trained(replace(tiny, train=replace(tiny.train, epochs=9, max_steps=steps)), tmp_path)
    assert run.progress.step == steps
    assert [row["step"] for row in read_metrics(tmp_path)] == [STEPS_AN_EPOCH, steps]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (steps, 2)


def test_a_log_without_a_bar_shows_that_the_first_epoch_goes_on(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "LOG_EVERY", 0.0)
    with caplog.at_level("INFO", "heatmap"):
        trained(replace(tiny, train=replace(tiny.train, epochs=2)), tmp_path)
    lines = [line for line in caplog.messages if line.endswith("of the first epoch")]
    assert lines[0] == f"batch 1 of {STEPS_AN_EPOCH} of the first epoch"
    assert len(lines) == STEPS_AN_EPOCH


@pytest.mark.slow
@pytest.mark.parametrize("validation_seconds", [3, 12, 30])
def test_max_minutes_ends_the_run_with_the_rate_annealed(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation_seconds: int
) -> None:
    """On a fake clock a step takes 3 s and a validation `validation_seconds`."""
    clock = SimpleNamespace(now=1e6)
    for module in (loop, checkpoint):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            clock.now += seconds
            return function(*arguments, **options)

        return slow

    monkeypatch.setattr(augment, "sample_changes", taking(3, augment.sample_changes))
    monkeypatch.setattr(
        metrics, "measure_errors", taking(validation_seconds, metrics.measure_errors)
    )
    settings = replace(tiny.train, epochs=1000, max_minutes=3)
    trained(replace(tiny, schedule=Schedule(kind="cosine"), train=settings), tmp_path)
    assert clock.now - 1e6 == pytest.approx(180, abs=12)
    rows = read_metrics(tmp_path)
    assert rows[-1]["lr"] < 0.03 * tiny.optimizer.lr
    assert max(row["lr"] for row in rows) > 0.8 * tiny.optimizer.lr
    minutes = json.loads((tmp_path / "summary.json").read_text())["minutes"]
    assert minutes == pytest.approx((clock.now - 1e6) / 60, abs=0.02)


def scripted_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Makes successive validations return these scores."""
    remaining, summary = iter(scores), metrics.summary
    monkeypatch.setattr(metrics, "summary", lambda e: summary(e) | {"mse": next(remaining)})


def test_patience_ends_the_run_and_keeps_the_best_checkpoint(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_scores(monkeypatch, [5, 4, 4.5, 4, 3])
    trained(replace(tiny, train=replace(tiny.train, epochs=9, patience=2)), tmp_path)
    assert [row["val/mse"] for row in read_metrics(tmp_path)] == [5, 4, 4.5, 4]
    assert checkpoint.load(tmp_path / "best.pt").validation_mse == 4
    assert progress_of(tmp_path / "last.pt")["epoch"] == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["best_epoch"], summary["best_mse"], summary["epochs"]) == (2, 4, 4)


@pytest.mark.slow
def test_a_direct_network_trains_in_the_same_loop(tiny: Experiment, tmp_path: Path) -> None:
    direct = replace(tiny, model=Direct(encoder=ENCODER, weights="none"), augment=Augment())
    trained(replace(direct, train=replace(tiny.train, epochs=12)), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert "val/peak" not in rows[-1]
    scores = metrics.evaluate_run(Ensemble.load([tmp_path]), None, torch.device("cpu")).scores
    assert scores["mse"] == min(row["val/mse"] for row in rows)


@pytest.mark.slow
def test_the_best_checkpoint_belongs_to_the_best_row(tiny: Experiment, tmp_path: Path) -> None:
    trained(replace(tiny, train=replace(tiny.train, epochs=5)), tmp_path)
    rows = read_metrics(tmp_path)
    best = min(rows, key=lambda row: row["val/mse"])
    by_training = (tmp_path / "per_image.csv").read_bytes()
    scores = metrics.evaluate_run(Ensemble.load([tmp_path]), None, torch.device("cpu")).scores
    assert scores["mse"] == best["val/mse"]
    assert scores["nme_percent"] == best["val/nme_percent"]
    assert (tmp_path / "per_image.csv").read_bytes() == by_training
    assert checkpoint.load_trained(tmp_path).validation_mse == best["val/mse"]
    last = metrics.evaluate_run(Ensemble.load([tmp_path / "last.pt"]), None, torch.device("cpu"))
    assert last.scores["mse"] == rows[-1]["val/mse"]
    assert last.folder == tmp_path / "evaluation-last"


def test_the_run_folder_holds_config_and_split(tiny: Experiment, tmp_path: Path) -> None:
    experiment = replace(tiny, data=replace(tiny.data, split="person"))
    run = trained(experiment, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert config.from_dict(Experiment, values) == experiment
    split = json.loads((tmp_path / "split.json").read_text())
    assert split["rule"].startswith("by person (4 people, ")
    assert split["validation"] == [run.data.table.names[row] for row in run.data.validation_rows]
    assert split["table"] == checkpoint.load(tmp_path / "last.pt").table_hash
    people = [{run.data.table.names[row].split("_")[0] for row in rows}
              for rows in (run.data.training_rows, run.data.validation_rows)]  # fmt: skip
    assert not people[0] & people[1]
    assert checkpoint.load(tmp_path / "last.pt").validation_rows.tolist() == list(
        run.data.validation_rows
    )


@pytest.mark.parametrize("kind", ["heatmaps", "direct"])
def test_a_run_on_all_rows_has_no_scores_and_its_best_state_is_the_last(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO", "heatmap")
    model = tiny.model if kind == "heatmaps" else Direct(encoder=ENCODER, weights="none")
    settings = replace(tiny.train, max_steps=8)  # ends inside the second epoch
    data = replace(tiny.data, validation=0)
    run = prepare(replace(tiny, data=data, model=model, train=settings))
    summary = loop.train(run, tmp_path)
    assert run.data.training_rows.tolist() == list(range(12))
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert not any(name.startswith("val/") for row in rows for name in row)
    assert not (tmp_path / "images").exists()
    assert "val MSE" not in caplog.text and "nan" not in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    scores = summary["best_mse"], summary["mean_shape_mse"], summary["best_epoch"]
    assert scores == (None, None, 2)
    for path in tmp_path.glob("*.json*"):
        assert not {"NaN", "Infinity"} & set(path.read_text().replace(",", " ").split()), path
    assert not changed(weights_of(tmp_path / "best.pt"), weights_of(tmp_path / "last.pt"))
    assert progress_of(tmp_path / "last.pt")["step"] == 8


def test_a_run_on_all_rows_that_is_resumed_ends_with_the_same_weights(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    settings = replace(tiny.train, epochs=3)
    experiment = replace(tiny, data=replace(tiny.data, validation=0), train=settings)
    trained(experiment, tmp_path / "whole")
    saved = checkpoint.load(tmp_path / "whole" / "state-1.pt")
    loop.train(prepare(config.from_dict(Experiment, saved.config), saved), tmp_path / "again")
    for name in ("best.pt", "last.pt"):
        whole, resumed = (weights_of(tmp_path / folder / name) for folder in ("whole", "again"))
        assert not changed(whole, resumed)
    assert without_times(tmp_path / "again") == without_times(tmp_path / "whole")[1:]


def test_a_run_on_all_rows_can_only_be_scored_on_other_data(
    tiny: Experiment, tmp_path: Path, tiny_contest: Path
) -> None:
    cpu = torch.device("cpu")
    trained(replace(tiny, data=replace(tiny.data, validation=0)), tmp_path / "run")
    for data in (None, tiny_contest):
        with pytest.raises(ValueError, match=r"run/best\.pt: .*no validation rows.*--data"):
            metrics.evaluate_run(Ensemble.load([tmp_path / "run"]), data, cpu)
    other = contest_of_faces(tmp_path / "other", 4, 1, slice(7))
    scores = metrics.evaluate_run(Ensemble.load([tmp_path / "run"]), other.root, cpu).scores
    assert scores["images"] == 5 and scores["mse"] > 0


def test_excluded_images_still_validate(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("file_name,why\nada_1.jpg,blurred\ndee_2.jpg,two faces\nbo_0.jpg,\n")
    experiment = replace(tiny, data=replace(tiny.data, exclude=bad))
    run = trained(experiment, tmp_path / "whole")
    assert run.data.training_rows.tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert run.data.validation_rows.tolist() == [9, 10, 11]  # the last is dee_2
    split = json.loads((tmp_path / "whole" / "split.json").read_text())
    assert split["excluded"] == ["ada_1.jpg", "bo_0.jpg"]
    assert split["validation"] == ["dee_0.jpg", "dee_1.jpg", "dee_2.jpg"]

    bad.write_text("file_name\ncy_0.jpg\n")  # a resumed run keeps the rows of its start
    saved = checkpoint.load(tmp_path / "whole" / "state-1.pt")
    resumed = prepare(config.from_dict(Experiment, saved.config), saved)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "whole" / "best.pt", tmp_path / "again")
    loop.train(resumed, tmp_path / "again")
    assert resumed.data.training_rows.tolist() == run.data.training_rows.tolist()
    paths = (tmp_path / folder / "last.pt" for folder in ("whole", "again"))
    whole, again = (weights_of(path) for path in paths)
    assert not changed(whole, again)

    bad.write_text("\n".join(["file_name", *run.data.table.names]))
    with pytest.raises(ValueError, match=r"none of the 0 training rows .*data\.exclude"):
        prepare(experiment)


def test_an_exploding_learning_rate_leaves_a_checkpoint_that_loads(
    tiny: Experiment, tmp_path: Path
) -> None:
    experiment = replace(
        tiny,
        optimizer=Optimizer(kind="sgd", lr=1e9),
        schedule=Schedule(kind="constant", warmup=0),
        train=replace(tiny.train, checkpoint_minutes=0),
    )
    with pytest.raises(ValueError, match=r"Images: .*\.jpg.*lower optimizer\.lr"):
        trained(experiment, tmp_path)
    checkpoint.load(tmp_path / "last.pt")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run_and_is_named(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    torn = Folder(root=tmp_path / "contest")
    torn.train_images.mkdir(parents=True)
    original = Folder(root=tiny.data.root)
    torn.train_table.write_bytes(original.train_table.read_bytes())
    for path in original.train_images.iterdir():
        content = path.read_bytes()
        cut = len(content) // 2 if path.name == "bo_1.jpg" else None
        (torn.train_images / path.name).write_bytes(content[:cut])
    # the mean shape reads all images of so small a contest, long before the first step
    monkeypatch.setattr("heatmap.data.samples.mean_shape_crop", lambda *_: np.zeros((7, 2)))
    run = prepare(replace(tiny, data=replace(tiny.data, root=torn.root, workers=workers)))
    with pytest.raises(ValueError, match=r"bo_1\.jpg: the image cannot be decoded") as caught:
        loop.train(run, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_eight_drawn_faces_are_memorised(tiny: Experiment, tmp_path: Path) -> None:
    contest = contest_of_faces(tmp_path / "faces", 8, 10, slice(None, None, 10))
    experiment = replace(
        tiny,
        data=Data(root=contest.root, split="order", validation=0.01, workers=0),
        crop=Crop(height=64, width=64, rule="contain"),
        augment=Augment(),
        model=UNet(encoder=ENCODER, weights="none", stride=4, width=64),
        optimizer=Optimizer(lr=3e-3, weight_decay=0),
        train=Train(epochs=20, batch=8, device="cpu"),
    )
    run = trained(experiment, tmp_path / "run")
    rows = run.data.training_rows[::10]
    view = View(run.network, run.data.validation)
    prediction = next(predict([view], rows, batch=8, workers=0))
    points_crop, truth_crop = (
        prediction.frame.to_crop(torch.from_numpy(points)).numpy()
        for points in (prediction.points_image, run.data.table.points_image[rows])
    )
    distance = np.linalg.norm(points_crop - truth_crop, axis=-1) / experiment.model.stride
    assert distance.shape == (8, 98)
    assert distance.mean() < 0.1


def test_what_a_killed_process_was_writing_is_removed(tiny: Experiment, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    for name in (".645-last.pt", "predictions/.645-07-21.jpg"):
        (tmp_path / name).touch()
    trained(tiny, tmp_path)
    assert not [*tmp_path.rglob(".[0-9]*")]
