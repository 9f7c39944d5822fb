import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heatmap.cli.running import run_command
from heatmap.cli.train import main
from heatmap.errors import UserError
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runtime import distributed
from heatmap.training import loop

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = '''
"""How is the command line doing?"""

from heatmap.config import *

EXPERIMENT = Experiment(
    name="tiny",
    data=Data(split="order", validation=0.25, workers=0),
    crop=Crop(height=32, width=48),
    model=UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=Train(epochs=1, batch=4, device="cpu"),
    wandb=Wandb(mode="off"),
)
'''


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "questions" / "tiny.py"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


def train(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs tools/train.py as a person would, in a folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    for word in words:
        assert word in said
    assert "Traceback" not in said


# -------------------------------------------------------------------------------- before torch


def test_help_shows_every_field_with_its_default_and_does_not_import_torch(
    experiment: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "tools/train.py", str(experiment), "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    for text in (
        "How is the command line doing?",
        "--train.epochs",
        "--optimizer.lr",
        "0.001",
        "--model.encoder",
        "tu-test_resnet",
        "--data.root",
        "--out",
        "--dry-run",
    ):
        assert text in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "heatmap.config" in imported
    assert not imported & {"torch", "numpy", "cv2", "wandb"}


def test_without_arguments_the_usage_is_shown() -> None:
    done = train()
    assert done.returncode == 2
    assert "train.py EXPERIMENT.py --out RUN" in done.stdout
    assert train("--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.epoch", "3"], ["--train.epochs"]),
        (["--optimiser.lr", "3"], ["--optimizer.lr"]),
        (["--train.epochs", "many"], ["many"]),
        (["--train.precision", "fp8"], ["fp8", "bf16"]),
        (["--train.epochs", "0"], ["train.epochs must be at least 1, not 0"]),
        (
            ["--data.validation", "0", "--train.patience", "2"],
            ["train.patience needs", "there are"],
        ),
        (["--crop.height", "16"], ["crop.height must be at least 32, not 16"]),
        (["surplus"], ["surplus"]),
        (["--out"], ["--out"]),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(
    experiment: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(train(experiment, *arguments), 2, *words)


def test_an_experiment_that_is_not_there_is_named() -> None:
    assert_refused(train("experiments/unte.py"), 2, "experiments/unte.py")
    assert_refused(train("experiments"), 2, "experiments")
    assert_refused(train("--trian.epochs", "3"), 2, "--trian.epochs")
    assert_refused(train("README.md"), 2, "README.md")


def test_a_file_without_an_experiment_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("EXPERIMENT = 3\n")
    assert_refused(train(tmp_path / "empty.py"), 2, "empty.py", "EXPERIMENT")


def test_a_value_that_cannot_be_in_an_experiment_file_is_explained(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT.replace("epochs=1", "epochs=-1"))
    assert_refused(train(experiment), 2, "train.epochs must be at least 1, not -1")


def test_resume_takes_a_run_folder() -> None:
    assert_refused(train("--resume"), 2, "--resume takes a run folder")


def test_on_windows_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    ran: list[int] = []
    assert run_command(lambda: ran.append(1)) == 1
    assert not ran
    error = capsys.readouterr().err
    assert "WSL" in error and error.count("\n") == 1


def test_nothing_that_windows_lacks_is_imported_at_the_start() -> None:
    program = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
    program += "import heatmap.training.loop, heatmap.cli.train, heatmap.cli.data"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------- with torch


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    assert_refused(train("--resume", tmp_path / "run"), 1, "no run here", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_missing_data_are_named_and_leave_no_run(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = tmp_path / "nowhere"
    assert_refused(train(experiment, "--data.root", data, "--out", out), 1, str(data))
    data.mkdir()
    done = train(experiment, "--data.root", data, "--out", out)
    assert_refused(done, 1, "train/landmarks.csv", str(data))
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.encoder", "resnet81"], ["resnet81", "did you mean resnet18"]),
        (["--model.weights", "start.pt"], ["start.pt", "no such file"]),
        (["--augment.mirror", "0.5"], ["7 landmarks", "--augment.mirror 0"]),
        (["--data.split", "person", "--data.person-pattern", "("], ["person pattern"]),
    ],
)
def test_what_the_data_or_the_network_cannot_do_is_explained(
    experiment: Path, tmp_path: Path, tiny_contest: Path, arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "run"
    done = train(experiment, "--data.root", tiny_contest, "--out", out, *arguments)
    assert_refused(done, 1, "error: ", *words)
    assert not out.exists()


@pytest.mark.slow
def test_a_dry_run_tells_everything_and_makes_nothing(
    experiment: Path, tmp_path: Path, tiny_contest: Path
) -> None:
    arguments = ["--data.root", tiny_contest, "--train.batch", "3", "--crop.height", "34"]
    done = train(experiment, *arguments, "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    config, end = json.JSONDecoder().raw_decode(done.stdout)
    assert config["train"]["batch"] == 3
    assert config["model"]["encoder"] == "tu-test_resnet"
    for text in (
        "9 training and 3 validation images, 7 landmarks",
        "UNet on tu-test_resnet",
        "3 an epoch, at most 3",
        "7 of 9 x 12",
    ):
        assert text in done.stdout[end:]
    (mib,) = re.findall(r"memory +([\d,]+) MiB on top of the program", done.stdout)
    assert 1 < int(mib.replace(",", "")) < 4000
    assert re.search(r"time +\d+\.\d\d s a step, .* on cpu", done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions"]


@pytest.mark.slow
def test_a_dry_run_says_when_the_maps_are_capped(experiment: Path, tiny_contest: Path) -> None:
    arguments = ["--data.root", tiny_contest, "--dry-run", "--model.width"]
    assert "6 channels cannot show 7 such maps" in train(experiment, *arguments, "6").stdout
    assert "capped" not in train(experiment, *arguments, "7").stdout


@pytest.mark.slow
def test_a_run_from_start_to_end(experiment: Path, tmp_path: Path, tiny_contest: Path) -> None:
    out = tmp_path / "runs" / "first"
    command = [experiment, "--data.root", tiny_contest, "--out", out]
    done = train(*command, "--train.epochs", "2")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^epoch +\d", done.stdout, re.MULTILINE)) == 2
    assert "best validation MSE" in done.stdout
    for name in ("config.json", "split.json", "metrics.jsonl", "summary.json", "best.pt"):
        assert (out / name).is_file()

    before = (out / "metrics.jsonl").read_bytes()
    assert_refused(train(*command), 1, "already holds a run", f"--resume {out}")
    done = train("--resume", out)
    assert done.returncode == 0
    assert "has finished" in done.stdout
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def constant_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs whose learning rate is the same whatever its length."""
    folder = tmp_path_factory.mktemp("constant")
    (folder / "tiny.py").write_text(EXPERIMENT)
    out = folder / "run"
    done = train(
        folder / "tiny.py", "--data.root", tiny_contest, "--out", out, "--train.epochs", "2",
        "--schedule.kind", "constant",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_resumed_run_can_be_longer_and_have_its_data_elsewhere(
    constant_run: Path, experiment: Path, tiny_contest: Path, tmp_path: Path
) -> None:
    """It ends as the run that was that long, and that had its data there, from the start."""
    out, data = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(constant_run, out)
    data.symlink_to(tiny_contest)
    done = train("--resume", out, "--train.epochs", "3", "--data.root", data, "--data.workers", "1")
    assert done.returncode == 0, done.stderr
    kept = json.loads((out / "config.json").read_text())
    assert (kept["train"]["epochs"], kept["data"]["root"]) == (3, str(data))
    assert kept["data"]["workers"] == 1
    whole = tmp_path / "whole"
    done = train(
        experiment, "--data.root", tiny_contest, "--out", whole, "--train.epochs", "3",
        "--schedule.kind", "constant",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("best.pt", "last.pt"):
        one, other = (checkpoint.load(folder / name).network for folder in (out, whole))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    rows = [read_metrics(folder) for folder in (out, whole)]
    assert [row["val/mse"] for row in rows[0]] == [row["val/mse"] for row in rows[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer.lr", "0.1"], ["--optimizer.lr", "keeps", "--data.root", "--train.epochs"]),
        (["--seed", "3", "--crop.width", "64"], ["--seed", "--crop.width"]),
        (["--train.epoch", "3"], ["--train.epochs"]),
        (["--train.epochs", "1"], ["--train.epochs 1 is less than the run's 2"]),
        (["--train.epochs", "99"], ["warm-up", "over after 2 epochs"]),
    ],
)
def test_what_a_resumed_run_keeps_is_refused_by_name(
    constant_run: Path, arguments: list[str], words: list[str]
) -> None:
    before = {path: path.read_bytes() for path in constant_run.rglob("*") if path.is_file()}
    assert_refused(train("--resume", constant_run, *arguments), 2, *words)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_a_run_that_anneals_to_its_end_is_not_made_longer(
    experiment: Path, tiny_contest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = train(experiment, "--data.root", tiny_contest, "--out", out)
    assert done.returncode == 0, done.stderr
    done = train("--resume", out, "--train.epochs", "3")
    assert_refused(done, 2, "--train.epochs", "cosine anneals", "--train.start")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_exits_with_1(
    experiment: Path, tmp_path: Path, tiny_contest: Path
) -> None:
    out = tmp_path / "run"
    done = train(
        experiment, "--data.root", tiny_contest, "--out", out, "--train.batch", "2",
        "--optimizer.kind", "sgd", "--optimizer.lr", "1e30", "--schedule.warmup", "0",
    )  # fmt: skip
    assert_refused(done, 1, "Images: ", ".jpg", "lower optimizer.lr", "last.pt")
    checkpoint.load(out / "last.pt")


@pytest.mark.slow
def test_an_experiment_derived_from_its_sibling_runs_from_any_folder(
    experiment: Path, tmp_path: Path, tiny_contest: Path
) -> None:
    (experiment.parent / "wider.py").write_text(
        "from dataclasses import replace\n"
        "from questions import tiny\n"
        "model = replace(tiny.EXPERIMENT.model, width=9)\n"
        "EXPERIMENT = replace(tiny.EXPERIMENT, name='wider', model=model)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = train("../questions/wider.py", "--data.root", tiny_contest, folder=elsewhere)
    assert done.returncode == 0, done.stderr
    saved = checkpoint.load(elsewhere / "runs" / "wider" / "best.pt")
    assert saved.config["name"] == "wider"
    assert saved.config["model"]["width"] == saved.network["embeddings"].shape[1] == 9


@pytest.mark.parametrize("name", ["unet", "baseline", "quickstart"])
def test_the_repository_s_experiments_answer_from_any_folder(tmp_path: Path, name: str) -> None:
    done = train(ROOT / "experiments" / f"{name}.py", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--data.root" in done.stdout


# --------------------------------------------------------------------- of several processes one


def test_the_first_process_that_fails_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(rank: int, error: Exception) -> int:
        def fail() -> None:
            raise error

        monkeypatch.setenv("RANK", str(rank))
        return run_command(fail)

    store = torch.distributed.TCPStore("localhost", 0, is_master=True)  # torchrun has one, too
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert failing(3, UserError("face.jpg is torn")) == 1
    assert failing(1, OSError("face.jpg is torn")) == 1
    assert failing(0, RuntimeError("Connection closed by peer")) == 1
    error = capsys.readouterr().err
    assert error == f"error in process 3 on {socket.gethostname()}: face.jpg is torn\n"

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun --max-restarts
    with pytest.raises(RuntimeError, match="a bug"):
        failing(0, RuntimeError("a bug"))


def test_a_host_with_too_few_gpus_says_how_many_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", 6), ("LOCAL_RANK", 2), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"2 GPUs for 4 processes.*--nproc-per-node 2"):
        distributed.start(torch.device("cuda"))


def test_a_stopped_training_says_how_it_goes_on(
    experiment: Path, tiny_contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stop)
    run = tmp_path / "run"
    with caplog.at_level("INFO", "heatmap"):
        assert main([str(experiment), "--data.root", str(tiny_contest), "--out", str(run)]) == 1
    assert f"python tools/train.py --resume {run} goes on" in caplog.text
