"""Names of a run's files, and the types of those that are read back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, Unpack

from heatmap.config import Index, NotNegative
from heatmap.errors import UserError

EVALUATION = "evaluation-"
SHEETS = ("validation",)  # names of the images in images/, without their step


class Split(TypedDict):
    """The description in split.json."""

    kind: NotRequired[str]  # version 0.1.0 stored none
    rule: str
    table: NotRequired[str | None]  # fingerprint of the labels


class Machine(TypedDict):
    """machine.json."""

    date: str
    commit: str | None
    device: str
    processor: str
    cpu_cores: int


class Summary(TypedDict):
    """summary.json; without validation the scores are None."""

    best_mse: float | None
    best_epoch: int
    mean_shape_mse: float | None
    epochs: int
    steps: int
    minutes: float


class Scores(TypedDict):
    """The scores in evaluation.json, px²."""

    mse: float | None
    mean_shape_mse: float | None
    table: NotRequired[str | None]  # fingerprint of the labels


# A row of metrics.jsonl.
Row = TypedDict(
    "Row",
    {
        "step": Index,
        "epoch": Index,
        "time/seconds": NotNegative,
        "train/loss": NotRequired[float | None],
        "val/loss": NotRequired[float | None],
        "val/mse": NotRequired[float | None],
        "lr": NotRequired[float | None],
    },
)


class Predictions(TypedDict):
    """predictions/table.json; a row is an image's file, its name and its numbers."""

    step: Index
    columns: list[str]
    rows: list[tuple[str, str, Unpack[tuple[float | None, ...]]]]  # noqa: UP044


class WandbArguments(TypedDict):
    """wandb.json: arguments of `wandb.init`, whose mode may also be off."""

    id: str
    mode: Literal["online", "offline", "off"]


def find_run(path: Path) -> "RunFolder":
    """Returns the run in a folder.

    Raises:
        UserError: the folder does not exist or holds no config.json.
    """
    run = RunFolder(path)
    if run.config.is_file():
        return run
    parts = ("train", "test", "contest01_data")
    problem = "no such folder"
    if path.is_dir():
        is_data = any((path / part).is_dir() for part in parts)
        problem = "a data folder, not a run" if is_data else "not a run (no config.json)"
    raise UserError(f"{path}: {problem}; expected RUN, a folder written by heatmap train")


class RunFolder:
    """Paths of a run's files, which need not exist.

    An evaluation on other data, or with other views than the run's own, is a subfolder
    `evaluation-NAME` of the run, also described by a `RunFolder`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"  # the experiment
        self.split = path / "split.json"  # names of validation and excluded images
        self.machine = path / "machine.json"  # hardware, versions and date
        # checkpoints
        self.best = path / "best.pt"  # the best validation score; used for inference
        self.last = path / "last.pt"  # used to resume
        # ledger
        self.metrics = path / "metrics.jsonl"  # one row per step; NaN and infinities are null
        self.images = path / "images"  # validation_STEP.jpg
        if (old := path / "pictures").is_dir() and not self.images.is_dir():  # version 0.1.0
            self.images = old
        self.predictions = path / "predictions"  # images
        self.predictions_table = self.predictions / "table.json"  # their numbers
        self.summary = path / "summary.json"  # exists once the run has finished
        self.model_card = path / "MODEL.md"
        self.wandb = path / "wandb.json"  # arguments of `wandb.init`
        # evaluation
        self.scores = path / "evaluation.json"
        self.per_image = path / "per_image.csv"  # see `per_image.Errors.columns`
        self.errors = path / "errors.npz"  # `per_image.Errors`
        self.calibration = path / "calibration.json"
        self.timing = path / "timing.json"

    def checkpoint_of_epoch(self, epoch: int) -> Path:
        return self.path / f"epoch-{epoch}.pt"

    def sheet(self, name: str, step: int) -> Path:
        """Returns the path of the image `name`, one of `SHEETS`, at `step`."""
        return self.images / f"{name}_{step:07d}.jpg"

    def sheets(self) -> Iterator[tuple[int, Path]]:
        """Yields step and path of each existing sheet; ignores other files in the folder."""
        for path in self.images.glob("*.jpg"):
            if match := re.fullmatch(rf"({'|'.join(SHEETS)})_(\d{{7,}})", path.stem):
                yield int(match[2]), path

    def evaluation(self, name: str) -> "RunFolder":
        return RunFolder(self.path / f"{EVALUATION}{name}")

    @property
    def run(self) -> "RunFolder":
        """The run of an evaluation folder; a run's own folder returns itself."""
        folder = self
        while folder.path.name.startswith(EVALUATION) and not folder.config.is_file():
            folder = RunFolder(folder.path.parent)
        return folder
