"""The training loop, the same for heatmap and direct networks.

Learning rate, batch order, augmentation and dropout depend only on (seed, epoch, row, step), so a
killed and resumed run is bit-identical to an uninterrupted one, on a GPU only with
`train.deterministic`.
"""

import errno
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from heatmap.config import HeatmapModel, to_dict
from heatmap.data.samples import Loader, Sample
from heatmap.errors import UserError
from heatmap.evaluation import metrics
from heatmap.inference.predict import View
from heatmap.networks import HeatmapNetwork
from heatmap.runs import checkpoint, model_card
from heatmap.runs.folder import RunFolder
from heatmap.runs.ledger import Ledger
from heatmap.runtime import distributed, machine
from heatmap.runtime.files import finite, write_json
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import label_offset, reporting, schedule, shape_prior
from heatmap.training.optimizer import freeze
from heatmap.training.prepare import Run, save
from heatmap.training.step import Stepper, batches_of_pass

logger = logging.getLogger("heatmap")

LOG_EVERY = 30.0  # seconds between lines in the first epoch where no bar is shown


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Trains until the budget is used up.

    Returns:
        The contents of summary.json: best and mean-shape MSE, epochs, steps and minutes.

    Raises:
        UserError: an image cannot be read, memory runs out, or loss or gradient is not finite. The
            message names the images; the last checkpoint is kept.
    """
    files = RunFolder(folder)
    if distributed.rank() > 0:
        return _train_epochs(run, files, None)
    _write_description(run, files)
    after_step = run.progress.step if run.wandb_id else -1
    with Ledger(
        folder, run.experiment, tags=_tags(run), wandb_id=run.wandb_id, after_step=after_step
    ) as ledger:
        summary = _train_epochs(run, files, ledger)
        ledger.finish(summary)
    if files.best.is_file():  # may be missing if a run was resumed into another folder
        model_card.write(folder)
    return summary


def _write_description(run: Run, files: RunFolder) -> None:
    """Writes config, split and machine. A resumed run keeps the split and machine of its start."""
    files.path.mkdir(parents=True, exist_ok=True)
    for partial in files.path.rglob(".[0-9]*-*.*"):  # what a killed process was writing
        partial.unlink()
    write_json(files.config, to_dict(run.experiment))
    if not files.split.exists():
        data = run.data
        rows = {"validation": data.validation_rows, "excluded": data.excluded_rows}
        names = {part: [data.table.names[row] for row in rows[part]] for part in rows}
        split = {"kind": data.split_kind, "rule": data.split_rule, "table": data.table_hash}
        write_json(files.split, split | names)
    if not files.machine.exists():
        write_json(files.machine, machine.describe(run.device))


def _tags(run: Run) -> list[str]:
    """W&B tags: network, encoder, number of landmarks, data folder."""
    model, root = run.experiment.model, run.experiment.data.root.resolve()
    num_landmarks = f"{run.data.table.num_landmarks} landmarks"
    tags = type(model).__name__, model.encoder, num_landmarks, root.name
    return [tag[:64] for tag in tags]  # W&B's limit


def _train_epochs(run: Run, files: RunFolder, ledger: Ledger | None) -> dict[str, Any]:
    """Trains the remaining epochs. Only the first process has a ledger and writes files."""
    progress = run.progress
    progress.start_clock()
    freeze(run.optimizer, run.experiment.all_stages[progress.stage].rates)
    stepper = Stepper(run)
    loader = Loader(run.data.training, run.experiment.data.workers, run.device)

    def save_last() -> None:
        if ledger and stepper.settle():
            _check_exists(files)
            save(run, files.last, ledger.wandb_id)

    save_last()
    while not progress.finished:
        if progress.batch == 0:
            stage = schedule.stage_at(run.experiment, run.budget_used())
            stage = distributed.from_first(stage)
            if stage != progress.stage:
                _enter_stage(run, stage, files)
                stepper = Stepper(run)
            _adapt_sigma(run)
        watch, epoch_start = Stopwatch(run.device), time.monotonic()
        _train_epoch(run, stepper, loader, watch, save_last)
        _synchronise(run)
        with watch("label_offset"):
            label_offset.update(run)
        scores, columns = _validate(run, watch)
        row, is_best = _finish_epoch(run, scores)
        if ledger:
            _check_exists(files)
            if is_best:
                save(run, files.best)
        best_columns = columns if is_best else {}
        if progress.finished:
            with watch("shape_prior"):
                best_columns = shape_prior.add(run, files) or best_columns
            progress.update_seconds()
        row["time/seconds"] = time.monotonic() - epoch_start
        if ledger:
            reporting.report_epoch(run, files, ledger, row, best_columns, watch.seconds())
            keep_every = run.experiment.train.keep_every
            if keep_every and progress.epoch % keep_every == 0:
                save(run, files.checkpoint_of_epoch(progress.epoch))
        save_last()
    best_mse = progress.best_mse if progress.prior_mse is None else progress.prior_mse
    scores = {"best_mse": best_mse, "best_epoch": progress.best_epoch}
    scores["mean_shape_mse"] = progress.mean_shape_mse
    budget = {"epochs": progress.epoch, "steps": progress.step, "minutes": progress.seconds / 60}
    return finite(scores | budget)


def _check_exists(files: RunFolder) -> None:
    """Raises OSError if the run folder is gone, as with its disk; a new one would lack files."""
    if not files.config.is_file():
        raise FileNotFoundError(errno.ENOENT, "the run folder is gone or incomplete", files.config)


def _enter_stage(run: Run, number: int, files: RunFolder) -> None:
    """Sets the stage's start weights and frozen parts, and resets the optimizer."""
    progress, stage = run.progress, run.experiment.all_stages[number]
    progress.stage, progress.scores = number, []
    progress.stage_epoch, progress.stage_step = progress.epoch, progress.step
    if stage.start == "best" and distributed.rank() == 0:
        run.network.load_state_dict(checkpoint.load(files.best).network)
    distributed.same_everywhere([*run.network.parameters(), *run.network.buffers()])
    if stage.start == "best" and run.averaged:
        run.averaged.network.load_state_dict(run.network.state_dict())
    freeze(run.optimizer, stage.rates)
    run.optimizer.state.clear()
    if distributed.rank() == 0:
        frozen = [part for part, rate in vars(stage.rates).items() if rate == 0]
        logger.info(
            f"stage {number + 1} of {len(run.experiment.all_stages)}, from the {stage.start} "
            f"weights; frozen: {', '.join(frozen) or 'nothing'}"
        )


def _adapt_sigma(run: Run) -> None:
    """Sets the targets' sigma for the next epoch, if it is adaptive."""
    progress, model = run.progress, run.experiment.model
    if isinstance(model, HeatmapModel) and model.sigma_start is not None:
        assert progress.sigma is not None
        limits = model.sigma, model.sigma_start
        progress.sigma = schedule.adapted_sigma(progress.sigma, progress.losses, *limits)
        for network in (run.network, run.scored_network):
            assert isinstance(network, HeatmapNetwork)
            network.sigma = progress.sigma


def _train_epoch(
    run: Run, stepper: Stepper, loader: Loader[Sample], watch: Stopwatch,
    save_last: Callable[[], None],
) -> None:  # fmt: skip
    """Trains the rest of the epoch, or until the budget ends."""
    progress, settings = run.progress, run.experiment.train
    multiplier = run.experiment.data.multiplier
    passes = range(progress.epoch * multiplier, (progress.epoch + 1) * multiplier)
    batches = [batch for index in passes for batch in batches_of_pass(run, index)]
    last_saved = last_logged = time.monotonic()
    stepper.train()
    with tqdm(
        total=len(batches), initial=progress.batch, desc=f"epoch {progress.epoch + 1}",
        unit="batch", leave=False, disable=None if distributed.rank() == 0 else True,
    ) as bar:  # fmt: skip
        for sample in watch.waiting("data", loader.load(batches[progress.batch :])):
            stepper.step(sample, watch)
            if progress.batch:  # finished steps; this one's loss is not read yet
                bar.set_postfix(loss=f"{progress.loss_sum / progress.batch:.4g}", refresh=False)
            progress.batch += 1
            progress.step += 1
            bar.update()
            progress.update_seconds()
            if run.budget_used() >= 1:
                break
            if bar.disable and progress.epoch == 0 and time.monotonic() - last_logged >= LOG_EVERY:
                logger.info(f"batch {progress.batch} of {len(batches)} of the first epoch")
                last_logged = time.monotonic()
            minutes = (time.monotonic() - last_saved) / 60
            if progress.batch < len(batches) and minutes >= settings.checkpoint_minutes:
                save_last()
                last_saved = time.monotonic()
        stepper.check()


def _synchronise(run: Run) -> None:
    """Copies the first process's buffers to all, and stops if the weights are not finite."""
    distributed.same_everywhere(run.network.buffers())
    distributed.same_everywhere(run.scored_network.buffers())
    largest = torch.stack([p.detach().abs().max() for p in run.network.parameters()])
    if not torch.isfinite(largest).all():
        raise UserError(
            f"the network's weights are not finite after step {run.progress.step}: training "
            "diverged; lower optimizer.lr or set optimizer.clip_norm"
        )


def _validate(run: Run, watch: Stopwatch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The scores, and the columns of per_image.csv in the first process."""
    if run.experiment.data.all_rows_train:
        return {}, {}
    start, settings = time.monotonic(), run.experiment.train
    view = View(run.scored_network, run.data.validation, settings.precision, scheme=run.data.scheme)
    errors = metrics.measure_errors(
        [view], run.data.validation_rows, run.mean_shape_crop, batch=settings.batch,
        workers=run.experiment.data.workers, watch=watch,
    )  # fmt: skip
    scores = distributed.from_first(metrics.summary(errors) if errors else {})
    columns = errors.columns() if errors else {}
    run.progress.validation_seconds = time.monotonic() - start
    return scores, columns


def _finish_epoch(run: Run, scores: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Counts the epoch; returns its ledger row and whether it is the best so far."""
    progress, mse = run.progress, scores.get("mse")
    if mse is not None:
        progress.mean_shape_mse = scores["mean_shape_mse"]
        progress.scores.append(mse)
    is_best = mse is None or mse < progress.best_mse
    if is_best:
        progress.best_mse = math.inf if mse is None else mse
        progress.best_epoch = progress.epoch + 1
    loss = progress.loss_sum / max(progress.batch, 1)
    row = reporting.ledger_row(run, loss, scores)
    progress.losses.append(loss)
    progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
    progress.update_seconds()
    patience = run.experiment.train.patience or math.inf
    progress.finished = distributed.from_first(
        run.budget_used() >= 1 or progress.epoch - progress.best_epoch >= patience
    )
    return row, is_best
