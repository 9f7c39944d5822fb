"""What a network sees, for people: sheets of predicted landmarks on pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from heatmap import config, contest, draw, topology
from heatmap.frame import contain
from heatmap.networks import Network
from heatmap.predict import predict
from heatmap.samples import Samples, cut

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
    found = next(
        predict(
            network, Samples(paths, nothing, experiment.crop), np.arange(len(paths)),
            batch=len(paths), workers=0, device=device, precision=experiment.train.precision,
        )
    )  # fmt: skip
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
