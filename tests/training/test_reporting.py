import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_runs import ENCODER, STEPS_AN_EPOCH, trained

from heatmap import codec
from heatmap.config import Experiment, Optimizer, Wandb
from heatmap.data.contest import Folder, read_landmarks, write_landmarks
from heatmap.maps import Maps
from heatmap.networks import HeatmapNetwork
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.training import loop, reporting
from heatmap.training.prepare import prepare


def test_the_ledger_row_holds_the_mean_loss_of_the_epoch(
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
    logged = [row["train/loss"] for row in read_metrics(tmp_path)]
    np.testing.assert_allclose(logged, means, rtol=1e-12)


def test_the_ledger_row_holds_shares_of_time(tiny: Experiment, tmp_path: Path) -> None:
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


def test_the_worst_images_of_the_best_network_are_saved_with_their_errors(
    tiny: Experiment, tiny_contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 15 landmarks, which have groups."""
    original, root = Folder(root=tiny_contest), Folder(root=tmp_path / "data")
    root.train_table.parent.mkdir(parents=True)
    root.train_images.symlink_to(original.train_images)
    table = read_landmarks(original.train_table)
    points = np.concatenate([table.points_image[:] + shift for shift in (0, 5, 9)], 1)
    write_landmarks(root.train_table, table.names, points[:, :15])
    monkeypatch.setattr(reporting, "NUM_WORST", 2)
    monkeypatch.setattr(reporting, "NUM_OTHERS", 2)
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


@pytest.mark.slow
@pytest.mark.parametrize(("height", "is_alarm"), [(0.0, True), (0.04, True), (0.06, False)])
def test_black_heatmaps_are_warned_about(
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


@pytest.mark.parametrize("contradicting", [True, False])
def test_labels_that_contradict_each_other_are_reported(
    tiny: Experiment,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    contradicting: bool,
) -> None:
    run = prepare(tiny)

    def layers(network: HeatmapNetwork, images: torch.Tensor) -> Maps:
        """Every map has a peak at (2, 2), and a second one if labels contradict each other."""
        first, second = codec.render(torch.tensor([[2.0, 2.0], [10.0, 6.0]]), 8, 12, 1.0)
        features = (first + (0.7 if contradicting else 0.2) * second).expand(len(images), 1, 8, 12)
        return Maps(features, torch.ones(network.num_landmarks, 1), network.bias * 0)

    monkeypatch.setattr(HeatmapNetwork, "layers", layers)
    run.network.sigma = 1.0
    run.progress.epoch, run.progress.best_epoch, run.progress.scores = 3, 1, [1.0, 2.0, 3.0]
    run.progress.best_mse, run.progress.mean_shape_mse = 1.0, 9.0
    for losses in ([3.0, 2.0, 1.0], [1.0, 1.0, 1.0]):
        caplog.clear()
        run.progress.losses = losses
        reporting.warn_if_labels_contradict(run)
        is_reported = "100 % of the heatmaps have two peaks" in caplog.text
        assert is_reported == (contradicting and losses[-1] < losses[0])
