"""Train an experiment, or resume a stopped run."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import parse_and_call, run_command, with_experiment
from heatmap.config import Experiment

USAGE = """\
usage: heatmap train EXPERIMENT --out RUN [--data.root DIR] [--field value ...] [--dry-run]
       heatmap train EXPERIMENT --help               every field with its default
       heatmap train --resume RUN [--field value]    resume a stopped run

EXPERIMENT is a recipe's name, such as unet, or a Python file.
"""


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--resume":
        if len(arguments) < 2:
            sys.stderr.write("--resume needs a run folder\n")
            return 2
        return run_command(lambda: _resume(Path(arguments[1]), arguments[2:]))
    return with_experiment("heatmap train", arguments, command_of, USAGE)


def command_of(experiment: Experiment) -> Callable[..., int]:
    # all runs of a sweep have the same command, but each needs a folder of its own
    wandb_id = os.environ.get("WANDB_RUN_ID")
    folder = Path("runs") / (f"{experiment.name}-{wandb_id}" if wandb_id else experiment.name)

    def command(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment,
        *,
        out: Path = folder,
        dry_run: bool = False,
    ) -> int:
        """Train an experiment.

        Args:
            out: run folder to create. Under a Weights & Biases agent the default ends with the
                run's id.
            dry_run: print the configuration and sizes, and the memory and time of a few steps;
                write nothing.
        """
        return run_command(lambda: _train(experiment, None if dry_run else out))

    return command


def _train(experiment: Experiment, out: Path | None) -> None:
    from heatmap.training import start

    if out is None:
        start.dry_run(experiment)
    else:
        start.train(experiment, out)


def _resume(folder: Path, arguments: Sequence[str]) -> None:
    from heatmap.training import start

    def changed(default: Experiment) -> Experiment:
        def command(
            experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        ) -> Experiment:
            return experiment

        return parse_and_call(command, f"heatmap train --resume {folder}", arguments)

    start.resume(folder, changed)
