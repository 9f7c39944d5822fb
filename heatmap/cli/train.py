"""Train an experiment, or resume a stopped run."""

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
from heatmap.cli.running import is_first, parse_and_call, run_command, with_experiment
from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError, located
from heatmap.runs.folder import RunFolder, find_run
from heatmap.runs.wandb import mode_of_environment
from heatmap.runtime.files import read_json

if TYPE_CHECKING:
    from heatmap.runs.checkpoint import Checkpoint
    from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")

USAGE = """\
usage: train.py EXPERIMENT.py --out RUN [--data.root DIR] [--field value ...] [--dry-run]
       train.py EXPERIMENT.py --help            every field with its default
       train.py --resume RUN [--field value]    resume a stopped run
"""

# These only make a resumed run longer, or do not change its results.
RESUME_OPTIONS = (
    "data.root", "data.workers", "data.cache", "train.device", "train.epochs", "wandb.mode",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--resume":
        if len(arguments) < 2:
            sys.stderr.write("--resume needs a run folder\n")
            return 2
        return run_command(lambda: _resume(Path(arguments[1]), arguments[2:]))
    return with_experiment("train.py", arguments, _train_command, USAGE)


def _train_command(experiment: Experiment) -> Callable[..., int]:
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
        return run_command(lambda: _dry_run(experiment) if dry_run else _train(experiment, out))

    return command


def _train(experiment: Experiment, out: Path) -> None:
    files = RunFolder(out)
    # another process may find the files that the first has just written
    if is_first() and (files.config.exists() or files.last.exists()):
        raise UserError(
            f"{out} already holds a run; resume it (--resume {out}), choose another --out, or "
            "delete it"
        )
    from heatmap.training.prepare import prepare

    _run(prepare(experiment), out)


def _resume(folder: Path, arguments: Sequence[str]) -> None:
    files = find_run(folder)
    from heatmap.runs import checkpoint
    from heatmap.training.prepare import prepare

    # a run that stopped before its first checkpoint starts from the beginning
    saved = checkpoint.load(files.last) if files.last.is_file() else None
    before = written = read_json(files.config, Experiment)
    if saved:
        with located(files.last):
            before = config.from_dict(Experiment, saved.config)
    experiment = _with_options(before, written, folder, arguments)
    _check_changes(files.config, written, before, experiment)
    is_longer = experiment.train.epochs != before.train.epochs
    if is_longer:
        _check_may_be_longer(before, experiment, saved)
    elif files.summary.is_file():
        logger.info(f"{folder}: this run has finished")
        return
    run = prepare(experiment, saved)
    run.progress.finished &= not is_longer or run.progress.step >= run.total_steps
    _run(run, folder)


def _with_options(
    before: Experiment, written: Experiment, folder: Path, arguments: Sequence[str]
) -> Experiment:
    """Returns a run's experiment, changed by the options of --resume.

    Their defaults are in config.json: the last resume may have ended before its first checkpoint.
    """
    data, train = written.data, written.train
    default = replace(
        before,
        data=replace(before.data, root=data.root, workers=data.workers, cache=data.cache),
        train=replace(before.train, device=train.device, epochs=train.epochs),
        wandb=replace(before.wandb, mode=mode_of_environment() or written.wandb.mode),
    )

    def command(experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default) -> Experiment:
        return experiment

    return parse_and_call(command, f"train.py --resume {folder}", arguments)


def _check_changes(
    path: Path, written: Experiment, before: Experiment, experiment: Experiment
) -> None:
    """Raises UserError if options or an edited config.json change what a resume cannot change."""
    now, old, new = (config.flatten(config.to_dict(e)) for e in (written, before, experiment))
    names = [name for name in {**old, **now, **new} if name not in RESUME_OPTIONS]
    if fixed := [f"--{name}" for name in names if new.get(name) != old.get(name)]:
        allowed = ", ".join(f"--{name}" for name in RESUME_OPTIONS)
        raise UsageError(f"--resume cannot change {', '.join(fixed)}, only {allowed}")
    for name in names:
        if now.get(name) != old.get(name):
            raise UserError(
                f"{path}: {name} is {now.get(name)!r}, but the run began with {old.get(name)!r}; "
                "restore it, or start a new run"
            )


def _check_may_be_longer(
    before: Experiment, experiment: Experiment, saved: "Checkpoint | None"
) -> None:
    """Raises UsageError if a run of the new length would have had other learning rates so far."""
    schedule, old_epochs = before.schedule, before.all_stages[0].epochs
    epochs = experiment.all_stages[0].epochs
    progress = saved.state.progress if saved and saved.state else {"step": 0}
    limit = before.train.max_steps
    if limit and progress["step"] >= limit:
        raise UsageError(
            f"--train.epochs cannot change: the run ended at train.max_steps {limit}; start a "
            "new run from its weights with --train.start"
        )
    if epochs < old_epochs:
        raise UsageError(f"--train.epochs {epochs} is less than the run's {old_epochs}")
    if progress["step"] == 0:
        return
    if schedule.kind in ("cosine", "onecycle"):
        raise UsageError(
            f"--train.epochs cannot change: schedule.kind {schedule.kind} anneals the learning "
            "rate to the end of the run; start a new run from its weights with --train.start"
        )
    if schedule.kind != "cyclic" and progress["epoch"] < epochs * schedule.warmup:
        raise UsageError(
            f"--train.epochs {epochs}: the warm-up of the longer run (schedule.warmup "
            f"{schedule.warmup}) would not be over after {progress['epoch']} epochs"
        )


def _run(run: "Run", folder: Path) -> None:
    from heatmap.training import loop

    if is_first():
        logger.info(f"{_format_sizes(run)}\nrun folder    {folder}")
    try:
        summary = loop.train(run, folder)
    except (KeyboardInterrupt, OSError, RuntimeError):  # not the user's error
        if is_first() and RunFolder(folder).config.is_file():
            logger.info(f"to resume, run python tools/train.py --resume {folder}")
        raise
    outcome = f"trained on all rows, without a score, for {summary['epochs']} epochs"
    if summary["best_mse"] is not None:
        outcome = (
            f"best validation MSE {summary['best_mse']:.3f} px² in epoch {summary['best_epoch']} "
            f"of {summary['epochs']} (mean shape {summary['mean_shape_mse']:.3f} px²)"
        )
    logger.info(f"{outcome}; {summary['minutes']:.1f} minutes")


def _dry_run(experiment: Experiment) -> None:
    from heatmap.runtime import machine
    from heatmap.training.prepare import prepare
    from heatmap.training.step import time_steps

    logger.info(json.dumps(config.to_dict(experiment), indent=2))
    run = prepare(replace(experiment, model=replace(experiment.model, weights="none")))
    logger.info(_format_sizes(run))
    first, *_, last = time_steps(run)
    mib = machine.peak_memory(run.device) / 2**20
    logger.info(
        f"memory        {mib:,.0f} MiB at the peak, on {run.device}\n"
        f"time          {last:.2f} s per step, {first:.2f} s for the first, on {run.device}"
    )


def _format_sizes(run: "Run") -> str:
    from heatmap.networks import HeatmapNetwork

    experiment, parameters = run.experiment, sum(p.numel() for p in run.network.parameters())
    excluded = f", {len(run.data.excluded_rows)} excluded" if experiment.data.exclude else ""
    lines = [
        f"data          {len(run.data.training_rows)} training and {len(run.data.validation_rows)} "
        f"validation images{excluded}, {run.data.table.num_landmarks} landmarks",
        f"split         {run.data.split_rule}",
        f"network       {type(experiment.model).__name__} on {experiment.model.encoder}, "
        f"{parameters / 1e6:.2f} M parameters, {run.device}",
        f"steps         {run.data.batches_per_epoch} per epoch, at most {run.total_steps}",
    ]
    if run.measures_label_offset:
        lines.append("label offset  to be measured along x after early epochs")
    elif experiment.data.fixed_label_offset is None:
        lines.append("label offset  not measured, since training does not mirror")
    if getattr(experiment.model, "shape_prior", "none") == "auto" and not run.fits_shape_prior:
        count = len(run.data.validation_rows)
        lines.append(f"shape prior   none, since {count} validation images are too few")
    if isinstance(run.network, HeatmapNetwork):
        height, width = run.network.map_hw(experiment.crop.height, experiment.crop.width)
        model, count = run.network.model, run.data.table.num_landmarks
        lines.append(f"heatmaps      {count} of {height} x {width}, sigma {model.sigma}")
        needed = min(count, round(0.25 * height * width / model.sigma**2))
        if model.width < needed:
            lines.append(
                f"capped        {model.width} channels cannot show {count} such heatmaps sharply; "
                f"use about {needed} (--model.width), or a larger --model.stride or --model.sigma"
            )
    return "\n".join(lines)
