"""Contact sheets of images with true and predicted landmarks."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from heatmap import config, draw, frame, schemes
from heatmap.data import augment, contest
from heatmap.data.samples import Samples, cut, evenly_spaced
from heatmap.inference.media import find_files
from heatmap.inference.predict import View, placed, predict
from heatmap.networks import Network
from heatmap.runs.checkpoint import TrainedRun

TILE_HW = (256, 192)


def prediction_sheet(
    network: Network,
    experiment: config.Experiment,
    paths: Sequence[Path],
    labels: np.ndarray | None = None,
    scheme: schemes.Scheme | None = None,
) -> np.ndarray:
    """Draws images with their predicted landmarks and, below, with the truth in green.

    Args:
        paths: N images.
        labels: (N, Q, 2) true landmarks in image pixels, NaN where unlabelled; None for no truth.
        scheme: of the predicted landmarks, if the run has one.

    Returns:
        uint8 RGB.

    Raises:
        UserError: an image cannot be read; the message names it.
    """
    unlabelled = np.full((len(paths), network.num_landmarks, 2), np.nan, np.float32)
    view = View(network, Samples.of(experiment, paths, unlabelled), experiment.train.precision)
    rows = np.arange(len(paths))
    prediction = next(predict([view], rows, batch=len(paths), workers=0))
    predicted, truth = [], []
    for row, path in enumerate(paths):
        image = contest.read_image(path)
        tile = frame.contain((image.shape[0], image.shape[1]), TILE_HW)
        shown = cut(image, tile)
        points = tile.to_crop(torch.from_numpy(prediction.points_image[row])).numpy()
        predicted.append(_draw(shown, points, scheme))
        if labels is not None:
            points = tile.to_crop(torch.from_numpy(labels[row])).numpy()
            labels_scheme = scheme if len(points) == network.num_landmarks else None
            truth.append(_draw(shown, points, labels_scheme, draw.TRUTH))
    return draw.sheet([*predicted, *truth], columns=min(8, len(paths)))


def data_sheet(
    trained: TrainedRun, root: Path, count: int, test: bool, device: torch.device
) -> np.ndarray:
    """Draws the `prediction_sheet` of evenly spaced images of a contest folder.

    In the folder that the run was trained on, these are validation images.

    Args:
        test: draws test images, which is the default for a folder without labels.

    Raises:
        UserError: the folder has no such images, or one cannot be read.
    """
    folder, labels = contest.find_folder(root), None
    if test or not folder.train_table.is_file():
        files = find_files([str(folder.test_images)])
        paths = [files[row] for row in evenly_spaced(np.arange(len(files)), count)]
    else:
        table = contest.read_landmarks(folder.train_table, trained.experiment.data.cache)
        rows = trained.validation_rows.numpy()
        if len(rows) == 0 or trained.table_hash != table.fingerprint:
            rows = np.arange(len(table.names))
        else:
            trained.check_rows(trained.path, len(table.names))
        rows = evenly_spaced(rows, count)
        path_of = contest.image_paths(folder.train_images, table.names, table.path, rows)
        paths = [path_of[row] for row in rows.tolist()]
        labels = np.stack([np.array(table.points_image[row], np.float32) for row in rows])
    network = placed(trained.network, device)
    return prediction_sheet(network, trained.experiment, paths, labels, trained.scheme)


def batch_sheet(batch: augment.Batch, scheme: schemes.Scheme | None = None) -> np.ndarray:
    """Draws a batch of training crops, enlarged, with their landmarks; returns uint8 RGB."""
    crop_hw = batch.frame.height, batch.frame.width
    scale = max(1, round(TILE_HW[0] / max(crop_hw)))
    tile_hw = crop_hw[0] * scale, crop_hw[1] * scale
    points = frame.apply(frame.resizing(crop_hw, tile_hw), batch.points_crop).numpy()
    images = (255 * batch.images).round().byte().permute(0, 2, 3, 1).numpy()
    tiles = [
        _draw(cv2.resize(image, tile_hw[::-1]), points_tile, scheme)
        for image, points_tile in zip(images, points, strict=True)
    ]
    return draw.sheet(tiles, columns=min(8, len(tiles)))


def _draw(
    image: np.ndarray,
    points: np.ndarray,
    scheme: schemes.Scheme | None,
    colour: draw.Colour | None = None,
) -> np.ndarray:
    groups, curves = schemes.groups(len(points), scheme), schemes.curves(len(points), scheme)
    return draw.draw_landmarks(image, points, groups, colour, curves=curves)
