"""One training step: augment, forward, loss, backward, update."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heatmap.data import augment
from heatmap.data.samples import Sample, load, shuffled_batches
from heatmap.errors import UserError
from heatmap.inference.predict import autocast
from heatmap.maps import Maps
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runtime import distributed, machine
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import schedule
from heatmap.training.optimizer import freeze
from heatmap.training.prepare import Run


def distribute(network: Network) -> nn.Module:
    """Wraps the network for training in several processes."""
    return DistributedDataParallel(network) if distributed.world() > 1 else network


def batches_of_pass(run: Run, pass_index: int) -> list[list[int]]:
    """Returns this process's rows of each batch in one pass over the training rows."""
    return shuffled_batches(
        run.data.training_rows, run.experiment.train.batch, run.experiment.seed, pass_index,
        distributed.rank(), distributed.world(),
    )  # fmt: skip


def step(run: Run, model: nn.Module, sample: Sample, watch: Stopwatch) -> float:
    """Trains on one batch and returns its loss, averaged over all processes.

    Args:
        model: the run's network, wrapped by `distribute`.

    Raises:
        UserError: memory runs out, or loss or gradient is not finite.
    """
    experiment = run.experiment
    _set_learning_rates(run)
    torch.manual_seed(schedule.seed_of(experiment.seed, 1 + run.progress.step, distributed.rank()))
    with _explaining_out_of_memory(run):
        with watch("augment"):
            batch = run.data.augmented(sample, run.pass_index, run.device)
        run.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=run.device)
        chunks = _chunks(run, batch)
        for number, (images, *targets) in enumerate(chunks, start=1):
            # processes average their gradients once a step, with the last chunk
            sync: AbstractContextManager[None] = nullcontext()
            if number < len(chunks) and isinstance(model, DistributedDataParallel):
                sync = model.no_sync()
            with sync:
                with watch("network"), autocast(run.device, experiment.train.precision):
                    output = model(images)
                with watch("loss"):
                    loss = run.network.loss(output, *targets)
                    loss = loss * (len(images) / len(batch.images))
                with watch("network"):
                    loss.backward()
            total += loss.detach()
        with watch("network"):
            max_norm = experiment.optimizer.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(run.network.parameters(), max_norm)
            value, gradient = distributed.mean(torch.stack([total, norm.double()])).tolist()
            if not (math.isfinite(value) and math.isfinite(gradient)):
                raise UserError(_not_finite_message(run, sample, batch, value, gradient))
            run.optimizer.step()
            if run.averaged:
                run.averaged.update_parameters(run.network)
    return value


def time_steps(run: Run) -> list[float]:
    """Trains two steps on one batch and returns their seconds. The first one includes compiling.

    Raises:
        UserError: as `step`, or an image cannot be read.
    """
    freeze(run.optimizer, run.experiment.all_stages[0].rates)
    model = distribute(run.network).train()
    (sample,) = load(run.data.training, batches_of_pass(run, 0)[:1], 0, run.device)
    times = [time.monotonic()]
    for _ in range(2):
        step(run, model, sample, Stopwatch(run.device))  # waits for the loss
        times.append(time.monotonic())
    return list(np.diff(times))


def _set_learning_rates(run: Run) -> None:
    experiment, progress = run.experiment, run.progress
    stage = experiment.all_stages[progress.stage]
    rate = (stage.lr or experiment.optimizer.lr) * schedule.learning_rate(
        stage.schedule,
        schedule.used_of_stage(experiment, progress.stage, run.budget_used()),
        epoch=progress.epoch - progress.stage_epoch,
        step=progress.step - progress.stage_step,
        scores=progress.scores,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate * getattr(stage.rates, group["part"])


def _chunks(run: Run, batch: augment.Batch) -> list[tuple[Tensor, ...]]:
    """Splits the batch into `train.accumulate` parts: images, then the loss's other arguments."""
    settings = run.experiment.train
    tensors = [batch.images, batch.points_crop, batch.weights]
    if settings.pixel_weights:
        tensors.append(batch.frame.pixel_area())
    return list(zip(*(tensor.chunk(settings.accumulate) for tensor in tensors), strict=True))


@contextmanager
def _explaining_out_of_memory(run: Run) -> Iterator[None]:
    """Turns running out of memory into a UserError that names the options to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        is_heatmap, reason = isinstance(run.network, HeatmapNetwork), machine.first_line(error)
        maps = ", a smaller --model.width or a coarser --model.stride" if is_heatmap else ""
        raise UserError(
            f"{run.device} has too little memory for a training step ({reason}): use "
            f"--train.accumulate (the same batch in parts) or a smaller --train.batch{maps}"
        ) from None


@torch.no_grad()
def _not_finite_message(
    run: Run, sample: Sample, batch: augment.Batch, loss: float, gradient: float
) -> str:
    """Names the images whose own loss is not finite, or else all images of the batch."""
    names = [run.data.table.names[row] for row in sample.row.tolist()]
    losses: list[float] = []
    for images, *targets in _chunks(run, batch):
        output = run.network(images)
        for i in range(len(images)):
            one = slice(i, i + 1)
            is_maps = isinstance(output, Maps)
            single = output._replace(features=output.features[one]) if is_maps else output[one]
            losses.append(float(run.network.loss(single, *(target[one] for target in targets))))
    culprits = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    offending = [name for gathered in distributed.gather(culprits) for name in gathered]
    return (
        f"step {run.progress.step + 1} (epoch {run.progress.epoch + 1}): the loss is {loss} and "
        f"the gradient norm {gradient}. Images: {', '.join(offending or names)}. If their labels "
        "are right, lower optimizer.lr or set optimizer.clip_norm; last.pt holds the last good "
        "state."
    )
