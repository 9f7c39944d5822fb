"""A run's own ledger: metrics, pictures and summary as files of the run folder.

    config.json          the experiment, written by the caller before the Record is made
    metrics.jsonl        one row a step; NaN and infinities are null, so that every reader takes it
    pictures/            NAME_STEP.jpg
    predictions/         pictures and table.json: what they show, in numbers
    summary.json         there once the run has finished
    wandb.json           what Weights & Biases is told about the run
    wandb_sent.json      the last step it has got, so that a resumed run sends what is missing
    wandb.log, wandb/    Weights & Biases' own output

Weights & Biases is fed from these files by another process (heatmap.runs.wandb). It can fail, hang
or be killed; the run never waits for it, except a limited time at its end.
"""

import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from heatmap.runtime.files import finite, read_json, write_atomically, write_json, write_picture

logger = logging.getLogger("heatmap")


class Record:
    """The ledger of one run, open for writing; of several processes only rank 0 makes one.

    A context manager: left without `finish`, the run is marked as failed in Weights & Biases.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["online", "offline", "off"],
        project: str,
        name: str,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        wandb_id: str | None = None,
        after_step: int = -1,
    ) -> None:
        """Cuts the ledger back to `after_step` and starts the mirror.

        Args:
            folder: the run folder, with config.json in it.
            mode: where Weights & Biases writes; "off" starts no mirror.
            project, entity, wandb_id: of a new run that an agent of Weights & Biases started for
                its sweep, they are what the agent says.
            wandb_id: of the run that is resumed; None for a new run.
            after_step: the resumed checkpoint's step; -1 for a new run.
        """
        assert (folder / "config.json").is_file(), f"config.json must be in {folder} first"
        self.folder = folder
        # set by an agent of W&B for a run of its sweep, which W&B finds by this id
        self.wandb_id = wandb_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        if "WANDB_SWEEP_ID" in os.environ:  # then W&B goes by these whatever it is told
            project = os.environ.get("WANDB_PROJECT", project)
            entity = os.environ.get("WANDB_ENTITY", entity)
        rewind(folder, after_step)
        self._step = after_step
        about = {
            "id": self.wandb_id,
            "project": project,
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "name": name,
            "mode": mode,
        }
        write_json(folder / "wandb.json", about)
        self._mirror = None if mode == "off" else self._started_mirror(after_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Appends one row. Steps rise; a checkpoint is written after the row of its step."""
        assert step > self._step, f"step {step} comes after step {self._step}"
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            metrics.write(_line({"step": step, **values}))
        self._step = step
        if self._mirror is not None and self._mirror.poll() is not None:
            self._end_mirror(timeout=0)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Saves pictures/NAME_STEP.jpg; it must be there before the row of its step is logged.

        Args:
            name: letters, digits, "-" and "_".
            image: (H, W, 3) uint8, RGB.
        """
        assert step > self._step, f"the row of step {step} is written: its pictures come before it"
        assert re.fullmatch(r"[\w-]+", name), f"not a plain name: {name!r}"
        write_picture(self.folder / "pictures" / f"{name}_{step:07d}.jpg", image)

    def predictions(
        self,
        step: int,
        columns: Sequence[str],
        rows: Iterable[tuple[np.ndarray, str, Sequence[float | None]]],
    ) -> None:
        """Saves predictions/, which must be there before the row of its step is logged.

        Args:
            columns: what the numbers are.
            rows: (H, W, 3) uint8 RGB picture, its file name and its numbers.
        """
        assert step > self._step, f"the row of step {step} is written: its table comes before it"
        folder, table = self.folder / "predictions", []
        for number, (image, name, values) in enumerate(rows, start=1):
            picture = f"{number:02d}-{Path(name).stem}.jpg"
            write_picture(folder / picture, image)
            table.append([picture, name, *values])
        columns = ["picture", "file_name", *columns]
        write_json(folder / "table.json", {"step": step, "columns": columns, "rows": table})

    def finish(self, summary: Mapping[str, Any], timeout: float = 30.0) -> None:
        """Writes summary.json and gives the mirror `timeout` seconds to send what is left."""
        write_json(self.folder / "summary.json", summary)
        self._end_mirror(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Ends the mirror of a run that did not finish; does nothing after `finish`."""
        if self._mirror is not None:
            self._mirror.terminate()
            self._end_mirror(timeout)

    def _started_mirror(self, after_step: int) -> subprocess.Popen[bytes] | None:
        command = [sys.executable, "-m", "heatmap.runs.wandb", str(self.folder)]
        command += ["--after-step", str(after_step), "--parent", str(os.getpid())]
        try:
            with (self.folder / "wandb.log").open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl+C in the terminal is for the training alone
                )
        except OSError as problem:
            logger.warning(f"Weights & Biases could not be started ({problem}); {self._remedy()}")
            return None

    def _end_mirror(self, timeout: float) -> None:
        if self._mirror is None:
            return
        try:
            failed = self._mirror.wait(timeout) != 0
        except subprocess.TimeoutExpired:
            self._mirror.kill()
            self._mirror.wait()
            failed = True
        self._mirror = None
        if failed:
            log = self.folder / "wandb.log"
            logger.warning(
                f"Weights & Biases did not take the whole run, see {log}; {self._remedy()}"
            )

    def _remedy(self) -> str:
        return (
            f"the run folder has everything, python -m heatmap.runs.wandb {self.folder} "
            "sends it when the run is over"
        )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last line torn by a kill is left out.

    Raises:
        ValueError: another line is not a row.
    """
    path = folder / "metrics.jsonl"
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}, line {number}: not a JSON row: {line[:80]!r}") from problem
    return rows


def rewind(folder: Path, step: int) -> None:
    """Makes a run folder what it was when the row of `step` was written; -1 starts it anew."""
    for picture in (folder / "pictures").glob("*_*.jpg"):
        if int(picture.stem.rpartition("_")[2]) > step:
            picture.unlink()
    predictions = folder / "predictions" / "table.json"
    if predictions.is_file() and read_json(predictions)["step"] > step:
        shutil.rmtree(predictions.parent)
    (folder / "summary.json").unlink(missing_ok=True)
    rows = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    with write_atomically(folder / "metrics.jsonl") as temporary:
        kept = "".join(_line(row) for row in rows if row["step"] <= step)
        temporary.write_text(kept, encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"
