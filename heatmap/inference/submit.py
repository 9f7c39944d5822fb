"""Submission files: predictions of runs on the contest's test images, or averaged submissions."""

import hashlib
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from heatmap import frame
from heatmap.data import contest
from heatmap.data.contest import submission
from heatmap.data.formats import kaggle15
from heatmap.errors import UserError
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict
from heatmap.runtime import distributed

logger = logging.getLogger("heatmap")

Rounding = Literal["auto", "round", "truncate", "none"]


def submit(
    ensemble: Ensemble,
    root: Path,
    out: Path,
    *,
    rounding: Rounding,
    missing: Literal["stop", "mean-shape"],
    device: torch.device,
) -> int:
    """Predicts every test image, writes the requested landmarks and returns the number of images.

    If test/IdLookupTable.csv exists, the format is that of Kaggle's facial keypoints (`kaggle15`).
    Each process predicts a share of the images, and the first one writes the file.

    Args:
        root: contest folder.
        rounding: see `contest.write_submission`; "auto" is "none" for `kaggle15`, else "round".
        missing: "stop" at a test image that cannot be read, or write the first run's "mean-shape",
            placed as in the average test image.

    Raises:
        UserError: an image cannot be read, the contest's rules are broken, or the processes see
            different files. No file is written.
    """
    first, num_landmarks = ensemble.runs[0], ensemble.num_landmarks
    folder = contest.find_folder(root)
    table = folder.train_table
    if table.is_file() and (count := contest.count_landmarks(table)) != num_landmarks:
        raise UserError(f"{table} has {count} landmarks, {first.path} predicts {num_landmarks}")
    asked = contest.read_asked_points(folder.test_points, num_landmarks)
    lookup, indices = None, asked.indices
    if folder.lookup_table.is_file():
        lookup = kaggle15.read_lookup(folder.lookup_table, asked.names)
        indices = np.tile(np.arange(num_landmarks), (len(asked.names), 1))
    asked_hash = hashlib.sha256(asked.indices.tobytes() + "\n".join(asked.names).encode())
    distributed.must_agree({str(asked.path): asked_hash.hexdigest()} | ensemble.fingerprints())

    lost = [] if missing == "stop" else _unreadable(folder.test_images, asked.names)
    rows = np.setdiff1d(np.arange(len(asked.names)), lost)
    if len(rows) == 0:
        raise UserError(f"{folder.test_images}: none of the test images can be read")
    paths = contest.image_paths(folder.test_images, asked.names, asked.path, rows)
    points, frames = _predicted(ensemble, [paths[row] for row in rows], indices[rows], device)
    if points is None or frames is None:
        return len(asked.names)
    answers = np.empty((len(asked.names), indices.shape[1], 2))
    answers[rows] = points
    if lost:
        image_from_crop = torch.from_numpy(frames.mean(0))
        mean_shape = frame.apply(image_from_crop, first.mean_shape_crop).numpy()
        answers[lost] = mean_shape[indices[lost]]
    if rounding == "auto":
        rounding = "round" if lookup is None else "none"
    if lookup is None:
        contest.write_submission(out, asked, answers, rounding=rounding)
    else:
        kaggle15.write_submission(out, lookup, asked.names, answers, rounding)
    return len(asked.names)


def _predicted(
    ensemble: Ensemble, paths: Sequence[Path], indices: np.ndarray, device: torch.device
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Points (N, K, 2) at `indices` (N, K) and image_from_crop (N, 3, 3); None except on rank 0."""
    experiment = ensemble.runs[0].experiment
    unlabelled = np.broadcast_to(np.float32(np.nan), (len(paths), ensemble.num_landmarks, 2))
    points, image_from_crop = [], []
    hidden = distributed.rank() > 0 or None  # None shows it on a terminal only
    with tqdm(total=len(paths), desc="predict", unit="img", leave=False, disable=hidden) as bar:
        for batch in predict(
            ensemble.views(paths, unlabelled, device), np.arange(len(paths)),
            batch=experiment.train.batch, workers=experiment.data.workers,
            weighted=ensemble.weighted, distribute=True,
        ):  # fmt: skip
            points.append(np.take_along_axis(batch.points_image, indices[batch.rows, :, None], 1))
            image_from_crop.append(batch.frame.image_from_crop.numpy())
            bar.update(min(len(batch.rows) * distributed.world(), len(paths) - bar.n))
    return distributed.joined(points), distributed.joined(image_from_crop)


def _unreadable(images: Path, names: list[str]) -> list[int]:
    """Rows of the images that cannot be read; each process checks its share."""
    share = range(distributed.rank(), len(names), distributed.world())
    hidden = distributed.rank() > 0 or None
    bar = tqdm(share, desc="check images", unit="img", leave=False, disable=hidden)
    lost = [row for row in bar if not contest.is_readable(images / names[row])]
    rows = sorted(chain.from_iterable(distributed.gather(lost)))
    if rows:
        examples = ", ".join(names[row] for row in rows[:10]) + " ..." * (len(rows) > 10)
        counts = f"{len(rows)} of {len(names)} test images"
        logger.warning(f"{counts} cannot be read and get the mean shape: {examples}")
    return rows


def average_submissions(
    submissions: Sequence[Path], out: Path, *, rounding: Rounding = "auto",
    weights: Sequence[float] = (),
) -> int:  # fmt: skip
    """Writes the mean of submissions, in the first one's order, and returns its number of rows.

    Rows are matched by file name or RowId; `rounding` is as in `submit`, and the weights are equal
    by default. Merging the runs themselves is more exact, since it rounds once.

    Raises:
        UserError: a file is missing or malformed, or differs from the first in format, rows or
            number of points. No file is written.
    """
    by_row_id = [kaggle15.is_submission(path) for path in submissions]
    if len(set(by_row_id)) > 1:
        with_row_ids, without = (submissions[by_row_id.index(kind)] for kind in (True, False))
        raise UserError(f"{with_row_ids} has columns RowId and Location, but {without} does not")
    if rounding == "auto":
        rounding = "none" if by_row_id[0] else "round"
    average = kaggle15.average if by_row_id[0] else submission.average
    return average(submissions, out, rounding, weights or [1.0] * len(submissions))
