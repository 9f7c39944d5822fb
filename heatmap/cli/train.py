"""Train an experiment, or resume a run that was stopped."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from heatmap import config
from heatmap.cli.running import is_first, options_of, run_command, with_experiment
from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import read_json

if TYPE_CHECKING:
    from heatmap.runs.checkpoint import Checkpoint
    from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")

USAGE = """\
usage: train.py EXPERIMENT.py --out RUN [--data.root DIR] [--field value ...] [--dry-run]
       train.py EXPERIMENT.py --help            every field with its default
       train.py --resume RUN [--field value]    go on with a run that was stopped
"""

# What does not change the numbers of a run that is resumed, or only makes it longer.
MAY_CHANGE = (
    "data.root", "data.workers", "data.cache", "train.device", "train.epochs", "wandb.mode",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 0, 1 for a failure, 2 for wrong usage."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--resume":
        if len(arguments) < 2:
            sys.stderr.write("--resume takes a run folder\n")
            return 2
        return run_command(lambda: _resume(Path(arguments[1]), arguments[2:]))
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
            out: the run folder, which must not hold a run; under an agent of Weights & Biases the
                default ends with the run's id.
            dry_run: show config, sizes, and memory and time of two steps; keep nothing.
        """
        return run_command(lambda: _dry_run(experiment) if dry_run else _train(experiment, out))

    return command


def _train(experiment: Experiment, out: Path) -> None:
    files = RunFolder(out)
    held = files.config.exists() or files.last.exists()
    if held and is_first():  # it may be this run's already, for the others
        choices = f"go on with --resume {out}, choose another --out, or delete it"
        raise UserError(f"{out} already holds a run; {choices}")
    from heatmap.training.prepare import prepare

    _run(prepare(experiment), out)


def _resume(folder: Path, arguments: Sequence[str]) -> None:
    files = RunFolder(folder)
    if not files.config.is_file():
        raise UserError(f"{folder}: there is no run here (no config.json)")
    from heatmap.runs import checkpoint
    from heatmap.training.prepare import prepare

    # without a checkpoint the run was stopped before its first one, and begins anew
    saved = checkpoint.load(files.last) if files.last.is_file() else None
    values = saved.config if saved else read_json(files.config)
    begun = config.from_dict(Experiment, values)
    experiment = _with_changes(begun, folder, arguments)
    is_longer = experiment.train.epochs != begun.train.epochs
    if is_longer:
        _check_may_be_longer(begun, experiment, saved)
    elif files.summary.is_file():
        logger.info(f"{folder}: this run has finished")
        return
    run = prepare(experiment, saved)
    run.progress.finished &= not is_longer or run.progress.step >= run.total_steps
    _run(run, folder)


def _with_changes(begun: Experiment, folder: Path, arguments: Sequence[str]) -> Experiment:
    """The experiment of a run with the options that were given behind its folder."""

    def command(experiment: Annotated[Experiment, tyro.conf.arg(name="")] = begun) -> Experiment:
        return experiment

    experiment = options_of(command, f"train.py --resume {folder}", arguments)
    before, after = (config.flatten(config.to_dict(e)) for e in (begun, experiment))
    fixed = [name for name in after if after[name] != before.get(name) and name not in MAY_CHANGE]
    if fixed:
        kept, free = (", ".join(f"--{name}" for name in names) for names in (fixed, MAY_CHANGE))
        raise UsageError(f"a resumed run keeps {kept}; it can be given {free}")
    return experiment


def _check_may_be_longer(
    begun: Experiment, experiment: Experiment, saved: "Checkpoint | None"
) -> None:
    """Raises UsageError where a run of that many epochs would have had other learning rates."""
    schedule, before = begun.schedule, begun.all_stages[0].epochs
    epochs = experiment.all_stages[0].epochs
    if epochs < before:
        raise UsageError(f"--train.epochs {epochs} is less than the run's {before}")
    progress = saved.state.progress if saved and saved.state else {"step": 0}
    if progress["step"] == 0:
        return
    if schedule.kind in ("cosine", "onecycle"):
        raise UsageError(
            f"--train.epochs cannot change: schedule.kind {schedule.kind} anneals the learning "
            "rate to the end of the run; begin another run from its weights with --train.start"
        )
    if schedule.kind != "cyclic" and progress["epoch"] < epochs * schedule.warmup:
        warmup, done = f"warm-up (schedule.warmup {schedule.warmup})", f"{progress['epoch']} epochs"
        raise UsageError(
            f"--train.epochs {epochs}: the {warmup} of so long a run would not be over after {done}"
        )


def _run(run: "Run", folder: Path) -> None:
    from heatmap.training import loop

    if is_first():
        logger.info(f"{_sizes(run)}\nrun folder    {folder}")
    try:
        summary = loop.train(run, folder)
    except KeyboardInterrupt:
        if is_first():
            logger.info(f"python tools/train.py --resume {folder} goes on where it was")
        raise
    outcome = f"trained on all rows, without a score, for {summary['epochs']} epochs"
    if summary["best_mse"] is not None:
        outcome = (
            f"best validation MSE {summary['best_mse']:.3f} px² in epoch {summary['best_epoch']} "
            f"of {summary['epochs']}; the mean shape's is {summary['mean_shape_mse']:.3f}"
        )
    logger.info(f"{outcome}; {summary['minutes']:.1f} minutes")


def _dry_run(experiment: Experiment) -> None:
    from heatmap.runtime import machine
    from heatmap.training.prepare import prepare
    from heatmap.training.step import time_steps

    logger.info(json.dumps(config.to_dict(experiment), indent=2))
    device = machine.chosen_device(experiment.train.device)
    before = machine.peak_memory(device)
    run = prepare(replace(experiment, model=replace(experiment.model, weights="none")))
    logger.info(_sizes(run))
    first, second = time_steps(run)
    mib = (machine.peak_memory(device) - before) / 2**20
    logger.info(
        f"memory        {mib:,.0f} MiB on top of the program, at the peak of two steps\n"
        f"time          {second:.2f} s a step, {first:.2f} s the first, on {run.device}"
    )


def _sizes(run: "Run") -> str:
    """What a run is made of, as lines that line up."""
    from heatmap.networks import HeatmapNetwork

    experiment, parameters = run.experiment, sum(p.numel() for p in run.network.parameters())
    excluded = f", {len(run.data.excluded_rows)} excluded" if experiment.data.exclude else ""
    lines = [
        f"data          {len(run.data.training_rows)} training and {len(run.data.validation_rows)} "
        f"validation images{excluded}, {run.data.table.num_landmarks} landmarks",
        f"split         {run.data.split_rule}",
        f"network       {type(experiment.model).__name__} on {experiment.model.encoder}, "
        f"{parameters / 1e6:.2f} M parameters, {run.device}",
        f"steps         {run.data.batches_per_epoch} an epoch, at most {run.total_steps}",
    ]
    if isinstance(run.network, HeatmapNetwork):
        height, width = run.network.map_hw(experiment.crop.height, experiment.crop.width)
        model, count = run.network.model, run.data.table.num_landmarks
        lines.append(f"heatmaps      {count} of {height} x {width}, sigma {model.sigma}")
        needed = min(count, round(0.25 * height * width / model.sigma**2))
        if model.width < needed:
            advice = f"use about {needed} (--model.width), a larger --model.stride or --model.sigma"
            capped = f"{model.width} channels cannot show {count} such maps sharply"
            lines.append(f"capped        {capped}; {advice}")
    return "\n".join(lines)
