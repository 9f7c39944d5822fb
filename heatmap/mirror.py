"""Sends a run folder to Weights & Biases: `python -m heatmap.mirror RUN`.

Record starts it beside the training, where it follows metrics.jsonl and pictures/ as they grow.
Started by hand it sends the whole of a run that is over.
"""

import argparse
import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from heatmap.files import write_atomically

if TYPE_CHECKING:
    import wandb

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0

logger = logging.getLogger("heatmap")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m heatmap.mirror", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--mode", choices=("online", "offline"), help="default: that of the run")
    parser.add_argument("--after-step", type=int, default=-1, help="send only the rows after it")
    parser.add_argument("--parent", type=int, help="follow the run until this process has gone")
    arguments = parser.parse_args()
    about = json.loads((arguments.folder / "wandb.json").read_text(encoding="utf-8"))
    about["mode"] = arguments.mode or about["mode"]
    if about["mode"] == "off":
        parser.error("this run was recorded without Weights & Biases: say --mode online or offline")

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
        fcntl.flock(turn, fcntl.LOCK_EX)
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
    if finished:
        run.summary.update(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    run.finish(exit_code=0 if finished else 1)
    _note_sent(sent_path, about["id"], step)


def _watch(parent: int, told: list[int], over: threading.Event) -> None:
    """Sets `over` once the training has gone or has told us to end; then W&B may not hang long."""
    while os.getppid() == parent and not told:
        time.sleep(POLL_SECONDS)
    over.set()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _started_run(folder: Path, about: dict[str, Any]) -> "wandb.Run":
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
    # All of a step at once: W&B merges or drops what comes later for the same step.
    run.log(row, step=step, commit=True)


def _note_sent(path: Path, wandb_id: str, step: int) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"id": wandb_id, "step": step}), encoding="utf-8")


if __name__ == "__main__":
    main()
