"""TrainedRun networks and the contest's test images, or other submissions -> a submission file."""

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
from heatmap.inference.predict import Execution, predict
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
    """Predicts every test image and writes what is asked for; returns the number of images.

    A folder with test/IdLookupTable.csv is answered as Kaggle's facial keypoints are (`kaggle15`).
    Of several processes each predicts its part, and the first writes the file.

    Args:
        root: the contest's folder.
        rounding: as `contest.write_submission` takes it; "auto" is "round", and "none" where there
            is a lookup table.
        missing: with a test image that cannot be read, "stop" or answer with the first run's
            "mean-shape", placed as in the other test images.

    Raises:
        UserError: an image cannot be read, the file's rules are broken, or processes do not see
            the same files; no file is written.
    """
    first, num_landmarks = ensemble.runs[0], ensemble.num_landmarks
    folder = contest.find_folder(root)
    labelled = folder.train_table
    if labelled.is_file() and (found := contest.count_landmarks(labelled)) != num_landmarks:
        raise UserError(
            f"{labelled} has {found} landmarks, the network of {first.path} predicts "
            f"{num_landmarks}"
        )
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
    given, frames = _answers(ensemble, [paths[row] for row in rows], indices[rows], device)
    if given is None or frames is None:
        return len(asked.names)
    answers = np.empty((len(asked.names), indices.shape[1], 2))
    answers[rows] = given
    if lost:
        some = ", ".join(asked.names[row] for row in lost[:10])
        logger.warning(
            f"{len(lost)} of {len(asked.names)} test images cannot be read and get the mean "
            f"shape: {some}{' ...' if len(lost) > 10 else ''}"
        )
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


def _answers(
    ensemble: Ensemble, paths: Sequence[Path], indices: np.ndarray, device: torch.device
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Landmarks (N, K, 2) by `indices` (N, K), image_from_crop (N, 3, 3); None but on rank 0."""
    first, rank, world = ensemble.runs[0], distributed.rank(), distributed.world()
    nothing = np.broadcast_to(np.float32(np.nan), (len(paths), ensemble.num_landmarks, 2))
    answers, image_from_crop = [], []
    hidden = rank > 0 or None
    with tqdm(total=len(paths), desc="predict", unit="img", leave=False, disable=hidden) as bar:
        for found in predict(
            ensemble.views(paths, nothing, device), np.arange(len(paths)),
            Execution(device, first.experiment.train.batch, first.experiment.data.workers),
            weighted=ensemble.weighted, rank=rank, world=world,
        ):  # fmt: skip
            answers.append(np.take_along_axis(found.points_image, indices[found.rows, :, None], 1))
            image_from_crop.append(found.frame.image_from_crop.numpy())
            bar.update(min(len(found.rows) * world, len(paths) - bar.n))
    return distributed.joined(answers), distributed.joined(image_from_crop)


def _unreadable(images: Path, names: list[str]) -> list[int]:
    """The rows of the images that cannot be read; every process looks at its part."""
    mine = range(distributed.rank(), len(names), distributed.world())
    hidden = distributed.rank() > 0 or None  # None: shown on a terminal alone
    shown = tqdm(mine, desc="check images", unit="img", leave=False, disable=hidden)
    lost = [row for row in shown if not contest.is_readable(images / names[row])]
    return sorted(chain.from_iterable(distributed.gather(lost)))


def average_submissions(
    submissions: Sequence[Path], out: Path, *, rounding: Rounding = "auto"
) -> int:
    """Writes the mean of submissions in the first one's order; returns the number of its rows.

    Rows are joined by file name, or by RowId where all files are of that form. An ensemble of the
    runs themselves is more exact where the submissions were rounded.

    Args:
        rounding: as for `submit`.

    Raises:
        UserError: a file is missing, malformed or of another form than the first, or answers other
            rows or another number of points; no file is written.
    """
    by_row_id = [kaggle15.is_submission(path) for path in submissions]
    if len(set(by_row_id)) > 1:
        with_row_ids, without = (submissions[by_row_id.index(kind)] for kind in (True, False))
        told = f"{with_row_ids} has the columns RowId and Location, {without} has not"
        raise UserError(f"{told}; only submissions of one form can be averaged")
    if by_row_id[0]:
        return kaggle15.average(submissions, out, "none" if rounding == "auto" else rounding)
    return submission.average(submissions, out, "round" if rounding == "auto" else rounding)
