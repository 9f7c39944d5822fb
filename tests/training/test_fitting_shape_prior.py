"""A finished run gets a shape prior if that lowers the error of held-out images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ENCODER

from heatmap.config import Augment, Crop, Data, Experiment, Optimizer, Train, UNet, Wandb
from heatmap.data.contest import Folder, write_landmarks
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.networks import CropPrediction, HeatmapNetwork, ShapePrior
from heatmap.runs import checkpoint
from heatmap.runtime.files import write_image
from heatmap.training import loop
from heatmap.training.prepare import prepare
from heatmap.training.shape_prior import HeldOut, fit

BORDER = torch.tensor([1.5, 1.5, 61.5, 61.5, 6.0])


def shapes(count: int, seed: int) -> np.ndarray:
    """(N, 12, 2) in crop pixels: two modes of a few pixels and little noise."""
    modes = np.random.default_rng(0).normal(0, 1, (2, 12, 2))
    mean = np.random.default_rng(1).uniform(12, 50, (12, 2))
    generator = np.random.default_rng(seed)
    amounts = generator.normal(0, 1.5, (count, 2))
    return (
        mean + np.einsum("nk,kpi->npi", amounts, modes) + generator.normal(0, 0.1, (count, 12, 2))
    )


def held_out(error: float, count: int = 80) -> HeldOut:
    truth = torch.from_numpy(shapes(count, 3)).float()
    generator = torch.Generator().manual_seed(4)
    points = truth + error * torch.randn(truth.shape, generator=generator)
    spread = 9 * torch.eye(2).expand(count, 12, 2, 2)
    prediction = CropPrediction(points, torch.ones(count, 12), spread)
    return HeldOut(prediction, truth, torch.ones(count), torch.arange(count) % 2 == 0)


def test_it_is_fitted_where_it_pays() -> None:
    images = held_out(2.0)
    values = fit(shapes(300, 5), images, BORDER)
    assert values is not None
    after = ShapePrior(values)(images.prediction)
    before = (images.prediction.points_crop - images.truth_crop).square().mean()
    error = (after.points_crop - images.truth_crop).square().mean()
    assert error < 0.5 * before
    assert after.covariance_crop is not None
    variance = after.covariance_crop.diagonal(dim1=-2, dim2=-1).mean()
    assert float(variance) == pytest.approx(float(error), rel=0.15)


@pytest.mark.parametrize(
    "images", [held_out(0.005), held_out(2.0, count=16)], ids=["exact", "few images"]
)
def test_it_is_left_out_where_it_does_not_pay_or_cannot_be_checked(images: HeldOut) -> None:
    assert fit(shapes(300, 5), images, BORDER) is None


def test_unlabelled_landmarks_do_not_count() -> None:
    images, labels = held_out(2.0), shapes(300, 5)
    labels[::3, 4] = np.nan
    images.truth_crop[::4, 7] = np.nan
    values = fit(labels, images, BORDER)
    assert values is not None and all(v.isfinite().all() for v in vars(values).values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run too short to learn more than roughly where landmarks are."""
    root = tmp_path_factory.mktemp("dots")
    folder, points = Folder(root=root), shapes(180, 7)
    y, x = np.mgrid[:64, :64]
    names = [f"{index}.png" for index in range(len(points))]
    for name, landmarks in zip(names, points, strict=True):
        image = np.full((64, 64, 3), 40.0)
        for index, (px, py) in enumerate(landmarks):
            spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)
            image[..., index % 3] += 200 * spot
        write_image(folder.train_images / name, image.clip(0, 255).astype(np.uint8))
    write_landmarks(folder.train_table, names, points.astype(np.float32))
    experiment = Experiment(
        name="dots",
        data=Data(root=root, split="order", validation=0.3, workers=0),
        crop=Crop(height=64, width=64),
        augment=Augment(),
        model=UNet(encoder=ENCODER, weights="none", stride=4, width=12),
        optimizer=Optimizer(lr=3e-3),
        train=Train(batch=6, epochs=2, device="cpu"),
        wandb=Wandb(mode="off"),
    )
    run = root / "run"
    loop.train(prepare(experiment), run)
    return run


def test_a_run_is_scored_with_its_prior(finished: Path) -> None:
    best, summary = (
        checkpoint.load(finished / "best.pt"),
        json.loads((finished / "summary.json").read_text()),
    )
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert best.shape_prior is not None
    assert summary["best_mse"] == best.validation_mse < 0.9 * min(row["val/mse"] for row in rows)
    evaluation = metrics.evaluate_run(Ensemble.load([finished]), None, torch.device("cpu"))
    assert evaluation.scores["mse"] == pytest.approx(summary["best_mse"], rel=1e-5)
    assert "| shape prior |" in (finished / "MODEL.md").read_text()


def test_the_prior_is_the_networks_own_decoding(finished: Path) -> None:
    network = checkpoint.load_trained(finished).network
    assert isinstance(network, HeatmapNetwork) and network.shape_prior
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = network(images)
        blockwise, whole = network.decode(output), network.decode_whole(output)
        network.shape_prior = None
        plain = network.decode(output)
    assert torch.allclose(blockwise.points_crop, whole.points_crop, atol=1e-3)
    assert not torch.allclose(blockwise.points_crop, plain.points_crop, atol=0.1)
