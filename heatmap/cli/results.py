"""A table of runs, best first and those without a score last."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import run_command
from heatmap.errors import UsageError, UserError


def results(runs: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Print a Markdown table of finished runs.

    Args:
        runs: run folders.
    """
    if not runs:
        raise UsageError("name at least one run folder")
    rows = sorted((_row(run) for run in runs), key=lambda row: row[0])
    header = ["run", "network", "seed", "val MSE px²", "mean shape", "epochs", "minutes"]
    header += ["hardware", "date", "commit"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for _, cells in rows:
        print("| " + " | ".join(cells) + " |")


def _row(folder: Path) -> tuple[float, list[str]]:
    """The score to sort by, and the cells."""
    from heatmap.runs.folder import RunFolder
    from heatmap.runtime.files import read_json

    run = RunFolder(folder)
    if not run.summary.is_file():
        raise UserError(f"{folder}: not a finished run (summary.json is missing)")
    summary, machine, config = map(read_json, (run.summary, run.machine, run.config))
    model, crop = config["model"], config["crop"]
    best, mean_shape = summary["best_mse"], summary["mean_shape_mse"]
    scored = best is not None  # a run that trained on all rows has no scores
    cores = f"{machine['cpu_cores']} cores, " if machine["device"] == "cpu" else ""
    return best if scored else math.inf, [
        config["name"],
        f"{model['type']} {model['encoder']}, weights {model['weights']}, "
        f"{crop['height']}×{crop['width']}",
        str(config["seed"]),
        f"**{best:.2f}**" if scored else "-",
        f"{mean_shape:.1f}" if scored else "-",
        str(summary["epochs"]),
        f"{summary['minutes']:.0f}",
        f"{cores}{machine['processor']}",
        machine["date"],
        str(machine["commit"]),
    ]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return run_command(lambda: tyro.cli(results, prog="results.py", args=arguments))
