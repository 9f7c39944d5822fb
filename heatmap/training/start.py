"""Starts, resumes and tries runs: `heatmap.train` and `heatmap.resume`, also for the command."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heatmap import config
from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError, located
from heatmap.networks import HeatmapNetwork
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder, Summary, find_run
from heatmap.runs.wandb import mode_of_environment
from heatmap.runtime import machine
from heatmap.runtime.files import read_json
from heatmap.training import loop
from heatmap.training.prepare import Run, prepare
from heatmap.training.step import time_steps

logger = logging.getLogger("heatmap")

# These only make a resumed run longer, or do not change its results.
RESUME_OPTIONS = (
    "data.root", "data.workers", "data.cache", "train.device", "train.epochs", "wandb.mode",
)  # fmt: skip


@dataclass(frozen=True)
class TrainedSummary:
    """The outcome of a finished run. Without validation its scores are None.

    Attributes:
        run: the run folder.
        best_mse: lowest validation MSE in square image pixels; best.pt has it.
        best_epoch: the epoch of best.pt, from 1.
        mean_shape_mse: validation MSE of the mean training shape.
        epochs, steps, minutes: how long the run has trained.
    """

    run: Path
    best_mse: float | None
    best_epoch: int
    mean_shape_mse: float | None
    epochs: int
    steps: int
    minutes: float


def train(experiment: Experiment, out: Path | str) -> TrainedSummary:
    """Trains an experiment and writes its run folder.

    Example:
        >>> experiment = Experiment(name="unet", data=Data(root="contest01_data"), model=UNet())
        >>> heatmap.train(experiment, "runs/unet").best_mse

    Args:
        experiment: what to train; make variants with `dataclasses.replace`.
        out: folder to create. It must not hold a run yet.

    Raises:
        UserError: the folder holds a run, data or options are unusable, or training diverges.
    """
    machine.log_to_terminal()
    files = RunFolder(Path(out))
    # another process may find the files that the first has just written
    if machine.is_first() and (files.config.exists() or files.last.exists()):
        raise UserError(
            f"{out} already holds a run; resume it (--resume {out}), choose another folder, or "
            "delete it"
        )
    return _run(prepare(experiment), files.path)


def resume(
    run: Path | str, change: Callable[[Experiment], Experiment] | None = None
) -> TrainedSummary:
    """Continues a stopped run, as if it had not stopped.

    Args:
        run: the run folder.
        change: returns the experiment to go on with, given the run's own. It may set data.root,
            data.workers, data.cache, train.device and wandb.mode, and raise train.epochs.

    Raises:
        UserError: see `train`; or there is no such run, its data changed, or `change` sets
            anything else.
    """
    machine.log_to_terminal()
    files = find_run(Path(run))
    # a run that stopped before its first checkpoint starts from the beginning
    saved = checkpoint.load(files.last) if files.last.is_file() else None
    before = written = read_json(files.config, Experiment)
    if saved:
        with located(files.last):
            before = config.from_dict(Experiment, saved.config)
    experiment = _with_written_options(before, written)
    experiment = change(experiment) if change else experiment
    _check_changes(files.config, written, before, experiment)
    is_longer = experiment.train.epochs != before.train.epochs
    if is_longer:
        _check_may_be_longer(before, experiment, saved)
    elif files.summary.is_file():
        logger.info(f"{run}: this run has finished")
        return _summary(files.path, read_json(files.summary, Summary))
    prepared = prepare(experiment, saved)
    progress = prepared.progress
    progress.finished &= not is_longer or progress.step >= prepared.total_steps
    return _run(prepared, files.path)


def _with_written_options(before: Experiment, written: Experiment) -> Experiment:
    """The checkpoint's experiment with the options in config.json that a resume may set.

    The last resume may have ended before its first checkpoint.
    """
    data, train = written.data, written.train
    return replace(
        before,
        data=replace(before.data, root=data.root, workers=data.workers, cache=data.cache),
        train=replace(before.train, device=train.device, epochs=train.epochs),
        wandb=replace(before.wandb, mode=mode_of_environment() or written.wandb.mode),
    )


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
    before: Experiment, experiment: Experiment, saved: checkpoint.Checkpoint | None
) -> None:
    """Raises UsageError if a run of the new length would have had other learning rates so far."""
    schedule, old_epochs = before.schedule, before.all_stages[0].epochs
    epochs = experiment.all_stages[0].epochs
    progress = saved.state.progress if saved and saved.state else checkpoint.Progress()
    limit = before.train.max_steps
    if limit and progress.step >= limit:
        raise UsageError(
            f"--train.epochs cannot change: the run ended at train.max_steps {limit}; start a "
            "new run from its weights with --train.start"
        )
    if epochs < old_epochs:
        raise UsageError(f"--train.epochs {epochs} is less than the run's {old_epochs}")
    if progress.step == 0:
        return
    if schedule.kind in ("cosine", "onecycle"):
        raise UsageError(
            f"--train.epochs cannot change: schedule.kind {schedule.kind} anneals the learning "
            "rate to the end of the run; start a new run from its weights with --train.start"
        )
    if schedule.kind != "cyclic" and progress.epoch < epochs * schedule.warmup:
        raise UsageError(
            f"--train.epochs {epochs}: the warm-up of the longer run (schedule.warmup "
            f"{schedule.warmup}) would not be over after {progress.epoch} epochs"
        )


def _run(run: Run, folder: Path) -> TrainedSummary:
    if machine.is_first():
        logger.info(f"{_format_sizes(run)}\nrun folder    {folder}")
    try:
        summary = _summary(folder, loop.train(run, folder))
    except (KeyboardInterrupt, OSError, RuntimeError):  # not the user's error
        if machine.is_first() and RunFolder(folder).config.is_file():
            logger.info(f"to resume, run heatmap train --resume {folder}")
        raise
    outcome = f"trained on all rows, without a score, for {summary.epochs} epochs"
    if summary.best_mse is not None:
        outcome = (
            f"best validation MSE {summary.best_mse:.3f} px² in epoch {summary.best_epoch} "
            f"of {summary.epochs} (mean shape {summary.mean_shape_mse:.3f} px²)"
        )
    logger.info(f"{outcome}; {summary.minutes:.1f} minutes")
    if summary.best_mse is not None and summary.best_mse > (summary.mean_shape_mse or math.inf):
        logger.warning("the network is worse than the mean shape, which ignores the image")
    return summary


def _summary(run: Path, values: Mapping[str, Any]) -> TrainedSummary:
    return TrainedSummary(run, **{name: values[name] for name in Summary.__annotations__})


def dry_run(experiment: Experiment) -> None:
    """Logs the configuration, sizes, and the memory and time of a few steps; writes nothing."""
    logger.info(json.dumps(config.to_dict(experiment), indent=2))
    run = prepare(replace(experiment, model=replace(experiment.model, weights="none")))
    logger.info(_format_sizes(run))
    first, *_, last = time_steps(run)
    mib = machine.peak_memory(run.device) / 2**20
    logger.info(
        f"memory        {mib:,.0f} MiB at the peak, on {run.device}\n"
        f"time          {last:.2f} s per step, {first:.2f} s for the first, on {run.device}"
    )


def _format_sizes(run: Run) -> str:
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
