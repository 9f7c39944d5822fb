import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from heatmap.runs.ledger import Record, read_metrics, rewind

CONFIG = {"name": "tiny", "train": {"epochs": 3, "lr": 1e-3, "clip": None}, "tags": ["a", "b"]}
ROWS = [{"step": s, "loss": 0.1 / (s + 1), "epoch": s, "note": f"row {s}"} for s in range(12)]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def record_in(folder: Path, **changes: Any) -> Record:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    settings = {
        "mode": "off",
        "project": "faces",
        "name": "tiny",
        "group": "g",
        "job_type": "train",
    }
    return Record(folder, **(settings | {"tags": ("cpu", "small")} | changes))


def log_rows(record: Record, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        record.log(row["step"], {key: value for key, value in row.items() if key != "step"})


def segments(folder: Path) -> list[Path]:
    """The runs that W&B wrote, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime)


def inspected(path: Path) -> dict[str, Any]:
    """What a .wandb file holds: run, rows (W&B's own keys left out), summary and exit code."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = {"rows": [], "summary": {}, "exit": None, "artifacts": []}
    for record in map(json.loads, output.stdout.splitlines()):
        if record["type"] == "run":
            found["run"] = record["run"]
        elif record["type"] == "history":
            item = record["history"]["item"]
            values = {key: value for key, value in item.items() if not key.startswith("_")}
            found["rows"].append({"step": item["_step"], **values})
        elif record["type"] == "summary":
            found["summary"] |= record["summary"].get("update", {})
        elif record["type"] == "artifact":
            found["artifacts"].append(record["artifact"])
        elif record["type"] == "exit":
            found["exit"] = record["exit"].get("exit_code", 0)
    return found


def is_media(key: str) -> bool:
    """Whether the key of a row is of a picture or a table, which the ledger does not have."""
    return key.startswith(("pictures/", "predictions"))


def install_wandb(folder: Path, source: str, monkeypatch: Any) -> Path:
    """Puts a package `wandb` of our own before the real one; returns where it leaves its pid."""
    package = folder / "fake" / "wandb"
    package.mkdir(parents=True)
    pid_path = folder / "fake" / "pid"
    head = f"""
        import os, pathlib, time
        pathlib.Path({str(pid_path)!r}).write_text(str(os.getpid()))
        Settings = dict
        class Run:
            summary = {{}}
            def log(self, *_, **__): pass
            def finish(self, **_): pass
        def init(**_): return Run()
    """
    (package / "__init__.py").write_text(textwrap.dedent(head) + textwrap.dedent(source))
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))
    return pid_path


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def only_child(parent: int) -> int:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    pairs = [line.split() for line in table.stdout.splitlines()]
    (pid,) = [int(pid) for pid, ppid in pairs if int(ppid) == parent]
    return pid


# The ledger


def test_rows_come_back_as_they_were_logged(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        record.finish({"best": 1})
    assert read_metrics(tmp_path) == ROWS
    assert [next(iter(row)) for row in read_metrics(tmp_path)] == ["step"] * 12


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with record_in(tmp_path) as record:
        record.log(3, {"loss": float("nan"), "mse": float("inf"), "nme": np.float64(0.5)})
        record.finish({"groups": {"jaw": float("nan")}, "sizes": [1.0, float("-inf")]})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = {"step": 3, "loss": None, "mse": None, "nme": 0.5}
    assert json.loads(text, parse_constant=refuse) == row
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary == {"groups": {"jaw": None}, "sizes": [1.0, None]}


def test_a_step_cannot_be_logged_twice_nor_get_its_picture_late(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        record.log(4, {"loss": 1.0})
        with pytest.raises(AssertionError):
            record.log(4, {"loss": 1.0})
        with pytest.raises(AssertionError):
            record.picture("faces", 4, np.zeros((6, 8, 3), np.uint8))
    assert len(read_metrics(tmp_path)) == 1


def test_a_picture_keeps_its_shape_and_colours(tmp_path: Path) -> None:
    image = np.zeros((24, 40, 3), np.uint8)
    image[:, :16] = (250, 120, 10)
    with record_in(tmp_path) as record:
        record.picture("first-faces", 7, image)
    path = tmp_path / "pictures" / "first-faces_0000007.jpg"
    read = np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))
    assert read.shape == image.shape
    np.testing.assert_allclose(read[:, :8], image[:, :8], atol=4)
    assert list(tmp_path.glob("pictures/*")) == [path]


def test_rewinding_leaves_what_was_there_at_that_step(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    with record_in(tmp_path) as record:
        log_rows(record, ROWS[:6])
        record.picture("late", 6, image)
        early = (tmp_path / "metrics.jsonl").read_bytes()
        record.predictions(6, ["mse"], [(image, "ada.jpg", [1.0])])
    (tmp_path / "pictures" / "faces_0000005.jpg").write_bytes(b"early")
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 6, "loss": 1.0}) + '\n{"step": 7, "lo')
    (tmp_path / "summary.json").write_text("{}")

    rewind(tmp_path, 6)
    assert (tmp_path / "predictions" / "01-ada.jpg").exists()
    rewind(tmp_path, 5)

    assert not (tmp_path / "predictions").exists()
    assert (tmp_path / "metrics.jsonl").read_bytes() == early
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["faces_0000005.jpg"]
    assert not (tmp_path / "summary.json").exists()


def test_a_torn_last_line_is_left_out_and_a_bad_line_is_named(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0}\n{"step": 1, "lo')
    assert read_metrics(tmp_path) == [{"step": 0}]
    metrics.write_text('{"step": 0}\n{"step": 1, "lo\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*lo"):
        read_metrics(tmp_path)


# The mirror, with the real W&B


@pytest.mark.slow
def test_an_offline_run_holds_exactly_the_ledger(tmp_path: Path, caplog: Any) -> None:
    image = np.zeros((24, 40, 3), np.uint8)
    (tmp_path / "machine.json").write_text('{"device": "cpu"}')
    (tmp_path / "split.json").write_text('{"rule": "by person", "table": "f00", "excluded": []}')
    with record_in(tmp_path, mode="offline") as record:
        log_rows(record, ROWS[:5])
        record.picture("faces", 5, image)
        record.picture("worst", 5, image)
        log_rows(record, ROWS[5:])
        shown = [(image, "ada/ada_0.png", [6.25, None]), (image + 99, "bo_1.jpg", [0.5, 0.25])]
        record.predictions(12, ["mse", "nme"], shown)
        log_rows(record, [{"step": 12, "loss": None, "val/mse/jaw": 2.5}])
        (tmp_path / "per_image.csv").write_text("file_name,mse\nada/ada_0.png,6.25\n")
        record.finish({"best": {"step": 4, "mse": 6.25}, "minutes": 0.5})
    assert caplog.records == []

    (path,) = segments(tmp_path)
    found = inspected(path)
    pictures, table = {}, {}
    for row in found["rows"]:
        for key in [key for key in row if is_media(key)]:
            kept = table if key.startswith("predictions") else pictures
            kept[row["step"], key] = row.pop(key)
    assert found["rows"] == read_metrics(tmp_path)
    assert found["rows"] == [*ROWS, {"step": 12, "loss": None, "val/mse/jaw": 2.5}]
    for name in ("faces", "worst"):
        sent = path.parent / "files" / pictures[5, f"pictures/{name}.path"]
        assert sent.read_bytes() == (tmp_path / f"pictures/{name}_0000005.jpg").read_bytes()
    assert {step for step, _ in pictures} == {5}
    assert {step for step, _ in table} == {12}
    sent = json.loads((path.parent / "files" / table[12, "predictions.path"]).read_text())
    assert sent["columns"] == ["picture", "file_name", "mse", "nme"]
    assert [row[1:] for row in sent["data"]] == [
        ["ada/ada_0.png", 6.25, None],
        ["bo_1.jpg", 0.5, 0.25],
    ]
    (artifact,) = found["artifacts"]
    waiting = [Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]]
    assert all(path.is_relative_to(tmp_path) for path in waiting)
    drawn = {path.read_bytes() for path in tmp_path.glob("predictions/*.jpg")}
    assert len(drawn) == 2
    assert drawn < {path.read_bytes() for path in waiting}
    copy = (path.parent / "files" / "per_image.csv").read_bytes()
    assert copy == (tmp_path / "per_image.csv").read_bytes()
    config = found["run"]["config"]["update"]
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["machine"] == {"device": "cpu"}
    assert config["split"] == {"rule": "by person", "table": "f00"}
    assert found["summary"]["best"] == {"step": 4, "mse": 6.25}
    run = found["run"]
    assert (run["run_id"], run["project"], run["run_group"]) == (record.wandb_id, "faces", "g")
    assert (run["job_type"], run["display_name"]) == ("train", "tiny")
    assert run["tags"] == ["cpu", "small"]
    assert found["exit"] == 0


@pytest.mark.slow
def test_a_training_recorded_offline_is_in_wandb_as_in_its_folder(
    tiny_contest: Path, tmp_path: Path
) -> None:
    from heatmap.cli.train import main

    run = tmp_path / "run"
    experiment = Path(__file__).resolve().parents[2] / "experiments" / "unet.py"
    options = [
        "--data.root", str(tiny_contest), "--data.workers", "0", "--model.weights", "none",
        "--model.encoder", "tu-test_resnet", "--augment.mirror", "0", "--train.epochs", "3",
        "--train.batch", "4", "--crop.height", "32", "--crop.width", "32",
    ]  # fmt: skip
    assert main([str(experiment), "--out", str(run), *options]) == 0
    (path,) = segments(run)
    found = inspected(path)
    rows, media = [], set()
    for row in found["rows"]:
        rows.append({key: value for key, value in row.items() if not is_media(key)})
        media |= {key.partition(".")[0] for key in row if is_media(key)}
    assert rows == read_metrics(run) and len(rows) == 3
    assert media == {"pictures/validation", "predictions"}
    config = json.loads((run / "config.json").read_text())
    assert {key: found["run"]["config"]["update"][key] for key in config} == config
    summary = json.loads((run / "summary.json").read_text())
    assert {key: found["summary"][key] for key in summary} == summary
    assert found["run"]["tags"] == ["UNet", "tu-test_resnet", "7 landmarks", tiny_contest.name]
    assert (found["run"]["run_group"], found["run"]["display_name"]) == ("unet", "unet-run")


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_a_second_segment_of_the_same_run(tmp_path: Path) -> None:
    first = record_in(tmp_path, mode="offline")
    with pytest.raises(RuntimeError, match="out of memory"), first:
        log_rows(first, ROWS[:8])
        assert wait_for((tmp_path / "wandb_sent.json").exists, 20)
        raise RuntimeError("out of memory")
    with record_in(tmp_path, mode="offline", wandb_id=first.wandb_id, after_step=5) as second:
        log_rows(second, ROWS[6:])
        second.finish({})

    assert read_metrics(tmp_path) == ROWS
    before, after = map(inspected, segments(tmp_path))
    assert before["run"]["run_id"] == after["run"]["run_id"] == first.wandb_id
    assert (before["rows"], before["exit"]) == (ROWS[:8], 1)
    assert (after["rows"], after["exit"]) == (ROWS[6:], 0)


@pytest.mark.slow
def test_rows_that_a_broken_mirror_did_not_send_are_sent_after_the_resume(
    tmp_path: Path, monkeypatch: Any
) -> None:
    source = """
        def log(self, row, step, **_):
            if step > 2:
                raise OSError("no space left")
        Run.log = log
    """
    with monkeypatch.context() as broken:
        install_wandb(tmp_path, source, broken)
        with record_in(tmp_path, mode="offline") as first:
            log_rows(first, ROWS[:3])
            assert wait_for((tmp_path / "wandb_sent.json").exists, 20)
            log_rows(first, ROWS[3:8])
    with record_in(tmp_path, mode="offline", wandb_id=first.wandb_id, after_step=5) as second:
        log_rows(second, ROWS[6:])
        second.finish({})
    (path,) = segments(tmp_path)
    assert inspected(path)["rows"] == ROWS[3:]


@pytest.mark.slow
def test_online_without_a_login_goes_offline(tmp_path: Path, caplog: Any) -> None:
    with record_in(tmp_path, mode="online") as record:
        log_rows(record, ROWS)
        record.finish({})
    (path,) = segments(tmp_path)
    assert inspected(path)["rows"] == ROWS
    assert "out of reach, so the run is recorded offline" in (tmp_path / "wandb.log").read_text()
    assert caplog.records == []


def test_online_with_a_server_out_of_reach_goes_offline(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    # As W&B 0.31 does after its init_timeout, which would be too long to wait for here.
    source = """
        in_use = set()
        def teardown():
            in_use.clear()
        def init(mode, id, **_):
            if id in in_use:
                raise RuntimeError(f"run ID {id} is in use")
            in_use.add(id)
            if mode == "online":
                raise TimeoutError("no answer")
            return Run()
    """
    install_wandb(tmp_path, source, monkeypatch)
    with record_in(tmp_path, mode="online") as record:
        log_rows(record, ROWS)
        record.finish({})
    assert "is recorded offline: no answer" in (tmp_path / "wandb.log").read_text()
    assert caplog.records == []


@pytest.mark.slow
def test_a_run_recorded_without_wandb_can_be_sent_by_hand(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        record.finish({"best": 0.5})
    command = [sys.executable, "-m", "heatmap.runs.wandb", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "say --mode online or offline" in refused.stderr
    subprocess.run([*command, "--mode", "offline"], capture_output=True, check=True)
    (path,) = segments(tmp_path)
    found = inspected(path)
    assert (found["rows"], found["summary"]["best"], found["exit"]) == (ROWS, 0.5, 0)


@pytest.mark.slow
def test_a_run_of_a_sweep_is_where_the_sweep_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment that `wandb agent` gives the command it starts."""
    parameters = tmp_path / "config-1a2b3c.yaml"
    parameters.write_text("wandb_version: 1\ntrain.lr:\n  value: 0.001\n")
    for name, value in (
        ("RUN_ID", "1a2b3c"), ("SWEEP_ID", "9z8y"), ("PROJECT", "sweeps"), ("ENTITY", "team"),
        ("SWEEP_PARAM_PATH", parameters), ("DIR", tmp_path / "agent"),
    ):  # fmt: skip
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    with record_in(tmp_path, mode="offline") as record:
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
    with record_in(tmp_path, mode="offline", wandb_id="1a2b3c", after_step=11) as resumed:
        resumed.finish({})
    assert resumed.wandb_id == "1a2b3c"


@pytest.mark.slow
def test_files_made_of_a_run_are_sent_as_its_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    run = tmp_path / "run"
    run.mkdir()
    with record_in(run, mode="offline", name="my run") as record:
        log_rows(record, ROWS)
        record.finish({"best": 0.5})
    (tmp_path / "answers.csv").write_text("file_name,Point_M0_X\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>a report</p>")
    command = [sys.executable, "-m", "heatmap.runs.wandb", str(run)]
    lost = subprocess.run([*command, "--artifact", "lost.csv"], capture_output=True, text=True)
    assert lost.returncode == 2
    assert "lost.csv: there is no such file or folder" in lost.stderr
    files = ["--artifact", tmp_path / "answers.csv", "--artifact", tmp_path / "report"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    _, path = segments(run)
    found = inspected(path)
    assert (found["run"]["run_id"], found["rows"], found["exit"]) == (record.wandb_id, [], 0)
    sent = {artifact["name"]: artifact for artifact in found["artifacts"]}
    assert {name: artifact["type"] for name, artifact in sent.items()} == {
        "my-run-answers.csv": "submission",
        "my-run-report": "report",
    }
    (entry,) = sent["my-run-report"]["manifest"]["contents"]
    assert entry["path"] == "index.html"
    assert Path(entry["local_path"]).read_text() == "<p>a report</p>"


# Weights & Biases in trouble

TROUBLE = {
    "raises at import": "raise ImportError('broken')",
    "raises in init": "def init(**_): raise OSError('no space left')",
    "raises in log": "def log(*_, **__): raise OSError('no space left')\nRun.log = log",
    "raises in finish": "def finish(*_, **__): raise OSError('no network')\nRun.finish = finish",
    "hangs in init": "def init(**_): time.sleep(600)",
    "hangs in log": "def log(*_, **__): time.sleep(600)\nRun.log = log",
}


def the_only_warning(caplog: Any) -> str:
    (warning,) = caplog.records
    assert (warning.name, warning.levelno) == ("heatmap", logging.WARNING)
    assert "\n" not in warning.message
    return warning.message


@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_run_does_not_mind_a_wandb_that(
    trouble: str, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    pid_path = install_wandb(tmp_path, TROUBLE[trouble], monkeypatch)
    with record_in(tmp_path, mode="offline") as record:
        log_rows(record, ROWS[:4])
        assert wait_for(lambda: pid_path.exists() and pid_path.read_text(), 20)
        log_rows(record, ROWS[4:])
        start = time.monotonic()
        record.finish({"best": 0.5}, timeout=1 if "hangs" in trouble else 20)
        assert time.monotonic() - start < 10
    assert not is_running(int(pid_path.read_text()))
    assert read_metrics(tmp_path) == ROWS
    assert json.loads((tmp_path / "summary.json").read_text()) == {"best": 0.5}
    assert str(tmp_path / "wandb.log") in the_only_warning(caplog)


def test_a_mirror_that_dies_early_is_reported_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    pid_path = install_wandb(tmp_path, "raise ImportError('broken')", monkeypatch)
    with record_in(tmp_path, mode="offline") as record:
        assert wait_for(lambda: pid_path.exists() and pid_path.read_text(), 20)
        assert wait_for(lambda: not is_running(int(pid_path.read_text())), 20)
        log_rows(record, ROWS)
        assert "did not take the whole run" in the_only_warning(caplog)
        record.finish({})
    assert len(caplog.records) == 1
    assert "ImportError: broken" in (tmp_path / "wandb.log").read_text()


def test_a_wandb_folder_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    with record_in(tmp_path, mode="offline") as record:
        log_rows(record, ROWS)
        record.finish({})
    assert read_metrics(tmp_path) == ROWS
    assert "did not take the whole run" in the_only_warning(caplog)


def test_a_mirror_that_cannot_be_started_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with record_in(tmp_path, mode="offline") as record:
        log_rows(record, ROWS)
        record.finish({})
    assert read_metrics(tmp_path) == ROWS
    assert "could not be started" in the_only_warning(caplog)


# The training is killed

TRAINING = """
    import sys, time
    from pathlib import Path
    from heatmap.runs.ledger import Record

    folder = Path(sys.argv[1])
    record = Record(folder, mode="offline", project="faces", name="tiny")
    record.log(0, {"loss": 0.5})
    record.log(1, {"loss": 0.25})
    print("started", flush=True)
    time.sleep(600)
"""


def killed_training(folder: Path, ready: Path) -> int:
    """Kills a training once `ready` exists and two more rows came; returns its mirror's pid."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-c", textwrap.dedent(TRAINING), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        training.stdout.readline()
        pid = only_child(training.pid)
        assert wait_for(ready.exists, 20)
        with (folder / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 2, "loss": 0.125}\n{"step": 3, "lo')
        training.send_signal(signal.SIGKILL)
    return pid


@pytest.mark.slow
def test_the_mirror_of_a_killed_training_sends_what_is_there_and_ends(tmp_path: Path) -> None:
    pid = killed_training(tmp_path, ready=tmp_path / "wandb_sent.json")
    assert wait_for(lambda: not is_running(pid), 10)
    (path,) = segments(tmp_path)
    found = inspected(path)
    assert [(row["step"], row["loss"]) for row in found["rows"]] == [
        (0, 0.5),
        (1, 0.25),
        (2, 0.125),
    ]
    assert found["exit"] == 1
    assert "Traceback" not in (tmp_path / "wandb.log").read_text()


def test_the_mirror_of_a_resumed_run_waits_for_that_of_the_killed_one(
    tmp_path: Path, monkeypatch: Any
) -> None:
    turns = tmp_path / "turns"
    source = f"""
        def note(word):
            with open({str(turns)!r}, "a") as turns:
                turns.write(word)
        def init(id, **_):
            note("begin ")
            return Run()
        def finish(*_, **__):
            time.sleep(1)
            note("end ")
        Run.finish = finish
    """
    install_wandb(tmp_path, source, monkeypatch)
    killed_training(tmp_path, ready=turns)
    with record_in(tmp_path, mode="offline", after_step=1) as record:
        record.finish({})
    assert turns.read_text().split() == ["begin", "end", "begin", "end"]


@pytest.mark.slow
def test_a_hanging_mirror_of_a_killed_training_ends(tmp_path: Path, monkeypatch: Any) -> None:
    pid_path = install_wandb(tmp_path, TROUBLE["hangs in init"], monkeypatch)
    pid = killed_training(tmp_path, ready=pid_path)
    assert wait_for(lambda: not is_running(pid), 20)
