"""Trained networks and the contest's test pictures -> a submission file."""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from heatmap import contest
from heatmap.contest import kaggle15
from heatmap.ensemble import Ensemble
from heatmap.predict import predict

logger = logging.getLogger("heatmap")


def submit(
    ensemble: Ensemble,
    root: Path,
    out: Path,
    *,
    rounding: Literal["auto", "round", "truncate", "none"],
    missing: Literal["stop", "mean-shape"],
    device: torch.device,
) -> int:
    """Predicts every test picture and writes what is asked for; returns the number of pictures.

    A folder with test/IdLookupTable.csv is answered as Kaggle's facial keypoints are (`kaggle15`),
    every other one as the contest is.

    Args:
        root: the contest's folder.
        rounding: as `contest.write_submission` takes it; "auto" is "round", and "none" where there
            is a lookup table.
        missing: what a test picture that is absent or cannot be read does: "stop", or "mean-shape",
            which answers with the first run's mean training shape, placed as in the other test
            pictures.

    Raises:
        ValueError: a picture cannot be read, or the file's rules are broken; no file is written.
    """
    first, num_landmarks = ensemble.runs[0], ensemble.num_landmarks
    folder = contest.find_folder(root)
    if folder.train_table.is_file():
        num_labelled = contest.count_landmarks(folder.train_table)
        if num_labelled != num_landmarks:
            raise ValueError(
                f"{folder.train_table} has {num_labelled} landmarks, the network of {first.path} "
                f"predicts {num_landmarks}"
            )
    asked = contest.read_asked_points(folder.test_points, num_landmarks)
    lookup = None
    if folder.lookup_table.is_file():
        lookup = kaggle15.read_lookup(folder.lookup_table, asked.names)
    names, lost = asked.names, list[str]()
    if missing == "mean-shape":
        names, lost = _sorted_out(folder.test_images, asked.names)
        if not names:
            raise ValueError(f"{folder.test_images}: none of the test pictures can be read")
    paths = contest.image_paths(folder.test_images, names, asked.path)

    unknown = np.broadcast_to(np.float32(np.nan), (len(paths), num_landmarks, 2))
    points_image = np.empty((len(paths), num_landmarks, 2), np.float32)
    mean_shape = np.zeros((num_landmarks, 2))
    with tqdm(total=len(paths), desc="predict", unit="img", leave=False, disable=None) as bar:
        for found in predict(
            ensemble.views(paths, contest.Points(unknown), device), np.arange(len(paths)),
            batch=first.experiment.train.batch, workers=first.experiment.data.workers,
            device=device, weighted=ensemble.weighted,
        ):  # fmt: skip
            points_image[found.rows] = found.points_image
            mean_shape += found.frame.to_image(first.mean_shape_crop).sum(0).numpy() / len(paths)
            bar.update(len(found.rows))
    if lost:
        logger.warning(
            f"{len(lost)} of {len(asked.names)} test pictures cannot be read and get the mean "
            f"shape: {', '.join(lost[:10])}{' ...' if len(lost) > 10 else ''}"
        )
        filling = np.broadcast_to(mean_shape, (len(lost), num_landmarks, 2))
        points_image = np.concatenate([points_image, filling])
    names = [*names, *lost]
    if lookup is None:
        rounding = "round" if rounding == "auto" else rounding
        contest.write_submission(out, asked, names, points_image, rounding=rounding)
    else:
        rounding = "none" if rounding == "auto" else rounding
        kaggle15.write_submission(out, lookup, names, points_image, rounding=rounding)
    return len(asked.names)


def _sorted_out(images: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The names of the pictures that can be read, and of those that cannot."""
    readable: list[str] = []
    lost: list[str] = []
    for name in tqdm(names, desc="check pictures", unit="img", leave=False, disable=None):
        try:
            contest.read_image(images / name)
            readable.append(name)
        except ValueError:
            lost.append(name)
    return readable, lost
