import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heatmap import config
from heatmap.config import (
    FROZEN_ENCODER,
    Augment,
    Crop,
    Data,
    Direct,
    Experiment,
    Optimizer,
    Schedule,
    Stage,
    Train,
    UNet,
    Wandb,
)
from heatmap.data import augment
from heatmap.data.contest import Folder, read_landmarks, write_landmarks
from heatmap.data.samples import load, shuffled_batches
from heatmap.data.synthetic import draw_face
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import Execution, View, predict
from heatmap.networks import HeatmapNetwork
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import loop
from heatmap.training.prepare import Run, prepare
from heatmap.training.schedule import adapted_sigma, learning_rate

NUM_TRAINING, BATCH = 9, 2
STEPS_AN_EPOCH = NUM_TRAINING // BATCH

ENCODER = "tu-test_resnet"
HEAD_ALONE = replace(FROZEN_ENCODER, decoder=0)


@pytest.fixture
def tiny(tiny_contest: Path) -> Experiment:
    """An experiment of an instant, but for real: 9 images to train on, 3 to validate."""
    return Experiment(
        name="tiny",
        data=Data(root=tiny_contest, split="order", validation=0.25, workers=0),
        crop=Crop(height=32, width=48),
        augment=Augment(rotate_deg=10, scale=0.1, brightness=0.1),
        model=UNet(encoder=ENCODER, weights="none", width=6),
        train=Train(epochs=2, batch=BATCH, device="cpu"),
        wandb=Wandb(mode="off"),
    )


@pytest.fixture
def every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps each last.pt, with the state after epoch N, as state-N.pt beside it."""
    save = checkpoint.save

    def keeping(path: Path, saved: checkpoint.Checkpoint) -> None:
        save(path, saved)
        if saved.state:
            shutil.copy(path, path.with_name(f"state-{saved.state.progress['epoch']}.pt"))

    monkeypatch.setattr(checkpoint, "save", keeping)


def progress_of(path: Path) -> dict[str, Any]:
    state = checkpoint.load(path).state
    assert state
    return state.progress


def trained(experiment: Experiment, folder: Path) -> Run:
    run = prepare(experiment)
    loop.train(run, folder)
    return run


# ------------------------------------------------------------------------------ learning rate


def rates(schedule: Schedule, epoch: int = 0) -> np.ndarray:
    """At every hundredth of the budget."""
    return np.array([learning_rate(schedule, i / 100, epoch=epoch) for i in range(101)])


def test_cosine_rises_to_the_top_and_falls_to_zero() -> None:
    factors = rates(Schedule(kind="cosine", warmup=0.2))
    np.testing.assert_allclose(factors[:21], np.arange(21) / 20, atol=1e-12)
    assert (np.diff(factors[20:]) < 0).all()
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate(Schedule(kind="cosine"), 1.3) == pytest.approx(0, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_top_rate() -> None:
    for kind in ("cosine", "step", "constant"):
        assert learning_rate(Schedule(kind=kind, warmup=0), 0) == 1


def test_step_multiplies_after_every_epoch() -> None:
    schedule = Schedule(kind="step", warmup=0, gamma=0.3)
    for epoch in range(4):
        np.testing.assert_allclose(rates(schedule, epoch), 0.3**epoch)


def test_constant_stays() -> None:
    assert (rates(Schedule(kind="constant", warmup=0), 7) == 1).all()
    assert (rates(Schedule(kind="constant", warmup=0.5))[50:] == 1).all()


def test_the_optimizer_gets_the_scheduled_rate(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step = [], torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    schedule = Schedule(kind="cosine", warmup=0.5)
    optimizer = Optimizer(kind="sgd", lr=0.02)
    run = trained(replace(tiny, schedule=schedule, optimizer=optimizer), tmp_path)
    assert run.total_steps == 2 * STEPS_AN_EPOCH == len(seen)
    expected = [[0.02 * learning_rate(schedule, i / len(seen))] for i in range(len(seen))]
    np.testing.assert_allclose(seen, np.broadcast_to(expected, (len(seen), 7)))
    assert [row["lr"] for row in read_metrics(tmp_path)] == [seen[3][0], seen[7][0]]


# ------------------------------------------------------------------------------------- budgets


def test_max_steps_ends_the_run_inside_an_epoch(tiny: Experiment, tmp_path: Path) -> None:
    steps = STEPS_AN_EPOCH + 1
    run = trained(replace(tiny, train=replace(tiny.train, epochs=9, max_steps=steps)), tmp_path)
    assert run.progress.step == steps
    assert [row["step"] for row in read_metrics(tmp_path)] == [STEPS_AN_EPOCH, steps]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (steps, 2)


@pytest.mark.slow
@pytest.mark.parametrize("validation_seconds", [3, 12, 30])
def test_minutes_end_the_run_with_the_rate_annealed(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation_seconds: int
) -> None:
    """A step takes three seconds on a clock of our own, a validation some."""
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            clock.now += seconds
            return function(*arguments, **options)

        return slow

    monkeypatch.setattr(augment, "draw", taking(3, augment.sample_changes))
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
    """The validations find these errors, one after the other."""
    remaining, summary = iter(scores), metrics.summary
    monkeypatch.setattr(metrics, "summary", lambda e: summary(e) | {"mse": next(remaining)})


def test_patience_ends_the_run_and_the_best_stays(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_scores(monkeypatch, [5, 4, 4.5, 4, 3])
    trained(replace(tiny, train=replace(tiny.train, epochs=9, patience=2)), tmp_path)
    assert [row["val/mse"] for row in read_metrics(tmp_path)] == [5, 4, 4.5, 4]
    assert checkpoint.load(tmp_path / "best.pt").validation_mse == 4
    assert progress_of(tmp_path / "last.pt")["epoch"] == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["best_epoch"], summary["best_mse"], summary["epochs"]) == (2, 4, 4)


# ---------------------------------------------------------------------------- what a step does


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_gradients_are_clipped_to_the_norm_asked_for(
    tiny: Experiment, tmp_path: Path, clip_norm: float | None
) -> None:
    experiment = replace(
        tiny,
        optimizer=Optimizer(kind="sgd", lr=1, momentum=0, weight_decay=0, clip_norm=clip_norm),
        schedule=Schedule(kind="constant", warmup=0),
        train=replace(tiny.train, max_steps=1),
    )
    run = prepare(experiment)
    before = [p.detach().clone() for p in run.network.parameters()]
    loop.train(run, tmp_path)
    moved = [p.detach() - b for p, b in zip(run.network.parameters(), before, strict=True)]
    length = math.sqrt(sum(float(m.double().square().sum()) for m in moved))
    if clip_norm:
        assert length == pytest.approx(clip_norm, rel=1e-3)
    else:
        assert length > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_every_optimizer_brings_the_loss_down(tiny: Experiment, tmp_path: Path, kind: str) -> None:
    lr = 0.02 if kind == "sgd" else 2e-3
    trained(replace(tiny, optimizer=Optimizer(kind=kind, lr=lr)), tmp_path)
    first, last = read_metrics(tmp_path)
    assert last["train/loss"] < 0.9 * first["train/loss"]


def gradients_of_a_step(experiment: Experiment) -> list[torch.Tensor]:
    """Of the first training batch, with the network's running statistics instead of the batch's."""
    run = prepare(experiment)
    run.network.eval()
    batches = shuffled_batches(run.training_rows, experiment.train.batch, 0, 0)
    sample = next(iter(load(run.training, batches[:1], 0, run.device)))
    loop.step(run, run.network, sample, Stopwatch(run.device), time.monotonic())
    return [p.grad for p in run.network.parameters() if p.grad is not None]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny: Experiment) -> None:
    whole, parts = (
        gradients_of_a_step(replace(tiny, train=replace(tiny.train, batch=6, accumulate=count)))
        for count in (1, 3)
    )
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


DIRECT = Direct(encoder=ENCODER, weights="none")
ON_COORDINATES = UNet(
    encoder=ENCODER, weights="none", width=6, loss="none", coordinate_loss="mse", decoder="softmax"
)


@pytest.mark.parametrize(
    ("model", "power"),
    [
        (DIRECT, 1.0),
        (replace(DIRECT, loss="mae"), 0.5),
        (UNet(encoder=ENCODER, weights="none", width=6), 1.0),
        (ON_COORDINATES, 1.0),
        (replace(ON_COORDINATES, coordinate_loss="mae"), 0.5),
        (replace(ON_COORDINATES, coordinate_loss="smooth_l1"), 0.5),
        (replace(ON_COORDINATES, coordinate_loss="wing"), 0.5),
    ],
)
def test_pixel_weights_make_errors_count_in_the_images_own_pixels(
    tiny: Experiment, model: config.Model, power: float
) -> None:
    """Against the gradient of one image without them: a crop pixel has an area and a side."""
    plain = replace(tiny, augment=Augment(), model=model, train=replace(tiny.train, batch=1))
    weighted = replace(plain, train=replace(plain.train, pixel_weights=True))
    run = prepare(plain)
    image_from_crop = run.validation[shuffled_batches(run.training_rows, 1, 0, 0)[0][0]][1]
    area = (image_from_crop[0, 0] * image_from_crop[1, 1]).item()
    assert abs(area - 1) > 0.1
    for one, other in zip(*map(gradients_of_a_step, (plain, weighted)), strict=True):
        expected = area**power * one
        assert torch.allclose(other, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_the_row_holds_the_mean_loss_of_its_epoch(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, loss = [], HeatmapNetwork.loss

    def spy(self: HeatmapNetwork, *arguments: Any) -> torch.Tensor:
        value = loss(self, *arguments)
        losses.append(value.item())
        return value

    monkeypatch.setattr(HeatmapNetwork, "loss", spy)
    trained(tiny, tmp_path)
    means = np.reshape(losses, (2, STEPS_AN_EPOCH)).mean(1)
    found = [row["train/loss"] for row in read_metrics(tmp_path)]
    np.testing.assert_allclose(found, means, rtol=1e-12)


def test_bf16_is_for_the_network_alone(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, losses, loss = set(), set(), HeatmapNetwork.loss

    def spy(self: HeatmapNetwork, output: Any, *arguments: Any) -> torch.Tensor:
        value = loss(self, output, *arguments)
        features.add(output.features.dtype)
        losses.add(value.dtype)
        return value

    monkeypatch.setattr(HeatmapNetwork, "loss", spy)
    run = trained(replace(tiny, train=replace(tiny.train, precision="bf16")), tmp_path)
    assert (features, losses) == ({torch.bfloat16}, {torch.float32})
    assert {p.dtype for p in run.network.parameters()} == {torch.float32}
    first, last = read_metrics(tmp_path)
    assert last["train/loss"] < first["train/loss"]
    assert math.isfinite(last["val/mse"])


@pytest.mark.slow
def test_the_direct_road_takes_the_same_loop(tiny: Experiment, tmp_path: Path) -> None:
    direct = replace(tiny, model=Direct(encoder=ENCODER, weights="none"), augment=Augment())
    trained(replace(direct, train=replace(tiny.train, epochs=12)), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert "val/peak" not in rows[-1]
    scores = metrics.evaluate_run(Ensemble.load([tmp_path]), None, torch.device("cpu")).scores
    assert scores["mse"] == min(row["val/mse"] for row in rows)


# ------------------------------------------------------------------------------- what it stores


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


def test_the_run_folder_says_what_was_run_and_on_which_split(
    tiny: Experiment, tmp_path: Path
) -> None:
    experiment = replace(tiny, data=replace(tiny.data, split="person"))
    run = trained(experiment, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert config.from_dict(Experiment, values) == experiment
    split = json.loads((tmp_path / "split.json").read_text())
    assert split["rule"].startswith("by person (4 people, ")
    assert split["validation"] == [run.table.names[row] for row in run.validation_rows]
    assert split["table"] == checkpoint.load(tmp_path / "last.pt").table_hash
    people = [{run.table.names[row].split("_")[0] for row in rows}
              for rows in (run.training_rows, run.validation_rows)]  # fmt: skip
    assert not people[0] & people[1]
    assert checkpoint.load(tmp_path / "last.pt").validation_rows.tolist() == list(
        run.validation_rows
    )


def test_a_row_tells_the_share_of_time_in_each_part(tiny: Experiment, tmp_path: Path) -> None:
    trained(tiny, tmp_path)
    for row in read_metrics(tmp_path):
        shares = [row[f"time/{part}"] for part in ("data", "augment", "network", "loss", "decode")]
        assert min(shares) > 0
        assert sum(shares) <= 1
        assert row["time/seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4]), (2, [1, 3, 4]), (9, [1, 4])])
def test_predictions_are_drawn_every_few_epochs_and_at_the_end(
    tiny: Experiment, tmp_path: Path, every: int, expected: list[int]
) -> None:
    settings = replace(tiny.train, epochs=4)
    wandb = Wandb(mode="off", images_every=every)
    trained(replace(tiny, train=settings, wandb=wandb), tmp_path)
    images = sorted((tmp_path / "images").glob("*.jpg"))
    steps = [int(path.stem.rpartition("_")[2]) for path in images]
    assert steps == [STEPS_AN_EPOCH * epoch for epoch in expected]
    assert cv2.imread(str(images[0])).std() > 10


def test_the_best_networks_worst_images_are_kept_with_their_numbers(
    tiny: Experiment, tiny_contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 15 landmarks, which have groups."""
    own, root = Folder(root=tiny_contest), Folder(root=tmp_path / "data")
    root.train_table.parent.mkdir(parents=True)
    root.train_images.symlink_to(own.train_images)
    table = read_landmarks(own.train_table)
    points = np.concatenate([table.points_image[:] + shift for shift in (0, 5, 9)], 1)
    write_landmarks(root.train_table, table.names, points[:, :15])
    monkeypatch.setattr(loop, "NUM_WORST", 2)
    monkeypatch.setattr(loop, "NUM_OTHERS", 2)
    data = replace(tiny.data, root=root.root, validation=0.5)
    model = replace(tiny.model, encoder=ENCODER, width=15)
    trained(replace(tiny, data=data, model=model), tmp_path / "day 1")

    names, columns = read_per_image(tmp_path / "day 1" / "per_image.csv")
    best = min(read_metrics(tmp_path / "day 1"), key=lambda row: row["val/mse"])
    for group in ("eyes", "brows", "nose", "mouth"):
        assert best[f"val/mse/{group}"] == pytest.approx(np.nanmean(columns[f"mse {group}"]))
    kept = json.loads((tmp_path / "day 1" / "predictions" / "table.json").read_text())
    assert kept["columns"][:4] == ["image", "file_name", "mse", "nme"]
    assert kept["step"] == read_metrics(tmp_path / "day 1")[-1]["step"]
    order = sorted(zip(columns["mse"].tolist(), names, strict=True), reverse=True)
    assert [(row[2], row[1]) for row in kept["rows"]] == [order[i] for i in (0, 1, 2, -1)]
    for row in kept["rows"]:
        assert cv2.imread(str(tmp_path / "day 1" / "predictions" / row[0])).std() > 10
    about = json.loads((tmp_path / "day 1" / "wandb.json").read_text())
    assert about["tags"] == ["UNet", ENCODER, "15 landmarks", "data"]
    assert (about["group"], about["name"]) == ("tiny", "tiny-day 1")


# --------------------------------------------------------------------------- all rows, fewer rows


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k[:5] != "time/"} for row in read_metrics(folder)]


@pytest.mark.parametrize("road", ["heatmaps", "direct"])
def test_a_run_on_all_rows_has_no_scores_and_its_best_state_is_the_last(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture, road: str
) -> None:
    caplog.set_level("INFO", "heatmap")
    model = tiny.model if road == "heatmaps" else Direct(encoder=ENCODER, weights="none")
    settings = replace(tiny.train, max_steps=8)  # ends inside the second epoch
    data = replace(tiny.data, validation=0)
    run = prepare(replace(tiny, data=data, model=model, train=settings))
    summary = loop.train(run, tmp_path)
    assert run.training_rows.tolist() == list(range(12))
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert not any(name.startswith("val/") for row in rows for name in row)
    assert not (tmp_path / "images").exists()
    assert "val MSE" not in caplog.text and "nan" not in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["best_mse"], summary["mean_shape_mse"], summary["best_epoch"]) == (
        None,
        None,
        2,
    )
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


def test_a_run_on_all_rows_is_scored_on_other_data_only(
    tiny: Experiment, tmp_path: Path, tiny_contest: Path
) -> None:
    cpu = torch.device("cpu")
    trained(replace(tiny, data=replace(tiny.data, validation=0)), tmp_path / "run")
    for data in (None, tiny_contest):
        with pytest.raises(ValueError, match=r"run/best\.pt: .*no validation rows.* --data"):
            metrics.evaluate_run(Ensemble.load([tmp_path / "run"]), data, cpu)
    other = contest_of_faces(tmp_path / "other", 4, 1, slice(7))
    scores = metrics.evaluate_run(Ensemble.load([tmp_path / "run"]), other.root, cpu).scores
    assert scores["images"] == 5 and scores["mse"] > 0


def test_what_is_excluded_is_not_trained_on_but_still_validates(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("file_name,why\nada_1.jpg,blurred\ndee_2.jpg,two faces\nbo_0.jpg,\n")
    experiment = replace(tiny, data=replace(tiny.data, exclude=bad))
    run = trained(experiment, tmp_path / "whole")
    assert run.training_rows.tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert run.validation_rows.tolist() == [9, 10, 11]  # the last is dee_2
    split = json.loads((tmp_path / "whole" / "split.json").read_text())
    assert split["excluded"] == ["ada_1.jpg", "bo_0.jpg"]
    assert split["validation"] == ["dee_0.jpg", "dee_1.jpg", "dee_2.jpg"]

    bad.write_text("file_name\ncy_0.jpg\n")  # a resumed run keeps the rows of its start
    saved = checkpoint.load(tmp_path / "whole" / "state-1.pt")
    resumed = prepare(config.from_dict(Experiment, saved.config), saved)
    loop.train(resumed, tmp_path / "again")
    assert resumed.training_rows.tolist() == run.training_rows.tolist()
    paths = (tmp_path / folder / "last.pt" for folder in ("whole", "again"))
    whole, again = (weights_of(path) for path in paths)
    assert not changed(whole, again)

    bad.write_text("\n".join(["file_name", *run.table.names]))
    with pytest.raises(ValueError, match=r"none of the 0 training rows .*data\.exclude"):
        prepare(experiment)


# --------------------------------------------------------------------------- when things go wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_image(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = HeatmapNetwork.forward, []

    def forward_with_a_hole(self: HeatmapNetwork, images: torch.Tensor) -> Any:
        output = forward(self, images)
        calls.append(len(images))
        if len(calls) < 3:
            return output
        hole = torch.zeros_like(output.features)
        hole[1, :, 2, 3] = torch.nan
        return output._replace(features=output.features + hole)

    monkeypatch.setattr(HeatmapNetwork, "forward", forward_with_a_hole)
    run = prepare(tiny)
    with pytest.raises(ValueError, match=r"step 3 .*the loss is nan") as caught:
        loop.train(run, tmp_path)
    innocent, offender = shuffled_batches(run.training_rows, BATCH, 0, 0)[2]
    assert run.table.names[offender] in str(caught.value)
    assert run.table.names[innocent] not in str(caught.value)
    assert progress_of(tmp_path / "last.pt")["step"] < 3
    assert not (tmp_path / "summary.json").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = HeatmapNetwork.loss

    def steep(self: HeatmapNetwork, *arguments: Any) -> torch.Tensor:
        value = loss(self, *arguments)
        return value + (self.bias.sum() - self.bias.sum().detach()) * 1e38 * 1e38

    monkeypatch.setattr(HeatmapNetwork, "loss", steep)
    run = prepare(tiny)
    before = {name: tensor.clone() for name, tensor in run.network.named_parameters()}
    with pytest.raises(ValueError, match=r"the gradient's norm (inf|nan)") as caught:
        loop.train(run, tmp_path)
    for row in shuffled_batches(run.training_rows, BATCH, 0, 0)[0]:
        assert run.table.names[row] in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in run.network.named_parameters())


def test_an_exploding_learning_rate_leaves_a_checkpoint_that_loads(
    tiny: Experiment, tmp_path: Path
) -> None:
    experiment = replace(
        tiny,
        optimizer=Optimizer(kind="sgd", lr=1e25),
        schedule=Schedule(kind="constant", warmup=0),
        train=replace(tiny.train, checkpoint_minutes=0),
    )
    with pytest.raises(ValueError, match=r"Images: .*\.jpg.*lower optimizer\.lr"):
        trained(experiment, tmp_path)
    checkpoint.load(tmp_path / "last.pt")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf 80 GiB ..."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_running_out_of_memory_says_what_to_change(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_large(*_: Any) -> None:
        raise error

    run = prepare(tiny)
    monkeypatch.setattr(HeatmapNetwork, "layers", too_large)
    with pytest.raises(
        ValueError, match=r"cpu has too little memory .*--train\.accumulate .*--model\.stride"
    ) as caught:
        loop.train(run, tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(HeatmapNetwork, "layers", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        loop.trial(run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_image_that_cannot_be_read_stops_the_run_by_its_name(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    here = Folder(root=tmp_path / "contest")
    here.train_images.mkdir(parents=True)
    there = Folder(root=tiny.data.root)
    here.train_table.write_bytes(there.train_table.read_bytes())
    for path in there.train_images.iterdir():
        content = path.read_bytes()
        cut = len(content) // 2 if path.name == "bo_1.jpg" else None
        (here.train_images / path.name).write_bytes(content[:cut])
    # the mean shape reads all images of so small a contest, long before the first step
    monkeypatch.setattr("heatmap.data.samples.mean_shape_crop", lambda *_: np.zeros((7, 2)))
    run = prepare(replace(tiny, data=replace(tiny.data, root=here.root, workers=workers)))
    with pytest.raises(ValueError, match=r"bo_1\.jpg: the image cannot be decoded") as caught:
        loop.train(run, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "is_alarm"), [(0.0, True), (0.04, True), (0.06, False)])
def test_an_alarm_tells_of_black_heatmaps(
    tiny: Experiment,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    height: float,
    is_alarm: bool,
) -> None:
    optimizer = Optimizer(kind="sgd", lr=1e-9, weight_decay=0)
    run = prepare(replace(tiny, optimizer=optimizer))
    with torch.no_grad():
        run.network.embeddings.zero_()
        run.network.bias.fill_(height)
    with caplog.at_level(logging.WARNING, "heatmap"):
        loop.train(run, tmp_path)
    alarms = [record.message for record in caplog.records if "black" in record.message]
    assert len(alarms) == (2 if is_alarm else 0)
    assert all("learning rate" in alarm for alarm in alarms)


# ------------------------------------------------------------------------------ drawn faces


def contest_of_faces(root: Path, num_faces: int, copies: int, landmarks: slice) -> Folder:
    """Drawn faces, each under several names, with one more at the end."""
    folder = Folder(root=root)
    folder.train_images.mkdir(parents=True)
    names, points = [], []
    for index in range(num_faces + 1):
        image, points_image = draw_face(5, index)
        for copy in range(copies if index < num_faces else 1):
            names.append(f"{index}-{copy}.png")
            points.append(points_image[landmarks])
            path = folder.train_images / names[-1]
            assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_landmarks(folder.train_table, names, np.stack(points))
    return folder


class LargestTensor(TorchDispatchMode):
    """The number of values in the largest tensor that any call made."""

    largest = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and not any(s == 0 for s in made.stride()):
                self.largest = max(self.largest, made.numel())
        return result


@pytest.mark.slow
def test_training_and_validation_never_hold_all_heatmaps(tiny: Experiment, tmp_path: Path) -> None:
    contest = contest_of_faces(tmp_path / "faces", 8, 1, slice(None))
    experiment = replace(
        tiny,
        data=Data(root=contest.root, split="order", validation=0.5, workers=0),
        crop=Crop(height=64, width=96),
        model=UNet(encoder=ENCODER, weights="none", stride=1, width=6),
        train=replace(tiny.train, batch=4, max_steps=1),
    )
    run = prepare(experiment)
    whole = 4 * 971 * 64 * 96
    with LargestTensor() as seen:
        loop.train(run, tmp_path / "run")
    assert 0 < seen.largest < whole / 8


@pytest.mark.slow
def test_eight_drawn_faces_are_learnt_by_heart(tiny: Experiment, tmp_path: Path) -> None:
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
    rows = run.training_rows[::10]
    view = View(run.network, run.validation)
    found = next(predict([view], rows, Execution(run.device, 8)))
    points_crop, truth_crop = (
        found.frame.to_crop(torch.from_numpy(points)).numpy()
        for points in (found.points_image, run.table.points_image[rows])
    )
    distance = np.linalg.norm(points_crop - truth_crop, axis=-1) / experiment.model.stride
    assert distance.shape == (8, 98)
    assert distance.mean() < 0.1


# ------------------------------------------------------------------------------------- stages


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """Those that were scored."""
    return {k: v for k, v in checkpoint.load(path).network.items() if v.is_floating_point()}


def trained_weights(path: Path) -> dict[str, torch.Tensor]:
    """Those that the optimizer moves, where the ones that are scored are their running mean."""
    state = checkpoint.load(path).state
    assert state and state.network
    return {k: v for k, v in state.network.items() if v.is_floating_point()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_stage_trains_what_it_does_not_freeze_with_its_own_rates(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heatmap")
    constant = Schedule(kind="constant", warmup=0)
    stages = (
        Stage(epochs=1, lr=0.01, schedule=constant, rates=FROZEN_ENCODER),
        Stage(epochs=1, lr=0.002, schedule=constant, rates=replace(HEAD_ALONE, block2=0.1)),
    )
    staged = replace(tiny, stages=stages, train=replace(tiny.train, epochs=None, keep_every=1))
    trained(staged, tmp_path)
    assert "stage 2 of 2, from the last weights; frozen: block1, block3" in caplog.text
    assert [row["lr"] for row in read_metrics(tmp_path)] == [0.01, 0.002]
    fresh = prepare(staged).network
    first, last = (weights_of(tmp_path / f"epoch-{n}.pt") for n in (1, 2))
    trained_first = {name.split(".")[0] for name in changed(first, fresh.state_dict())}
    assert trained_first == {"decoder", "embeddings", "bias"}
    blocks = fresh.parts()
    trainable = {*blocks["block2"], *blocks["head"]}
    statistics = {name for name in changed(first, last) if "running" in name}
    assert changed(first, last) - statistics == trainable
    owners = {name.rpartition(".")[0] for name in statistics}
    assert owners <= {name.rpartition(".")[0] for name in trainable}


def test_a_staged_run_that_is_resumed_ends_with_the_same_weights(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    stages = (
        Stage(epochs=1, schedule=Schedule(kind="plateau"), rates=FROZEN_ENCODER),
        Stage(epochs=2, lr=0.002, schedule=Schedule(kind="cyclic", rise_steps=3), start="best"),
    )
    settings = replace(tiny.train, epochs=None, keep_every=1)
    staged = replace(tiny, stages=stages, train=settings)
    trained(staged, tmp_path / "whole")
    for epoch in (1, 2):  # at the border of the stages, and within the second
        again = tmp_path / f"from-{epoch}"
        again.mkdir()
        (again / "best.pt").write_bytes((tmp_path / "whole" / "epoch-1.pt").read_bytes())
        saved = checkpoint.load(tmp_path / "whole" / f"state-{epoch}.pt")
        loop.train(prepare(config.from_dict(Experiment, saved.config), saved), again)
        whole, resumed = (weights_of(path / "last.pt") for path in (tmp_path / "whole", again))
        assert not changed(whole, resumed)


def test_a_staged_run_starts_from_anothers_weights_and_makes_another_head_anew(
    tiny: Experiment, tmp_path: Path, tiny_contest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tiny, tmp_path / "first")
    warm = replace(tiny, train=replace(tiny.train, start=tmp_path / "first"))
    best = weights_of(tmp_path / "first" / "best.pt")
    network = prepare(warm).network
    assert not changed(best, network.state_dict())

    wide = replace(tiny.model, width=8)
    with pytest.raises(ValueError, match=r"do not fit this network, such as .*only the head"):
        prepare(replace(warm, model=wide))

    saved = checkpoint.load(tmp_path / "first" / "best.pt")
    fewer = {k: v[:5] if k in ("embeddings", "bias") else v for k, v in saved.network.items()}
    checkpoint.save(tmp_path / "fewer.pt", replace(saved, network=fewer, num_landmarks=5))
    network = prepare(replace(warm, train=replace(warm.train, start=tmp_path / "fewer.pt"))).network
    assert "has another head; made anew: embeddings, bias" in caplog.text
    assert changed(best, network.state_dict()) == {"embeddings", "bias"}


# ----------------------------------------------------------------- mean weights, sigma, weights


def test_the_running_mean_of_the_weights_is_what_is_scored_and_kept(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    """Against the mean taken by hand from a checkpoint a step."""
    settings = replace(tiny.train, epochs=4, max_steps=4, ema=0.15)
    one_step = replace(tiny, data=replace(tiny.data, validation=0.8), train=settings)
    run = trained(one_step, tmp_path)
    assert run.batches_per_epoch == 1
    raw = [trained_weights(tmp_path / f"state-{n}.pt") for n in (1, 2, 3, 4)]
    expected = {name: tensor.clone() for name, tensor in raw[0].items()}
    for step in (1, 2, 3):
        decay = min(0.15, (1 + step) / (10 + step))  # the mean begins short
        for name, tensor in expected.items():
            tensor.lerp_(raw[step][name], 1 - decay)
    last = checkpoint.load_trained(tmp_path / "last.pt")
    kept, trained_on = last.network.state_dict(), trained_weights(tmp_path / "last.pt")
    for name, tensor in expected.items():
        assert torch.allclose(kept[name], tensor, atol=1e-6)
    assert any(not torch.allclose(kept[name], trained_on[name], atol=1e-6) for name in expected)

    scored = metrics.measure_errors(
        [View(last.network, run.validation)], run.validation_rows, run.mean_shape,
        Execution(run.device, 2),
    )  # fmt: skip
    assert read_metrics(tmp_path)[-1]["val/mse"] == pytest.approx(scored.mse.mean(), rel=1e-5)


def test_a_run_with_mean_weights_and_a_moving_sigma_is_resumed_to_the_same_bits(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    model = replace(tiny.model, sigma_start=4.0)
    settings = replace(tiny.train, epochs=7, ema=0.9, keep_every=1)
    trained(replace(tiny, model=model, train=settings), tmp_path / "whole")
    metrics = read_metrics(tmp_path / "whole")
    sigmas = [row["sigma"] for row in metrics]
    assert sigmas[:4] == [4.0] * 4  # four losses are compared
    assert sigmas[4] == pytest.approx(
        adapted_sigma(4.0, [row["train/loss"] for row in metrics[:4]], 1.5, 4.0)
    )
    assert sigmas[4] < 4
    saved = checkpoint.load(tmp_path / "whole" / "state-5.pt")
    assert checkpoint.load_trained(tmp_path / "whole" / "epoch-5.pt").network.sigma == sigmas[4]
    again = tmp_path / "again"
    loop.train(prepare(config.from_dict(Experiment, saved.config), saved), again)
    assert [row["sigma"] for row in read_metrics(again)] == sigmas[5:]
    for weights in (weights_of, trained_weights):
        assert not changed(*(weights(p / "last.pt") for p in (tmp_path / "whole", again)))


def test_a_image_counts_as_much_as_its_weight_says(tiny: Experiment, tmp_path: Path) -> None:
    names = prepare(tiny).table.names
    settings = replace(tiny.train, batch=9, max_steps=1)

    def after_a_step(weights: dict[str, float]) -> dict[str, torch.Tensor]:
        lines = [f"{name}\t{weights.get(name, 1)}" for name in names[:NUM_TRAINING]]
        path = tmp_path / "weights.tsv"
        path.write_text("\n".join(["file_name\tweight", *lines]))
        run = prepare(replace(tiny, data=replace(tiny.data, weights=path), train=settings))
        (sample,) = load(run.training, [list(range(NUM_TRAINING))], 0, run.device)
        batch = run.augmented(sample, 0, run.device)
        output = run.network(batch.images)
        run.network.loss(output, batch.points_crop, batch.weights).backward()
        return {n: p.grad.clone() for n, p in run.network.named_parameters()}

    plain = after_a_step({})
    without = after_a_step({names[4]: 0})
    twice = after_a_step({names[4]: 2})
    for name, gradient in plain.items():  # the image's own part, added once more
        assert torch.allclose(twice[name] - gradient, gradient - without[name], atol=1e-4)
    assert changed(plain, without)


def test_a_image_without_a_weight_stops_by_name(tiny: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "weights.csv"
    path.write_text("file_name,weight\nada_0.jpg,1\n")
    with pytest.raises(ValueError, match=r"weights.csv: there is no row for .*ada_1.jpg"):
        prepare(replace(tiny, data=replace(tiny.data, weights=path)))
