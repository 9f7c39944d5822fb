"""Checkpoints: written whole or not at all, and free of code when they are read."""

import pickle
import zipfile
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatmap import config, networks, schemes
from heatmap.runtime.files import write_atomically

FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that an exact resume needs, as tensors and plain values.

    The random numbers of a run are functions of (seed, epoch, row) and (seed, step), so the seed in
    `config` and the counters in `progress` are the state of its generators.

    config: of the experiment, by `config.to_dict`; network, optimizer: their state dicts; averaged:
    that of the network with the running mean of the weights, None without; progress: counters,
    best score and elapsed time; training_rows: (T,) int64 rows of the table that are trained on;
    validation_rows: (V,) int64 those that are held out; picture_weights: (N,) float32 of all rows;
    table_hash: of the table's names and points; mean_shape_crop: (P, 2) float64; wandb_id: of the
    run in Weights & Biases; scheme: of the landmarks, by `schemes.Scheme.to_dict`, where the
    experiment names one (data.symmetry).
    """

    config: dict[str, Any]
    num_landmarks: int
    network: dict[str, Any]
    averaged: dict[str, Any] | None = None
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    training_rows: Tensor
    validation_rows: Tensor
    picture_weights: Tensor
    table_hash: str
    mean_shape_crop: Tensor
    wandb_id: str
    scheme: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def scored(self) -> dict[str, Any]:
        """The weights that validation scored, to predict with and to start from."""
        return self.network if self.averaged is None else self.averaged

    @property
    def landmark_scheme(self) -> schemes.Scheme | None:
        """The scheme that the run was told of, None where it was told of none."""
        return None if self.scheme is None else schemes.Scheme.from_dict(self.scheme)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint; a process killed meanwhile leaves the old file in its place."""
    with write_atomically(path) as temporary:
        torch.save({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}, temporary)


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file, on the CPU; no code in the file can run.

    Raises:
        ValueError: missing, damaged, not a checkpoint of this program, or of another format.
    """
    if not path.is_file():
        is_run = (path.parent / "config.json").is_file()
        hint = "its run has not finished an epoch" if is_run else "a run is named by its folder"
        raise ValueError(f"{path}: there is no such checkpoint; {hint}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    possible = {f.name for f in fields(Checkpoint)}
    needed = {f.name for f in fields(Checkpoint) if f.default is MISSING}
    if (
        not isinstance(values, dict)
        or values.get("format") != FORMAT
        or not needed <= set(values) <= possible
    ):
        raise ValueError(f"{path}: not a checkpoint of this program's format {FORMAT}")
    return Checkpoint(**values)


@dataclass(frozen=True)
class Trained:
    """A trained network and what prediction needs to know of its run.

    mean_shape_crop: (P, 2) float64 mean training landmarks in crop pixels. scheme: of the
    landmarks, where the run was told of one.
    """

    experiment: config.Experiment
    network: networks.Network
    mean_shape_crop: Tensor
    checkpoint: Checkpoint
    path: Path

    @property
    def scheme(self) -> schemes.Scheme | None:
        return self.checkpoint.landmark_scheme


def load_trained(run: Path) -> Trained:
    """The network of a run folder (its best checkpoint) or of a checkpoint file, in eval mode.

    Raises:
        ValueError: no checkpoint there, or one that does not fit.
    """
    path = run / "best.pt" if run.is_dir() else run
    checkpoint = load(path)
    try:
        experiment = config.from_dict(config.Experiment, checkpoint.config)
        bare = replace(experiment.model, weights="none")
        network = networks.build(bare, experiment.crop, checkpoint.num_landmarks)
        network.load_state_dict(checkpoint.scored)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: does not fit this program: {error}") from None
    if isinstance(network, networks.HeatmapNetwork):
        network.sigma = checkpoint.progress["sigma"]
    return Trained(experiment, network.eval(), checkpoint.mean_shape_crop, checkpoint, path)
