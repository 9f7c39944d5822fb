"""Runs of a few steps on a device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heatmap.config import Experiment
from heatmap.data.samples import load
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training.prepare import Run
from heatmap.training.step import Stepper, batches_of_pass


def on(device: torch.device, experiment: Experiment, **train: Any) -> Experiment:
    """The experiment on the device, with changed `train` options."""
    return replace(experiment, train=replace(experiment.train, device=device.type, **train))


def take_steps(
    run: Run,
    count: int,
    before_step: Callable[[int], None] = lambda number: None,
    stepper_type: type[Stepper] = Stepper,
) -> list[float]:
    """Takes steps on the first batches, numbered from 1, and returns their losses."""
    stepper, progress, losses = stepper_type(run), run.progress, list[float]()
    stepper.train()
    batches = (2 * batches_of_pass(run, 0))[:count]
    for number, sample in enumerate(load(run.data.training, batches, 0, run.device), start=1):
        before_step(number)
        so_far = progress.loss_sum
        stepper.step(sample, Stopwatch(run.device))
        stepper.check()
        losses.append(progress.loss_sum - so_far)
        progress.step += 1
    return losses


def weights_of(run: Run) -> Tensor:
    """A copy of all weights in one vector on the CPU."""
    return torch.cat([w.detach().cpu().flatten() for w in run.network.parameters()])
