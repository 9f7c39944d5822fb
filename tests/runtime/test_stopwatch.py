import time
from collections.abc import Iterator

import pytest
import torch

from heatmap.runtime.stopwatch import Stopwatch


def slowly(count: int) -> Iterator[int]:
    for k in range(count):
        time.sleep(0.02)
        yield k


def test_every_part_has_the_time_that_was_spent_in_it() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch("network"):
            time.sleep(0.05)
    with stopwatch("loss"):
        time.sleep(0.01)
    seconds = stopwatch.seconds()
    assert list(seconds) == ["network", "loss"]
    assert seconds["network"] == pytest.approx(0.1, abs=0.05)
    assert 0.01 <= seconds["loss"] < seconds["network"]


def test_waiting_is_timed_and_the_work_between_is_not() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    items = []
    for item in stopwatch.waiting("data", slowly(3)):
        items.append(item)
        time.sleep(0.1)
    assert items == [0, 1, 2]
    assert 0.06 <= stopwatch.seconds()["data"] < 0.2


def test_asking_starts_anew() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch("network"):
        pass
    assert "network" in stopwatch.seconds()
    assert stopwatch.seconds() == {}
