"""Several processes, started by torchrun, do what one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from heatmap import checkpoint
from heatmap.contest import Folder, write_landmarks
from heatmap.record import read_metrics

ROOT = Path(__file__).resolve().parents[1]
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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contest with 17 pictures to train on and 17 to validate, 7 landmarks each."""
    folder = Folder(root=tmp_path_factory.mktemp("contest"))
    folder.train_images.mkdir(parents=True)
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
    return folder.root


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def torchrun(num: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num}", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def train(num: int, *arguments: object) -> None:
    done = torchrun(num, ROOT / "tools" / "train.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


# ------------------------------------------------------------------------------- evaluation

EVALUATION = """
import sys
from pathlib import Path
import numpy as np, torch
from heatmap import distributed, evaluate, networks
from heatmap.config import Crop, UNet
from heatmap.contest import Folder, image_paths, read_landmarks
from heatmap.predict import View
from heatmap.samples import Samples

folder, out, device = Folder(root=Path(sys.argv[1])), sys.argv[2], torch.device("cpu")
distributed.start(device)
table = read_landmarks(folder.train_table)
paths = image_paths(folder.train_images, table.names, folder.train_table)
torch.manual_seed(0)
crop = Crop(height=32, width=48)
model = UNet(encoder="tu-test_resnet", weights="none", width=6)
view = View(networks.build(model, crop, 7), Samples(paths, table.points_image, crop))
errors = evaluate.measure(
    [view], np.arange(17, 34), torch.ones(7, 2), batch=4, workers=0, device=device
)
mse = evaluate.summary(errors)["mse"]
np.savez(f"{out}-{distributed.rank()}.npz", score=mse, **vars(errors))
distributed.stop()
"""


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process finds that torchrun did not start."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "program.py").write_text(EVALUATION)
    subprocess.run(
        [sys.executable, folder / "program.py", data, folder / "errors"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return dict(np.load(folder / "errors-0.npz"))


@pytest.mark.parametrize("num", [1, 2, 3])
def test_evaluation_equals_that_of_one_process(
    data: Path, tmp_path: Path, alone: dict[str, np.ndarray], num: int
) -> None:
    (tmp_path / "program.py").write_text(EVALUATION)
    done = torchrun(num, tmp_path / "program.py", data, tmp_path / "errors")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("errors-*.npz"))) == num
    for rank in range(num):
        with np.load(tmp_path / f"errors-{rank}.npz") as found:
            assert found["rows"].tolist() == list(range(NUM_VALIDATION, 2 * NUM_VALIDATION))
            for name in ("score", "mse", "nme", "distance", "peak", "mean_shape_mse"):
                np.testing.assert_allclose(found[name], alone[name], rtol=1e-9, err_msg=name)


# --------------------------------------------------------------------------------- training

# trains, and leaves what each process ended with
TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from heatmap import checkpoint, config, distributed, train
from heatmap.command import load_experiment
from heatmap.run import prepare

file, root, out, minutes = sys.argv[1:]
experiment = load_experiment(Path(file))
experiment = replace(experiment, data=replace(experiment.data, root=Path(root)))
if float(minutes):
    settings = replace(experiment.train, epochs=100000, max_minutes=float(minutes))
    experiment = replace(experiment, train=settings)
run = prepare(experiment)
train.train(run, Path(out))
torch.save(run.network.state_dict(), f"{out}-{distributed.rank()}.pt")
distributed.stop()
"""


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Without what every process counts for itself: the running statistics of its pictures."""
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
        "from heatmap import distributed\n"
        "calls, mean = [], distributed.mean  # called once a step, before the weights change\n"
        "def dying_mean(numbers):\n"
        "    calls.append(0)\n"
        f"    if len(calls) == 7: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return mean(numbers)\n"
        "distributed.mean = dying_mean\n"
        "from heatmap.command import main\n"
        "import sys\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "run"
    arguments = [experiment, "--data.root", data, "--out", out, "--train.checkpoint-minutes", "0"]
    assert torchrun(2, tmp_path / "program.py", *arguments).returncode != 0
    assert checkpoint.load(out / "last.pt").progress["step"] == 6
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
