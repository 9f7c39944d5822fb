"""What a network sees, for people: sheets of pictures with the landmarks it gives or is given."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from heatmap import config, contest, draw, frame, topology
from heatmap.frame import contain
from heatmap.networks import Network
from heatmap.predict import View, predict
from heatmap.run import Pictures
from heatmap.samples import Samples, collate, cut

TILE_HW = (256, 192)


def evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, the first and the last among them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def prediction_sheet(
    network: Network,
    experiment: config.Experiment,
    paths: Sequence[Path],
    device: torch.device,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """One picture of many, each with its predicted landmarks; below them the truth in green.

    Args:
        paths: N pictures.
        labels: (N, P, 2) truth in image pixels, NaN where unlabelled; None where there is none.

    Returns:
        uint8 RGB.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    nothing = np.full((len(paths), network.num_landmarks, 2), np.nan, np.float32)
    view = View(network, Samples.of(experiment, paths, nothing), experiment.train.precision)
    rows = np.arange(len(paths))
    found = next(predict([view], rows, batch=len(paths), workers=0, device=device))
    groups = topology.groups(network.num_landmarks)
    predicted, truth = [], []
    for row, path in enumerate(paths):
        image = contest.read_image(path)
        tile = contain((image.shape[0], image.shape[1]), TILE_HW)
        shown = cut(image, tile)
        points = tile.to_crop(torch.from_numpy(found.points_image[row])).numpy()
        predicted.append(draw.draw_landmarks(shown, points, groups))
        if labels is not None:
            points = tile.to_crop(torch.from_numpy(labels[row])).numpy()
            truth.append(draw.draw_landmarks(shown, points, groups, draw.TRUTH))
    return draw.sheet([*predicted, *truth], columns=min(8, len(paths)))


def training_sheet(pictures: Pictures, count: int, epoch: int) -> np.ndarray:
    """One picture of many: training crops, changed as in training, with their landmarks.

    Args:
        count: of training pictures, evenly spaced through the table.
        epoch: counted from 1; of its passes over the rows, the first is shown.

    Returns:
        uint8 RGB; crops are shown enlarged.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    rows = evenly_spaced(pictures.training_rows, count).tolist()
    sample = collate([pictures.training[row] for row in rows])
    passed = (epoch - 1) * pictures.experiment.data.multiplier
    batch = pictures.augmented(sample, passed, torch.device("cpu"))
    crop_hw = batch.frame.height, batch.frame.width
    enlarged = max(1, round(TILE_HW[0] / max(crop_hw)))
    shown_hw = crop_hw[0] * enlarged, crop_hw[1] * enlarged
    points_shown = frame.apply(frame.resizing(crop_hw, shown_hw), batch.points_crop).numpy()
    images = (255 * batch.images).round().byte().permute(0, 2, 3, 1).numpy()
    groups = topology.groups(pictures.table.num_landmarks, pictures.scheme)
    tiles = [
        draw.draw_landmarks(cv2.resize(image, shown_hw[::-1]), points, groups)
        for image, points in zip(images, points_shown, strict=True)
    ]
    return draw.sheet(tiles, columns=min(8, len(tiles)))
