"""Audits a contest folder: predictions of the runs, and the table of suspicious labels."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from heatmap import schemes, shape
from heatmap.curation.audit.residuals import AuditData, LabelScores
from heatmap.data import contest
from heatmap.data.contest.table import write_rows
from heatmap.data.samples import evenly_spaced
from heatmap.errors import UserError
from heatmap.evaluation import calibration
from heatmap.evaluation.metrics import spread_px
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import predict

MIN_EXPECTED_PX = 0.01
COLUMNS = "rank", "file_name", "score", "reasons", "group", "roll_deg", "turn", "trained"


@dataclass(frozen=True)
class AuditFolder:
    """The training images of a contest, with labels and predictions."""

    names: Sequence[str]
    paths: Sequence[Path]
    data: AuditData
    people: Sequence[str | None]  # by image, None where the name tells none
    scheme: schemes.Scheme | None  # if it is not a known one
    fingerprint: str  # of the table

    def write_table(self, path: Path, scores: LabelScores) -> None:
        """Writes a row for each image, the most suspicious first.

        Column trained is 1 if all runs were trained on the image.
        """
        rolls = shape.rolls(self.data.points_image)
        try:
            turns = shape.turns(self.data.points_image)
        except UserError:
            turns = np.full(len(self.names), np.nan)
        poses, table = np.stack([rolls, turns], 1), []
        for rank, row in enumerate(scores.ranking.tolist(), start=1):
            pose = [f"{angle:.4g}" if np.isfinite(angle) else "" for angle in poses[row]]
            table.append(
                (rank, self.names[row], f"{scores.score[row]:.3f}", "; ".join(scores.reasons(row)),
                 scores.suspicious_group(row), *pose, int(self.data.is_trained[row]))
            )  # fmt: skip
        write_rows(path, COLUMNS, table, replaces=[COLUMNS])


def read_folder(
    root: Path,
    runs: Sequence[Path],
    *,
    symmetry: Path | None,
    person_pattern: str,
    device: torch.device,
) -> AuditFolder:
    """Reads the training labels of a contest and predicts them with the runs.

    Each face is predicted by the runs that were not trained on it, or by all if every run was.

    Args:
        runs: run folders or checkpoints.
        symmetry: file with the landmark scheme, if it is not a known one.
        person_pattern: as `contest.split_rows` takes it.

    Raises:
        UserError: files or runs cannot be used.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=True)
    names, num_landmarks = table.names, table.num_landmarks
    scheme = schemes.read_scheme(symmetry, num_landmarks) if symmetry else None
    ensemble = Ensemble.load(runs)
    if ensemble.num_landmarks != num_landmarks:
        raise UserError(
            f"{ensemble.runs[0].path} predicts {ensemble.num_landmarks} landmarks, but "
            f"{table.path} has {num_landmarks}"
        )
    paths = contest.image_paths(folder.train_images, names, table.path)
    try:
        permutation = schemes.mirror_permutation(num_landmarks, scheme)
    except UserError:
        permutation = None
    is_unseen = np.ones((len(ensemble.runs), len(names)), bool)
    for unseen_rows, run in zip(is_unseen, ensemble.runs, strict=True):
        if run.table_hash == table.fingerprint:
            run.check_rows(run.path, len(names))
            unseen_rows[run.training_rows.numpy()] = False
    is_trained = np.asarray(~is_unseen.any(0))
    data = AuditData(
        points_image=table.points_image,
        predicted_image=_zeros_on_disk(len(names), num_landmarks, 2),
        expected_px=_zeros_on_disk(len(names), num_landmarks),
        disagreement_px=np.full(len(names), np.nan),
        is_trained=is_trained,
        half=contest.split_rows(names, folds=2, person_pattern=person_pattern).validation,
        groups=schemes.groups(num_landmarks, scheme),
        permutation=permutation,
    )
    is_used = is_unseen | is_trained
    for members in np.unique(is_used, axis=1).T:
        rows = np.flatnonzero((is_used == members[:, None]).all(0))
        _predict(data, Ensemble(tuple(compress(ensemble.runs, members))), rows, paths, device)
    people = contest.people_of(names, person_pattern)
    return AuditFolder(names, paths, data, people, scheme, table.fingerprint)


def _zeros_on_disk(*shape: int) -> np.ndarray:
    """Zeros in a temporary file, because they may not fit in memory."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _predict(
    data: AuditData,
    ensemble: Ensemble,
    rows: np.ndarray,
    paths: Sequence[Path],
    device: torch.device,
) -> None:
    """Fills the rows of the data with the predictions of the ensemble and the expected errors."""
    views = ensemble.views(paths, data.points_image, device)
    settings = ensemble.runs[0].experiment
    peak, spread = np.full((2, len(rows), data.predicted_image.shape[1]), np.nan, np.float32)
    with tqdm(total=len(rows), desc="predict", unit="img", leave=False, disable=None) as bar:
        for batch in predict(
            views, rows, batch=settings.train.batch, workers=settings.data.workers
        ):
            indices = np.searchsorted(rows, batch.rows)
            data.predicted_image[batch.rows] = batch.points_image
            spread[indices] = spread_px(batch)
            if batch.peak is not None:
                peak[indices] = batch.peak
            if batch.disagreement is not None:
                data.disagreement_px[batch.rows] = np.sqrt((batch.disagreement**2).mean(1))
            bar.update(len(indices))
    _fill_expected(data, ensemble, rows, peak, spread)


def _fill_expected(
    data: AuditData, ensemble: Ensemble, rows: np.ndarray, peak: np.ndarray, spread: np.ndarray
) -> None:
    """Fills the expected errors of the rows.

    They come from the calibration of a single run, else from one fitted to the rows that are new to
    the runs, else from the landmark's median residual, as a share of the face size.
    """
    is_trained = data.is_trained[rows]
    fitted = np.flatnonzero(is_trained == is_trained.all())  # the unseen rows, if there are any
    fitted = evenly_spaced(fitted, calibration.MAX_FITTED // spread.shape[1])
    predicted = shape.of(data.predicted_image[rows[fitted]])
    residual = np.abs(shape.of(data.points_image[rows[fitted]]) - predicted)
    median = np.nanmedian(residual / shape.face_size(predicted)[:, None], 0)
    stored = calibration.read(ensemble.runs[0].path.parent) if len(ensemble.runs) == 1 else None
    fit = stored.calibration if stored else calibration.fit(residual, peak[fitted], spread[fitted])
    for block in shape.blocks(np.arange(len(rows))):
        size = shape.face_size(shape.of(data.predicted_image[rows[block]]))
        expected = size[:, None] * median
        if fit:
            calibrated = fit.expected_error(peak[block], spread[block])
            expected = np.where(np.isfinite(calibrated), calibrated, expected)
        data.expected_px[rows[block]] = np.fmax(expected, MIN_EXPECTED_PX)
