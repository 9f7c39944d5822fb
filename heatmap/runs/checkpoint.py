"""Checkpoints of runs, written atomically and read without running code.

`best.pt` and `epoch-N.pt` hold a `Checkpoint`; `last.pt` also holds the `State` for a resume.
"""

import io
import math
import time
import zipfile
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatmap import config, networks, schemes
from heatmap.errors import UserError, located
from heatmap.runs.folder import RunFolder, find_run
from heatmap.runtime.files import read_bytes, write_atomically
from heatmap.runtime.machine import first_line
from heatmap.runtime.validate import typed

FORMAT = 4
FORMAT_OF_0_1 = 3  # version 0.1.0's; can be read, but not resumed


@dataclass
class Progress:
    """Counters and scores of a run, stored in last.pt."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # optimizer steps
    loss_sum: float = 0.0  # over the finished batches of the current epoch
    seconds: float = 0.0  # of training and validation, over all sessions
    validation_seconds: float = 0.0  # of the last validation
    best_mse: float = math.inf
    best_epoch: int = 0
    mean_shape_mse: float = math.nan
    finished: bool = False
    stage: int = 0
    stage_epoch: int = 0  # finished epochs when the stage began
    stage_step: int = 0  # steps when the stage began
    # floats, which may be inf: validation MSE of the stage's epochs, mean loss of every epoch
    scores: list[Any] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    sigma: float | None = None  # of the targets, in heatmap pixels
    label_offset: tuple[float, float] = (0.0, 0.0)  # (x, y) in image pixels
    prior_mse: float | None = None  # best validation MSE with the shape prior

    def __post_init__(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """Starts counting seconds, on top of those of earlier sessions."""
        self._start = time.monotonic() - self.seconds

    def update_seconds(self) -> float:
        """Brings `seconds` up to date and returns it."""
        self.seconds = time.monotonic() - self._start
        return self.seconds


@dataclass(frozen=True, kw_only=True)
class State:
    """State for an exact resume, besides the scored weights.

    Random numbers depend only on the seed and on `progress`.
    """

    network: dict[str, Tensor] | None = None  # trained weights, if the scored ones are their mean
    optimizer: dict[str, Any]
    progress: Progress
    image_weights: Tensor  # (N,) float32, by row of the table
    wandb_id: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The data and score of trained weights."""

    mean_shape_crop: Tensor  # (P, 2) float64, of the training rows
    scheme: schemes.Scheme | None = None
    table_hash: str  # of the table's names and points
    training_rows: Tensor  # (T,) int64 rows of the table
    validation_rows: Tensor  # (V,) int64
    validation_mse: float | None = None  # image px²
    label_offset: tuple[float, float] = (0.0, 0.0)  # of the labels, in image pixels

    def check_rows(self, path: object, num_rows: int) -> None:
        """Raises UserError if the checkpoint `path` has rows beyond the `num_rows` of its table."""
        rows = torch.cat([self.training_rows, self.validation_rows])
        if rows.dtype != torch.int64 or not ((rows >= 0) & (rows < num_rows)).all():
            raise UserError(f"{path}: some of its rows are not among the {num_rows} of its table")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Origin):
    """The contents of a checkpoint file: tensors and plain values only."""

    config: dict[str, Any]  # by `config.to_dict`
    num_landmarks: int
    network: dict[str, Tensor]  # the weights that validation scored
    sigma: float | None  # of the targets in heatmap pixels; None without heatmaps
    shape_prior: networks.PriorValues | None = None  # in best.pt of a finished run
    state: State | None = None  # in last.pt
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class TrainedRun(Origin):
    """A network with the weights of a checkpoint."""

    path: Path  # of the checkpoint
    experiment: config.Experiment
    network: networks.Network


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint atomically."""
    scheme, state = checkpoint.scheme, checkpoint.state
    prior = checkpoint.shape_prior
    plain = {
        "scheme": scheme and scheme.to_dict(),
        "shape_prior": prior and vars(prior),
        "state": state and vars(state) | {"progress": asdict(state.progress)},
    }
    # a file of Python, whose errors say more than those of torch
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.save(vars(checkpoint) | plain, file)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint into CPU memory; one of version 0.1.0 has no `state`.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint or has an unknown format.
    """
    if not path.exists():
        is_run = RunFolder(path.parent).config.is_file()
        hint = "its run has no finished epoch" if is_run else "expected a run folder or .pt file"
        raise UserError(f"{path}: no such checkpoint; {hint}")
    content = io.BytesIO(read_bytes(path, "checkpoint"))
    try:
        if content.read(2) != b"PK":  # zipfile skips what comes before
            raise zipfile.BadZipFile("it does not begin like one")
        with zipfile.ZipFile(content) as archive:  # torch does not verify checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        content.seek(0)
        values = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        raise UserError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    if isinstance(values, dict) and values.get("format") == FORMAT_OF_0_1:
        values = _from_0_1(values)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    with located(f"{path}: not a checkpoint of this version"):
        if values.get("scheme") is not None:
            values["scheme"] = schemes.Scheme.from_dict(values["scheme"])
        state = values.get("state")
        if isinstance(state, dict) and isinstance(progress := state.get("progress"), dict):
            # inf and NaN are the defaults of their fields
            state["progress"] = {
                name: value
                for name, value in progress.items()
                if not isinstance(value, float) or math.isfinite(value)
            }
        saved = typed(Checkpoint, values)
        shape = tuple(saved.mean_shape_crop.shape)
        if shape != (saved.num_landmarks, 2):
            raise UserError(f"{saved.num_landmarks} landmarks, but a mean shape {shape}")
    return saved


def _from_0_1(values: dict[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint of version 0.1.0, without its state."""
    progress = values.get("progress", {})
    scores = progress.get("scores") if progress.get("batch") == 0 else None
    required = {f.name for f in fields(Checkpoint) if f.default is MISSING} & set(values)
    return {name: values[name] for name in required} | {
        "format": FORMAT,
        "state": None,
        "scheme": values.get("scheme"),
        "sigma": progress.get("sigma"),
        "validation_mse": scores[-1] if scores else None,
        "network": values.get("averaged") or values.get("network"),
    }


def load_trained(run: Path) -> TrainedRun:
    """Loads the network of a run folder's best checkpoint, or of a checkpoint file, in eval mode.

    Raises:
        UserError: the checkpoint is missing, unreadable or does not fit this version, or its
            weights are not finite.
    """
    path = RunFolder(run).best if run.is_dir() else run
    if run.is_dir() and not path.is_file():
        find_run(run)
    saved = load(path)
    try:
        experiment = config.from_dict(config.Experiment, saved.config)
        model = replace(experiment.model, weights="none")
        network = networks.build(model, experiment.crop, saved.num_landmarks)
        network.load_state_dict(saved.network)
    except (RuntimeError, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]  # torch lists every key on a line
        raise UserError(f"{path}: does not fit this version: {problem}") from None
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise UserError(f"{path}: its weights are not finite; use an earlier checkpoint")
    if isinstance(network, networks.HeatmapNetwork):
        network.sigma = saved.sigma or network.sigma
        if saved.shape_prior:
            network.shape_prior = networks.ShapePrior(saved.shape_prior)
    network.label_offset.copy_(torch.tensor(saved.label_offset))
    origin = {field.name: getattr(saved, field.name) for field in fields(Origin)}
    return TrainedRun(path=path, experiment=experiment, network=network.eval(), **origin)
