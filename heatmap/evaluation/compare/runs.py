"""What run folders tell of their runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.config import Experiment, from_dict, to_dict
from heatmap.data import contest
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.runtime.files import read_json


@dataclass(frozen=True)
class RunFolder:
    """What a run folder tells of its run; what it does not hold yet is empty, or None.

    name: for people; settings: dotted fields of the experiment, split and machine, and which
    evaluation of the run it is; person: the pattern that tells people by file names; rows: of the
    ledger; summary: of a finished run; evaluation: scores of an evaluation of the run, as
    `evaluate.summary` gives them; table: fingerprint of the labels; pictures and errors: file names
    and columns of per_image.csv.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    person: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    table: str | None
    pictures: list[str]
    errors: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path, name: str) -> "RunFolder":
        """The run in a folder, or one of its evaluations (RUN/evaluation-NAME).

        Raises:
            ValueError: there is no run, or one of its files is damaged.
        """
        home = _home(folder)
        if folder != home and not (folder / "evaluation.json").is_file():
            raise ValueError(f"{folder}: there is no evaluation here (no evaluation.json)")
        if not (home / "config.json").is_file():
            raise ValueError(f"{folder}: there is no run here (no config.json)")
        config = _with_defaults(read_json(home / "config.json"))
        split, machine, summary, evaluation = (
            read_json(path) if path.is_file() else {}
            for path in (
                home / "split.json",
                home / "machine.json",
                home / "summary.json",
                folder / "evaluation.json",
            )
        )
        settings = dict(_flat(config))
        settings |= {f"machine.{key}": machine[key] for key in machine if key != "date"}
        settings |= {"split": split["rule"]} if "rule" in split else {}
        if folder != home:
            parts = folder.relative_to(home).parts
            settings["evaluation"] = "/".join(part.removeprefix("evaluation-") for part in parts)
        pictures, errors = list[str](), dict[str, np.ndarray]()
        if (folder / "per_image.csv").is_file():
            pictures, errors = read_per_image(folder / "per_image.csv")
        return cls(
            name=name,
            folder=folder,
            settings=settings,
            person=config.get("data", {}).get("person_pattern", contest.PERSON_PATTERN),
            rows=read_metrics(home) if (home / "metrics.jsonl").is_file() else [],
            summary=summary,
            evaluation=evaluation if folder != home else {},
            table=evaluation.get("table", split.get("table") if folder == home else None),
            pictures=pictures,
            errors=errors,
        )

    @property
    def groups(self) -> list[str]:
        """Landmark groups that single pictures have an error for."""
        return [name.removeprefix("mse ") for name in self.errors if name.startswith("mse ")]


def _home(folder: Path) -> Path:
    """The folder of a run, given that or an evaluation inside it, or inside another evaluation."""
    while folder.name.startswith("evaluation-") and not (folder / "config.json").is_file():
        folder = folder.parent
    return folder


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the fields that came after the run; one that is not of today stays as it is.

    Fields are added with defaults that leave a run as it was.
    """
    try:
        return to_dict(from_dict(Experiment, config))
    except (TypeError, ValueError):
        return config


def _flat(values: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and the values that hold no others."""
    if isinstance(values, dict):
        for key, inner in values.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(values, list) and any(isinstance(inner, dict) for inner in values):
        for index, inner in enumerate(values):
            yield from _flat(inner, f"{name}.{index}")
    else:
        yield name, values


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """The runs, named by their folders, or by the whole paths where these are alike.

    Raises:
        ValueError: a folder is no run's, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ValueError("a run is named twice; name each once")
    short = [str(path.relative_to(_home(path).parent)) for path in resolved]
    alike = len(set(short)) < len(short)
    names = [str(folder) for folder in folders] if alike else short
    return [RunFolder.read(*pair) for pair in zip(resolved, names, strict=True)]
