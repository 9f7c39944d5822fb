"""Several processes, started by torchrun, give the results of one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from heatmap.cli.train import main as train_main
from heatmap.data.contest import Folder, write_asked_points, write_landmarks
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TRAIN, SUBMIT, EVALUATE = (ROOT / "tools" / f"{n}.py" for n in ("train", "submit", "evaluate"))
EXPERIMENT = """
from heatmap.config import *

EXPERIMENT = Experiment(
    name="tiny",
    data=Data(split="order", validation=0.5, workers=0),
    crop=Crop(height=32, width=48),
    augment=Augment(rotate_deg=20, scale=0.2, brightness=0.2),
    model=UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=Train(epochs=3, batch=4, device="cpu"),
    wandb=Wandb(mode="off"),
)
"""
NUM_VALIDATION = 17
NUM_TEST = 7  # two batches, so one of three processes has none

# Runs commands one after the other, which is faster than starting Python for each, and stops at the
# first with an unexpected exit code. Saves the weights that each process ends with.
PROGRAM = """
import json, os, runpy, sys
import torch
from heatmap.runtime import distributed
from heatmap.training import loop

stop, distributed.stop = distributed.stop, lambda: None
train, rank = loop.train, os.environ["RANK"]

def train_and_save(run, folder):
    summary = train(run, folder)
    torch.save(run.network.state_dict(), f"{folder}-{rank}.pt")
    return summary

loop.train = train_and_save
for number, command in enumerate(json.loads(sys.argv[1])):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # counts failures from 0 again
    os.chdir(command["folder"].replace("RANK", rank))
    sys.argv = command["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code != command["code"]:
            raise
stop()
"""
# Kills process 1 in the middle of the second epoch.
KILLED = """
import os, signal, sys
from heatmap.runtime import distributed

calls, mean = [], distributed.mean  # called once a step, before the weights change

def mean_or_die(tensor):
    calls.append(0)
    if len(calls) == 7 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return mean(tensor)

distributed.mean = mean_or_die
from heatmap.cli.train import main

sys.exit(main(sys.argv[1:]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contest with 17 training, 17 validation and 7 test images, 7 landmarks each."""
    folder = Folder(root=tmp_path_factory.mktemp("contest"))
    folder.train_images.mkdir(parents=True)
    folder.test_images.mkdir(parents=True)
    generator = np.random.default_rng(1)
    names = [f"{index:02}.png" for index in range(2 * NUM_VALIDATION)]
    points = generator.uniform(5, 50, (len(names), 7, 2))
    points[-1, 2] = points[3, 4] = np.nan
    for name, shape in zip(names, points, strict=True):
        image = generator.integers(0, 60, (*generator.integers(50, 70, 2), 3), np.uint8)
        for x, y in np.nan_to_num(shape).astype(int):
            cv2.circle(image, (int(x), int(y)), 3, (200, 255, 90), -1)
        assert cv2.imwrite(str(folder.train_images / name), image)
    write_landmarks(folder.train_table, names, points)
    for name in names[:NUM_TEST]:
        shutil.copy(folder.train_images / name, folder.test_images / name)
    indices = np.array([generator.permutation(7)[:3] for _ in range(NUM_TEST)])
    write_asked_points(folder.test_points, names[:NUM_TEST], indices)
    return folder.root


@pytest.fixture(scope="module")
def torn(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contest with two unreadable test images, both in the second batch."""
    root = tmp_path_factory.mktemp("torn") / "contest"
    shutil.copytree(data, root)
    for name in ("04.png", "06.png"):
        path = Folder(root=root).test_images / name
        path.write_bytes(path.read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiments") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def torchrun(options: Sequence[str], program: str, *arguments: object) -> "subprocess.Popen[str]":
    """Starts a Python program in several processes."""
    path = Path(os.environ["XDG_CACHE_HOME"]) / f"program-{abs(hash(program))}.py"
    path.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", *options, path, *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, text=True,
        # saves importing the compiler, which is off anyway
        env=os.environ | {"PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def command(*arguments: object, code: int = 0, folder: Path = ROOT) -> dict[str, Any]:
    """A command of PROGRAM."""
    return {"arguments": list(map(str, arguments)), "code": code, "folder": str(folder)}


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """The weights without running statistics, which differ between processes."""
    state = torch.load(path, weights_only=True)
    return {name: t for name, t in state.items() if "running" not in name}


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(actual[name], expected[name])]


def metrics_without_times(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def scoring_commands(run: Path, data: Path, torn: Path, out: Path) -> list[dict[str, Any]]:
    """The commands that submit and evaluate with a copy of the run in `out`."""
    shutil.copytree(run, out / "run")
    submit = [SUBMIT, out / "run", "--rounding", "none"]
    return [
        command(*submit, "--data", data, "--out", out / "whole.csv"),
        command(*submit, "--data", torn, "--out", out / "torn.csv", "--missing", "mean-shape"),
        command(EVALUATE, out / "run", "--json", out / "run" / "scores.json"),
    ]


class Ended(NamedTuple):
    """Files and output of processes that have ended."""

    folder: Path
    code: int
    output: str
    errors: str


@pytest.fixture(scope="module")
def killed(data: Path, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two processes on one host, one of them killed in the second epoch."""
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = [experiment, "--data.root", data, "--out", out, "--train.checkpoint-minutes", "0"]
    started = torchrun(["--standalone", "--nproc-per-node=2"], KILLED, *arguments)
    output, errors = started.communicate(timeout=200)
    return Ended(out, started.returncode, output, errors)


@pytest.fixture(scope="module")
def hosts(
    killed: Ended, data: Path, experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    """The runs of two hosts with a process each, which share only an address.

    `pair` is a whole run, `resumed` the killed run after its resume, `budget` a run that ends after
    a time, `unused` a run whose encoder has weights that its output does not depend on. An
    odd batch and data that differ between the hosts are refused.
    """
    out = tmp_path_factory.mktemp("hosts")
    shutil.copytree(killed.folder, out / "resumed")
    for rank, name in enumerate(("00.png", "01.png")):
        other = Folder(root=out / f"host {rank}" / "data")
        shutil.copytree(data, other.root)
        write_asked_points(other.test_points, [name], np.array([[3, 5]]))
    train = [TRAIN, experiment, "--data.root", data, "--out"]
    budget = ["--train.epochs", 100000, "--train.max-minutes", 0.06]
    unused = ["--model.encoder", "efficientnet-b0", "--train.max-steps", 3]
    commands = [
        command(*train, out / "pair"),
        command(TRAIN, "--resume", out / "resumed"),
        command(*train, out / "budget", *budget),
        command(*train, out / "unused", *unused),
        command(*train, out / "odd", "--train.batch", 3, code=2),
        command(SUBMIT, out / "pair", "--data", "data", code=1, folder=out / "host RANK"),
    ]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two-hosts"]
    options.append(f"--rdzv-endpoint=localhost:{port}")
    started = [torchrun(options, PROGRAM, json.dumps(commands)) for _ in range(2)]
    outputs, errors = zip(*(host.communicate(timeout=250) for host in started), strict=True)
    assert [host.returncode for host in started] == [0, 0], errors
    return Ended(out, 0, "".join(outputs), "".join(errors))


@pytest.fixture(scope="module")
def three(hosts: Ended, data: Path, torn: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Three processes submit and evaluate; in the last command process 1 cannot read an image."""
    out = tmp_path_factory.mktemp("three")
    (out / "refused").mkdir()
    commands = scoring_commands(hosts.folder / "pair", data, torn, out)
    last = command(SUBMIT, out / "run", "--data", torn, "--out", out / "refused" / "out.csv")
    started = torchrun(
        ["--standalone", "--nproc-per-node=3"], PROGRAM, json.dumps([*commands, last])
    )
    output, errors = started.communicate(timeout=250)
    return Ended(out, started.returncode, output, errors)


def test_two_processes_train_one_network(hosts: Ended) -> None:
    pair = hosts.folder / "pair"
    first, second = (parameters(Path(f"{pair}-{rank}.pt")) for rank in (0, 1))
    assert_equal(first, second)
    last = checkpoint.load(pair / "last.pt")
    assert_equal({name: last.network[name] for name in first}, first)
    rows = read_metrics(pair)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert (pair / "summary.json").exists()


def test_a_killed_process_ends_the_others(killed: Ended) -> None:
    assert killed.code == 1 and "SIGKILL" in killed.errors
    assert f'File "{ROOT / "heatmap"}' not in killed.errors
    state = checkpoint.load(killed.folder / "last.pt").state
    assert state and state.progress.step == 6


def test_a_run_killed_on_one_host_and_resumed_on_two_equals_an_uninterrupted_one(
    hosts: Ended,
) -> None:
    pair, resumed = hosts.folder / "pair", hosts.folder / "resumed"
    assert_equal(*(checkpoint.load(path / "last.pt").network for path in (resumed, pair)))
    assert metrics_without_times(resumed) == metrics_without_times(pair)


def test_a_time_budget_keeps_the_processes_together(hosts: Ended) -> None:
    assert len(read_metrics(hosts.folder / "budget")) > 1
    assert_equal(*(parameters(hosts.folder / f"budget-{rank}.pt") for rank in (0, 1)))


def test_weights_that_the_output_does_not_depend_on_stop_no_process(hosts: Ended) -> None:
    first, second = (parameters(hosts.folder / f"unused-{rank}.pt") for rank in (0, 1))
    assert_equal(first, second)
    assert len(read_metrics(hosts.folder / "unused")) == 1


def test_one_process_resumes_a_run_of_two(killed: Ended, tmp_path: Path) -> None:
    shutil.copytree(killed.folder, tmp_path / "run")
    assert train_main(["--resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 12


def test_a_batch_that_two_processes_cannot_share_is_refused(hosts: Ended) -> None:
    assert hosts.errors.count("a batch of 3 cannot be divided evenly between 2 processes") == 1
    assert not (hosts.folder / "odd").exists()


def test_hosts_whose_files_differ_are_refused(hosts: Ended) -> None:
    assert hosts.errors.count("test_points.csv: differs between process 1 on") == 1
    assert not list(hosts.folder.rglob("submission.csv"))


def test_the_first_process_refuses_to_overwrite_a_run(
    killed: Ended, data: Path, experiment: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = (killed.folder / "last.pt").read_bytes()
    monkeypatch.setenv("RANK", "0")
    assert train_main([str(experiment), "--data.root", str(data), "--out", str(killed.folder)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (killed.folder / "last.pt").read_bytes() == before


def test_three_processes_write_the_files_of_one(
    three: Ended, hosts: Ended, data: Path, torn: Path,
    tool: Callable[..., int], tmp_path: Path,
) -> None:  # fmt: skip
    written = f"{three.folder / 'whole.csv'}: {NUM_TEST} images, read back"
    for text in (written, "04.png, 06.png", "contest MSE"):
        assert three.output.count(text) == 1
    for one in scoring_commands(hosts.folder / "pair", data, torn, tmp_path):
        path, *arguments = one["arguments"]
        assert tool(Path(path).stem, *arguments) == 0
    scores = ("evaluation.json", "per_image.csv", "errors.npz", "scores.json")
    for name in ["whole.csv", "torn.csv", *(f"run/{name}" for name in scores)]:
        assert (tmp_path / name).read_bytes() == (three.folder / name).read_bytes(), name
    assert (tmp_path / "whole.csv").read_bytes() != (tmp_path / "torn.csv").read_bytes()


def test_an_image_that_one_process_cannot_read_ends_all_with_one_message(
    three: Ended,
) -> None:
    assert three.code == 1
    counts = [three.errors.count(text) for text in ("cannot be decoded", "error in process 1 on")]
    assert counts == [1, 1] and "04.png" in three.errors and "Gloo" not in three.errors
    assert list((three.folder / "refused").iterdir()) == []
