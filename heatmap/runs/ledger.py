"""The ledger of a run: metrics, images, predictions and summary as files of the run folder.

Weights & Biases gets a copy. A W&B failure never stops a run.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.config import Experiment
from heatmap.errors import located
from heatmap.runs.folder import SHEETS, Predictions, Row, RunFolder
from heatmap.runs.wandb import WandbWriter
from heatmap.runtime.files import (
    append_text,
    finite,
    fitting_name,
    read_bytes,
    read_json,
    write_image,
    write_json,
    write_text,
)
from heatmap.runtime.validate import parse_json


class Ledger(contextlib.AbstractContextManager["Ledger"]):
    """Writes the ledger of one run; with several processes, only rank 0 opens one.

    A context manager. If it ends without `finish`, W&B marks the run as failed.
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
        """Removes entries after `after_step` and starts Weights & Biases.

        Args:
            folder: the run folder, which must hold config.json.
            tags: for W&B, in addition to the experiment's.
            wandb_id: id of a resumed run; None for a new run.
            after_step: step of the resumed checkpoint; -1 for a new run.
        """
        self.folder = RunFolder(folder)
        assert self.folder.config.is_file(), f"config.json must be in {folder} first"
        rewind(folder, after_step)
        self._step = after_step
        self.wandb_id = wandb_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        settings, name, folder_name = experiment.wandb, experiment.name, folder.resolve().name
        init_arguments = {
            "id": self.wandb_id,
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group or name,
            "job_type": settings.job_type,
            "tags": [*settings.tags, *tags],
            "name": folder_name if folder_name.startswith(name) else f"{name}-{folder_name}",
            "mode": settings.mode,
        }
        write_json(self.folder.wandb, init_arguments)
        self._wandb = None if settings.mode == "off" else WandbWriter(folder, init_arguments)

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Appends a row. Steps must increase, and images of a step come before its row."""
        assert step > self._step, f"step {step} is not after the last row, step {self._step}"
        row = finite({"step": step, **values})
        append_text(self.folder.metrics, _line(row))
        self._step = step
        if self._wandb:
            self._wandb.log(row)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes (H, W, 3) uint8 RGB as the sheet `name`, one of `SHEETS`, at `step`."""
        assert step > self._step and name in SHEETS, (step, self._step, name)
        write_image(self.folder.sheet(name, step), image)

    def predictions(
        self,
        step: int,
        columns: Sequence[str],
        rows: Iterable[tuple[np.ndarray, str, Sequence[float | None]]],
    ) -> None:
        """Writes predictions/.

        Args:
            columns: names of the numbers in a row.
            rows: (H, W, 3) uint8 RGB image, its file name and its numbers.
        """
        assert step > self._step, (step, self._step)
        table = []
        for number, (image, name, values) in enumerate(rows, start=1):
            jpg = fitting_name(f"{number:02d}-", Path(name).stem, ".jpg")
            write_image(self.folder.predictions / jpg, image)
            table.append([jpg, name, *values])
        columns = ["image", "file_name", *columns]
        write_json(self.folder.predictions_table, {"step": step, "columns": columns, "rows": table})

    def finish(self, summary: Mapping[str, Any], timeout: float = 30.0) -> None:
        """Writes summary.json and closes the ledger; W&B gets `timeout` seconds."""
        write_json(self.folder.summary, summary)
        self.close(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Closes W&B; does nothing after `finish`."""
        if self._wandb:
            self._wandb.close(timeout)
        self._wandb = None


def read_metrics(folder: Path) -> list[Row]:
    """Reads the rows of metrics.jsonl; ignores an incomplete last line of a killed run.

    Raises:
        UserError: the file cannot be read, or another line is not such a row.
    """
    path, rows = RunFolder(folder).metrics, []
    *lines, _incomplete = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        with located(f"{path}, line {number}"):
            rows.append(parse_json(line, Row))
    return rows


def rewind(folder: Path, step: int) -> None:
    """Removes entries after `step`, or all for -1. Other files stay."""
    files = RunFolder(folder)
    for sheet_step, path in files.sheets():
        if sheet_step > step:
            path.unlink()
    if files.predictions_table.is_file():
        table = read_json(files.predictions_table, Predictions)
        if table["step"] > step:
            for name, *_ in table["rows"]:
                (files.predictions / Path(name).name).unlink(missing_ok=True)
            files.predictions_table.unlink()
            with contextlib.suppress(OSError):  # the folder holds other files
                files.predictions.rmdir()
    files.summary.unlink(missing_ok=True)
    rows = read_metrics(folder) if files.metrics.exists() else []
    write_text(files.metrics, "".join(_line(row) for row in rows if row["step"] <= step))


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
