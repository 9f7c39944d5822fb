"""Sends a run folder to Weights & Biases: `python -m heatmap.runs.wandb RUN`.

Record starts it beside the training, where it follows metrics.jsonl and pictures/ as they grow.
Started by hand it sends the whole of a run that is over, or with --artifact only files that were
made of the run since, such as its submission or its report.
"""

import argparse
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from heatmap.runtime.files import read_json, write_atomically, write_json

if TYPE_CHECKING:
    import wandb

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0
OURS_NOT = ("_", "pictures/", "predictions")  # what a row in W&B has beside the ledger's values

logger = logging.getLogger("heatmap")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m heatmap.runs.wandb", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--mode", choices=("online", "offline"), help="default: that of the run")
    parser.add_argument(
        "--artifact",
        type=Path,
        action="append",
        metavar="FILE|DIR",
        help="send this, as an artifact of the run, and no rows; may be given several times",
    )
    parser.add_argument("--after-step", type=int, default=-1, help="send only the rows after it")
    parser.add_argument("--parent", type=int, help="follow the run until this process has gone")
    arguments = parser.parse_args()
    try:
        about = read_json(arguments.folder / "wandb.json")
    except ValueError as error:
        parser.error(str(error))
    about["mode"] = arguments.mode or about["mode"]
    if about["mode"] == "off":
        parser.error("this run was recorded without Weights & Biases: say --mode online or offline")

    for path in arguments.artifact or []:
        if not path.exists():
            parser.error(f"{path}: there is no such file or folder")

    over = threading.Event()
    if arguments.parent is None:
        over.set()
    else:
        told: list[int] = []  # a handler that set the event itself could meet its lock
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        watch = (arguments.parent, told, over)
        threading.Thread(target=_watch, args=watch, daemon=True).start()

    # The mirror of a killed run may still be sending when the run is resumed.
    with (arguments.folder / "wandb.log").open("a") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning(f"waiting until {arguments.folder} is no longer being sent")
            fcntl.flock(turn, fcntl.LOCK_EX)
        if arguments.artifact:
            send_artifacts(arguments.folder, about, arguments.artifact)
            return
        mirror(arguments.folder, about, arguments.after_step, over)


def mirror(folder: Path, about: dict[str, Any], after_step: int, over: threading.Event) -> None:
    """Sends the rows after `after_step`, until summary.json is there or `over` is set.

    Rows up to `after_step` that an earlier mirror of the run did not get through are sent too.
    """
    sent_path = folder / "wandb_sent.json"
    sent = json.loads(sent_path.read_text(encoding="utf-8")) if sent_path.exists() else {}
    step = min(after_step, sent["step"]) if sent.get("id") == about["id"] else -1
    run = _started_run(folder, about)
    with (folder / "metrics.jsonl").open("rb") as metrics:
        while True:
            finished = (folder / "summary.json").exists()
            last_look = finished or over.is_set()
            noted = step
            for row in _new_rows(metrics):
                if row["step"] > step:
                    step = row["step"]
                    _send(run, folder, row)
            if last_look:
                break
            over.wait(POLL_SECONDS)
            if step > noted:  # by now W&B has written these rows to its own file
                _note_sent(sent_path, about["id"], step)
    _send_errors(run, folder)
    if finished:
        run.summary.update(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    run.finish(exit_code=0 if finished else 1)
    _note_sent(sent_path, about["id"], step)


def send_artifacts(folder: Path, about: dict[str, Any], paths: Sequence[Path]) -> None:
    """Sends files or folders as artifacts of the run, each named by the run and by itself.

    Their types in Weights & Biases: submission for .csv, report for .html and folders, else file.
    """
    run = _started_run(folder, about)
    for path in paths:
        kind = {".csv": "submission", ".html": "report"}.get(path.suffix, "file")
        kind = "report" if path.is_dir() else kind
        name = re.sub(r"[^\w.-]", "-", f"{about['name']}-{path.resolve().name}")
        run.log_artifact(str(path), name=name, type=kind)
    run.finish(exit_code=0 if (folder / "summary.json").exists() else 1)


def fetch(path: str, parent: Path) -> Path:
    """What can be had back of a run in Weights & Biases, in a new run folder.

    Args:
        path: ENTITY/PROJECT/ID; the project is heatmap and the entity the user's unless named.

    Raises:
        ValueError: Weights & Biases is out of reach, nobody is logged in, or there is no such run.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    try:
        run = wandb.Api().run(path if "/" in path else f"heatmap/{path}")
        folder = parent / run.id
        folder.mkdir()
        for file in run.files(names=["per_image.csv"]):
            file.download(root=str(folder))
        # a sweep adds its parameters, as "optimizer.lr", to the config that has them already
        config = {name: value for name, value in run.config.items() if "." not in name}
        rows = [
            {"step": row["_step"]}
            | {name: value for name, value in row.items() if not name.startswith(OURS_NOT)}
            for row in run.scan_history()
        ]
        summary = {name: run.summary_metrics.get(name) for name in ("best_mse", "mean_shape_mse")}
    except (wandb.Error, OSError, ValueError) as problem:
        raise ValueError(
            f"wandb:{path} cannot be had from Weights & Biases ({problem}); log in (wandb login) "
            "where there is a network, or name the run's folder, which holds the same"
        ) from None
    write_json(folder / "split.json", config.pop("split", {}))
    write_json(folder / "machine.json", config.pop("machine", {}))
    write_json(folder / "config.json", config)
    if run.state == "finished":
        write_json(folder / "summary.json", summary)
    with write_atomically(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _watch(parent: int, told: list[int], over: threading.Event) -> None:
    """Sets `over` once the training has gone or has told us to end; then W&B may not hang long."""
    while os.getppid() == parent and not told:
        time.sleep(POLL_SECONDS)
    over.set()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _started_run(folder: Path, about: dict[str, Any]) -> "wandb.Run":
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    # where tables and artifacts of offline runs wait until they are sent
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / "wandb"))
    import wandb

    config = read_json(folder / "config.json")
    if (folder / "machine.json").is_file():
        config["machine"] = read_json(folder / "machine.json")
    if (folder / "split.json").is_file():
        split = read_json(folder / "split.json")
        config["split"] = {name: split[name] for name in ("rule", "table") if name in split}
    settings = wandb.Settings(
        console="off",
        init_timeout=15,  # W&B gives up about ten seconds later, still within Record.finish's 30
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=POLL_SECONDS / 2,
    )
    try:
        return wandb.init(**about, dir=folder, resume="allow", config=config, settings=settings)
    except Exception as problem:
        if about["mode"] == "offline":
            raise
        logger.warning(
            f"Weights & Biases is out of reach, so the run is recorded offline: {problem}"
        )
        wandb.teardown()  # its service still holds the id of the failed run
        about = {**about, "mode": "offline"}
        return wandb.init(**about, dir=folder, resume="allow", config=config, settings=settings)


def _new_rows(metrics: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The complete lines that have been added since the last call."""
    while line := metrics.readline():
        if not line.endswith(b"\n"):
            metrics.seek(-len(line), os.SEEK_CUR)
            return
        yield json.loads(line)


def _send(run: "wandb.Run", folder: Path, row: dict[str, Any]) -> None:
    import wandb

    step = row.pop("step")
    for picture in sorted((folder / "pictures").glob(f"*_{step:07d}.jpg")):
        row[f"pictures/{picture.stem.rpartition('_')[0]}"] = wandb.Image(str(picture))
    table = folder / "predictions" / "table.json"
    if table.is_file() and (read := read_json(table))["step"] == step:
        shown = [
            [wandb.Image(str(table.with_name(picture))), *values]
            for picture, *values in read["rows"]
        ]
        row["predictions"] = wandb.Table(columns=read["columns"], data=shown)
    # All of a step at once: W&B merges or drops what comes later for the same step.
    run.log(row, step=step, commit=True)


def _send_errors(run: "wandb.Run", folder: Path) -> None:
    if (folder / "per_image.csv").is_file():
        # a copy, which an offline run keeps when it is moved
        copy = shutil.copy(folder / "per_image.csv", run.dir)
        run.save(copy, base_path=run.dir, policy="now")


def _note_sent(path: Path, wandb_id: str, step: int) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"id": wandb_id, "step": step}), encoding="utf-8")


if __name__ == "__main__":
    main()
