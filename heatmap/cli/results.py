"""A table of runs, best first and those without a score last.

The results section of the README is this output.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import WrongUsage, failing_politely


def results(runs: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Print a Markdown table of finished runs.

    Args:
        runs: run folders.
    """
    if not runs:
        raise WrongUsage("name at least one run folder")
    rows = sorted((_row(run) for run in runs), key=lambda row: row[0])
    header = ["run", "network", "seed", "val MSE px²", "mean shape", "epochs", "minutes"]
    header += ["hardware", "date", "commit"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for _, cells in rows:
        print("| " + " | ".join(cells) + " |")


def _row(run: Path) -> tuple[float, list[str]]:
    from heatmap.runtime.files import read_json

    if not (run / "summary.json").is_file():
        raise ValueError(f"{run}: not a finished run (summary.json is missing)")
    summary, machine, config = (
        read_json(run / f"{name}.json") for name in ("summary", "machine", "config")
    )
    model = config["model"]
    crop = f"{config['crop']['height']}×{config['crop']['width']}"
    best, mean_shape = summary["best_mse"], summary["mean_shape_mse"]
    scored = best is not None  # a run that trained on all rows has no scores
    return best if scored else math.inf, [
        config["name"],
        f"{model['type']} {model['encoder']}, weights {model['weights']}, {crop}",
        str(config["seed"]),
        f"**{best:.2f}**" if scored else "-",
        f"{mean_shape:.1f}" if scored else "-",
        str(summary["epochs"]),
        f"{summary['minutes']:.0f}",
        f"{machine['cpu_cores']} cores, {machine['processor']}"
        if machine["device"] == "cpu"
        else machine["processor"],
        machine["date"],
        str(machine["commit"]),
    ]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return failing_politely(lambda: tyro.cli(results, prog="results.py", args=arguments))
