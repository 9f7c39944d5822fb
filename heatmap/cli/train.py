"""Train an experiment, or resume a run that was stopped."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from heatmap import config
from heatmap.cli.running import failing_politely, is_first, with_experiment
from heatmap.config import Experiment
from heatmap.runtime.files import read_json

if TYPE_CHECKING:
    from heatmap.runs.checkpoint import Checkpoint
    from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")

USAGE = """\
usage: train.py EXPERIMENT.py --out RUN [--data.root DIR] [--field value ...] [--dry-run]
       train.py EXPERIMENT.py --help      every field with its default
       train.py --resume RUN              go on with a run that was stopped
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 0, 1 for a failure, 2 for wrong usage."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--resume":
        if len(arguments) != 2:
            sys.stderr.write(
                "--resume takes a run folder and nothing else: a run keeps its config\n"
            )
            return 2
        return failing_politely(lambda: _resume(Path(arguments[1])))
    return with_experiment("train.py", arguments, _training, USAGE)


def _training(experiment: Experiment) -> Callable[..., int]:
    # every run of a sweep needs a folder of its own, and its command is the same for all
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
            out: the run folder; it must not hold a run yet. For a run that an agent of Weights &
                Biases starts, the default ends with the run's id.
            dry_run: show the config, the sizes and the memory it would need, and train nothing.
        """
        action = _dry_run if dry_run else _train
        return failing_politely(lambda: action(experiment, out))

    return command


def _train(experiment: Experiment, out: Path) -> None:
    held = any((out / name).exists() for name in ("config.json", "last.pt"))
    if held and is_first():  # it may be this run's already, for the others
        raise ValueError(
            f"{out} already holds a run; go on with --resume {out}, choose another --out, or "
            "delete it"
        )
    _run(experiment, out)


def _resume(folder: Path) -> None:
    from heatmap.runs import checkpoint

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no run here (no config.json)")
    if (folder / "summary.json").is_file():
        logger.info(f"{folder}: this run has finished")
    elif (folder / "last.pt").is_file():
        saved = checkpoint.load(folder / "last.pt")
        _run(config.from_dict(Experiment, saved.config), folder, saved)
    else:  # it was stopped before its first checkpoint
        _run(config.from_dict(Experiment, read_json(folder / "config.json")), folder)


def _run(experiment: Experiment, folder: Path, saved: "Checkpoint | None" = None) -> None:
    from heatmap.training import loop
    from heatmap.training.prepare import prepare

    run = prepare(experiment, saved)
    if is_first():
        logger.info(f"{_sizes(run)}\nrun folder    {folder}")
    try:
        summary = loop.train(run, folder)
    except KeyboardInterrupt:
        if is_first():
            logger.info(f"python tools/train.py --resume {folder} goes on where it was")
        raise
    logger.info(f"{_outcome(summary)}; {summary['minutes']:.1f} minutes")


def _outcome(summary: dict[str, Any]) -> str:
    if summary["best_mse"] is None:
        return f"trained on all rows, without a score, for {summary['epochs']} epochs"
    return (
        f"best validation MSE {summary['best_mse']:.3f} px² in epoch {summary['best_epoch']} of "
        f"{summary['epochs']}; the mean shape's is {summary['mean_shape_mse']:.3f}"
    )


def _dry_run(experiment: Experiment, out: Path) -> None:
    from heatmap.training.prepare import prepare

    del out
    logger.info(json.dumps(config.to_dict(experiment), indent=2))
    bare = replace(experiment.model, weights="none")  # sizes need no weights
    logger.info(_sizes(prepare(replace(experiment, model=bare))))


def _sizes(run: "Run") -> str:
    """What a run is made of and the memory it needs, as lines that line up."""
    from heatmap.training import plan

    experiment, parameters = run.experiment, sum(p.numel() for p in run.network.parameters())
    excluded = f", {len(run.excluded_rows)} excluded" if experiment.data.exclude else ""
    parts = experiment.train.accumulate  # of a batch that is no larger than the rows
    batch = max(parts, min(experiment.train.batch, len(run.training_rows)) // parts * parts)
    planned = replace(experiment, train=replace(experiment.train, batch=batch))
    lines = [
        f"data          {len(run.training_rows)} training and {len(run.validation_rows)} "
        f"validation pictures{excluded}, {run.table.num_landmarks} landmarks",
        f"split         {run.split_rule}",
        f"network       {type(experiment.model).__name__} on {experiment.model.encoder}, "
        f"{parameters / 1e6:.2f} M parameters, {run.device}",
        f"steps         {run.batches_per_epoch} an epoch, at most {run.total_steps}",
    ]
    if isinstance(experiment.model, config.HeatmapModel):
        lines += _map_sizes(experiment, experiment.model, run.table.num_landmarks)
    return "\n".join([*lines, plan.table(planned, run.table.num_landmarks, run.device)])


def _map_sizes(experiment: Experiment, model: config.HeatmapModel, num_landmarks: int) -> list[str]:
    height, width = experiment.crop.height // model.stride, experiment.crop.width // model.stride
    lines = [f"heatmaps      {num_landmarks} of {height} x {width}, sigma {model.sigma}"]
    needed = min(num_landmarks, round(0.25 * height * width / model.sigma**2))
    if model.width < needed:
        lines.append(
            f"capped        {model.width} channels cannot show {num_landmarks} such maps sharply; "
            f"use about {needed} (--model.width), a larger --model.stride or --model.sigma"
        )
    return lines
