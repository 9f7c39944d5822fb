"""Tiny training runs, and readers of their files."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from heatmap.config import Experiment
from heatmap.data.contest import Folder, write_landmarks
from heatmap.data.synthetic import draw_face
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.training import loop
from heatmap.training.prepare import Run, prepare

NUM_TRAINING, BATCH = 9, 2
STEPS_AN_EPOCH = NUM_TRAINING // BATCH
ENCODER = "tu-test_resnet"


def progress_of(path: Path) -> dict[str, Any]:
    state = checkpoint.load(path).state
    assert state
    return asdict(state.progress)


def trained(experiment: Experiment, folder: Path) -> Run:
    run = prepare(experiment)
    loop.train(run, folder)
    return run


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k[:5] != "time/"} for row in read_metrics(folder)]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The scored weights."""
    return {k: v for k, v in checkpoint.load(path).network.items() if v.is_floating_point()}


def trained_weights(path: Path) -> dict[str, torch.Tensor]:
    """The optimizer's weights, if the scored ones are their running mean."""
    state = checkpoint.load(path).state
    assert state and state.network
    return {k: v for k, v in state.network.items() if v.is_floating_point()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def contest_of_faces(root: Path, num_faces: int, copies: int, landmarks: slice) -> Folder:
    """A contest of drawn faces, `copies` images each, and one more face at the end."""
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
