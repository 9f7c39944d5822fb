"""A constant offset of the labels is found along x, corrected in training, and added back."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from small_runs import ENCODER

import heatmap
from heatmap.config import Augment, Crop, Data, Experiment, Optimizer, Train, UNet, Wandb
from heatmap.data import synthetic
from heatmap.data.contest import Folder, write_landmarks
from heatmap.data.samples import collate
from heatmap.errors import UserError
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.training import loop
from heatmap.training.data import read_data
from heatmap.training.prepare import prepare

NUM_IMAGES, SIZE = 160, 32
COLOURS = np.array([[170, 170, 170], [170, 170, 170], [150, 150, 0]])  # taken from grey
SCHEME = {"permutation": [1, 0, 2], "groups": {"face": [0, 3]}}


def write_faces(root: Path, offset: tuple[float, float]) -> np.ndarray:
    """Images of two dark eyes and a red mouth; returns the true landmarks (N, 3, 2)."""
    folder, generator = Folder(root=root), np.random.default_rng(3)
    folder.train_images.mkdir(parents=True)
    y, x = np.mgrid[:SIZE, :SIZE]
    centre = generator.uniform(13, 18, (NUM_IMAGES, 1, 2))
    points = centre + generator.normal([[-6, -5], [6, -5], [0, 6]], 1, (NUM_IMAGES, 3, 2))
    names = [f"{index}.png" for index in range(NUM_IMAGES)]
    for name, landmarks in zip(names, points, strict=True):
        image = np.full((SIZE, SIZE, 3), 180.0)
        for (px, py), colour in zip(landmarks, COLOURS, strict=True):
            spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / 5)
            image -= spot[..., None] * colour
        assert cv2.imwrite(str(folder.train_images / name), image.round().astype(np.uint8))
    write_landmarks(folder.train_table, names, (points + offset).astype(np.float32))
    (root / "symmetry.json").write_text(json.dumps(SCHEME))
    return points


OFFSET = 1.3


def experiment_on(root: Path) -> Experiment:
    return Experiment(
        name="shifted",
        data=Data(root=root, split="order", workers=0, symmetry=root / "symmetry.json"),
        crop=Crop(height=SIZE, width=SIZE),
        augment=Augment(mirror=0.5),
        model=UNet(encoder=ENCODER, weights="none", stride=4, width=8, sigma=1),
        optimizer=Optimizer(lr=3e-3),
        train=Train(batch=8, epochs=4, ema=0.8),
        wandb=Wandb(mode="off"),
    )


class Shifted(NamedTuple):
    """A run trained on labels that lie to the right of the landmarks."""

    root: Path
    folder: Path
    points: np.ndarray  # (N, 3, 2), the true landmarks
    log: str


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Shifted:
    root, folder = tmp_path_factory.mktemp("shifted"), tmp_path_factory.mktemp("runs") / "run"
    points = write_faces(root, (OFFSET, 0))
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("heatmap")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        loop.train(prepare(experiment_on(root)), folder)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    return Shifted(root, folder, points, log.getvalue())


def test_the_offset_is_found_along_x_and_reported(shifted: Shifted) -> None:
    x, y = checkpoint.load(shifted.folder / "best.pt").label_offset
    assert x == pytest.approx(OFFSET, abs=0.06) and y == 0
    assert f"the labels are off by {x:.2f} px right, measured along x" in shifted.log
    assert (
        f"| offset of the labels | {x:.2f} px right |" in (shifted.folder / "MODEL.md").read_text()
    )
    assert read_metrics(shifted.folder)[-1]["label_offset_x"] == x


def test_a_resumed_run_keeps_it(shifted: Shifted) -> None:
    saved = checkpoint.load(shifted.folder / "last.pt")
    run = prepare(experiment_on(shifted.root), saved)
    assert run.progress.label_offset == saved.label_offset != (0, 0)
    for network in (run.network, run.scored_network):
        assert np.allclose(network.label_offset, saved.label_offset)


def test_predictions_follow_the_labels_or_the_face(shifted: Shifted) -> None:
    images = sorted(Folder(root=shifted.root).train_images.iterdir(), key=lambda p: int(p.stem))
    like_labels = heatmap.Predictor(shifted.folder)(images).points_image - shifted.points
    on_face = heatmap.Predictor(shifted.folder, true_pixels=True)(images).points_image
    on_face = on_face - shifted.points
    assert np.allclose(np.median(like_labels, (0, 1)), (OFFSET, 0), atol=0.1)
    assert np.allclose(np.median(on_face, (0, 1)), (0, 0), atol=0.1)


def test_mirror_averaging_agrees_with_the_labels(shifted: Shifted) -> None:
    """Without the correction, the mean of both views would lie OFFSET beside the labels."""
    ensemble = Ensemble.load([shifted.folder], tta="mirror")
    evaluation = metrics.evaluate_run(ensemble, None, torch.device("cpu"))
    plain = json.loads((shifted.folder / "summary.json").read_text())["best_mse"]
    assert metrics.summary(evaluation.errors)["mse"] < plain


@pytest.mark.parametrize(
    ("option", "mirror", "expected", "is_measured"),
    [
        ("1.5,-2", 0.5, (1.5, -2), False),
        ("none", 0.5, (0, 0), False),
        ("auto", 0.5, (0, 0), True),
        ("auto", 0.0, (0, 0), False),
    ],
)
def test_options(
    tmp_path: Path, option: str, mirror: float, expected: tuple[float, float], is_measured: bool
) -> None:
    points = write_faces(tmp_path, (0, 0))
    experiment = experiment_on(tmp_path)
    experiment = replace(
        experiment,
        data=replace(experiment.data, label_offset=option),
        augment=Augment(mirror=mirror),
    )
    run = prepare(experiment)
    assert run.progress.label_offset == expected
    assert run.measures_label_offset == is_measured
    sample = collate([run.data.training[0]])
    labels = run.data.augmented(sample, 0, run.device, run.network.label_offset)
    moved = labels.frame.to_image(labels.points_crop)[0].numpy()
    if not mirror:
        assert np.allclose(moved, points[0], atol=1e-4)
    else:
        permutation = [1, 0, 2] if labels.frame.image_from_crop[0, 0, 0] < 0 else [0, 1, 2]
        assert np.allclose(moved, points[0][permutation] - expected, atol=1e-4)


@pytest.mark.parametrize("value", ["1.2", "1,2,3", "x,y", "nan,0", ""])
def test_a_malformed_offset_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"data.label_offset must be auto, none or two numbers"):
        Data(label_offset=value)


@pytest.mark.parametrize(("order", "is_wrong"), [([0, 1, 2, 3, 4], False), ([0, 2, 1, 3, 4], True)])
def test_wrong_mirror_pairs_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: list[int], is_wrong: bool
) -> None:
    """Pupils, nose and mouth corners in the usual order of 5 landmarks, and in another one."""
    folder, names = Folder(root=tmp_path), [f"{index}.png" for index in range(10)]
    folder.train_images.mkdir(parents=True)
    faces = [synthetic.landmarks(synthetic.sample_face(0, index)) for index in range(10)]
    points = np.float32(faces)[:, [969, 970, 586, 841, 872]]
    for name in names:
        assert cv2.imwrite(str(folder.train_images / name), np.zeros((32, 32, 3), np.uint8))
    write_landmarks(folder.train_table, names, points[:, order])
    experiment = experiment_on(tmp_path)
    read_data(replace(experiment, data=replace(experiment.data, symmetry=None)))
    assert ("the mirror pairs seem to be wrong" in caplog.text) == is_wrong
