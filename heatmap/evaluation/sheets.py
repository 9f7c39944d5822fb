"""What a network sees, for people: sheets of images with the landmarks it gives or is given."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from heatmap import config, draw, frame, schemes
from heatmap.data import augment, contest
from heatmap.data.samples import Samples, cut, evenly_spaced
from heatmap.errors import UserError
from heatmap.inference.predict import View, predict
from heatmap.networks import Network
from heatmap.runs.checkpoint import TrainedRun

TILE_HW = (256, 192)


def prediction_sheet(
    network: Network,
    experiment: config.Experiment,
    paths: Sequence[Path],
    device: torch.device,
    labels: np.ndarray | None = None,
    scheme: schemes.Scheme | None = None,
) -> np.ndarray:
    """A uint8 RGB sheet of the images with their predicted landmarks; below, the truth in green.

    Args:
        paths: N images.
        labels: (N, Q, 2) truth in image pixels, NaN where unlabelled; None where there is none.
        scheme: of the predicted landmarks, where the run was told of one.

    Raises:
        UserError: an image cannot be read; the message names it.
    """
    count = network.num_landmarks
    nothing = np.full((len(paths), count, 2), np.nan, np.float32)
    view = View(network, Samples.of(experiment, paths, nothing), experiment.train.precision)
    rows = np.arange(len(paths))
    found = next(predict([view], rows, batch=len(paths), workers=0, device=device))
    predicted, truth = [], []
    for row, path in enumerate(paths):
        image = contest.read_image(path)
        tile = frame.contain((image.shape[0], image.shape[1]), TILE_HW)
        shown = cut(image, tile)
        points = tile.to_crop(torch.from_numpy(found.points_image[row])).numpy()
        predicted.append(_drawn(shown, points, scheme))
        if labels is not None:
            points = tile.to_crop(torch.from_numpy(labels[row])).numpy()
            known = scheme if len(points) == count else None
            truth.append(_drawn(shown, points, known, draw.TRUTH))
    return draw.sheet([*predicted, *truth], columns=min(8, len(paths)))


def data_sheet(
    trained: TrainedRun, root: Path, count: int, test: bool, device: torch.device
) -> np.ndarray:
    """The `prediction_sheet` of evenly spaced images of a contest's folder.

    In the folder that the run was trained on, they are those that validate.

    Args:
        test: takes the test images; the only ones of a folder without labels.

    Raises:
        UserError: there are no such images, or one cannot be read.
    """
    folder, labels = contest.find_folder(root), None
    if test or not folder.train_table.is_file():
        inside = folder.test_images.iterdir() if folder.test_images.is_dir() else ()
        files = sorted(path for path in inside if path.is_file())
        if not files:
            raise UserError(f"{folder.test_images}: there are no test images")
        paths = [files[row] for row in evenly_spaced(np.arange(len(files)), count)]
    else:
        table = contest.read_landmarks(folder.train_table, trained.experiment.data.cache)
        rows = trained.validation_rows.numpy()
        if len(rows) == 0 or trained.table_hash != table.fingerprint:
            rows = np.arange(len(table.names))
        rows = evenly_spaced(rows, count)
        found = contest.image_paths(folder.train_images, table.names, table.path, rows)
        paths = [found[row] for row in rows.tolist()]
        labels = np.stack([np.array(table.points_image[row], np.float32) for row in rows])
    network = trained.network.to(device)
    return prediction_sheet(network, trained.experiment, paths, device, labels, trained.scheme)


def batch_sheet(batch: augment.Batch, scheme: schemes.Scheme | None = None) -> np.ndarray:
    """A uint8 RGB sheet of crops, enlarged, as a network in training gets them, with landmarks."""
    crop_hw = batch.frame.height, batch.frame.width
    enlarged = max(1, round(TILE_HW[0] / max(crop_hw)))
    shown_hw = crop_hw[0] * enlarged, crop_hw[1] * enlarged
    all_points = frame.apply(frame.resizing(crop_hw, shown_hw), batch.points_crop).numpy()
    images = (255 * batch.images).round().byte().permute(0, 2, 3, 1).numpy()
    tiles = []
    for image, points in zip(images, all_points, strict=True):
        tiles.append(_drawn(cv2.resize(image, shown_hw[::-1]), points, scheme))
    return draw.sheet(tiles, columns=min(8, len(tiles)))


def _drawn(
    image: np.ndarray,
    points: np.ndarray,
    scheme: schemes.Scheme | None,
    colour: draw.Colour | None = None,
) -> np.ndarray:
    groups, curves = schemes.groups(len(points), scheme), schemes.curves(len(points), scheme)
    return draw.draw_landmarks(image, points, groups, colour, curves=curves)
