"""Disks that fill up, turn read-only or vanish end a command in one line, and nothing is lost."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from heatmap import cli
from heatmap.data.contest import Folder
from heatmap.evaluation import metrics
from heatmap.runs import checkpoint

EXPERIMENT = """
from heatmap.config import *

EXPERIMENT = Experiment(
    name="tiny",
    data=Data(split="order", validation=0.25, workers=0),
    crop=Crop(height=32, width=48),
    model=UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=Train(epochs=2, batch=4, device="cpu", compile="off"),
    wandb=Wandb(mode="off"),
)
"""

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process; returns the exit code and what went to stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([*map(str, arguments)])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def train(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command that trains a tiny network, without the run folder."""
    path = tmp_path_factory.mktemp("experiments") / "tiny.py"
    path.write_text(EXPERIMENT)
    return ["train", path, "--data.root", tiny_contest, "--out"]


@pytest.fixture(scope="module")
def finished(train: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([*map(str, train), str(run)]) == 0
    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"only root can mount a small disk ({error})")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Lets this process write no file beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def full(run: Path) -> Iterator[None]:
    filler = run.parent / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", 0) as file:
        while True:
            file.write(bytes(1 << 20))
    yield
    filler.unlink()


@contextmanager
def read_only(run: Path) -> Iterator[None]:
    for mode in ("ro", "rw"):
        subprocess.run(["mount", "-o", f"remount,{mode}", run.parent], check=True)
        if mode == "ro":
            yield


@contextmanager
def vanished(run: Path) -> Iterator[None]:
    away = run.rename(run.with_name("away"))
    yield
    assert not run.exists(), "an incomplete run folder was made"
    away.rename(run)


FAULTS: dict[str, tuple[Any, str]] = {
    "limited": (lambda run: limited(100_000), "best.pt: cannot be written: File too large"),
    "full": (full, "best.pt: cannot be written: No space left on device"),
    "read-only": (read_only, "best.pt: cannot be written: Read-only file system"),
    "vanished": (vanished, "config.json: the run folder is gone or incomplete"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_training_stops_cleanly_and_resumes(
    name: str, train: list[object], finished: Path, command: Command, tmp_path: Path,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    needs_disk = name in ("full", "read-only")
    run = (request.getfixturevalue("disk") if needs_disk else tmp_path) / "run"
    fault, message = FAULTS[name]
    started = []
    measure = metrics.measure_errors

    def measure_then_break(*arguments: Any, **options: Any) -> Any:
        errors = measure(*arguments, **options)
        started.append(fault(run))
        started[0].__enter__()
        return errors

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "measure_errors", measure_then_break)
        code, error = command(*train, run)
    started[0].__exit__(None, None, None)
    assert code == 1 and error.startswith(f"error: {run}") and error.count("\n") == 1
    assert message in error
    for path in run.glob("*.pt"):
        checkpoint.load(path)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert command("train", "--resume", run) == (0, "")
    for part in ("best.pt", "last.pt"):
        resumed, expected = (checkpoint.load(path / part).network for path in (run, finished))
        assert all(torch.equal(resumed[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["limited", "read-only"])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("evaluate RUN", "run"),
        ("submit RUN --data DATA --out OUT/a.csv", "OUT/a.csv"),
        ("predict RUN IMAGES --out OUT/p", "OUT/p"),
        ("export RUN OUT/a.onnx", "OUT/a.onnx"),
        ("data make OUT/contest --count 2 --test-count 1 --workers 1", "OUT/contest"),
    ],
)
def test_other_commands_stop_cleanly(
    name: str, arguments: str, named: str, finished: Path, tiny_contest: Path, tmp_path: Path,
    command: Command, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    base = request.getfixturevalue("disk") if name == "read-only" else tmp_path
    run, out = base / "run", base / "out"
    shutil.copytree(finished, run)
    out.mkdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    places = {
        "RUN": run, "DATA": tiny_contest, "IMAGES": Folder(root=tiny_contest).test_images,
        "OUT": out,
    }  # fmt: skip

    def placed(text: str) -> str:
        for place, path in places.items():
            text = text.replace(place, str(path))
        return text

    problem = {"limited": "File too large", "read-only": "Read-only file system"}[name]
    with limited(10) if name == "limited" else read_only(run):
        code, error = command(*placed(arguments).split())
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in error, error
    assert placed(named) in lines[0] and f"cannot be written: {problem}" in lines[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size == 10]
