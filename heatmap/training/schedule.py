"""Learning rate, stage, sigma and seeds as functions of progress.

A resumed run needs no scheduler state.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from heatmap.config import Experiment, Schedule

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4  # torch's and fastai's defaults

# Adaloss: epochs in each variance, rate of change, largest change in heatmap pixels
ADALOSS_EPOCHS, ADALOSS_RATE, ADALOSS_STEP = 3, 0.9, 0.5


def stage_at(experiment: Experiment, used: float) -> int:
    """Returns the index of the stage at a used fraction of the budget, in [0, 1]."""
    return max(i for i, (begin, _) in enumerate(_spans(experiment)) if begin <= used + 1e-9)


def used_of_stage(experiment: Experiment, stage: int, used: float) -> float:
    """Returns the used fraction of the stage's own budget, at least 0."""
    begin, end = _spans(experiment)[stage]
    return max(0.0, used - begin) / (end - begin)


def _spans(experiment: Experiment) -> list[tuple[float, float]]:
    """Start and end of each stage as fractions of the run's budget."""
    epochs = [stage.epochs for stage in experiment.all_stages]
    ends = [sum(epochs[: i + 1]) / sum(epochs) for i in range(len(epochs))]
    return list(zip([0.0, *ends], ends, strict=False))


def learning_rate(
    schedule: Schedule, used: float, *, epoch: int = 0, step: int = 0, scores: Sequence[float] = ()
) -> float:
    """Returns the learning rate as a fraction of the stage's peak, in [0, 1].

    Args:
        used: used fraction of the stage's budget, at least 0.
        epoch, step: finished epochs and steps of the stage.
        scores: validation scores of the stage's epochs; smaller is better.

    Sources: cosine: Loshchilov, Hutter 2016, https://arxiv.org/abs/1608.03983; onecycle: Smith,
    Topin 2017, https://arxiv.org/abs/1708.07120, in torch's form; cyclic: Smith 2015,
    https://arxiv.org/abs/1506.01186 (exp_range).
    """
    warmup, floor = schedule.warmup, schedule.floor
    factor = min(1.0, used / warmup) if warmup else 1.0
    progress = min(max((used - warmup) / (1 - warmup), 0.0), 1.0)
    match schedule.kind:
        case "cosine":
            return factor * _between(1.0, floor, progress)
        case "onecycle":
            if used < warmup:
                return _between(ONE_CYCLE_START, 1.0, factor)
            return _between(1.0, ONE_CYCLE_END, progress)
        case "cyclic":
            height = 1 - abs(step / schedule.rise_steps % 2 - 1)
            return floor + (1 - floor) * height * schedule.gamma**step
        case "step":
            return factor * max(floor, schedule.gamma ** (epoch // schedule.step_epochs))
        case "plateau":
            return factor * _after_plateaus(schedule, scores)
        case "constant":
            return factor


def adapted_sigma(sigma: float, losses: Sequence[float], smallest: float, largest: float) -> float:
    """Returns Adaloss's sigma for the next epoch, smaller if the variance of the losses shrinks.

    Args:
        sigma: of the last epoch, in heatmap pixels.
        losses: mean training loss of every epoch so far.
        smallest, largest: limits of the result, in heatmap pixels.

    Source: Teixeira et al. 2019, https://arxiv.org/abs/1908.01070, with the update
    0.9 (1 - V_before / V), where V is the variance of the last three epochs' losses.
    """
    if len(losses) <= ADALOSS_EPOCHS:
        return sigma
    before, now = np.var(losses[-ADALOSS_EPOCHS - 1 : -1]), np.var(losses[-ADALOSS_EPOCHS:])
    change = ADALOSS_RATE * (1 - before / now) if now > 0 else -ADALOSS_STEP
    return float(np.clip(sigma + np.clip(change, -ADALOSS_STEP, ADALOSS_STEP), smallest, largest))


def seed_of(*numbers: int) -> int:
    """Hashes the numbers to a seed for torch's global generator."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _between(start: float, end: float, progress: float) -> float:
    """Interpolates from start to end along half a cosine wave."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * progress))


def _after_plateaus(schedule: Schedule, scores: Sequence[float]) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min", schedule.gamma, schedule.patience, schedule.threshold, "abs",
        min_lr=schedule.floor,
    )  # fmt: skip
    with warnings.catch_warnings():  # about optimizer.step() not being called
        warnings.simplefilter("ignore")
        for score in scores:
            plateau.step(score)
    return float(optimizer.param_groups[0]["lr"])
