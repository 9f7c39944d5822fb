"""The one place that knows what the files of a run are called."""

import re
from collections.abc import Iterator
from pathlib import Path

EVALUATION = "evaluation-"
SHEETS = ("validation",)  # what the images in images/ are called, before their step


class RunFolder:
    """The paths of a run's files. None of them has to exist.

    An evaluation on other data, or with other views than the run's own, is a folder
    `evaluation-NAME` within the run's, and is described by a `RunFolder` too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # what the run is
        self.config = path / "config.json"
        self.split = path / "split.json"
        self.machine = path / "machine.json"
        # checkpoints
        self.best = path / "best.pt"  # by validation score; what inference reads
        self.last = path / "last.pt"  # what a resumed run continues from
        # the ledger
        self.metrics = path / "metrics.jsonl"
        self.images = path / "images"
        if (old := path / "pictures").is_dir():  # of version 0.1.0
            self.images = old
        self.predictions = path / "predictions"
        self.predictions_table = self.predictions / "table.json"
        self.summary = path / "summary.json"  # exists once the run has finished
        self.model_card = path / "MODEL.md"
        self.wandb = path / "wandb.json"
        # what an evaluation leaves
        self.scores = path / "evaluation.json"
        self.per_image = path / "per_image.csv"
        self.errors = path / "errors.npz"
        self.calibration = path / "calibration.json"
        self.timing = path / "timing.json"

    def checkpoint_of_epoch(self, epoch: int) -> Path:
        return self.path / f"epoch-{epoch}.pt"

    def sheet(self, name: str, step: int) -> Path:
        """The image that is called `name`, one of `SHEETS`, as the network drew it at `step`."""
        return self.images / f"{name}_{step:07d}.jpg"

    def sheets(self) -> Iterator[tuple[int, Path]]:
        """Steps and paths of the sheets that exist; other files in their folder are none."""
        for path in self.images.glob("*.jpg"):
            found = re.fullmatch(rf"({'|'.join(SHEETS)})_(\d{{7,}})", path.stem)
            if found:
                yield int(found[2]), path

    def evaluation(self, name: str) -> "RunFolder":
        return RunFolder(self.path / f"{EVALUATION}{name}")

    @property
    def run(self) -> "RunFolder":
        """The run that an evaluation belongs to; a run's folder is its own."""
        folder = self
        while folder.path.name.startswith(EVALUATION) and not folder.config.is_file():
            folder = RunFolder(folder.path.parent)
        return folder
