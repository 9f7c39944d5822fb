"""The fuzzer and the killer of runs find nothing, and would find each kind of fault."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trials.inputs import Subject, are_equal, format_verdicts, fuzz
from trials.kills import RECIPES, end_state, torture
from trials.subjects import subjects

from heatmap.errors import UserError


@pytest.mark.slow
def test_2000_damaged_inputs_are_refused_in_one_line_or_read_as_others_read_them(
    tmp_path: Path,
) -> None:
    verdicts = list(fuzz(tmp_path, 2000, 0, subjects()))
    kinds = Counter(verdict.kind for verdict in verdicts)
    assert kinds["refused"] + kinds["equal"] + kinds["only ours"] == 2000, format_verdicts(verdicts)
    assert kinds["refused"] > 1000 and kinds["equal"] > 200 and kinds["only ours"] < 20


def whole(folder: Path) -> Any:
    return (folder / "a").read_bytes()


def refuse(text: str) -> Callable[[Path], Any]:
    def ours(folder: Path) -> Any:
        raise UserError(text.format(folder))

    return ours


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("equal", whole),
        ("refused", refuse("{}: no")),
        ("no line", refuse("{}:\nno")),
        ("no line", refuse("{}: " + "no " * 300)),
        ("no line", refuse("no")),
        ("unequal", lambda folder: b"other"),
        ("traceback", lambda folder: [][0]),
        ("hang", lambda folder: time.sleep(9)),
        ("memory", lambda folder: bytearray(3 << 30)),
        ("crash", lambda folder: os.kill(os.getpid(), signal.SIGKILL)),
    ],
)
def test_each_kind_of_fault_is_noticed(
    tmp_path: Path, kind: str, ours: Callable[[Path], Any]
) -> None:
    subject = Subject("a", {"a": b"1, 2"}, ["a"], ours, whole)
    verdicts = list(fuzz(tmp_path, 2, 0, [subject], seconds=1))
    assert [verdict.kind for verdict in verdicts] == [kind, kind]
    assert (tmp_path / "1").exists() == (kind not in ("equal", "refused"))


def test_what_another_reader_refuses_is_unequal_unless_it_may_be_stricter(tmp_path: Path) -> None:
    for is_strict, kind in ((True, "unequal"), (False, "only ours")):
        subject = Subject("a", {"a": b"1"}, ["a"], whole, lambda folder: [][0], is_strict)
        assert [v.kind for v in fuzz(tmp_path, 1, 0, [subject])] == [kind]


def test_equality_is_of_values_and_a_boolean_is_no_number() -> None:
    nan = np.array([1, np.nan])
    assert are_equal({"a": [1, 2.0], "b": nan}, {"a": (1.0, 2), "b": nan.copy()})
    assert not are_equal(nan, np.array([1.0, 2.0]))
    assert not are_equal([True], [1])


def test_undamaged_inputs_are_read_as_others_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.inputs.mutant", lambda content, generator: content)
    every = subjects()
    verdicts = list(fuzz(tmp_path, len(every), 0, every))
    assert {verdict.kind for verdict in verdicts} == {"equal"}, format_verdicts(verdicts)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_and_resumed_equals_a_whole_one(tmp_path: Path) -> None:
    (outcome,) = torture(tmp_path, 2, 0, RECIPES[:1])
    assert outcome.fired.total() == 2 and not outcome.problems, outcome
    logs = [path.read_text() for path in tmp_path.rglob("log.txt")]
    assert any("epoch   3" in log for log in logs)


def test_files_are_compared_bit_by_bit_without_clocks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def write(bit: float, seconds: float) -> None:
        state = {"weight": torch.tensor([1.0, bit]), "progress": {"seconds": seconds}}
        torch.save(state, run / "last.pt")
        (run / "metrics.jsonl").write_text(f'{{"step": 1, "time/seconds": {seconds}}}\n')

    write(0.5, 1)
    before = end_state(run)
    write(0.5, 2)
    assert end_state(run) == before
    write(0.5000001, 2)
    assert end_state(run).keys() == before.keys() and end_state(run) != before
    write(0.5, 2)
    (run / ".123-last.pt").write_bytes((run / "last.pt").read_bytes())  # half-written
    assert end_state(run) != before
