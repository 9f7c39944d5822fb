"""A run's own ledger: metrics, images and summary as files of the run folder.

    metrics.jsonl        one row a step; NaN and infinities are null
    images/            validation_STEP.jpg
    predictions/         images and table.json: what they show, in numbers
    summary.json         there once the run has finished
    wandb.json, wandb/   what Weights & Biases is told about the run, and its own output

The folder is the truth. Weights & Biases gets a copy, and its failures leave the run as it is.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from heatmap.config import Experiment
from heatmap.errors import UserError
from heatmap.runs.folder import SHEETS, RunFolder
from heatmap.runs.wandb import WandbWriter
from heatmap.runtime.files import finite, read_json, write_atomically, write_image, write_json


class Ledger:
    """The ledger of one run, open for writing; of several processes only rank 0 makes one.

    A context manager: left without `finish`, the run is marked as failed in Weights & Biases.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        *,
        tags: Sequence[str] = (),
        wandb_id: str | None = None,
        after_step: int = -1,
    ) -> None:
        """Cuts the ledger back to `after_step` and starts Weights & Biases.

        Args:
            folder: the run folder, with config.json in it.
            tags: for Weights & Biases, beside the experiment's.
            wandb_id: of the run that is resumed; None for a new run.
            after_step: the resumed checkpoint's step; -1 for a new run.
        """
        self.folder = RunFolder(folder)
        assert self.folder.config.is_file(), f"config.json must be in {folder} first"
        rewind(folder, after_step)
        self._step = after_step
        self.wandb_id = wandb_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        # a sweep's agent names the run's project and entity in the environment
        agent = os.environ if "WANDB_SWEEP_ID" in os.environ else {}
        window, name, here = experiment.wandb, experiment.name, folder.resolve().name
        about = {
            "id": self.wandb_id,
            "project": agent.get("WANDB_PROJECT", window.project),
            "entity": agent.get("WANDB_ENTITY", window.entity),
            "group": window.group or name,
            "job_type": window.job_type,
            "tags": [*window.tags, *tags],
            "name": here if here.startswith(name) else f"{name}-{here}",
            "mode": window.mode,
        }
        write_json(self.folder.wandb, about)
        self._wandb = None if window.mode == "off" else WandbWriter(folder, about)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Appends one row. Steps rise; a checkpoint is written after the row of its step."""
        assert step > self._step, f"step {step} comes after step {self._step}"
        row = finite({"step": step, **values})
        with self.folder.metrics.open("a", encoding="utf-8") as metrics:
            metrics.write(_line(row))
        self._step = step
        if self._wandb:
            self._wandb.log(row)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Saves (H, W, 3) uint8 RGB as the sheet NAME_STEP.jpg, before its step's row is logged."""
        assert step > self._step, f"the row of step {step} is written: its images come before it"
        assert name in SHEETS, f"not one of {', '.join(SHEETS)}: {name!r}"
        write_image(self.folder.sheet(name, step), image)

    def predictions(
        self,
        step: int,
        columns: Sequence[str],
        rows: Iterable[tuple[np.ndarray, str, Sequence[float | None]]],
    ) -> None:
        """Saves predictions/, before the row of its step is logged.

        Args:
            columns: what the numbers are.
            rows: (H, W, 3) uint8 RGB image, its file name and its numbers.
        """
        assert step > self._step, f"the row of step {step} is written: its table comes before it"
        table = []
        for number, (image, name, values) in enumerate(rows, start=1):
            shown = f"{number:02d}-{Path(name).stem}.jpg"
            write_image(self.folder.predictions / shown, image)
            table.append([shown, name, *values])
        columns = ["image", "file_name", *columns]
        write_json(self.folder.predictions_table, {"step": step, "columns": columns, "rows": table})

    def finish(self, summary: Mapping[str, Any], timeout: float = 30.0) -> None:
        """Writes summary.json and gives Weights & Biases `timeout` seconds for what is left."""
        write_json(self.folder.summary, summary)
        self.close(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Closes Weights & Biases; does nothing after `finish`."""
        if self._wandb:
            self._wandb.close(timeout)
        self._wandb = None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last line torn by a kill is left out.

    Raises:
        UserError: another line is not a row.
    """
    path = RunFolder(folder).metrics
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as problem:
            raise UserError(f"{path}, line {number}: not a JSON row: {line[:80]!r}") from problem
    return rows


def rewind(folder: Path, step: int) -> None:
    """Makes a run folder what it was when the row of `step` was written; -1 starts it anew.

    Files that the ledger did not write stay.
    """
    files = RunFolder(folder)
    for drawn_at, path in files.sheets():
        if drawn_at > step:
            path.unlink()
    if files.predictions_table.is_file():
        table = read_json(files.predictions_table)
        if table["step"] > step:
            for name, *_ in table["rows"]:
                (files.predictions / Path(name).name).unlink(missing_ok=True)
            files.predictions_table.unlink()
            with contextlib.suppress(OSError):  # where other files are
                files.predictions.rmdir()
    files.summary.unlink(missing_ok=True)
    rows = read_metrics(folder) if files.metrics.exists() else []
    kept = "".join(_line(row) for row in rows if row["step"] <= step)
    with write_atomically(files.metrics) as temporary:
        temporary.write_text(kept, encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
