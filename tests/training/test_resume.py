"""A run killed anywhere and resumed is bit-identical to an uninterrupted one."""

import itertools
import json
import multiprocessing
import os
import pickle
import random
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heatmap.data.contest import Folder, read_landmarks, write_landmarks
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runtime import distributed

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
from heatmap.config import *

EXPERIMENT = Experiment(
    name="tiny",
    data=Data(split="order", validation=0.25, workers=0),
    crop=Crop(height=32, width=48),
    augment=Augment(mirror=0.5, rotate_deg=20, scale=0.2, shift=0.1, brightness=0.2, contrast=0.2),
    model=UNet(encoder="tu-test_resnet", weights="none", stride=4, width=6),
    train=Train(epochs=2, batch=2, device="cpu", checkpoint_minutes=0),
    wandb=Wandb(mode="off"),
)
"""
STEPS = 8  # two epochs of 9 training images, in batches of 2
KILLED_STEPS = random.Random(4).sample(range(1, STEPS + 1), 5)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def contest(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny contest with 15 landmarks, for which a mirror permutation is known."""
    tiny, fifteen = Folder(root=tiny_contest), Folder(root=tmp_path_factory.mktemp("fifteen"))
    table = read_landmarks(tiny.train_table)
    points = np.concatenate([table.points_image, table.points_image[:, :6] + 2] * 2, 1)[:, :15]
    fifteen.train_table.parent.mkdir()
    fifteen.train_images.symlink_to(tiny.train_images)
    write_landmarks(fifteen.train_table, table.names, points)
    return fifteen.root


@pytest.fixture(scope="module")
def start(contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Starts a run in a folder, with optional further arguments."""
    file = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(EXPERIMENT)
    return lambda folder, *more, kill=None: run_tool(
        [str(file), "--data.root", str(contest), "--out", str(folder), *more], kill
    )


@pytest.fixture(scope="module")
def uninterrupted(start: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    start(folder)
    return folder


def resume(folder: Path, kill: Callable[[], None] | None = None) -> None:
    run_tool(["--resume", str(folder)], kill)


def run_tool(arguments: list[str], kill: Callable[[], None] | None) -> None:
    """Runs tools/train.py in its own process, which must succeed or be killed by `kill`.

    The process is forked from one that has imported everything.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["heatmap.cli.train", "heatmap.training.loop", "heatmap.networks.unet"]
    )
    process = processes.Process(target=tool, args=(arguments, kill))
    process.start()
    process.join(120)
    assert process.exitcode == (-signal.SIGKILL if kill else 0), arguments


def tool(arguments: list[str], kill: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # saves importing the compiler, which is off anyway
    multiprocessing.set_start_method("fork", force=True)  # for the workers
    if kill:
        kill()
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(n: int, owner: Any, name: str) -> None:
    """Kills this process at the n-th call of `owner.name`, counted from 1."""
    calls, original = itertools.count(1), getattr(owner, name)
    setattr(owner, name, lambda *a, **k: die() if next(calls) == n else original(*a, **k))


def before_update(n: int) -> None:
    """Kills this process in the n-th step, between gradient and update."""
    before_call(n, distributed, "mean")


def inside_checkpoint(n: int) -> None:
    """Kills this process halfway through writing its n-th checkpoint."""
    calls, original = itertools.count(1), torch.save

    def save(values: Any, file: Any) -> None:
        original(values, file)
        if next(calls) == n:
            file.truncate(file.tell() // 2)
            die()

    torch.save = save


def results(folder: Path) -> tuple[bytes, list[dict[str, Any]], checkpoint.Checkpoint]:
    """The last weights as bytes, the metrics without times, and the last checkpoint."""
    last = checkpoint.load(folder / "last.pt")
    weights = [(name, tensor.numpy().tobytes()) for name, tensor in last.network.items()]
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(folder)
    ]
    return pickle.dumps(weights), rows, last


def assert_same(folder: Path, expected: Path) -> None:
    weights, rows, last = results(folder)
    expected_weights, expected_rows, expected_last = results(expected)
    assert rows == expected_rows
    assert weights == expected_weights
    assert last.state and expected_last.state
    assert last.state.progress.step == expected_last.state.progress.step == STEPS
    states = last.state.optimizer["state"], expected_last.state.optimizer["state"]
    for index, state in states[1].items():
        assert all(torch.equal(states[0][index][name], state[name]) for name in state)
    best, expected_best = (checkpoint.load(path / "best.pt") for path in (folder, expected))
    assert best.validation_mse == expected_best.validation_mse
    assert all(torch.equal(best.network[name], t) for name, t in expected_best.network.items())
    assert (folder / "summary.json").exists()


def test_the_uninterrupted_run_learns(uninterrupted: Path) -> None:
    _, rows, last = results(uninterrupted)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [STEPS // 2, STEPS]
    assert rows[0]["train/loss"] != rows[1]["train/loss"]
    assert last.state and last.state.progress.finished


def test_the_number_of_workers_does_not_change_a_run(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path
) -> None:
    start(tmp_path / "run", "--data.workers", "2")
    assert_same(tmp_path / "run", uninterrupted)


def test_another_seed_changes_the_run(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path
) -> None:
    start(tmp_path / "run", "--seed", "1")
    assert results(tmp_path / "run")[0] != results(uninterrupted)[0]


@pytest.mark.parametrize(
    ("step", "workers"), list(zip(KILLED_STEPS, itertools.cycle([0, 2]), strict=False))
)
def test_killed_at_a_step_and_resumed(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path, step: int, workers: int
) -> None:
    kill = partial(before_update, step)
    start(tmp_path / "run", "--data.workers", str(workers), kill=kill)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


# checkpoints: at the start, after every batch but an epoch's last, and best.pt and last.pt after
# each epoch
@pytest.mark.parametrize("number", [1, 2, 5, 6, 8])
def test_killed_inside_the_write_of_a_checkpoint(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    start(tmp_path / "run", kill=partial(inside_checkpoint, number))
    for path in (tmp_path / "run").glob("[!.]*.pt"):
        checkpoint.load(path)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", range(1, 16, 3))
def test_killed_before_a_rename(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    start(tmp_path / "run", kill=partial(before_call, number, Path, "replace"))
    if (tmp_path / "run" / "config.json").exists():
        resume(tmp_path / "run")
    else:  # nothing to resume: the same command starts the run
        start(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


def test_killed_again_and_again(
    start: Callable[..., None], uninterrupted: Path, tmp_path: Path
) -> None:
    second_step = partial(before_update, 2)
    start(tmp_path / "run", kill=second_step)
    for _ in range(5):
        resume(tmp_path / "run", kill=second_step)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("step", [3, 6])
def test_an_epoch_of_two_passes_is_two_epochs_of_one_killed_or_not(
    start: Callable[..., None], tmp_path: Path, step: int
) -> None:
    uncorrected = ("--data.label-offset", "none")  # else measured after the first of two epochs
    start(tmp_path / "two-epochs", *uncorrected)
    passes = (*uncorrected, "--data.multiplier", "2", "--train.epochs", "1")
    start(tmp_path / "run", *passes, kill=partial(before_update, step))
    resume(tmp_path / "run")
    weights, rows, last = results(tmp_path / "run")
    assert weights == results(tmp_path / "two-epochs")[0]
    assert [row["step"] for row in rows] == [STEPS]
    assert last.state
    assert (last.state.progress.epoch, last.state.progress.step) == (1, STEPS)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}

    before = contents()
    resume(uninterrupted)
    assert contents() == before


def test_a_killed_run_keeps_its_id_in_weights_and_biases(
    start: Callable[..., None], tmp_path: Path
) -> None:
    kill = partial(before_update, 3)
    start(tmp_path / "run", kill=kill)
    before = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    state = checkpoint.load(tmp_path / "run" / "last.pt").state
    assert state and state.wandb_id == before
    resume(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] == before


def test_resuming_does_not_read_start_weights(
    start: Callable[..., None], tmp_path: Path, uninterrupted: Path
) -> None:
    state = checkpoint.load(uninterrupted / "last.pt").network
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in state.items()
        if name.startswith("encoder.")
    }
    torch.save(encoder, tmp_path / "start.pt")
    kill = partial(before_update, 3)
    start(tmp_path / "run", "--model.weights", str(tmp_path / "start.pt"), kill=kill)
    (tmp_path / "start.pt").unlink()
    resume(tmp_path / "run")
