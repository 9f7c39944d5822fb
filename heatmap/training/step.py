"""One training step: augment, forward, loss, backward, update."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

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
from heatmap.runtime.cuda_graph import CudaGraph
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import schedule
from heatmap.training.optimizer import freeze
from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")


def distribute(network: Network) -> nn.Module:
    """Wraps the network for training in several processes.

    Each process has its own running statistics until the epoch ends; then all take the first's.
    """
    if distributed.world() == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def batches_of_pass(run: Run, pass_index: int) -> list[list[int]]:
    """Returns this process's rows of each batch in one pass over the training rows."""
    return shuffled_batches(
        run.data.training_rows, run.experiment.train.batch, run.experiment.seed, pass_index,
        distributed.rank(), distributed.world(),
    )  # fmt: skip


class _Launched(NamedTuple):
    """A step whose loss has not been read."""

    number: int  # from 1
    epoch: int  # from 1
    sample: Sample
    batch: augment.Batch
    values: Tensor  # (2,) float64 on the CPU: loss and norm of the gradient, once `copied`
    copied: torch.cuda.Event | None


class Stepper:
    """Takes training steps without waiting for the GPU.

    The loss of a step is read when the next one has been launched. A step whose loss or gradient is
    not finite changes no weight. The next batch is sent and augmented while the GPU still computes.
    The first step launches every kernel; the later ones launch a CUDA graph of them.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._model = distribute(run.network)
        on_gpu = run.device.type == "cuda"
        self._stream = torch.cuda.Stream(run.device) if on_gpu else None  # for augmentation
        self._launched: _Launched | None = None
        self._captures = (
            on_gpu and run.experiment.train.graph == "auto" and distributed.world() == 1
        )
        self._graph: CudaGraph | None = None
        self._sigma = math.nan  # of the graph, or of the previous step before capture

    def train(self) -> None:
        """Switches the network to training mode."""
        self._model.train()

    def step(self, sample: Sample, watch: Stopwatch) -> None:
        """Launches a step on one batch, then waits for the previous step.

        Raises:
            UserError: memory runs out, or the previous step's loss or gradient is not finite.
        """
        run = self._run
        progress, seed = run.progress, run.experiment.seed
        _set_learning_rates(run)
        torch.manual_seed(schedule.seed_of(seed, 1 + progress.step, distributed.rank()))
        with _explaining(run):
            batch = self._augmented(sample, watch)
            loss = self._gradients(_arguments(run, batch), watch)
            with watch("network"):
                values = self._update(loss)
            copied = None
            if run.device.type == "cuda":
                values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(
                    values, non_blocking=True
                )
                copied = torch.cuda.Event()
                copied.record()
        self.check()
        # keeps the batch until its step is done, so that its memory is not reused
        self._launched = _Launched(
            1 + progress.step, 1 + progress.epoch, sample, batch, values, copied
        )

    def settle(self) -> bool:
        """Waits for the last step and adds its loss to the progress, unless it is not finite."""
        if self._launched is None:
            return True
        if self._launched.copied:
            self._launched.copied.synchronize()
        loss, norm = self._launched.values.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        self._run.progress.loss_sum += loss
        self._launched = None
        return True

    def check(self) -> None:
        """Does what `settle` does; all processes must call it.

        Raises:
            UserError: the loss or gradient is not finite.
        """
        if not self.settle():
            assert self._launched
            raise UserError(_not_finite_message(self._run, self._launched))

    def _augmented(self, sample: Sample, watch: Stopwatch) -> augment.Batch:
        with torch.cuda.stream(self._stream), watch("augment"):
            run = self._run
            offset = run.network.label_offset
            batch = run.data.augmented(sample, run.pass_index, run.device, offset)
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)
        return batch

    def _gradients(self, arguments: Sequence[Tensor], watch: Stopwatch) -> Tensor:
        """Runs forward, loss and backward; returns the loss, () float64."""
        run = self._run
        sigma = getattr(run.network, "sigma", 0.0)
        if sigma != self._sigma:
            self._sigma, self._graph = sigma, None
        elif self._captures and self._graph is None:
            self._capture(arguments)
        if self._graph:
            with watch("network"):
                return self._graph(arguments)
        run.optimizer.zero_grad()
        return _backward(run, self._model, arguments, watch)

    def _capture(self, arguments: Sequence[Tensor]) -> None:
        def untimed(_: str) -> AbstractContextManager[None]:
            return nullcontext()

        self._run.optimizer.zero_grad()  # the graph has gradients of its own
        try:
            self._graph = CudaGraph(
                lambda *tensors: _backward(self._run, self._model, tensors, untimed), arguments
            )
        except RuntimeError as error:
            self._captures = False
            logger.warning(
                f"training is slower, since its step cannot be captured as a CUDA graph "
                f"({machine.first_line(error)}); --train.graph off silences this"
            )

    def _update(self, loss: Tensor) -> Tensor:
        """Updates the weights if the gradient is finite; returns loss and norm, (2,) float64."""
        run, clip_norm = self._run, self._run.experiment.optimizer.clip_norm
        weights = [weight for weight in run.network.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if clip_norm:
            nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
        values = distributed.mean(torch.stack([loss, norm.double()]))
        # the fused optimizers read this attribute, made for torch.amp.GradScaler
        run.optimizer.found_inf = (~values.isfinite()).any().float()  # type: ignore[attr-defined]
        run.optimizer.step()
        if run.averaged:
            run.averaged.update(run.network, run.progress.step)
        return values


def _arguments(run: Run, batch: augment.Batch) -> list[Tensor]:
    """The images of a batch, then the loss's other arguments."""
    arguments = [batch.images, batch.points_crop, batch.weights]
    if run.experiment.train.pixel_weights:
        arguments.append(batch.frame.pixel_area())
    return arguments


def _chunks(run: Run, arguments: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Splits each argument into `train.accumulate` parts."""
    parts = (tensor.chunk(run.experiment.train.accumulate) for tensor in arguments)
    return list(zip(*parts, strict=True))


def _backward(
    run: Run,
    model: nn.Module,
    arguments: Sequence[Tensor],
    watch: Callable[[str], AbstractContextManager[None]],
) -> Tensor:
    """Adds the batch's gradient to the weights'; returns the loss, () float64."""
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    chunks = _chunks(run, arguments)
    for number, (images, *targets) in enumerate(chunks, start=1):
        # processes average their gradients once a step, with the last chunk
        sync: AbstractContextManager[None] = nullcontext()
        if number < len(chunks) and isinstance(model, DistributedDataParallel):
            sync = model.no_sync()
        with sync:
            with watch("network"), autocast(run.device, run.experiment.train.precision):
                output = model(images)
            with watch("loss"):
                loss = run.network.loss(output, *targets)
                loss = loss * (len(images) / len(arguments[0]))
            with watch("network"):
                loss.backward()
        total += loss.detach()
    return total


def time_steps(run: Run) -> list[float]:
    """Trains a few steps on one batch and returns their seconds.

    The first includes compiling; on a GPU the second includes the capture of the graph.

    Raises:
        UserError: as `step`, or an image cannot be read.
    """
    freeze(run.optimizer, run.experiment.all_stages[0].rates)
    stepper = Stepper(run)
    stepper.train()
    (sample,) = load(run.data.training, batches_of_pass(run, 0)[:1], 0, run.device)
    times = [time.monotonic()]
    for _ in range(3 if run.device.type == "cuda" else 2):
        stepper.step(sample, Stopwatch(run.device))
        stepper.check()
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


@contextmanager
def _explaining(run: Run) -> Iterator[None]:
    """Turns too little memory or too small a batch into a UserError that names the options."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        size = min(run.experiment.train.batch, len(run.data.training_rows))
        raise UserError(
            f"batch normalisation needs several images at once, but a batch of {size} leaves one "
            "to a process or part: use a larger --train.batch (2 or more for each process and each "
            "part of --train.accumulate), more training images or a larger crop"
        ) from None
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
def _not_finite_message(run: Run, step: _Launched) -> str:
    """Names the images whose own loss is not finite, or else all images of the batch."""
    names = [run.data.table.names[row] for row in step.sample.row.tolist()]
    losses: list[float] = []
    for images, *targets in _chunks(run, _arguments(run, step.batch)):
        output = run.network(images)
        for i in range(len(images)):
            one = slice(i, i + 1)
            is_maps = isinstance(output, Maps)
            single = output._replace(features=output.features[one]) if is_maps else output[one]
            losses.append(float(run.network.loss(single, *(target[one] for target in targets))))
    culprits = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    offending = [name for gathered in distributed.gather(culprits) for name in gathered]
    loss, gradient = step.values.tolist()
    return (
        f"step {step.number} (epoch {step.epoch}): the loss is {loss} and the gradient norm "
        f"{gradient}. Images: {', '.join(offending or names)}. If their labels "
        "are right, lower optimizer.lr or set optimizer.clip_norm; last.pt holds the last good "
        "state."
    )
