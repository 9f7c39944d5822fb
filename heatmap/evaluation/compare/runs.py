"""What run folders tell of their runs."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.config import Experiment, from_dict, to_dict
from heatmap.data import contest
from heatmap.errors import UserError
from heatmap.runs.folder import EVALUATION, RunFolder
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.runtime.files import read_json


@dataclass(frozen=True)
class RunSummary:
    """What a run, or an evaluation of it, tells; what it does not hold yet is empty, or None.

    settings: dotted fields of the experiment, split and machine, and which evaluation of the run it
    is; person: the pattern that tells people by file names; rows: of the ledger; summary: of a
    finished run; evaluation: its scores; table: fingerprint of the labels; images and errors:
    file names and columns of per_image.csv.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    person: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    table: str | None
    images: list[str]
    errors: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path, name: str) -> "RunSummary":
        """The run in a folder, or one of its evaluations (RUN/evaluation-NAME).

        Raises:
            UserError: there is no run, or one of its files is damaged.
        """
        here = RunFolder(folder)
        run = here.run
        is_evaluation = run.path != folder
        if is_evaluation and not here.scores.is_file():
            raise UserError(f"{folder}: there is no evaluation here (no {here.scores.name})")
        if not run.config.is_file():
            raise UserError(f"{folder}: there is no run here (no {run.config.name})")
        config = read_json(run.config)
        with contextlib.suppress(TypeError, ValueError):  # one of another version stays as it is
            config = to_dict(from_dict(Experiment, config))  # with fields that came after the run
        paths = run.split, run.machine, run.summary, here.scores
        split, machine, summary, scores = (read_json(p) if p.is_file() else {} for p in paths)
        settings = dict(_flat(config))
        settings |= {f"machine.{key}": machine[key] for key in machine if key != "date"}
        settings |= {"split": split["rule"]} if "rule" in split else {}
        if is_evaluation:
            parts = folder.relative_to(run.path).parts
            settings["evaluation"] = "/".join(part.removeprefix(EVALUATION) for part in parts)
        person = config.get("data", {}).get("person_pattern", contest.PERSON_PATTERN)
        rows = read_metrics(run.path) if run.metrics.is_file() else []
        evaluation = scores if is_evaluation else {}
        table = scores.get("table", None if is_evaluation else split.get("table"))
        images = read_per_image(here.per_image) if here.per_image.is_file() else ([], {})
        return cls(name, folder, settings, person, rows, summary, evaluation, table, *images)

    @property
    def groups(self) -> list[str]:
        """Landmark groups that single images have an error for."""
        return [name.removeprefix("mse ") for name in self.errors if name.startswith("mse ")]


def _flat(values: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and the values that hold no others."""
    if isinstance(values, list) and any(isinstance(inner, dict) for inner in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        yield name, values
        return
    for key, inner in values.items():
        yield from _flat(inner, f"{name}.{key}" if name else key)


def read_runs(folders: Sequence[Path]) -> list[RunSummary]:
    """The runs, named by their folders, or by the whole paths where these are alike.

    Raises:
        UserError: a folder is no run's, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is named twice; name each once")
    short = [str(path.relative_to(RunFolder(path).run.path.parent)) for path in resolved]
    alike = len(set(short)) < len(short)
    names = [str(folder) for folder in folders] if alike else short
    return [RunSummary.read(*pair) for pair in zip(resolved, names, strict=True)]
