import numpy as np
import pytest
import torch

from heatmap.config import Experiment, Schedule, Stage
from heatmap.training.schedule import adapted_sigma, learning_rate, stage_at, used_of_stage

STEPS = 200


def scheduled(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    return np.array([learning_rate(schedule, i / steps, step=i) for i in range(steps)])


def torch_rates(scheduler: type, top: float, steps: int = STEPS, **settings: object) -> np.ndarray:
    """The rates of one of torch's schedulers, as fractions of the peak."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=top)
    running, rates = scheduler(optimizer, **settings), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / top)
        optimizer.step()
        running.step()
    return np.array(rates)


def test_onecycle_is_torchs() -> None:
    expected = torch_rates(
        torch.optim.lr_scheduler.OneCycleLR, 0.5, max_lr=0.5, total_steps=STEPS,
        cycle_momentum=False,
    )  # fmt: skip
    actual = scheduled(Schedule(kind="onecycle", warmup=0.3))
    # torch counts from the first to the last step, a budget from its start to its end
    np.testing.assert_allclose(actual, expected, atol=0.02)
    assert actual[0] == pytest.approx(1 / 25)
    assert actual.max() == pytest.approx(1, abs=1e-3)


def test_cyclic_is_torchs_exp_range() -> None:
    top, gamma = 0.012, 0.995
    expected = torch_rates(
        torch.optim.lr_scheduler.CyclicLR, top, base_lr=0.2 * top, max_lr=top, step_size_up=30,
        mode="exp_range", gamma=gamma, cycle_momentum=False,
    )  # fmt: skip
    actual = scheduled(Schedule(kind="cyclic", rise_steps=30, gamma=gamma, floor=0.2))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_plateau_lowers_the_rate_when_the_score_stops_improving() -> None:
    schedule = Schedule(kind="plateau", warmup=0, gamma=0.5, patience=2, threshold=0.1, floor=0.2)
    improving = [9.0, 8.0, 7.0]
    assert learning_rate(schedule, 0.5, scores=improving) == 1
    # 0.05 better is not better; the third such epoch is one too many
    assert learning_rate(schedule, 0.5, scores=[*improving, 6.95, 7, 7]) == 0.5
    assert learning_rate(schedule, 0.5, scores=[*improving, 6.95, 7]) == 1
    assert learning_rate(schedule, 0.5, scores=[5.0] * 30) == 0.2


def test_step_schedule_with_longer_steps_and_a_floor() -> None:
    schedule = Schedule(kind="step", warmup=0, gamma=0.1, step_epochs=3, floor=0.005)
    actual = [learning_rate(schedule, 0.5, epoch=epoch) for epoch in range(8)]
    assert actual == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(schedule, 0.5, epoch=99) == 0.005


def test_cosine_ends_at_its_floor() -> None:
    schedule = Schedule(kind="cosine", warmup=0, floor=0.25)
    assert learning_rate(schedule, 1.0) == pytest.approx(0.25)
    assert learning_rate(schedule, 0.5) == pytest.approx(0.625)


def test_stages_share_the_budget_by_their_epochs() -> None:
    stages = Stage(epochs=6), Stage(epochs=3), Stage(epochs=1)
    experiment = Experiment(name="staged", stages=stages)
    assert [stage_at(experiment, epoch / 10) for epoch in range(11)] == [0] * 6 + [1] * 3 + [2] * 2
    assert used_of_stage(experiment, 1, 0.75) == pytest.approx(0.5)
    assert used_of_stage(experiment, 2, 1.0) == pytest.approx(1.0)
    assert used_of_stage(experiment, 1, 0.3) == 0
    assert stage_at(Experiment(name="plain"), 0.7) == 0


def test_sigma_shrinks_while_the_loss_settles_and_stays_in_its_limits() -> None:
    """Adaloss's update: 0.9 (1 - V before / V), at most half a pixel per epoch."""
    losses = [9.0, 7.0, 5.5, 4.5, 4.0]
    assert adapted_sigma(5.0, losses[:3], 1.5, 6.0) == 5.0  # too few to compare
    before, now = np.var([7.0, 5.5, 4.5]), np.var([5.5, 4.5, 4.0])
    assert 0.9 * (1 - before / now) < -0.5
    assert adapted_sigma(5.0, losses, 1.5, 6.0) == 4.5
    slower = [9.0, 7.0, 5.1, 3.3, 1.6]
    before, now = np.var(slower[1:4]), np.var(slower[2:])
    expected = 5.0 + 0.9 * (1 - before / now)
    assert 4.5 < expected < 5
    assert adapted_sigma(5.0, slower, 1.5, 6.0) == pytest.approx(expected, abs=1e-12)
    assert adapted_sigma(1.6, losses, 1.5, 6.0) == 1.5
    assert adapted_sigma(5.0, losses[::-1], 1.5, 5.2) == 5.2  # scatters more: wider again
    assert adapted_sigma(5.0, [2.0] * 4, 1.5, 6.0) == 4.5  # settled for good


def rates(schedule: Schedule, epoch: int = 0) -> np.ndarray:
    """Rates at every hundredth of the budget."""
    return np.array([learning_rate(schedule, i / 100, epoch=epoch) for i in range(101)])


def test_cosine_rises_to_1_and_falls_to_0() -> None:
    factors = rates(Schedule(kind="cosine", warmup=0.2))
    np.testing.assert_allclose(factors[:21], np.arange(21) / 20, atol=1e-12)
    assert (np.diff(factors[20:]) < 0).all()
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate(Schedule(kind="cosine"), 1.3) == pytest.approx(0, abs=1e-12)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    for kind in ("cosine", "step", "constant"):
        assert learning_rate(Schedule(kind=kind, warmup=0), 0) == 1


def test_step_multiplies_after_every_epoch() -> None:
    schedule = Schedule(kind="step", warmup=0, gamma=0.3)
    for epoch in range(4):
        np.testing.assert_allclose(rates(schedule, epoch), 0.3**epoch)


def test_constant_stays() -> None:
    assert (rates(Schedule(kind="constant", warmup=0), 7) == 1).all()
    assert (rates(Schedule(kind="constant", warmup=0.5))[50:] == 1).all()
