"""An experiment made real: data read and split, network and optimizer built or taken up again."""

import hashlib
import logging
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from heatmap import networks, schemes
from heatmap.config import Data, Experiment, to_dict
from heatmap.data import augment, contest, samples
from heatmap.errors import UserError
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runtime import distributed
from heatmap.runtime.machine import chosen_device
from heatmap.training.optimizer import optimizer_for, running_mean
from heatmap.training.schedule import seed_of

logger = logging.getLogger("heatmap")


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint.

    epoch: epochs that are over; batch: batches of the next one that are done, with loss_sum their
    losses; seconds: of training and validation over all resumes; stage: the one that runs, begun at
    stage_epoch and stage_step, with the scores of its validations; losses: of every epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    best_mse: float = math.inf
    best_epoch: int = 0
    mean_shape_mse: float = math.nan
    finished: bool = False
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    sigma: float | None = None


@dataclass(frozen=True)
class TrainingData:
    """An experiment's images, read, checked and split."""

    experiment: Experiment
    table: contest.LandmarkTable
    table_hash: str
    split_kind: str
    split_rule: str
    training_rows: np.ndarray
    validation_rows: np.ndarray
    image_weights: Tensor
    training: samples.Samples
    validation: samples.Samples
    scheme: schemes.Scheme | None
    permutation: np.ndarray | None

    @property
    def excluded_rows(self) -> np.ndarray:
        """The rows that neither train nor validate."""
        used = np.concatenate([self.training_rows, self.validation_rows])
        return np.setdiff1d(np.arange(len(self.table.names)), used)

    @property
    def batches_per_pass(self) -> int:
        batch = min(self.experiment.train.batch, len(self.training_rows))
        return len(self.training_rows) // batch

    @property
    def batches_per_epoch(self) -> int:
        return self.experiment.data.multiplier * self.batches_per_pass

    def augmented(self, sample: samples.Sample, passed: int, device: torch.device) -> augment.Batch:
        """A batch of training samples as the network sees it after so many passes over the rows."""
        experiment, rows = self.experiment, sample.row.tolist()
        changes = augment.sample_changes(experiment.augment, experiment.seed, passed, rows)
        crops, image_from_crop, points_image = (t.to(device, non_blocking=True) for t in sample[:3])
        crop_hw = experiment.crop.height, experiment.crop.width
        batch = augment.augmented(
            crops, image_from_crop, points_image, crop_hw, changes, self.permutation, sample.inner
        )
        counts = self.image_weights[sample.row].to(device)
        return replace(batch, weights=batch.weights * counts[:, None])

    def example(self, count: int, epoch: int) -> augment.Batch:
        """Training samples, evenly spaced through the table, as an epoch (from 1) first sees them.

        Raises:
            UserError: an image cannot be read; the message names it.
        """
        rows = samples.evenly_spaced(self.training_rows, count)
        sample = samples.collate([self.training[row] for row in rows.tolist()])
        passed = (epoch - 1) * self.experiment.data.multiplier
        return self.augmented(sample, passed, torch.device("cpu"))


@dataclass(frozen=True)
class Run(TrainingData):
    """An experiment made real: data, network, optimizer and how far they have come."""

    device: torch.device
    mean_shape: Tensor
    network: networks.Network
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    progress: Progress
    wandb_id: str | None

    @property
    def scored(self) -> networks.Network:
        """The network that is validated and kept: with the running mean of the weights, if any."""
        if self.averaged is None:
            return self.network
        assert isinstance(self.averaged.module, networks.Network)
        return self.averaged.module

    @property
    def passed(self) -> int:
        """Passes over the training rows that are over."""
        progress = self.progress
        whole_epochs = progress.epoch * self.experiment.data.multiplier
        return whole_epochs + progress.batch // self.batches_per_pass

    @property
    def total_steps(self) -> int:
        epochs = sum(stage.epochs for stage in self.experiment.all_stages)
        steps = epochs * self.batches_per_epoch
        return min(steps, self.experiment.train.max_steps or steps)


def read_data(experiment: Experiment, saved: checkpoint.Checkpoint | None = None) -> TrainingData:
    """Reads and checks the images that a run needs, from the start or from a checkpoint.

    Raises:
        UserError: data or options that cannot be used, or data that changed since the checkpoint.
    """
    folder = contest.find_folder(experiment.data.root)
    data, shown = experiment.data, distributed.rank() == 0
    table = contest.read_landmarks(folder.train_table, data.cache, progress=shown)
    table_hash = table.fingerprint
    if saved is None:
        kind, rule, training_rows, validation_rows = _divided(data, folder, table)
    elif saved.table_hash == table_hash:
        kind, rule, training_rows = "file", "as stored with the run", saved.training_rows.numpy()
        validation_rows = saved.validation_rows.numpy()
    else:
        raise UserError(f"{table.path} is not the table that this run was started with")
    used = np.concatenate([training_rows, validation_rows]).tolist()
    paths = contest.image_paths(folder.train_images, table.names, table.path, used)
    for part, rows in {"training": training_rows, "validation": validation_rows}.items():
        needed = part == "training" or not data.all_rows_train
        if needed and not any(np.isfinite(table.points_image[row]).any() for row in rows):
            raise UserError(
                f"{table.path}: none of the {len(rows)} {part} rows ({rule}) has a label; label "
                "some, split otherwise (data.split, data.validation) or change data.exclude"
            )

    image_weights = torch.ones(len(paths))
    if saved and saved.state:
        image_weights = saved.state.image_weights
    elif data.weights is not None:
        read = contest.read_weights(data.weights, [paths[row] for row in training_rows.tolist()])
        image_weights[training_rows] = torch.from_numpy(read).float()
    validation = samples.Samples.of(experiment, paths, table.points_image)
    margin = samples.margin_for(experiment.crop, experiment.augment)
    training = replace(validation, margin=margin, edge=experiment.augment.fill != "black")
    scheme = saved.landmark_scheme if saved else None
    if saved is None and data.symmetry is not None:
        scheme = schemes.read_scheme(data.symmetry, table.num_landmarks)
    mirrors = experiment.augment.mirror > 0
    permutation = schemes.mirror_permutation(table.num_landmarks, scheme) if mirrors else None
    return TrainingData(
        experiment, table, table_hash, kind, rule, training_rows, validation_rows, image_weights,
        training, validation, scheme, permutation,
    )  # fmt: skip


def _divided(
    data: Data, folder: contest.Folder, table: contest.LandmarkTable
) -> tuple[str, str, np.ndarray, np.ndarray]:
    """The split's kind and rule, the rows to train on and those to validate on."""
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
        both = np.intersect1d(validation_rows, excluded).tolist()
        paths = {row: folder.train_images / table.names[row] for row in both}
        unreadable = [row for row, path in paths.items() if not contest.is_readable(path)]
        validation_rows = np.setdiff1d(validation_rows, unreadable)
        if unreadable:
            count = len(unreadable)
            logger.warning(f"{count} excluded images cannot be read and do not validate either")
    return split.kind, split.rule, training_rows, validation_rows


def prepare(experiment: Experiment, saved: checkpoint.Checkpoint | None = None) -> Run:
    """Reads and checks everything that a run needs, from the start or from a checkpoint.

    Raises:
        UserError: data or options that cannot be used, data that changed since the checkpoint, or
            processes that do not see the same files.
    """
    state = saved.state if saved else None
    if saved and not state:
        raise UserError(
            "this run was made by version 0.1.0 and cannot be resumed; begin another one from its "
            "weights with --train.start RUN"
        )
    device = distributed.start(chosen_device(experiment.train.device))
    data = read_data(experiment, saved)
    first, rows = distributed.rank() == 0, data.training_rows
    # a batch that the processes cannot share is refused before anything is written
    samples.shuffled_batches(rows, experiment.train.batch, 0, 0, 0, distributed.world())
    read: dict[str, object] = {
        "the experiment": experiment,
        str(data.table.path): data.table_hash,
        "the training rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "the last checkpoint": state and state.progress,
    }
    distributed.must_agree(read)

    torch.manual_seed(seed_of(experiment.seed, 0))
    model = replace(experiment.model, weights="none") if saved else experiment.model
    network = networks.build(model, experiment.crop, data.table.num_landmarks).to(device)
    network.compiled_parts = experiment.train.compile
    optimizer = optimizer_for(experiment.optimizer, network)
    progress = Progress()
    if saved and state:
        network.load_state_dict(state.network or saved.network)
        optimizer.load_state_dict(state.optimizer)
        progress = Progress(**state.progress)
        mean_shape = saved.mean_shape_crop
    else:
        if experiment.train.start is not None:
            _start_from(experiment.train.start, network)
        shape = samples.mean_shape_crop(data.validation, rows) if first else np.empty(0)
        mean_shape = torch.from_numpy(distributed.from_first(shape))
    if isinstance(network, networks.HeatmapNetwork):
        network.sigma = progress.sigma = progress.sigma or network.sigma
    averaged = running_mean(network, experiment.train.ema) if experiment.train.ema else None
    if averaged and saved:
        averaged.module.load_state_dict(saved.network)
        averaged.n_averaged.fill_(progress.step)
    return Run(
        **vars(data), device=device, mean_shape=mean_shape, network=network, averaged=averaged,
        optimizer=optimizer, progress=progress, wandb_id=state.wandb_id if state else None,
    )  # fmt: skip


def _start_from(path: Path, network: networks.Network) -> None:
    """Takes over the weights of another run; a head for other landmarks stays as it is."""
    path = RunFolder(path).best if path.is_dir() else path
    own, found = network.state_dict(), checkpoint.load(path).network
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    anew = [name for name in own if name not in fitting]
    wrong = [name for name in anew if name.split(".")[0] not in network.HEAD]
    if wrong:
        found_wrong = f"{len(wrong)} weights do not fit this network, such as {wrong[0]}"
        raise UserError(f"train.start {path}: {found_wrong}; only the head may differ")
    network.load_state_dict(fitting, strict=False)
    if anew:
        logger.warning(f"{path} has another head; made anew: {', '.join(anew)}")


def save(run: Run, path: Path, wandb_id: str | None = None) -> None:
    """Writes the weights that are scored; with a W&B id also the state that a resume needs."""
    progress, state = run.progress, None
    if wandb_id is not None:
        state = checkpoint.State(
            network=run.network.state_dict() if run.averaged else None,
            optimizer=run.optimizer.state_dict(),
            progress=asdict(progress),
            image_weights=run.image_weights,
            wandb_id=wandb_id,
        )
    is_scored = progress.scores and progress.batch == 0  # and no epoch has begun since
    checkpoint.save(
        path,
        checkpoint.Checkpoint(
            config=to_dict(run.experiment),
            num_landmarks=run.table.num_landmarks,
            network=run.scored.state_dict(),
            sigma=progress.sigma,
            mean_shape_crop=run.mean_shape,
            scheme=run.scheme.to_dict() if run.scheme else None,
            table_hash=run.table_hash,
            training_rows=torch.from_numpy(run.training_rows),
            validation_rows=torch.from_numpy(run.validation_rows),
            validation_mse=progress.scores[-1] if is_scored else None,
            state=state,
        ),
    )
