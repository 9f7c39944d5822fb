import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from heatmap import cli, config
from heatmap.cli import data
from heatmap.cli.running import run_command
from heatmap.cli.train import main
from heatmap.data import samples
from heatmap.errors import UsageError, UserError
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runtime import distributed
from heatmap.runtime.files import write_json
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


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str  # standard output and log lines
    error: str

    def assert_refused(self, code: int, *words: str) -> None:
        assert self.code == code, self.error
        message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.error).split())
        for word in words:
            assert word in message
        assert "Traceback" not in message


Train = Callable[..., Done]


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Train:
    """Runs heatmap train in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        caplog.clear()
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, error = capsys.readouterr()
        return Done(code, "\n".join([out, *caplog.messages]), error)

    return run


def in_new_process(*arguments: object, folder: Path = ROOT) -> Done:
    """Runs Python on the arguments in a folder."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        # the second saves importing the compiler, which is off anyway
        env=os.environ | {"COLUMNS": "200", "TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


TRAIN = ROOT / "tools" / "train.py"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "questions" / "tiny.py"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


# ------------------------------------------------------------------------- options and help


def test_help_shows_every_field_with_its_default_and_does_not_import_torch(
    experiment: Path,
) -> None:
    done = in_new_process("-X", "importtime", TRAIN, experiment, "--help")
    assert done.code == 0
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
        assert text in done.out
    imported = {line.rpartition("|")[2].strip() for line in done.error.splitlines()}
    assert "heatmap.config" in imported
    assert not imported & {"torch", "numpy", "cv2", "wandb"}


def test_without_arguments_the_usage_is_shown(train: Train) -> None:
    done = train()
    assert done.code == 2
    assert "heatmap train EXPERIMENT --out RUN" in done.out
    assert train("--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.epoch", "3"], ["--train.epochs"]),
        (["--optimiser.lr", "3"], ["--optimizer.lr"]),
        (["--train.epochs", "many"], ["many"]),
        (["--train.precision", "fp8"], ["fp8", "bf16"]),
        (["--train.epochs", "0"], ["train.epochs must be at least 1"]),
        (["--data.validation", "0", "--train.patience", "2"], ["train.patience needs"]),
        (["--crop.height", "16"], ["crop.height must be at least 32"]),
        (["surplus"], ["surplus"]),
        (["--out"], ["--out"]),
    ],
)
def test_wrong_options_exit_with_2_and_are_named(
    train: Train, experiment: Path, arguments: list[str], words: list[str]
) -> None:
    train(experiment, *arguments).assert_refused(2, *words)


def test_a_missing_or_invalid_experiment_file_is_named(train: Train, tmp_path: Path) -> None:
    train("experiments/unte.py").assert_refused(2, "experiments/unte.py")
    train("experiments").assert_refused(2, "experiments")
    train("--trian.epochs", "3").assert_refused(2, "--trian.epochs")
    train("README.md").assert_refused(2, "README.md")
    (tmp_path / "empty.py").write_text("EXPERIMENT = 3\n")
    train(tmp_path / "empty.py").assert_refused(2, "empty.py", "EXPERIMENT")
    for number, code in enumerate(("import sys; sys.exit(3)", "raise GeneratorExit('odd')")):
        (tmp_path / f"ends{number}.py").write_text(code)
        train(tmp_path / f"ends{number}.py").assert_refused(2, f"ends{number}.py", "Exit: ")
    (tmp_path / "invalid.py").write_text(EXPERIMENT.replace("epochs=1", "epochs=-1"))
    train(tmp_path / "invalid.py").assert_refused(2, "train.epochs must be at least 1")


def test_resume_needs_the_folder_of_a_run(train: Train, tmp_path: Path) -> None:
    train("--resume").assert_refused(2, "--resume needs a run folder")
    train("--resume", tmp_path / "run").assert_refused(
        1, "no such folder; expected RUN", f"{tmp_path}/run"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["unet", "baseline", "quickstart"])
def test_the_experiments_of_the_repository_load_from_any_folder(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = train(ROOT / "experiments" / f"{name}.py", "--help")
    assert done.code == 0, done.error
    assert "--data.root" in done.out


# ------------------------------------------------------------------------ how failures end


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("face.jpg is torn"), 1, "face.jpg is torn"),
        (UsageError("--share must be positive"), 2, "--share must be positive"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "a.csv: No such file"),
        (OSError("the disk is gone"), 1, "the disk is gone"),
        (MemoryError("too large"), 1, "out of memory (too large); use a smaller batch or model"),
        (
            RuntimeError("CUDA out of memory.\nTried 2 GiB"),
            1,
            "out of memory (CUDA out of memory.)",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
            1,
            "a process that reads images has ended (DataLoader worker (pid 7) is killed by signal",
        ),
    ],
)
def test_a_user_error_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == code
    output = capsys.readouterr().err
    assert output.startswith(f"error: {message}") and output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pose data --weight nan", "--weight must be a number, not nan"),
        ("pose data --above -1", "--above must be at least 0, not -1.0"),
        ("split data --share 1", "--share must be below 1, not 1.0"),
        ("stats data --crop 64 16", "--crop.1 must be at least 32, not 16"),
        ("make data --count 3 --test-count 0", "--test-count must be at least 1, not 0"),
        ("audit data --run a --review a.txt", "--review must end in .html, not 'a.txt'"),
    ],
)
def test_an_invalid_option_is_named(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("name", [*data.COMMANDS, "compare", "evaluate", "submit", "results"])
def test_every_number_of_a_command_has_a_range(name: str) -> None:
    command = data.COMMANDS.get(name) or getattr(import_module(f"heatmap.cli.{name}"), name)
    hints = list(get_type_hints(command, include_extras=True).values())
    for hint in hints:  # grows
        if not any(isinstance(part, str) for part in getattr(hint, "__metadata__", ())):
            hints += get_args(hint)
            assert hint not in (int, float)


def test_a_bug_shows_its_traceback_and_exits_with_1() -> None:
    program = """
import sys
import numpy as np
from heatmap.cli.running import run_command
sys.exit(run_command(lambda: np.ones((2, 3)) @ np.ones((2, 3))))
"""
    done = in_new_process("-c", program)
    assert done.code == 1
    assert done.error.startswith("Traceback") and "ValueError: matmul" in done.error
    assert "error: matmul" not in done.error


class Broken(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return np.ones((2, 3)) @ np.ones((2, 3))


def test_a_bug_in_a_loader_worker_shows_its_traceback() -> None:
    def read() -> None:
        list(samples.load(Broken(), [[0]], 1, torch.device("cpu")))

    with pytest.raises(ValueError, match=r"(?s)Original Traceback.*in __getitem__.*matmul"):
        run_command(read)


class Killed(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_worker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: list(samples.load(Killed(), [[0]], 1, torch.device("cpu")))) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a process that reads images has ended (DataLoader worker")
    assert "--data.workers" in error and error.count("\n") == 1


SMALL_SHM = """
mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 99
exec "$0" -c "
import sys, torch
from heatmap.cli.running import run_command
from heatmap.data import samples
images = torch.utils.data.TensorDataset(torch.zeros(64, 300_000))
samples.collate = torch.utils.data.default_collate
sys.exit(run_command(lambda: list(samples.load(images, [[*range(64)]], 1, torch.device('cpu')))))"
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_too_little_shared_memory_is_one_line() -> None:
    command = ["unshare", "-m", "sh", "-c", SMALL_SHM, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "DataLoader" not in done.stderr and "error: " not in done.stderr:
        pytest.skip(f"only root can mount another /dev/shm: {done.stderr}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: /dev/shm is too small") and "--shm-size" in done.stderr


def test_windows_is_referred_to_wsl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    ran: list[int] = []
    assert run_command(lambda: ran.append(1)) == 1
    assert not ran
    error = capsys.readouterr().err
    assert "WSL" in error and error.count("\n") == 1


def test_imports_need_no_module_that_windows_lacks() -> None:
    program = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
    program += "import heatmap.training.loop, heatmap.cli.train, heatmap.cli.data"
    done = in_new_process("-c", program)
    assert done.code == 0, done.error


# -------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_missing_data_are_named_and_leave_no_run(
    train: Train, experiment: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "run", tmp_path / "nowhere"
    command = [experiment, "--data.root", data, "--out", out]
    train(*command).assert_refused(1, str(data))
    data.mkdir()
    train(*command).assert_refused(1, "train/landmarks.csv", str(data))
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model.encoder", "resnet81"], 2, ["resnet81", "did you mean resnet18"]),
        (["--model.weights", "start.pt"], 1, ["start.pt", "no such file"]),
        (["--augment.mirror", "0.5"], 1, ["7 landmarks", "--augment.mirror 0"]),
        (["--data.split", "person", "--data.person-pattern", "("], 2, ["person pattern"]),
    ],
)
def test_options_that_do_not_fit_data_or_network_are_explained(
    train: Train, experiment: Path, tmp_path: Path, tiny_contest: Path, arguments: list[str],
    code: int, words: list[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    done = train(experiment, "--data.root", tiny_contest, "--out", out, *arguments)
    done.assert_refused(code, "error: ", *words)
    assert not out.exists()


@pytest.mark.slow
def test_a_dry_run_shows_sizes_memory_and_time_and_writes_nothing(
    train: Train, experiment: Path, tmp_path: Path, tiny_contest: Path
) -> None:
    command = [experiment, "--data.root", tiny_contest, "--train.batch", "3", "--dry-run"]
    # a new process, since the peak memory is that of the whole process
    done = in_new_process(TRAIN, *command, "--crop.height", "34", folder=tmp_path)
    assert done.code == 0, done.error
    config, end = json.JSONDecoder().raw_decode(done.out)
    assert config["train"]["batch"] == 3
    assert config["model"]["encoder"] == "tu-test_resnet"
    for text in (
        "9 training and 3 validation images, 7 landmarks",
        "UNet on tu-test_resnet",
        "3 per epoch, at most 3",
        "7 of 9 x 12",
        "6 channels cannot show 7 such heatmaps",
    ):
        assert text in done.out[end:]
    (mib,) = re.findall(r"memory +([\d,]+) MiB at the peak, on cpu", done.out)
    assert 200 < int(mib.replace(",", "")) < 4000
    assert re.search(r"time +\d+\.\d\d s per step, .* on cpu", done.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions"]
    assert "capped" not in train(*command, "--model.width", "7").out


WIDER = """
from dataclasses import replace
from questions import tiny
model = replace(tiny.EXPERIMENT.model, width=9)
EXPERIMENT = replace(tiny.EXPERIMENT, name="wider", model=model)
"""


class FinishedRun(NamedTuple):
    folder: Path
    experiment: Path
    done: Done


@pytest.fixture(scope="module")
def cosine_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of two epochs in a process of its own, which tests must not change.

    Its experiment derives from a sibling, and it starts in a folder that does not hold them.
    """
    folder = tmp_path_factory.mktemp("cosine")
    experiment = folder / "questions" / "wider.py"
    experiment.parent.mkdir()
    (folder / "elsewhere").mkdir()
    experiment.write_text(WIDER)
    experiment.with_name("tiny.py").write_text(EXPERIMENT)
    command = [TRAIN, "../questions/wider.py", "--data.root", tiny_contest, "--train.epochs", "2"]
    done = in_new_process(*command, folder=folder / "elsewhere")
    return FinishedRun(folder / "elsewhere" / "runs" / "wider", experiment, done)


@pytest.fixture(scope="module")
def constant_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs whose learning rate does not depend on its length."""
    folder = tmp_path_factory.mktemp("constant")
    (folder / "tiny.py").write_text(EXPERIMENT)
    command = [folder / "tiny.py", "--data.root", tiny_contest, "--out", folder / "run"]
    options = ["--train.epochs", "2", "--schedule.kind", "constant"]
    assert main([*map(str, command), *options]) == 0
    return folder / "run"


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_from_start_to_end(train: Train, cosine_run: FinishedRun) -> None:
    out, experiment, done = cosine_run
    assert done.code == 0, done.error
    assert len(re.findall(r"^epoch +\d", done.out, re.MULTILINE)) == 2
    assert "best validation MSE" in done.out
    for name in ("config.json", "split.json", "metrics.jsonl", "summary.json"):
        assert (out / name).is_file()
    saved = checkpoint.load(out / "best.pt")
    assert saved.config["name"] == "wider"
    assert saved.config["model"]["width"] == saved.network["embeddings"].shape[1] == 9

    before = files_of(out)
    done = train(experiment.with_name("tiny.py"), "--out", out)
    done.assert_refused(1, "already holds a run", f"--resume {out}")
    done = train("--resume", out)
    assert done.code == 0
    assert "has finished" in done.out
    assert files_of(out) == before


@pytest.mark.slow
def test_a_resumed_run_can_be_longer_and_have_its_data_elsewhere(
    train: Train, constant_run: Path, experiment: Path, tiny_contest: Path, tmp_path: Path
) -> None:
    """It ends like a run of that length from the start."""
    out, data = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(constant_run, out)
    data.symlink_to(tiny_contest)
    done = train("--resume", out, "--train.epochs", "3", "--data.root", data, "--data.workers", "1")
    assert done.code == 0, done.error
    stored = json.loads((out / "config.json").read_text())
    assert (stored["train"]["epochs"], stored["data"]["root"]) == (3, str(data))
    assert stored["data"]["workers"] == 1
    uninterrupted = tmp_path / "whole"
    done = train(
        experiment, "--data.root", tiny_contest, "--out", uninterrupted, "--train.epochs", "3",
        "--schedule.kind", "constant",
    )  # fmt: skip
    assert done.code == 0, done.error
    for name in ("best.pt", "last.pt"):
        resumed, unbroken = (
            checkpoint.load(folder / name).network for folder in (out, uninterrupted)
        )
        assert all(torch.equal(tensor, unbroken[key]) for key, tensor in resumed.items())
    rows = [read_metrics(folder) for folder in (out, uninterrupted)]
    assert [row["val/mse"] for row in rows[0]] == [row["val/mse"] for row in rows[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer.lr", "0.1"], ["cannot change --optimizer.lr,", "--data.root"]),
        (["--seed", "3", "--crop.width", "64"], ["--seed", "--crop.width"]),
        (["--train.epoch", "3"], ["--train.epochs"]),
        (["--train.epochs", "1"], ["--train.epochs 1 is less than the run's 2"]),
        (["--train.epochs", "99"], ["warm-up", "over after 2 epochs"]),
    ],
)
def test_options_that_a_resumed_run_cannot_change_are_named(
    train: Train, constant_run: Path, arguments: list[str], words: list[str]
) -> None:
    before = files_of(constant_run)
    train("--resume", constant_run, *arguments).assert_refused(2, *words)
    assert files_of(constant_run) == before


@pytest.mark.slow
def test_an_edited_config_is_not_overwritten(
    train: Train, constant_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(constant_run, out)
    values = json.loads((out / "config.json").read_text())
    values["data"]["root"] = "moved"
    write_json(out / "config.json", values)
    assert "this run has finished" in train("--resume", out).out
    values["optimizer"]["lr"] = 0.5
    write_json(out / "config.json", values)
    before = files_of(out)
    train("--resume", out).assert_refused(1, "config.json: optimizer.lr is 0.5, but the run began")
    assert files_of(out) == before


@pytest.mark.slow
def test_a_run_that_anneals_to_its_end_cannot_be_longer(
    train: Train, cosine_run: FinishedRun
) -> None:
    done = train("--resume", cosine_run.folder, "--train.epochs", "3")
    done.assert_refused(2, "--train.epochs", "cosine anneals", "--train.start")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_exits_with_1(
    train: Train, experiment: Path, tmp_path: Path, tiny_contest: Path
) -> None:
    out = tmp_path / "run"
    done = train(
        experiment, "--data.root", tiny_contest, "--out", out, "--train.batch", "2",
        "--optimizer.kind", "sgd", "--optimizer.lr", "1e9", "--schedule.warmup", "0",
    )  # fmt: skip
    done.assert_refused(1, ".jpg", "lower optimizer.lr", "last.pt")
    checkpoint.load(out / "last.pt")


# ----------------------------------------------------------------------- several processes


def test_only_the_first_process_that_fails_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(rank: int, error: Exception) -> int:
        def fail() -> None:
            raise error

        monkeypatch.setenv("RANK", str(rank))
        return run_command(fail)

    store = torch.distributed.TCPStore("localhost", 0, is_master=True)  # as torchrun starts it
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


def test_too_many_processes_for_the_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", 6), ("LOCAL_RANK", 2), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"2 GPUs for 4 processes.*--nproc-per-node 2"):
        distributed.start(torch.device("cuda"))


def test_a_stopped_run_says_how_to_resume(
    experiment: Path, tiny_contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_train_epochs", stop)
    run = tmp_path / "run"
    with caplog.at_level("INFO", "heatmap"):
        assert main([str(experiment), "--data.root", str(tiny_contest), "--out", str(run)]) == 1
    assert f"to resume, run heatmap train --resume {run}" in caplog.text


def test_an_experiment_file_can_be_stopped_while_it_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    assert cli.main(["train", str(tmp_path / "slow.py")]) == 1
    assert capsys.readouterr().err == "stopped\n"


# ------------------------------------------------------------------- mistyped and wrong arguments


def test_the_closest_command_is_suggested_for_a_mistyped_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, message in (
        (["data", "chek"], "unknown command 'chek'; did you mean 'check'?"),
        (["evalute"], "unknown command 'evalute'; did you mean 'evaluate'?"),
        (["data", "qqq"], "usage: heatmap data COMMAND"),
        ([], "usage: heatmap COMMAND"),
    ):
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err


def test_a_data_folder_passed_as_a_run_is_named_and_vice_versa(
    tiny_contest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(tiny_contest), str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for command in (
        ["train", "--resume", data],
        ["evaluate", data],
        ["submit", data, "--out", f"{run}/out.csv"],
        ["predict", data, data],
        ["results", data],
        ["compare", data, run],
        ["export", data, f"{run}/model.pt2"],
    ):
        assert cli.main(command) == 1
        assert f"{data}: a data folder, not a run; expected RUN" in capsys.readouterr().err
    assert cli.main(["data", "check", run]) == 1
    assert f"{run}: a run, not a data folder; expected DIR" in capsys.readouterr().err


def test_an_input_in_the_place_of_the_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").touch()
    for arguments in ([f"{tmp_path}/a.jpg"], [f"{tmp_path}/a.jpg", "b.jpg"], [str(tmp_path)]):
        assert cli.main(["predict", *arguments]) == 2
        message = f"{arguments[0]} is not a run; expected heatmap predict RUN {arguments[0]}"
        assert message in capsys.readouterr().err


def test_only_a_submission_is_scored_with_a_solution(
    tmp_path: Path, tiny_contest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission, landmarks = tmp_path / "s.csv", tiny_contest / "train" / "landmarks.csv"
    submission.write_text("file_name,Point_M0_X,Point_M0_Y\na.jpg,1,2\n")
    assert cli.main(["evaluate", str(submission)]) == 2
    assert "s.csv: to score a submission, add --solution" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path), "--solution", str(submission)]) == 2
    assert "is not a submission (.csv), so it takes no --solution" in capsys.readouterr().err
    assert cli.main(["evaluate", str(submission), "--solution", str(landmarks)]) == 1
    assert "this is a table of landmarks, not a solution" in capsys.readouterr().err


def test_submit_replaces_a_file_only_with_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "file_name,Point_M0_X,Point_M0_Y\na.jpg,%d,2\n"
    files = [tmp_path / f"{number}.csv" for number in (1, 3)]
    for number, file in zip((1, 3), files, strict=True):
        file.write_text(text % number)
    out = tmp_path / "out.csv"
    out.write_text("precious")
    average = ["submit", "--average", *map(str, files), "--out", str(out)]
    for command in (average, ["submit", str(tmp_path), "--out", str(out)]):
        assert cli.main(command) == 1
        assert "out.csv exists; choose another --out" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert cli.main([*average, "--overwrite"]) == 0
    assert "out.csv: 1 row, read back" in capsys.readouterr().out
    assert out.read_text() == text % 2


def test_a_wrong_value_in_config_json_is_named_when_a_run_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = config.to_dict(config.Experiment(name="a"))
    for change, message in (
        (
            {"train": values["train"] | {"precision": "fp16"}},
            "train.precision must be fp32 or bf16",
        ),
        ({"stages": [{"epoch": 3}]}, "stages.0.epoch: Stage has no such field; did you mean"),
    ):
        write_json(tmp_path / "config.json", values | change)
        assert cli.main(["train", "--resume", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert f"error: {tmp_path}/config.json: {message}" in error and error.count("\n") == 1


def test_unfinished_runs_are_listed_without_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"device": "cuda", "processor": "H100", "date": "2026-11-28", "commit": "abc"}
    machine |= {"cpu_cores": 8}
    summary = {"best_mse": 2.5, "best_epoch": 2, "mean_shape_mse": 60.0}
    summary |= {"epochs": 3, "steps": 9, "minutes": 4.0}
    for name in ("done", "stopped"):
        write_json(tmp_path / name / "config.json", config.to_dict(config.Experiment(name=name)))
        write_json(tmp_path / name / "machine.json", machine)
    write_json(tmp_path / "done" / "summary.json", summary)
    assert cli.main(["results", str(tmp_path / "stopped"), str(tmp_path / "done")]) == 0
    *_, done, stopped = capsys.readouterr().out.splitlines()
    assert "| done |" in done and "**2.50**" in done
    assert "| stopped (unfinished) |" in stopped and "| - | - | - | - | H100 |" in stopped
    (tmp_path / "done" / "summary.json").write_text("{}")
    assert cli.main(["results", str(tmp_path / "done")]) == 1
    assert "done/summary.json: best_mse is missing" in capsys.readouterr().err


def test_torchs_warning_about_a_missing_cuda_runtime_is_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def warn() -> None:
        torch_logger = logging.getLogger("torch.utils.cpp_extension")
        torch_logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        torch_logger.warning("another warning")

    assert run_command(warn) == 0
    assert caplog.messages == ["another warning"]


def test_a_file_name_that_is_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "utf-8", "strict"))
    assert run_command(lambda: print("\udcff.jpg", flush=True)) == 0
    assert output.getvalue() == b"\\udcff.jpg\n"
