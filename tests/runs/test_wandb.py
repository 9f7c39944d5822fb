"""W&B gets a copy of the ledger, and its failures never stop a run."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from heatmap.cli import train
from heatmap.config import Experiment, Wandb
from heatmap.errors import UsageError
from heatmap.runs.ledger import Ledger, read_metrics
from heatmap.runs.wandb import main, with_environment

CONFIG = {"name": "tiny", "train": {"epochs": 3, "lr": 1e-3, "clip": None}, "tags": ["a", "b"]}
ROWS = [
    {"step": s, "loss": 0.1 / (s + 1), "epoch": s, "time/seconds": 0.5, "note": f"row {s}"}
    for s in range(12)
]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def experiment_of(mode: Any) -> Experiment:
    window = Wandb(mode=mode, project="faces", group="g", tags=("cpu",))
    return Experiment(name="tiny", wandb=window)


def record_in(
    folder: Path, experiment: Experiment | None = None, mode: Any = "offline", **changes: Any
) -> Ledger:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Ledger(folder, experiment or experiment_of(mode), tags=["small"], **changes)


def log_rows(record: Ledger, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        record.log(row["step"], {key: value for key, value in row.items() if key != "step"})


def segments(folder: Path) -> list[Path]:
    """The runs that W&B wrote, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime)


def inspected(path: Path) -> dict[str, Any]:
    """The content of a .wandb file: run, rows (without W&B's own keys), summary, exit code."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    content: dict[str, Any] = {"rows": [], "summary": {}, "exit": None, "artifacts": []}
    for record in map(json.loads, output.stdout.splitlines()):
        if record["type"] == "run":
            content["run"] = record["run"]
        elif record["type"] == "history":
            item = record["history"]["item"]
            values = {key: value for key, value in item.items() if not key.startswith("_")}
            content["rows"].append({"step": item["_step"], **values})
        elif record["type"] == "summary":
            content["summary"] |= record["summary"].get("update", {})
        elif record["type"] == "artifact":
            content["artifacts"].append(record["artifact"])
        elif record["type"] == "exit":
            content["exit"] = record["exit"].get("exit_code", 0)
    return content


def is_media(key: str) -> bool:
    """Whether a row's key holds an image or a table, which metrics.jsonl does not."""
    return key.startswith(("images/", "predictions"))


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def child_of(parent: int, name: str) -> int:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True)
    rows = [line.split() for line in table.stdout.splitlines()]
    (pid,) = [int(pid) for pid, ppid, command in rows if int(ppid) == parent and name in command]
    return pid


# with the real W&B


@pytest.mark.slow
def test_an_offline_run_equals_the_ledger(tmp_path: Path, caplog: Any) -> None:
    image = np.zeros((24, 40, 3), np.uint8)
    (tmp_path / "machine.json").write_text('{"device": "cpu"}')
    split = {"kind": "person", "rule": "by person", "table": "f00", "excluded": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with record_in(tmp_path) as record:
        log_rows(record, ROWS[:5])
        record.image("validation", 5, image)
        (tmp_path / "images" / "mine_0000005.jpg").write_bytes(b"not the run's")
        log_rows(record, ROWS[5:])
        shown = [(image, "ada/ada_0.png", [6.25, None]), (image + 99, "bo_1.jpg", [0.5, 0.25])]
        record.predictions(12, ["mse", "nme"], shown)
        last = {"step": 12, "epoch": 12, "time/seconds": 0.5, "val/mse/jaw": np.float64(2.5)}
        log_rows(record, [last | {"loss": float("nan")}])
        (tmp_path / "per_image.csv").write_text("file_name,mse\nada/ada_0.png,6.25\n")
        record.finish({"best": {"step": 4, "mse": 6.25}, "minutes": 0.5})
    assert [record for record in caplog.records if record.name == "heatmap"] == []

    (path,) = segments(tmp_path)
    content = inspected(path)
    images, table = {}, {}
    for row in content["rows"]:
        for key in [key for key in row if is_media(key)]:
            kept = table if key.startswith("predictions") else images
            kept[row["step"], key] = row.pop(key)
    assert content["rows"] == read_metrics(tmp_path)
    assert content["rows"] == [*ROWS, last | {"loss": None}]
    assert {(step, key.partition(".")[0]) for step, key in images} == {(5, "images/validation")}
    sent = path.parent / "files" / images[5, "images/validation.path"]
    assert sent.read_bytes() == (tmp_path / "images/validation_0000005.jpg").read_bytes()
    assert {step for step, _ in table} == {12}
    sent = json.loads((path.parent / "files" / table[12, "predictions.path"]).read_text())
    assert sent["columns"] == ["image", "file_name", "mse", "nme"]
    assert [row[1:] for row in sent["data"]] == [
        ["ada/ada_0.png", 6.25, None],
        ["bo_1.jpg", 0.5, 0.25],
    ]
    (artifact,) = content["artifacts"]
    waiting = [Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]]
    assert all(path.is_relative_to(tmp_path) for path in waiting)
    drawn = {path.read_bytes() for path in tmp_path.glob("predictions/*.jpg")}
    assert len(drawn) == 2
    assert drawn < {path.read_bytes() for path in waiting}
    copy = (path.parent / "files" / "per_image.csv").read_bytes()
    assert copy == (tmp_path / "per_image.csv").read_bytes()
    config = content["run"]["config"]["update"]
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["machine"] == {"device": "cpu"}
    assert config["split"] == {"kind": "person", "rule": "by person", "table": "f00"}
    assert content["summary"]["best"] == {"step": 4, "mse": 6.25}
    run = content["run"]
    assert (run["run_id"], run["project"], run["run_group"]) == (record.wandb_id, "faces", "g")
    assert (run["job_type"], run["display_name"]) == ("train", f"tiny-{tmp_path.name}")
    assert run["tags"] == ["cpu", "small"]
    assert content["exit"] == 0
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.slow
def test_an_offline_training_run_equals_its_folder(tiny_contest: Path, tmp_path: Path) -> None:
    from heatmap.cli.train import main

    run = tmp_path / "run"
    experiment = Path(__file__).resolve().parents[2] / "experiments" / "unet.py"
    options = [
        "--data.root", str(tiny_contest), "--data.workers", "2", "--model.weights", "none",
        "--model.encoder", "tu-test_resnet", "--augment.mirror", "0", "--train.epochs", "3",
        "--train.batch", "4", "--crop.height", "32", "--crop.width", "32",
    ]  # fmt: skip
    assert main([str(experiment), "--out", str(run), *options]) == 0
    (path,) = segments(run)
    content = inspected(path)
    rows, media = [], set()
    for row in content["rows"]:
        rows.append({key: value for key, value in row.items() if not is_media(key)})
        media |= {key.partition(".")[0] for key in row if is_media(key)}
    assert rows == read_metrics(run) and len(rows) == 3
    assert media == {"images/validation", "predictions"}
    config = json.loads((run / "config.json").read_text())
    assert {key: content["run"]["config"]["update"][key] for key in config} == config
    summary = json.loads((run / "summary.json").read_text())
    assert {key: content["summary"][key] for key in summary} == summary
    assert content["run"]["tags"] == ["UNet", "tu-test_resnet", "7 landmarks", tiny_contest.name]
    assert (content["run"]["run_group"], content["run"]["display_name"]) == ("unet", "unet-run")


@pytest.mark.slow
def test_resuming_continues_the_same_wandb_run(tmp_path: Path) -> None:
    first = record_in(tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"), first:
        log_rows(first, ROWS[:6])
        raise RuntimeError("out of memory")
    for after_step in (5, 8):
        with record_in(tmp_path, wandb_id=first.wandb_id, after_step=after_step) as resumed:
            log_rows(resumed, ROWS[after_step + 1 : 9] if after_step == 5 else ROWS[9:])
            if after_step == 8:
                resumed.finish({})

    assert read_metrics(tmp_path) == ROWS
    contents = [inspected(path) for path in segments(tmp_path)]
    assert {segment["run"]["run_id"] for segment in contents} == {first.wandb_id}
    assert [row for segment in contents for row in segment["rows"]] == ROWS  # each once
    assert [segment["exit"] for segment in contents] == [1, 1, 0]


@pytest.mark.slow
def test_online_without_a_login_records_offline_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    with record_in(tmp_path, mode="online") as record:
        log_rows(record, ROWS)
        record.finish({})
    (path,) = segments(tmp_path)
    assert inspected(path)["rows"] == ROWS
    assert "cannot be reached" in the_only_warning(caplog)
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in caplog.text


@pytest.mark.slow
def test_no_login_prompt_appears_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        training(tmp_path, "record.finish({})", mode="online"),
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        assert process.wait(60) == 0
    os.close(theirs)
    output = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "cannot be reached" in output and "account" not in output
    assert inspected(*segments(tmp_path))["exit"] == 0


@pytest.mark.slow
def test_a_run_without_wandb_can_be_sent_later(tmp_path: Path) -> None:
    with record_in(tmp_path, mode="off") as record:
        log_rows(record, ROWS)
        record.finish({"best": 0.5})
    command = [sys.executable, "-m", "heatmap.runs.wandb", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "pass --mode online or --mode offline" in refused.stderr
    subprocess.run([*command, "--mode", "offline"], capture_output=True, check=True)
    (path,) = segments(tmp_path)
    content = inspected(path)
    assert (content["rows"], content["summary"]["best"], content["exit"]) == (ROWS, 0.5, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B's open file
def test_a_sweep_run_uses_the_id_and_project_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets the environment as `wandb agent` does."""
    parameters = tmp_path / "config-1a2b3c.yaml"
    parameters.write_text("wandb_version: 1\ntrain.lr:\n  value: 0.001\n")
    for name, value in (
        ("RUN_ID", "1a2b3c"), ("SWEEP_ID", "9z8y"), ("PROJECT", "sweeps"), ("ENTITY", "team"),
        ("SWEEP_PARAM_PATH", parameters), ("DIR", tmp_path / "agent"),
    ):  # fmt: skip
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    swept = with_environment(experiment_of("offline"))
    with record_in(tmp_path, swept) as record:
        log_rows(record, ROWS)
        record.finish({})
    assert record.wandb_id == "1a2b3c"
    about = json.loads((tmp_path / "wandb.json").read_text())
    assert (about["project"], about["entity"]) == ("sweeps", "team")
    (path,) = segments(tmp_path)
    run = inspected(path)["run"]
    assert (run["run_id"], run["project"], run["sweep_id"]) == ("1a2b3c", "sweeps", "9z8y")
    config = run["config"]["update"]
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert inspected(path)["rows"] == ROWS

    for name in ("RUN_ID", "SWEEP_ID", "PROJECT", "ENTITY", "SWEEP_PARAM_PATH"):
        monkeypatch.delenv(f"WANDB_{name}")
    with record_in(tmp_path, swept, wandb_id="1a2b3c", after_step=11) as resumed:
        resumed.finish({})
    assert resumed.wandb_id == "1a2b3c"


# the environment


def test_variables_come_before_the_experiment_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = experiment_of("online")
    assert with_environment(before) == before
    monkeypatch.setenv("WANDB_PROJECT", "another")
    monkeypatch.setenv("WANDB_RUN_GROUP", "seeds")
    settings = with_environment(before).wandb
    assert (settings.project, settings.group, settings.mode) == ("another", "seeds", "online")
    for mode, expected in (("offline", "offline"), ("disabled", "off"), ("dryrun", "offline")):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert with_environment(before).wandb.mode == expected
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UsageError, match=r"WANDB_MODE must be online, .* not 'onlin'"):
        with_environment(before)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert with_environment(before).wandb.mode == "off"


def test_the_command_line_comes_before_the_variables(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    experiment = Path(__file__).resolve().parents[2] / "experiments" / "unet.py"
    short = [str(experiment), "--data.root", "nowhere", "--dry-run"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for options, expected in (
        ([], ("off", "theirs")),
        (["--wandb.mode", "online"], ("online", "theirs")),
        (["--wandb.project", "mine"], ("off", "mine")),
    ):
        caplog.clear()
        train.main([*short, *options])  # prints the settings, then finds no data
        shown = json.loads(caplog.messages[0])["wandb"]
        assert (shown["mode"], shown["project"]) == expected


def test_a_damaged_wandb_json_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(sys, "argv", ["wandb", str(tmp_path)])
    for text, problem in (("{}", "id is missing"), ('{"id": "a", "mode": "on"}', "did you mean")):
        (tmp_path / "wandb.json").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main()
        assert problem in capsys.readouterr().err


# with a W&B that fails


def fake_wandb(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> SimpleNamespace:
    """Replaces the module wandb; `run_log` and `run_finish` replace methods of its run."""
    run = SimpleNamespace(rows=[], exit=None, summary={}, url=None)
    run.log = changes.pop("run_log", lambda row, step, **_: run.rows.append({"step": step, **row}))
    run.finish = changes.pop("run_finish", lambda exit_code: setattr(run, "exit", exit_code))
    module = SimpleNamespace(
        run=run, Settings=dict, setup=lambda _: None, init=lambda **_: run, teardown=lambda: None
    )
    vars(module).update(changes)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def raises(*_: Any, **__: Any) -> None:
    raise OSError("no space left")


def hangs(*_: Any, **__: Any) -> None:
    threading.Event().wait(60)


def the_only_warning(caplog: Any) -> str:
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (warning.name, warning.levelno) == ("heatmap", logging.WARNING)
    assert "\n" not in warning.message
    return warning.message


@pytest.mark.parametrize("what", ["init", "run_log", "run_finish"])
@pytest.mark.parametrize("trouble", [raises, hangs])
def test_a_wandb_that_raises_or_hangs_does_not_stop_the_run(
    what: str, trouble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    fake_wandb(monkeypatch, **{what: trouble})
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        start = time.monotonic()
        record.finish({"best": 0.5}, timeout=1)
        assert time.monotonic() - start < 5
    assert read_metrics(tmp_path) == ROWS
    assert json.loads((tmp_path / "summary.json").read_text()) == {"best": 0.5}
    assert ("no space left" if trouble is raises else "no answer") in the_only_warning(caplog)
    assert f"Send it afterwards: python -m heatmap.runs.wandb {tmp_path}" in caplog.text


def test_closing_does_not_wait_for_a_hanging_teardown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    module = fake_wandb(monkeypatch, teardown=hangs)
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        record.finish({}, timeout=1)
    assert (module.run.rows, module.run.exit) == (ROWS, 0)
    assert "no answer" in the_only_warning(caplog)


def test_an_early_failure_is_reported_during_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    fake_wandb(monkeypatch, init=raises)
    with record_in(tmp_path) as record:
        assert wait_for(lambda: caplog.records, 20)
        log_rows(record, ROWS)
        record.finish({})
    assert "Weights & Biases failed" in the_only_warning(caplog)


@pytest.mark.parametrize(("mode", "warnings"), [("offline", 1), ("online", 1), ("off", 0)])
def test_a_run_without_wandb_installed_completes(
    mode: str, warnings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with record_in(tmp_path, mode=mode) as record:
        log_rows(record, ROWS)
        record.finish({})
    assert read_metrics(tmp_path) == ROWS
    assert len(caplog.records) == warnings


def test_online_with_an_unreachable_server_records_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    # as W&B 0.31 does after its init_timeout, which would take too long here
    in_use = set()

    def init(mode: str, id: str, **_: Any) -> Any:
        if id in in_use:
            raise RuntimeError(f"run ID {id} is in use")
        in_use.add(id)
        if mode == "online":
            raise TimeoutError("no answer")
        return module.run

    module = fake_wandb(monkeypatch, init=init, teardown=in_use.clear)
    with record_in(tmp_path, mode="online") as record:
        log_rows(record, ROWS)
        record.finish({})
    assert module.run.rows == ROWS
    assert "cannot be reached (no answer), so the run is" in the_only_warning(caplog)


def test_an_unfinished_run_is_marked_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake_wandb(monkeypatch)
    with pytest.raises(KeyboardInterrupt), record_in(tmp_path) as record:
        log_rows(record, ROWS[:2])
        raise KeyboardInterrupt
    assert (module.run.rows, module.run.exit) == (ROWS[:2], 1)


def test_an_unwritable_wandb_folder_does_not_stop_the_run(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        record.finish({})
    assert read_metrics(tmp_path) == ROWS
    assert "Weights & Biases failed" in the_only_warning(caplog)


# in separate processes


def training(folder: Path, end: str, mode: str = "offline") -> list[str]:
    """A command that logs two rows and then runs the code `end`."""
    script = f"""
        import sys
        from pathlib import Path
        from heatmap.config import Experiment, Wandb
        from heatmap.runs.ledger import Ledger

        experiment = Experiment(name="tiny", wandb=Wandb(mode={mode!r}))
        record = Ledger(Path({str(folder)!r}), experiment)
        record.log(0, {{"loss": 0.5, "epoch": 1, "time/seconds": 1.5}})
        record.log(1, {{"loss": 0.25, "epoch": 2, "time/seconds": 1.5}})
        {end}
    """
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return [sys.executable, "-c", textwrap.dedent(script)]


def running(folder: Path, end: str) -> "subprocess.Popen[str]":
    """Starts the command; its output is a file, since W&B's service would keep a pipe open."""
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            training(folder, end), stdin=subprocess.PIPE, stdout=output, stderr=output, text=True
        )


@pytest.mark.slow
def test_a_hanging_wandb_service_does_not_delay_the_end(tmp_path: Path) -> None:
    with running(tmp_path, "sys.stdin.readline(); record.finish({}, timeout=2)") as process:
        assert wait_for(lambda: segments(tmp_path), 30)
        service = child_of(process.pid, "wandb-core")
        os.kill(service, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            process.communicate("go\n", timeout=30)
            assert time.monotonic() - begin < 10
        finally:
            os.kill(service, signal.SIGKILL)
    assert process.returncode == 0
    assert (tmp_path / "summary.json").exists()
    (warning,) = (tmp_path / "output.txt").read_text().splitlines()
    assert "no answer in 2 seconds" in warning


@pytest.mark.slow
def test_a_killed_wandb_service_does_not_stop_the_run(tmp_path: Path) -> None:
    with running(tmp_path, "sys.stdin.readline(); record.finish({}, timeout=5)") as process:
        assert wait_for(lambda: segments(tmp_path), 30)
        os.kill(child_of(process.pid, "wandb-core"), signal.SIGKILL)
        process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    messages = (tmp_path / "output.txt").read_text()
    assert (tmp_path / "summary.json").exists()
    assert len(re.findall("Weights & Biases failed", messages)) == 1
    assert "Traceback" not in messages


@pytest.mark.slow
def test_a_killed_run_keeps_its_rows_on_disk(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "loss": 0.5, "epoch": 1, "time/seconds": 1.5},
        {"step": 1, "loss": 0.25, "epoch": 2, "time/seconds": 1.5},
    ]
    with running(tmp_path, "sys.stdin.readline()") as process:
        assert wait_for(lambda: segments(tmp_path), 30)
        assert wait_for(lambda: inspected(*segments(tmp_path))["rows"] == rows, 60)
        process.send_signal(signal.SIGKILL)
    assert inspected(*segments(tmp_path))["rows"] == rows
