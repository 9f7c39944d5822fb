"""Print a table of runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import parse_and_call, run_command
from heatmap.errors import UsageError


def results(runs: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Print a Markdown table of runs, best first and runs without a score last.

    Args:
        runs: run folders.
    """
    if not runs:
        raise UsageError("name at least one run folder")
    rows = sorted((_row(run) for run in runs), key=lambda row: row[0])
    header = rows[0][1]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for _, cells in rows:
        print(f"| {' | '.join(cells.values())} |")


def _row(folder: Path) -> tuple[float, dict[str, str]]:
    """The score to sort by, and the cells by column."""
    from heatmap.config import Experiment
    from heatmap.runs.folder import Machine, Summary, find_run
    from heatmap.runtime.files import read_json

    run = find_run(folder)
    machine, experiment = read_json(run.machine, Machine), read_json(run.config, Experiment)
    summary = read_json(run.summary, Summary) if run.summary.is_file() else None
    name, model, crop = experiment.name, experiment.model, experiment.crop
    best = summary and summary["best_mse"]  # None if it trained on all rows
    mean_shape = summary and summary["mean_shape_mse"]
    cores = f"{machine['cpu_cores']} cores, " if machine["device"] == "cpu" else ""
    return math.inf if best is None else best, {
        "run": name if summary else f"{name} (unfinished)",
        "network": f"{type(model).__name__} {model.encoder}, weights {model.weights}, "
        f"{crop.height}×{crop.width}",
        "seed": str(experiment.seed),
        "val MSE px²": "-" if best is None else f"**{best:.2f}**",
        "mean shape": "-" if mean_shape is None else f"{mean_shape:.1f}",
        "epochs": str(summary["epochs"]) if summary else "-",
        "minutes": f"{summary['minutes']:.0f}" if summary else "-",
        "hardware": f"{cores}{machine['processor']}",
        "date": machine["date"],
        "commit": str(machine["commit"]),
    }


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: parse_and_call(results, "heatmap results", arguments))
