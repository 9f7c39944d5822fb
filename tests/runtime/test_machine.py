import os
import subprocess
import sys

import pytest
import torch

from heatmap.runtime import machine

CPU = torch.device("cpu")


def test_usable_cores_respect_the_process_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert machine.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert machine.usable_cores() == os.cpu_count()
    assert machine.describe(CPU)["cpu_cores"] == os.cpu_count()
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)  # as in Python 3.13
    assert machine.usable_cores() == 3


def test_peak_memory_includes_freed_memory() -> None:
    before = machine.peak_memory(CPU)
    values = torch.ones(2 * before // 4)
    assert machine.peak_memory(CPU) > before + 0.5 * before
    del values
    assert machine.peak_memory(CPU) > before


@pytest.mark.parametrize(
    ("cores", "local_processes", "expected"),
    [(1, 1, 2), (2, 1, 2), (8, 1, 6), (64, 1, 16), (16, 4, 3), (2, 4, 1)],
)
def test_loader_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, local_processes: int, expected: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))
    assert machine.loader_processes() == expected
    assert machine.loader_processes(0) == 0


@pytest.mark.parametrize(
    ("before", "rank", "printed"),
    [
        ("", "0", "trained\n"),
        ("", "1", ""),
        (
            "logging.basicConfig(format='mine: %(message)s', stream=sys.stdout)",
            "0",
            "mine: trained\n",
        ),
        ("logging.getLogger('heatmap').setLevel('WARNING')", "0", ""),
    ],
)
def test_messages_reach_the_terminal_unless_the_program_says_otherwise(
    before: str, rank: str, printed: str
) -> None:
    program = (
        "import logging, sys\nfrom heatmap.runtime import machine\n"
        f"{before}\nmachine.log_to_terminal()\nlogging.getLogger('heatmap').info('trained')"
    )
    environment = os.environ | {"RANK": rank}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == printed
