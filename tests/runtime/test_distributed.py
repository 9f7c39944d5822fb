"""Several processes, started by torchrun, do what one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from heatmap.data.contest import Folder, write_asked_points, write_landmarks
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics

ROOT = Path(__file__).resolve().parents[2]
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
NUM_TEST = 7  # two batches: of three processes one has nothing to do

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contest with 17 images to train on, 17 to validate and 7 to answer, 7 landmarks each."""
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
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def torchrun(num: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"]
    return python(*launcher, *arguments)


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def train(num: int, *arguments: object) -> None:
    done = torchrun(num, ROOT / "tools" / "train.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


# --------------------------------------------------------------------------------- training

# trains, and leaves what each process ended with
TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from heatmap import config
from heatmap.runs import checkpoint
from heatmap.runtime import distributed
from heatmap.training import loop
from heatmap.cli.running import load_experiment
from heatmap.training.prepare import prepare

file, root, out, minutes = sys.argv[1:]
experiment = load_experiment(Path(file))
experiment = replace(experiment, data=replace(experiment.data, root=Path(root)))
if float(minutes):
    settings = replace(experiment.train, epochs=100000, max_minutes=float(minutes))
    experiment = replace(experiment, train=settings)
run = prepare(experiment)
loop.train(run, Path(out))
torch.save(run.network.state_dict(), f"{out}-{distributed.rank()}.pt")
distributed.stop()
"""


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Without what every process counts for itself: the running statistics of its images."""
    state = torch.load(path, weights_only=True)
    return {name: t for name, t in state.items() if "running" not in name}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


@pytest.fixture(scope="module")
def pair(data: Path, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "program.py").write_text(TRAINING)
    done = torchrun(2, folder / "program.py", experiment, data, folder / "run", 0)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_two_processes_train_one_network(pair: Path) -> None:
    first, second = (parameters(Path(f"{pair}-{rank}.pt")) for rank in (0, 1))
    assert_equal(first, second)
    last = checkpoint.load(pair / "last.pt")
    assert_equal({name: last.network[name] for name in first}, first)
    rows = read_metrics(pair)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert len(list(pair.parent.glob("run*/summary.json"))) == 1


def test_a_minutes_budget_keeps_the_processes_together(
    data: Path, experiment: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(TRAINING)
    done = torchrun(2, tmp_path / "program.py", experiment, data, tmp_path / "run", 0.12)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_metrics(tmp_path / "run")) > 2
    assert_equal(*(parameters(tmp_path / f"run-{rank}.pt") for rank in (0, 1)))


def test_a_killed_pair_goes_on_as_if_it_had_not_been(
    pair: Path, data: Path, experiment: Path, tmp_path: Path
) -> None:
    """Both processes are killed in the middle of the second epoch."""
    (tmp_path / "program.py").write_text(
        "import os, signal\n"
        "from heatmap.runtime import distributed\n"
        "calls, mean = [], distributed.mean  # called once a step, before the weights change\n"
        "def dying_mean(numbers):\n"
        "    calls.append(0)\n"
        f"    if len(calls) == 7: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return mean(numbers)\n"
        "distributed.mean = dying_mean\n"
        "from heatmap.cli.train import main\n"
        "import sys\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "run"
    arguments = [experiment, "--data.root", data, "--out", out, "--train.checkpoint-minutes", "0"]
    assert torchrun(2, tmp_path / "program.py", *arguments).returncode != 0
    state = checkpoint.load(out / "last.pt").state
    assert state and state.progress["step"] == 6
    train(2, "--resume", out)
    assert_equal(*(checkpoint.load(path / "last.pt").network for path in (out, pair)))

    def without_times(folder: Path) -> list[dict[str, Any]]:
        rows = read_metrics(folder)
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    assert without_times(out) == without_times(pair)


def test_one_process_resumes_what_two_began(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pair, folder)
    (folder / "summary.json").unlink()
    train(1, "--resume", folder)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 12


def test_a_batch_that_cannot_be_divided_is_explained_and_leaves_no_run(
    data: Path, experiment: Path, tmp_path: Path
) -> None:
    arguments = [experiment, "--data.root", data, "--out", tmp_path / "run", "--train.batch", "3"]
    done = torchrun(2, ROOT / "tools" / "train.py", *arguments)
    assert done.returncode == 1
    assert "a batch of 3 cannot be divided evenly between 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_by_any_process(pair: Path, data: Path, experiment: Path) -> None:
    before = (pair / "last.pt").read_bytes()
    done = torchrun(2, ROOT / "tools" / "train.py", experiment, "--data.root", data, "--out", pair)
    assert done.returncode == 1
    assert "already holds a run" in done.stderr
    assert (pair / "last.pt").read_bytes() == before


def test_two_hosts_train_what_one_does(
    pair: Path, data: Path, experiment: Path, tmp_path: Path
) -> None:
    """Two torchruns of a process each, which know nothing of each other but an address."""
    (tmp_path / "program.py").write_text(TRAINING)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two-hosts"]
    command += [
        str(tmp_path / "program.py"),
        str(experiment),
        str(data),
        str(tmp_path / "run"),
        "0",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    hosts = [
        subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for host in hosts:
        _, errors = host.communicate(timeout=200)
        assert host.returncode == 0, errors[-3000:]
    for rank in (0, 1):
        assert_equal(parameters(tmp_path / f"run-{rank}.pt"), parameters(Path(f"{pair}-{rank}.pt")))
    assert len(list(tmp_path.glob("run*/summary.json"))) == 1


# ------------------------------------------------------------------- submission and evaluation

SUBMIT, EVALUATE = ROOT / "tools" / "submit.py", ROOT / "tools" / "evaluate.py"
SCORES = ("evaluation.json", "per_image.csv", "errors.npz", "scores.json")


@pytest.fixture(scope="module")
def torn(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contest with two test images that cannot be read, both in the second batch."""
    root = tmp_path_factory.mktemp("torn") / "contest"
    shutil.copytree(data, root)
    for name in ("04.png", "06.png"):
        path = Folder(root=root).test_images / name
        path.write_bytes(path.read_bytes()[:200])
    return root


# runs several commands one after the other, which is quicker than starting Python for each
COMMANDS = """
import json, runpy, sys
from heatmap.runtime import distributed

stop, distributed.stop = distributed.stop, lambda: None
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, command
stop()
"""


def answered_and_scored(pair: Path, data: Path, torn: Path, folder: Path) -> list[str]:
    """The program, and the commands that answer and score with a copy of the run."""
    (folder / "program.py").write_text(COMMANDS)
    run = shutil.copytree(pair, folder / "run")
    submit = [SUBMIT, run, "--rounding", "none"]
    commands = [
        [*submit, "--data", data, "--out", folder / "whole.csv"],
        [*submit, "--data", torn, "--out", folder / "torn.csv", "--missing", "mean-shape"],
        [EVALUATE, run, "--json", run / "scores.json"],
    ]
    return [str(folder / "program.py"), json.dumps([list(map(str, c)) for c in commands])]


@pytest.fixture(scope="module")
def alone(pair: Path, data: Path, torn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process writes that torchrun did not start."""
    folder = tmp_path_factory.mktemp("alone")
    done = python(*answered_and_scored(pair, data, torn, folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("num", [2, 3])
def test_several_processes_write_what_one_does(
    pair: Path, data: Path, torn: Path, tmp_path: Path, alone: Path, num: int
) -> None:
    done = torchrun(num, *answered_and_scored(pair, data, torn, tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    written = f"{tmp_path / 'whole.csv'}: {NUM_TEST} images, read back and checked"
    for told_once in (written, "04.png, 06.png", "contest MSE"):
        assert done.stdout.count(told_once) == 1
    names = ["whole.csv", "torn.csv", *(f"run/{name}" for name in SCORES)]
    for name in names:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
    assert (alone / "whole.csv").read_bytes() != (alone / "torn.csv").read_bytes()


def test_a_image_that_one_process_cannot_read_ends_all_with_one_message(
    pair: Path, torn: Path, tmp_path: Path
) -> None:
    done = torchrun(2, SUBMIT, pair, "--data", torn, "--out", tmp_path / "out.csv")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("cannot be decoded") == done.stderr.count("error in process 1 on") == 1
    assert "04.png" in done.stderr and "Gloo" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_hosts_with_other_files_are_told_so(pair: Path, data: Path, tmp_path: Path) -> None:
    """Each process has a folder of its own, as hosts without a shared disk."""
    for rank, name in enumerate(("00.png", "01.png")):
        other = Folder(root=tmp_path / str(rank) / "data")
        shutil.copytree(data, other.root)
        write_asked_points(other.test_points, [name], np.array([[3, 5]]))
    program = f"import os, runpy; os.chdir({str(tmp_path)!r} + '/' + os.environ['RANK'])\n"
    program += f"runpy.run_path({str(SUBMIT)!r}, run_name='__main__')\n"
    (tmp_path / "program.py").write_text(program)
    done = torchrun(2, tmp_path / "program.py", pair, "--data", "data")
    assert done.returncode == 1 and done.stderr.count("error in process") == 1
    assert "test_points.csv: process 1 on" in done.stderr
    assert not list(tmp_path.glob("*/submission.csv"))


def test_a_process_that_dies_ends_the_others(pair: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, runpy, signal\n"
        "from heatmap.inference import predict\n"
        "if os.environ['RANK'] == '1':\n"
        "    predict.look = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"runpy.run_path({str(SUBMIT)!r}, run_name='__main__')\n"
    )
    done = torchrun(2, tmp_path / "program.py", pair, "--data", data, "--out", tmp_path / "out.csv")
    assert done.returncode == 1 and "SIGKILL" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]
