"""The images of an experiment: read, checked and split into training and validation rows."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from heatmap import config, schemes, shape
from heatmap.data import augment, contest, samples
from heatmap.errors import UserError
from heatmap.runs.checkpoint import Checkpoint
from heatmap.runtime import distributed
from heatmap.runtime.machine import send

logger = logging.getLogger("heatmap")

NUM_AVERAGED = 200  # faces whose mean must be symmetric
MAX_ASYMMETRY = 0.5  # of the mean face's radius


@dataclass(frozen=True)
class TrainingData:
    """Images and landmarks to train and validate on. Rows index the landmark table."""

    experiment: config.Experiment
    table: contest.LandmarkTable
    table_hash: str
    split_kind: str  # order, person, file ...
    split_rule: str  # for display: "every 5th person", "as stored with the run" ...
    training_rows: np.ndarray  # (T,) int64
    validation_rows: np.ndarray  # (V,) int64
    image_weights: Tensor  # (N,) float32, weights in the loss
    training: samples.Samples  # N crops with the margin that augmentation needs
    validation: samples.Samples  # N crops as the network sees them
    scheme: schemes.Scheme | None
    permutation: np.ndarray | None  # (P,) landmark order of a mirrored face, if mirroring is on

    @property
    def excluded_rows(self) -> np.ndarray:
        """Rows used for neither training nor validation."""
        used = np.concatenate([self.training_rows, self.validation_rows])
        return np.setdiff1d(np.arange(len(self.table.names)), used)

    @property
    def batches_per_pass(self) -> int:
        """Batches in one pass over the training rows; the incomplete last one is dropped."""
        batch = min(self.experiment.train.batch, len(self.training_rows))
        return len(self.training_rows) // batch

    @property
    def batches_per_epoch(self) -> int:
        return self.experiment.data.multiplier * self.batches_per_pass

    def augmented(
        self,
        sample: samples.Sample,
        pass_index: int,
        device: torch.device,
        label_offset: Tensor | None = None,
    ) -> augment.Batch:
        """Augments a batch on the device.

        Args:
            sample: training samples, batched.
            pass_index: pass over the training rows, from 0; each draws its own changes.
            label_offset: (2,) in image pixels on the device, to take off the labels.
        """
        experiment, rows = self.experiment, sample.row.tolist()
        changes = augment.sample_changes(experiment.augment, experiment.seed, pass_index, rows)
        crops = sample.crop.to(device, non_blocking=True)  # the loader has pinned it
        points_image = sample.points_image.to(device, non_blocking=True)
        if label_offset is not None:
            points_image = points_image - label_offset
        crop_hw = experiment.crop.height, experiment.crop.width
        batch = augment.augmented(
            crops, sample.image_from_crop, points_image, crop_hw, changes, self.permutation,
            sample.inner,
        )  # fmt: skip
        if experiment.augment.extra:
            batch = augment.with_extra(batch, experiment.augment.extra, changes)
        weights = send(self.image_weights[sample.row], device)
        return replace(batch, weights=batch.weights * weights[:, None])

    def example(self, count: int, epoch: int) -> augment.Batch:
        """Returns evenly spaced training samples, augmented as in the given epoch (from 1).

        Raises:
            UserError: an image cannot be read; the message names it.
        """
        rows = samples.evenly_spaced(self.training_rows, count)
        sample = samples.collate([self.training[row] for row in rows.tolist()])
        pass_index = (epoch - 1) * self.experiment.data.multiplier
        return self.augmented(sample, pass_index, torch.device("cpu"))


def read_data(experiment: config.Experiment, saved: Checkpoint | None = None) -> TrainingData:
    """Reads the landmark table and finds the images. A checkpoint sets the split and the weights.

    Raises:
        UserError: unusable data or options, or data that changed since the checkpoint.
    """
    folder = contest.find_folder(experiment.data.root)
    data, is_first = experiment.data, distributed.rank() == 0
    table = contest.read_landmarks(folder.train_table, data.cache, progress=is_first)
    table_hash = table.fingerprint
    if saved is None:
        kind, rule, training_rows, validation_rows = _split(data, folder, table)
    elif saved.table_hash == table_hash:
        kind, rule, training_rows = "file", "as stored with the run", saved.training_rows.numpy()
        validation_rows = saved.validation_rows.numpy()
        saved.check_rows("last.pt", len(table.names))
    else:
        raise UserError(f"{table.path} is not the table that this run was started with")
    used = np.concatenate([training_rows, validation_rows]).tolist()
    paths = contest.image_paths(folder.train_images, table.names, table.path, used)
    for part, rows in {"training": training_rows, "validation": validation_rows}.items():
        needs_labels = part == "training" or not data.all_rows_train
        if needs_labels and not any(np.isfinite(table.points_image[row]).any() for row in rows):
            raise UserError(
                f"{table.path}: none of the {len(rows)} {part} rows ({rule}) has a label; label "
                "some, split differently (data.split, data.validation) or change data.exclude"
            )

    image_weights = torch.ones(len(paths))
    if saved and saved.state:
        image_weights = saved.state.image_weights
    elif data.weights is not None:
        weights = contest.read_weights(data.weights, [paths[row] for row in training_rows.tolist()])
        image_weights[training_rows] = torch.from_numpy(weights).float()
    validation = samples.Samples.of(experiment, paths, table.points_image)
    margin = samples.margin_for(experiment.crop, experiment.augment)
    training = replace(validation, margin=margin, edge=experiment.augment.fill != "black")
    scheme = saved.scheme if saved else None
    if saved is None and data.symmetry is not None:
        scheme = schemes.read_scheme(data.symmetry, table.num_landmarks)
    permutation = None
    if experiment.augment.mirror > 0:
        permutation = schemes.mirror_permutation(table.num_landmarks, scheme)
        _warn_if_asymmetric(table.points_image, training_rows, permutation)
    return TrainingData(
        experiment, table, table_hash, kind, rule, training_rows, validation_rows, image_weights,
        training, validation, scheme, permutation,
    )  # fmt: skip


def _warn_if_asymmetric(
    points_image: contest.Points, rows: np.ndarray, permutation: np.ndarray
) -> None:
    """Warns if mirroring the mean face changes it, since its landmarks may be in another order."""
    try:
        labels = points_image[samples.evenly_spaced(rows, NUM_AVERAGED)]
        mean = shape.mean_shape(shape.of(labels))
    except UserError:  # no face has three landmarks
        return
    mirrored = shape.onto(-mean[None, permutation].conj(), mean)[0]
    change = np.nanmax(np.abs(mirrored - mean)) / np.sqrt(np.nanmean(np.abs(mean) ** 2))
    if change > MAX_ASYMMETRY and distributed.rank() == 0:
        logger.warning(
            f"mirroring moves a landmark of the mean face by {100 * change:.0f} % of its radius, "
            "so the mirror pairs seem to be wrong; find them with heatmap data symmetry and pass "
            "the file as --data.symmetry, or do not mirror: --augment.mirror 0"
        )


def _split(
    data: config.Data, folder: contest.Folder, table: contest.LandmarkTable
) -> tuple[str, str, np.ndarray, np.ndarray]:
    """The split's kind and rule, the training rows and the validation rows."""
    if data.split_file is not None:
        split = contest.read_split(data.split_file, table, data.fold)
    else:
        split = contest.split_rows(
            table.names, rule=data.split, share=data.validation, folds=data.folds, fold=data.fold,
            seed=data.split_seed, person_pattern=data.person_pattern,
        )  # fmt: skip
    validation_rows = np.flatnonzero(split.validation)
    training_rows = np.setdiff1d(np.flatnonzero(~split.validation), split.excluded)
    if data.exclude is not None:
        excluded = contest.read_excluded(data.exclude, table)
        training_rows = np.setdiff1d(training_rows, excluded)
        # excluded images still validate, unless they cannot be read
        candidates = np.intersect1d(validation_rows, excluded).tolist()
        paths = {row: folder.train_images / table.names[row] for row in candidates}
        unreadable = [row for row, path in paths.items() if not contest.is_readable(path)]
        validation_rows = np.setdiff1d(validation_rows, unreadable)
        if unreadable:
            logger.warning(
                f"{len(unreadable)} excluded images cannot be read, so validation skips them too"
            )
    return split.kind, split.rule, training_rows, validation_rows
