"""A trained network predicts the same points on each device."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from device_runs import on, take_steps

import heatmap
from heatmap import config
from heatmap.config import Experiment
from heatmap.data.contest import Folder
from heatmap.evaluation.metrics import evaluate_run
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.submit import submit
from heatmap.runs.folder import RunFolder
from heatmap.training.prepare import prepare, save

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt its training images."""
    folder = tmp_path_factory.mktemp("runs")
    experiment = replace(
        on(CPU, tiny),
        crop=config.Crop(height=32, width=32),
        augment=config.Augment(),
        model=config.UNet(encoder="tu-test_resnet", weights="none", width=7, stride=2),
        optimizer=config.Optimizer(lr=5e-3),
    )
    run = prepare(experiment)
    for _ in range(8):
        take_steps(run, 6)
    save(run, RunFolder(folder).best)
    return folder


def test_predictor(trained: Path, tiny_contest: Path, device: torch.device) -> None:
    images = sorted(Folder(root=tiny_contest).train_images.iterdir())[:9]
    expected = heatmap.Predictor(trained, "cpu")(images)
    actual = heatmap.Predictor(trained, device.type)(images)
    assert expected.confidence is not None and actual.confidence is not None
    assert expected.confidence.min() > 0.5  # the peaks are clear
    assert np.abs(actual.points_image - expected.points_image).max() < 0.05
    assert np.abs(actual.confidence - expected.confidence).max() < 0.01


def test_evaluation(trained: Path, device: torch.device) -> None:
    expected, actual = (
        evaluate_run(Ensemble.load([trained]), None, where).scores for where in (CPU, device)
    )
    assert actual["mse"] == pytest.approx(expected["mse"], rel=0.01)


def test_submission(
    trained: Path, tiny_contest: Path, device: torch.device, tmp_path: Path
) -> None:
    submitted = []
    for where in (CPU, device):
        out = tmp_path / f"{where.type}-{len(submitted)}.csv"
        ensemble = Ensemble.load([trained])
        submit(ensemble, tiny_contest, out, rounding="none", missing="stop", device=where)
        rows = [*csv.reader(out.read_text().splitlines())]
        submitted.append(np.array([row[1:] for row in rows[1:]], float))
    assert np.abs(submitted[1] - submitted[0]).max() < 0.05
