"""Print a table of runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import run_command
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
    from heatmap.runs.folder import find_run
    from heatmap.runtime.files import read_json

    run = find_run(folder)
    machine, config = read_json(run.machine), read_json(run.config)
    summary = read_json(run.summary) if run.summary.is_file() else {}
    model, crop = config["model"], config["crop"]
    best: float | None = summary.get("best_mse")
    has_score = best is not None  # False if it trained on all rows
    cores = f"{machine['cpu_cores']} cores, " if machine["device"] == "cpu" else ""
    return math.inf if best is None else best, {
        "run": config["name"] if summary else f"{config['name']} (unfinished)",
        "network": f"{model['type']} {model['encoder']}, weights {model['weights']}, "
        f"{crop['height']}×{crop['width']}",
        "seed": str(config["seed"]),
        "val MSE px²": f"**{best:.2f}**" if has_score else "-",
        "mean shape": f"{summary['mean_shape_mse']:.1f}" if has_score else "-",
        "epochs": str(summary["epochs"]) if summary else "-",
        "minutes": f"{summary['minutes']:.0f}" if summary else "-",
        "hardware": f"{cores}{machine['processor']}",
        "date": machine["date"],
        "commit": str(machine["commit"]),
    }


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: tyro.cli(results, prog="results.py", args=arguments))
