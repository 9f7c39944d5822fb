"""Checkpoints: written whole or not at all, and free of code when they are read.

`best.pt` and `epoch-N.pt` hold a `Checkpoint`; `last.pt` has the `State` of an exact resume, too.
"""

import io
import pickle
import zipfile
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatmap import config, networks, schemes
from heatmap.errors import UserError
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import write_atomically
from heatmap.runtime.machine import first_line

FORMAT = 4
FORMAT_OF_0_1 = 3  # version 0.1.0's; read, but not resumed


@dataclass(frozen=True, kw_only=True)
class State:
    """What a resume needs beyond the scored weights; the seed and `progress` stand for generators.

    network: the weights that are trained, where those scored are their running mean, else None;
    progress: counters, best score and elapsed time; image_weights: (N,) float32 of all rows.
    """

    network: dict[str, Any] | None = None
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    image_weights: Tensor
    wandb_id: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network that was scored, as tensors and plain values.

    config: of the experiment, by `config.to_dict`; network: the weights that validation scored;
    sigma: of the targets in heatmap pixels, None on the direct road; mean_shape_crop: (P, 2)
    float64; scheme: by `schemes.Scheme.to_dict`, if any; table_hash: of the table's names and
    points; training_rows, validation_rows: (T,) and (V,) int64 rows of it; state: in last.pt.
    """

    config: dict[str, Any]
    num_landmarks: int
    network: dict[str, Any]
    sigma: float | None
    mean_shape_crop: Tensor
    scheme: dict[str, Any] | None = None
    table_hash: str
    training_rows: Tensor
    validation_rows: Tensor
    validation_mse: float | None = None
    state: State | None = None
    format: int = FORMAT

    @property
    def landmark_scheme(self) -> schemes.Scheme | None:
        """The scheme that the run was told of, None where it was told of none."""
        return None if self.scheme is None else schemes.Scheme.from_dict(self.scheme)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint; a process killed meanwhile leaves the old file in its place."""
    values = {**vars(checkpoint), "state": checkpoint.state and vars(checkpoint.state)}
    with write_atomically(path) as temporary:
        torch.save(values, temporary)


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file, on the CPU, without a `state` in one of version 0.1.0.

    Raises:
        UserError: missing, damaged, not a checkpoint of this program, or of another format.
    """
    if not path.is_file():
        is_run = RunFolder(path.parent).config.is_file()
        hint = "its run has not finished an epoch" if is_run else "a run is named by its folder"
        raise UserError(f"{path}: there is no such checkpoint; {hint}")
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:  # torch itself checks no checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        content.seek(0)
        values = torch.load(content, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    if isinstance(values, dict) and values.get("format") == FORMAT_OF_0_1:
        values = _converted(values)
    if not _fits(Checkpoint, values) or values["format"] != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program's format {FORMAT}")
    state = values.pop("state")
    return Checkpoint(**values, state=State(**state) if _fits(State, state) else None)


def _fits(kind: type[Checkpoint | State], values: Any) -> bool:
    return isinstance(values, dict) and set(values) == {f.name for f in fields(kind)}


def _converted(values: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of version 0.1.0 without what it was resumed from."""
    progress, averaged = values.get("progress", {}), values.get("averaged")
    scores = progress.get("scores") if progress.get("batch") == 0 else None
    known = {
        "format": FORMAT,
        "state": None,
        "scheme": values.get("scheme"),
        "sigma": progress.get("sigma"),
        "validation_mse": scores[-1] if scores else None,
        "network": averaged or values.get("network"),
    }
    kept = {f.name for f in fields(Checkpoint) if f.default is MISSING} & set(values)
    return {name: values[name] for name in kept} | known


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained network and what is known of its run; the fields are those of `Checkpoint`."""

    path: Path
    experiment: config.Experiment
    network: networks.Network
    mean_shape_crop: Tensor
    scheme: schemes.Scheme | None
    table_hash: str
    training_rows: Tensor
    validation_rows: Tensor
    validation_mse: float | None


def load_trained(run: Path) -> TrainedRun:
    """The network of a run folder (its best checkpoint) or of a checkpoint file, in eval mode.

    Raises:
        UserError: no checkpoint there, or one that does not fit.
    """
    path = RunFolder(run).best if run.is_dir() else run
    saved = load(path)
    try:
        experiment = config.from_dict(config.Experiment, saved.config)
        bare = replace(experiment.model, weights="none")
        network = networks.build(bare, experiment.crop, saved.num_landmarks)
        network.load_state_dict(saved.network)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not fit this program: {error}") from None
    if isinstance(network, networks.HeatmapNetwork) and saved.sigma is not None:
        network.sigma = saved.sigma
    return TrainedRun(
        path=path, experiment=experiment, network=network.eval(), scheme=saved.landmark_scheme,
        mean_shape_crop=saved.mean_shape_crop, table_hash=saved.table_hash,
        training_rows=saved.training_rows, validation_rows=saved.validation_rows,
        validation_mse=saved.validation_mse,
    )  # fmt: skip
