"""Reads run folders for a comparison."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.config import Experiment, flatten, from_dict, to_dict
from heatmap.data import contest
from heatmap.errors import UsageError, UserError
from heatmap.runs.folder import EVALUATION, Row, RunFolder, Scores, Split, Summary, find_run
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.runtime.files import read_json
from heatmap.runtime.validate import typed


@dataclass(frozen=True)
class RunSummary:
    """A run, or an evaluation of it, as read from its folder; missing parts are empty or None."""

    name: str
    folder: Path
    settings: dict[str, Any]  # dotted fields of experiment, machine, split rule and evaluation
    person_pattern: str  # regular expression that finds the person in a file name
    rows: list[Row]  # of the ledger
    summary: Summary | None  # of a finished run
    evaluation: Scores | None  # if this is an evaluation
    table: str | None  # fingerprint of the labels
    images: list[str]  # file names of per_image.csv
    errors: dict[str, np.ndarray]  # other columns of per_image.csv

    @classmethod
    def read(cls, folder: Path, name: str) -> "RunSummary":
        """Reads a run folder, or an evaluation of it (RUN/evaluation-NAME).

        Raises:
            UserError: the folder holds no run, or a damaged file.
        """
        files = RunFolder(folder)
        run = files.run
        is_evaluation = run.path != folder
        if is_evaluation and not files.scores.is_file():
            raise UserError(f"{folder}: no evaluation found here (no {files.scores.name})")
        config = read_json(find_run(run.path).config, dict[str, Any])
        with contextlib.suppress(UserError):  # keep the config of another version
            config = to_dict(from_dict(Experiment, config))  # adds the fields of later versions
        settings = flatten(config)
        if run.machine.is_file():
            machine = read_json(run.machine, dict[str, Any])
            settings |= {f"machine.{key}": machine[key] for key in machine if key != "date"}
        split = read_json(run.split, Split) if run.split.is_file() else None
        settings |= {"split": split["rule"]} if split else {}
        if is_evaluation:
            parts = folder.relative_to(run.path).parts
            settings["evaluation"] = "/".join(part.removeprefix(EVALUATION) for part in parts)
        pattern = settings.get("data.person_pattern", contest.PERSON_PATTERN)
        pattern = typed(str, pattern, f"{run.config}: data.person_pattern")
        rows = read_metrics(run.path) if run.metrics.is_file() else []
        summary = read_json(run.summary, Summary) if run.summary.is_file() else None
        scores = read_json(files.scores, Scores) if files.scores.is_file() else None
        labelled = scores or split
        table = labelled.get("table") if labelled else None
        images = read_per_image(files.per_image) if files.per_image.is_file() else ([], {})
        evaluation = scores if is_evaluation else None
        return cls(name, folder, settings, pattern, rows, summary, evaluation, table, *images)

    @property
    def groups(self) -> list[str]:
        """Landmark groups with an error for each image."""
        return [name.removeprefix("mse ") for name in self.errors if name.startswith("mse ")]


def read_runs(folders: Sequence[Path]) -> list[RunSummary]:
    """Reads runs and names them by their folders, or by whole paths if folder names repeat.

    Raises:
        UserError: a folder holds no run, or is listed twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("a run is listed twice; list each run once")
    relative = [str(path.relative_to(RunFolder(path).run.path.parent)) for path in resolved]
    names = relative if len(set(relative)) == len(relative) else [str(folder) for folder in folders]
    return [RunSummary.read(*pair) for pair in zip(resolved, names, strict=True)]
