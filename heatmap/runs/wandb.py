"""Weights & Biases: gets a copy of a run's ledger, and gives it back.

`python -m heatmap.runs.wandb RUN` sends the whole of a run that is over.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from heatmap.errors import UserError
from heatmap.runs.folder import SHEETS, RunFolder
from heatmap.runtime.files import read_json, write_atomically, write_json

if TYPE_CHECKING:
    import wandb

STAGING = "WANDB_DATA_DIR"  # where tables of offline runs wait until they are sent
OURS_NOT = ("_", "images/", "predictions")  # what a row in W&B has beside the ledger's values

logger = logging.getLogger("heatmap")


class WandbWriter:
    """Copies a run to Weights & Biases from a daemon thread, which only `close` waits for.

    If W&B raises, hangs or finds the disk full, one warning says so, and it is off from there on.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Starts the thread. about: what wandb.json holds, the arguments of `wandb.init`."""
        self.failed = False
        self._folder, self._about = RunFolder(folder), about
        self._rows: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._write, name="wandb", daemon=True)
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb  # noqa: F401  not in the thread: forked workers would inherit import locks
        except Exception as problem:
            self._fail(problem)
        else:
            self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Sends a row of the ledger with the images and the predictions of its step."""
        self._rows.put(row)

    def close(self, timeout: float | None) -> None:
        """Sends what is left, and per_image.csv; without summary.json the run counts as failed.

        After `timeout` seconds W&B is given up; None waits without a limit.
        """
        if not self._thread.is_alive():
            return
        self._rows.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._fail(f"no answer in {timeout} seconds")
            import wandb

            # begins by removing W&B's atexit hook, which would wait for its service without a limit
            teardown = Thread(target=wandb.teardown, daemon=True)
            teardown.start()
            teardown.join(1)

    def _write(self) -> None:
        import wandb

        if sets_staging := STAGING not in os.environ:
            os.environ[STAGING] = str(self._folder.path.resolve() / "wandb")
        try:
            run = _started_run(self._folder, self._about)
            for row in iter(self._rows.get, None):
                _send(run, self._folder, row)
            _finish(run, self._folder)
        except Exception as problem:
            self._fail(problem)
        finally:
            with contextlib.suppress(Exception):
                wandb.teardown()
            if sets_staging:
                os.environ.pop(STAGING, None)  # another run's thread may have been first

    def _fail(self, problem: object) -> None:
        if not self.failed:
            self.failed = True
            logger.warning(
                f"Weights & Biases did not take the whole run ({problem}) and is off from here on; "
                f"python -m heatmap.runs.wandb {self._folder.path} sends it when the run is over"
            )


def _started_run(folder: RunFolder, about: Mapping[str, Any]) -> "wandb.Run":
    import wandb

    config = read_json(folder.config)
    if folder.machine.is_file():
        config["machine"] = read_json(folder.machine)
    if folder.split.is_file():
        split = read_json(folder.split)
        config["split"] = {key: split[key] for key in ("kind", "rule", "table") if key in split}
    settings = wandb.Settings(
        console="off",
        silent=True,  # else W&B asks on the terminal who is not logged in
        init_timeout=15,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=0.25,  # what a killed run recorded offline may lose
    )
    try:
        wandb.setup(settings)
        run = wandb.init(**about, dir=folder.path, resume="allow", config=config, settings=settings)
    except Exception as problem:
        if about["mode"] == "offline":
            raise
        logger.warning(
            f"Weights & Biases is out of reach ({problem}), so the run is recorded offline; "
            f"wandb sync {folder.path}/wandb/offline-run-* sends it"
        )
        wandb.teardown()  # its service still holds the id of the failed run
        return _started_run(folder, {**about, "mode": "offline"})
    if run.url:
        logger.info(f"Weights & Biases shows the run at {run.url}")
    return run


def _send(run: "wandb.Run", folder: RunFolder, row: Mapping[str, Any]) -> None:
    import wandb

    step, sent = row["step"], {name: value for name, value in row.items() if name != "step"}
    for name in SHEETS:
        if (sheet := folder.sheet(name, step)).is_file():
            sent[f"images/{name}"] = wandb.Image(str(sheet))
    table = read_json(folder.predictions_table) if folder.predictions_table.is_file() else {}
    if table.get("step") == step:
        images = [wandb.Image(str(folder.predictions / name)) for name, *_ in table["rows"]]
        rows = [[image, *row[1:]] for image, row in zip(images, table["rows"], strict=True)]
        sent["predictions"] = wandb.Table(columns=table["columns"], data=rows)
    # all of a step at once: W&B merges or drops what comes later for the same step
    run.log(sent, step=step, commit=True)


def _finish(run: "wandb.Run", folder: RunFolder) -> None:
    if folder.per_image.is_file():  # a copy, which an offline run keeps when it is moved
        copy = shutil.copy(folder.per_image, run.dir)
        run.save(copy, base_path=run.dir, policy="now")
    if finished := folder.summary.is_file():
        run.summary.update(read_json(folder.summary))
    run.finish(exit_code=0 if finished else 1)


def fetch(path: str, parent: Path) -> Path:
    """What can be had back of the run ENTITY/PROJECT/ID in W&B, in a new run folder in `parent`.

    Without them the project is heatmap and the entity the user's own.

    Raises:
        UserError: Weights & Biases is out of reach, nobody is logged in, or there is no such run.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    try:
        run = wandb.Api().run(path if "/" in path else f"heatmap/{path}")
        folder = RunFolder(parent / run.id)
        folder.path.mkdir()
        for file in run.files(names=[folder.per_image.name]):
            file.download(root=str(folder.path))
        rows = []
        for row in run.scan_history():
            own = {name: value for name, value in row.items() if not name.startswith(OURS_NOT)}
            rows.append(json.dumps({"step": row["_step"], **own}) + "\n")
        # a sweep adds its parameters, as "optimizer.lr", to the config that has them already
        config = {name: value for name, value in run.config.items() if "." not in name}
        summary = {name: run.summary_metrics.get(name) for name in ("best_mse", "mean_shape_mse")}
    except (wandb.Error, OSError, ValueError) as problem:
        raise UserError(
            f"wandb:{path} cannot be had from Weights & Biases ({problem}); log in (wandb login) "
            "where there is a network, or name the run's folder, which holds the same"
        ) from None
    write_json(folder.split, config.pop("split", {}))
    write_json(folder.machine, config.pop("machine", {}))
    write_json(folder.config, config)
    if run.state == "finished":
        write_json(folder.summary, summary)
    with write_atomically(folder.metrics) as temporary:
        temporary.write_text("".join(rows), encoding="utf-8")
    return folder.path


def main() -> None:
    from heatmap.runs.ledger import read_metrics  # which imports this module

    parser = argparse.ArgumentParser(prog="python -m heatmap.runs.wandb", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--mode", choices=("online", "offline"), help="default: that of the run")
    arguments = parser.parse_args()
    try:
        about = read_json(RunFolder(arguments.folder).wandb)
        rows = read_metrics(arguments.folder)
    except (OSError, UserError) as error:
        parser.error(str(error))
    about["mode"] = arguments.mode or about["mode"]
    if about["mode"] == "off":
        parser.error("this run was recorded without Weights & Biases: say --mode online or offline")
    writer = WandbWriter(arguments.folder, about)
    for row in rows:
        writer.log(row)
    writer.close(timeout=None)
    sys.exit(writer.failed)


if __name__ == "__main__":
    main()
