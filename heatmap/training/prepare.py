"""Builds a run from an experiment or a checkpoint, and writes checkpoints."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatmap import losses, networks
from heatmap.config import Experiment, HeatmapModel, from_dict, to_dict
from heatmap.data import samples
from heatmap.errors import UserError, located
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runtime import distributed
from heatmap.runtime.functions import imported
from heatmap.runtime.machine import chosen_device, use_deterministic_algorithms
from heatmap.training.data import TrainingData, read_data
from heatmap.training.optimizer import RunningMean, load_state, optimizer_for
from heatmap.training.schedule import seed_of

logger = logging.getLogger("heatmap")

MIN_HELD_OUT = 40  # validation images for a shape prior


@dataclass(frozen=True)
class Run:
    """Everything that training needs."""

    data: TrainingData
    device: torch.device
    mean_shape_crop: Tensor  # (P, 2) float64, mean of the training faces in crop pixels
    network: networks.Network
    averaged: RunningMean | None  # of the weights, if train.ema is set
    optimizer: torch.optim.Optimizer
    progress: checkpoint.Progress
    wandb_id: str | None  # of a resumed run

    @property
    def experiment(self) -> Experiment:
        return self.data.experiment

    @property
    def scored_network(self) -> networks.Network:
        """The network that is validated and saved: the running mean of the weights, if any."""
        return self.averaged.network if self.averaged else self.network

    @property
    def measures_label_offset(self) -> bool:
        is_auto = self.experiment.data.fixed_label_offset is None
        return is_auto and self.data.permutation is not None

    @property
    def fits_shape_prior(self) -> bool:
        model = self.experiment.model
        is_wanted = isinstance(model, HeatmapModel) and model.shape_prior == "auto"
        return is_wanted and len(self.data.validation_rows) >= MIN_HELD_OUT

    def set_label_offset(self, x: float, y: float) -> None:
        """Sets the distance of the labels from the landmarks, in image pixels."""
        self.progress.label_offset = x, y
        for network in (self.network, self.scored_network):
            network.label_offset.copy_(torch.tensor([x, y]))

    @property
    def pass_index(self) -> int:
        """Index of the current pass over the training rows."""
        whole_epochs = self.progress.epoch * self.experiment.data.multiplier
        return whole_epochs + self.progress.batch // self.data.batches_per_pass

    @property
    def total_steps(self) -> int:
        epochs = sum(stage.epochs for stage in self.experiment.all_stages)
        steps = epochs * self.data.batches_per_epoch
        return min(steps, self.experiment.train.max_steps or steps)

    def budget_used(self) -> float:
        """Returns the used fraction of the budget, of steps or of minutes, whichever is larger."""
        used = self.progress.step / self.total_steps
        if minutes := self.experiment.train.max_minutes:
            # the last validation has to fit in, too; a shape prior needs two more
            validations = 3 if self.fits_shape_prior else 1
            seconds = max(60 * minutes - validations * self.progress.validation_seconds, 1e-9)
            used = max(used, distributed.from_first(self.progress.update_seconds() / seconds))
        return used


def prepare(experiment: Experiment, saved: checkpoint.Checkpoint | None = None) -> Run:
    """Reads the data and builds network and optimizer, from scratch or from a checkpoint.

    Raises:
        UserError: unusable data or options, data that changed since the checkpoint, or processes
            that do not see the same files.
    """
    state = saved.state if saved else None
    if saved and not state:
        raise UserError(
            "this run was made by version 0.1.0 and cannot be resumed; start a new one from its "
            "weights with --train.start RUN"
        )
    _check_functions(experiment)
    if experiment.train.deterministic:
        use_deterministic_algorithms()
    device = distributed.start(chosen_device(experiment.train.device))
    data = read_data(experiment, saved)
    path, start = experiment.train.start, None
    if path and not saved:
        start = checkpoint.load(RunFolder(path).best if path.is_dir() else path)
    if not saved:
        experiment = _with_normalisation(experiment, start)
        data = replace(data, experiment=experiment)
    _check_processes_agree(data, state)

    torch.manual_seed(seed_of(experiment.seed, 0))
    model = replace(experiment.model, weights="none") if saved else experiment.model
    network = networks.build(model, experiment.crop, data.table.num_landmarks).to(device)
    if device.type == "cuda":  # else every convolution copies its weights into this layout
        network.to(memory_format=torch.channels_last)
    network.compiled_parts = experiment.train.compile
    optimizer = optimizer_for(experiment.optimizer, network)
    progress = checkpoint.Progress()
    if saved and state:
        try:
            network.load_state_dict(state.network or saved.network)
            load_state(optimizer, state.optimizer)
        except (RuntimeError, LookupError, TypeError, ValueError):
            raise UserError(
                "this run trained other weights than this version would, so it cannot be resumed; "
                "start a new one from its weights with --train.start RUN"
            ) from None
        progress, mean_shape_crop = state.progress, saved.mean_shape_crop
    else:
        if path and start:
            _load_start_weights(path, start.network, network)
        shape = np.empty(0)
        if distributed.rank() == 0:
            shape = samples.mean_shape_crop(data.validation, data.training_rows)
        mean_shape_crop = torch.from_numpy(distributed.from_first(shape))
    if isinstance(network, networks.HeatmapNetwork):
        network.sigma = progress.sigma = progress.sigma or network.sigma
    averaged = RunningMean(network, experiment.train.ema) if experiment.train.ema else None
    if averaged and saved:
        averaged.network.load_state_dict(saved.network)
    wandb_id = state.wandb_id if state else None
    run = Run(data, device, mean_shape_crop, network, averaged, optimizer, progress, wandb_id)
    run.set_label_offset(*(experiment.data.fixed_label_offset or progress.label_offset))
    return run


def _check_functions(experiment: Experiment) -> None:
    """Raises UserError if a function that the experiment names cannot be used."""
    model = experiment.model
    point_loss = model.coordinate_loss if isinstance(model, HeatmapModel) else model.loss
    if isinstance(model, HeatmapModel) and model.loss != "none":
        losses.of_heatmaps(model.loss)
    if point_loss != "none":
        losses.of_points(point_loss)
    if experiment.augment.extra:
        imported(experiment.augment.extra)


def _check_processes_agree(data: TrainingData, state: checkpoint.State | None) -> None:
    rows, experiment = data.training_rows, data.experiment
    # fails before anything is written if the processes cannot share a batch
    samples.shuffled_batches(rows, experiment.train.batch, 0, 0, 0, distributed.world())
    must_be_equal: dict[str, object] = {
        "the experiment": experiment,
        str(data.table.path): data.table_hash,
        "the training rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "the last checkpoint": state and state.progress,
    }
    distributed.must_agree(must_be_equal)


def _with_normalisation(experiment: Experiment, start: checkpoint.Checkpoint | None) -> Experiment:
    """The experiment with the mean and std that its start weights were trained with."""
    model = experiment.model
    if start:
        with located(experiment.train.start):
            first = from_dict(Experiment, start.config).model
        mean, std = first.mean or networks.IMAGENET_MEAN, first.std or networks.IMAGENET_STD
        model = replace(model, mean=model.mean or mean, std=model.std or std)
    model = networks.with_normalisation(model)
    values = f"; mean {model.mean}, std {model.std}" if model.mean else ""
    logger.info(f"encoder {model.encoder}: {experiment.start_weights}{values}")
    return replace(experiment, model=model)


def _load_start_weights(path: Path, loaded: dict[str, Tensor], network: networks.Network) -> None:
    """Loads the weights of another run. A head for other landmarks keeps its random weights."""
    weights = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in loaded.items()
        if name in weights and tensor.shape == weights[name].shape
    }
    missing = [name for name in weights if name not in fitting]
    wrong = [name for name in missing if name.split(".")[0] not in network.HEAD]
    if wrong:
        raise UserError(
            f"train.start {path}: {len(wrong)} weights do not fit this network, such as "
            f"{wrong[0]}; only the head may differ"
        )
    network.load_state_dict(fitting, strict=False)
    if missing:
        logger.warning(f"{path} has a different head; these stay random: {', '.join(missing)}")


def save(run: Run, path: Path, wandb_id: str | None = None) -> None:
    """Writes the scored weights and, given a W&B id, the state for a resume."""
    data, progress, state = run.data, run.progress, None
    if wandb_id is not None:
        state = checkpoint.State(
            network=run.network.state_dict() if run.averaged else None,
            optimizer=run.optimizer.state_dict(),
            progress=progress,
            image_weights=data.image_weights,
            wandb_id=wandb_id,
        )
    is_scored = progress.scores and progress.batch == 0  # and no epoch has begun since
    checkpoint.save(
        path,
        checkpoint.Checkpoint(
            config=to_dict(run.experiment),
            num_landmarks=data.table.num_landmarks,
            network=run.scored_network.state_dict(),
            sigma=progress.sigma,
            label_offset=progress.label_offset,
            mean_shape_crop=run.mean_shape_crop,
            scheme=data.scheme,
            table_hash=data.table_hash,
            training_rows=torch.from_numpy(data.training_rows),
            validation_rows=torch.from_numpy(data.validation_rows),
            validation_mse=progress.scores[-1] if is_scored else None,
            state=state,
        ),
    )
