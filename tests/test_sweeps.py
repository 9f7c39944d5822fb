"""The saved sweeps, with the loader and agent of Weights & Biases."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import load_sweep_config
from wandb.wandb_agent import Agent

from heatmap.cli.running import experiment_file, load_experiment
from heatmap.config import to_dict

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))

# load_sweep_config leaves the file open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def settings(sweep: dict[str, Any]) -> dict[str, Any]:
    """The largest value of every parameter."""
    return {
        name: max(parameter["values"]) if "values" in parameter else parameter["max"]
        for name, parameter in sweep["parameters"].items()
    }


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_varies_fields_of_its_experiment(path: Path) -> None:
    sweep = load_sweep_config(str(path))
    assert sweep is not None
    assert sweep["metric"] == {"name": "val/mse", "goal": "minimize"}
    experiment = sweep["command"][sweep["command"].index("train") + 1]
    values = to_dict(load_experiment(experiment_file(experiment)))
    for name in sweep["parameters"]:
        part, field = name.split(".")
        assert field in values[part]


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_agent_starts_training_with_the_given_settings(
    path: Path,
    tiny_contest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Runs W&B's agent with a command as its server sends it."""
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # saves importing the compiler, which is off
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "9z8y")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.chdir(ROOT)
    sweep = load_sweep_config(str(path))
    assert sweep is not None
    chosen = settings(sweep)
    agent = Agent(api=None, queue=None)
    agent._sweep_command = [
        *sweep["command"], "--dry-run", f"--data.root={tiny_contest}", "--augment.mirror=0",
        "--model.encoder=tu-test_resnet", "--crop.height=32", "--crop.width=32",
    ]  # fmt: skip
    arguments = {name: {"value": value} for name, value in chosen.items()}
    agent._command_run({"run_id": "1a2b3c", "program": None, "args": arguments})
    (process,) = agent._run_processes.values()
    assert process.wait(120) == 0
    output = capfd.readouterr().out
    shown = json.loads(output[output.index("{") : output.index("\n}") + 2])
    for name, value in chosen.items():
        part, field = name.split(".")
        assert shown[part][field] == value
    assert shown["wandb"]["mode"] == "online"


def test_every_run_of_a_sweep_has_its_own_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from heatmap.cli.train import main

    experiment = str(ROOT / "experiments" / "unet.py")
    monkeypatch.setenv("COLUMNS", "200")  # so that no line is broken
    for wandb_id, folder in ((None, "runs/unet"), ("1a2b3c", "runs/unet-1a2b3c")):
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        if wandb_id:
            monkeypatch.setenv("WANDB_RUN_ID", wandb_id)
        with pytest.raises(SystemExit):
            main([experiment, "--help"])
        assert f"{folder})" in capsys.readouterr().out
