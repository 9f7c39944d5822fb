import time
from collections.abc import Iterator

import pytest
import torch

from heatmap.runtime.stopwatch import Stopwatch


def slowly(count: int) -> Iterator[int]:
    for k in range(count):
        time.sleep(0.02)
        yield k


def test_time_adds_up_by_part() -> None:
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


def test_waiting_excludes_the_work_between_items() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    items = []
    for item in stopwatch.waiting("data", slowly(3)):
        items.append(item)
        time.sleep(0.1)
    assert items == [0, 1, 2]
    assert 0.06 <= stopwatch.seconds()["data"] < 0.2


def test_seconds_resets_the_stopwatch() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch("network"):
        pass
    assert "network" in stopwatch.seconds()
    assert stopwatch.seconds() == {}
