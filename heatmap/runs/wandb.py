"""Sends the ledger of a run to Weights & Biases, and fetches runs back.

`python -m heatmap.runs.wandb RUN` sends a run that has ended.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError
from heatmap.runs.folder import SHEETS, Predictions, RunFolder, Summary, WandbArguments
from heatmap.runtime.files import read_json, write_json, write_text

STAGING = "WANDB_DATA_DIR"  # environment variable: where tables of offline runs wait to be sent
# Values of wandb.mode by those of WANDB_MODE, and the variables of other settings.
MODES = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline",
    "disabled": "off",
}  # fmt: skip
VARIABLES = {
    "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
}  # fmt: skip
NOT_METRICS = ("_", "images/", "predictions")  # prefixes of columns that W&B adds

logger = logging.getLogger("heatmap")


def mode_of_environment() -> Any:
    """Returns the wandb.mode that WANDB_DISABLED or WANDB_MODE asks for, None if neither is set.

    Raises:
        UsageError: WANDB_MODE is not one of W&B's modes.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "off"
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in MODES:
        raise UsageError(f"WANDB_MODE must be online, offline or disabled, not {mode[:60]!r}")
    return MODES[mode] if mode else None


def with_environment(experiment: Experiment) -> Experiment:
    """Returns the experiment with the settings that W&B's environment variables give."""
    values: dict[str, Any] = {name: os.environ.get(key) for name, key in VARIABLES.items()}
    values["mode"] = mode_of_environment()
    values = {name: value for name, value in values.items() if value}
    return replace(experiment, wandb=replace(experiment.wandb, **values))


class WandbWriter:
    """Sends a run to W&B from a daemon thread, which only `close` waits for.

    If W&B raises, hangs or finds the disk full, one warning is logged and nothing more is sent.
    """

    def __init__(self, folder: Path, init_arguments: Mapping[str, Any]) -> None:
        """Starts the thread. init_arguments: arguments of `wandb.init`, as in wandb.json."""
        self.failed = False
        self._folder, self._init_arguments = RunFolder(folder), init_arguments
        self._rows: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._send_rows, name="wandb", daemon=True)
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb  # not in the thread: forked workers would inherit import locks
        except ModuleNotFoundError:
            self._fail("wandb is missing: run pip install wandb")
        except Exception as error:
            self._fail(error)
        else:
            self._wandb: Any = wandb
            self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Queues a row of metrics with the images and predictions of its step."""
        self._rows.put(row)

    def close(self, timeout: float | None) -> None:
        """Sends the remaining rows and per_image.csv; a run without summary.json is marked failed.

        Gives up after `timeout` seconds; None waits without a limit.
        """
        if not self._thread.is_alive():
            return
        self._rows.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._fail(f"no answer in {timeout} seconds")
            # starts by removing W&B's atexit hook, which would wait forever for its service
            teardown = Thread(target=self._wandb.teardown, daemon=True)
            teardown.start()
            teardown.join(1)

    def _send_rows(self) -> None:
        if sets_staging := STAGING not in os.environ:
            os.environ[STAGING] = str(self._folder.path.resolve() / "wandb")
        try:
            run = self._start_run(self._init_arguments)
            for row in iter(self._rows.get, None):
                self._send(run, row)
            self._finish(run)
        except Exception as error:
            self._fail(error)
        finally:
            with contextlib.suppress(Exception):
                self._wandb.teardown()
            if sets_staging:
                os.environ.pop(STAGING, None)  # another run's thread may have removed it

    def _fail(self, reason: object) -> None:
        if not self.failed:
            self.failed = True
            logger.warning(
                f"Weights & Biases failed ({reason}); the rest of this run is not sent. Send it "
                f"afterwards: python -m heatmap.runs.wandb {self._folder.path}"
            )

    def _start_run(self, init_arguments: Mapping[str, Any]) -> Any:
        folder = self._folder
        config = read_json(folder.config, dict[str, Any])
        if folder.machine.is_file():
            config["machine"] = read_json(folder.machine, dict[str, Any])
        if folder.split.is_file():
            split = read_json(folder.split, dict[str, Any])
            config["split"] = {key: split[key] for key in ("kind", "rule", "table") if key in split}
        settings = self._wandb.Settings(
            console="off",
            silent=True,  # else W&B prompts for a login on the terminal
            init_timeout=15,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=0.25,  # seconds of an offline run that a kill may lose
        )
        options = {"dir": folder.path, "resume": "allow", "config": config, "settings": settings}
        try:
            self._wandb.setup(settings)
            run = self._wandb.init(**init_arguments, **options)
        except Exception as error:
            if init_arguments["mode"] == "offline":
                raise
            logger.warning(
                f"Weights & Biases cannot be reached ({error}), so the run is recorded offline. "
                f"Send it afterwards: wandb sync {folder.path}/wandb/offline-run-*"
            )
            self._wandb.teardown()  # its service still holds the id of the failed run
            return self._start_run({**init_arguments, "mode": "offline"})
        if run.url:
            logger.info(f"Weights & Biases: {run.url}")
        return run

    def _send(self, run: Any, row: Mapping[str, Any]) -> None:
        wandb, folder, step = self._wandb, self._folder, row["step"]
        values = {name: value for name, value in row.items() if name != "step"}
        for name in SHEETS:
            if (sheet := folder.sheet(name, step)).is_file():
                values[f"images/{name}"] = wandb.Image(str(sheet))
        if folder.predictions_table.is_file():
            table = read_json(folder.predictions_table, Predictions)
            if table["step"] == step:
                images = (wandb.Image(str(folder.predictions / row[0])) for row in table["rows"])
                rows = [[image, *row[1:]] for image, row in zip(images, table["rows"], strict=True)]
                values["predictions"] = wandb.Table(columns=table["columns"], data=rows)
        # in one call: W&B merges or drops later calls of the same step
        run.log(values, step=step, commit=True)

    def _finish(self, run: Any) -> None:
        if self._folder.per_image.is_file():  # a copy moves with an offline run
            copy = shutil.copy(self._folder.per_image, run.dir)
            run.save(copy, base_path=run.dir, policy="now")
        if finished := self._folder.summary.is_file():
            run.summary.update(read_json(self._folder.summary, dict[str, Any]))
        run.finish(exit_code=0 if finished else 1)


def fetch(path: str, parent: Path) -> Path:
    """Fetches a run from W&B into a new run folder in `parent`, and returns the folder.

    Args:
        path: ENTITY/PROJECT/ID, PROJECT/ID or ID; the defaults are the user's entity, and
            WANDB_PROJECT or heatmap.

    Raises:
        UserError: W&B cannot be reached, nobody is logged in, or the run does not exist.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    try:
        project = os.environ.get("WANDB_PROJECT", "heatmap")
        run = wandb.Api().run(path if "/" in path else f"{project}/{path}")
        folder = RunFolder(parent / run.id)
        folder.path.mkdir()
        for file in run.files(names=[folder.per_image.name]):
            file.download(root=str(folder.path))
        lines = []
        for row in run.scan_history():
            metrics = {name: row[name] for name in row if not name.startswith(NOT_METRICS)}
            lines.append(json.dumps({"step": row["_step"], **metrics}) + "\n")
        # a sweep adds its parameters, such as "optimizer.lr", which the config has already
        config = {name: value for name, value in run.config.items() if "." not in name}
        summary = {name: run.summary_metrics.get(name) for name in Summary.__annotations__}
    except (wandb.Error, OSError, ValueError) as error:
        raise UserError(
            f"cannot fetch wandb:{path} from Weights & Biases ({error}); check the network, run "
            "wandb login, or pass the run's folder instead"
        ) from None
    for part in (folder.split, folder.machine):
        if part.stem in config:
            write_json(part, config.pop(part.stem))
    write_json(folder.config, config)
    if run.state == "finished":
        write_json(folder.summary, summary)
    write_text(folder.metrics, "".join(lines))
    return folder.path


def main() -> None:
    from heatmap.runs.ledger import read_metrics  # imports this module itself

    parser = argparse.ArgumentParser(prog="python -m heatmap.runs.wandb", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--mode", choices=("online", "offline"), help="default: the run's own mode")
    arguments = parser.parse_args()
    try:
        init_arguments = read_json(RunFolder(arguments.folder).wandb, WandbArguments)
        rows = read_metrics(arguments.folder)
        mode = arguments.mode or mode_of_environment() or init_arguments["mode"]
    except UserError as error:
        parser.error(str(error))
    init_arguments["mode"] = mode
    if init_arguments["mode"] == "off":
        parser.error("this run was recorded without W&B: pass --mode online or --mode offline")
    writer = WandbWriter(arguments.folder, init_arguments)
    for row in rows:
        writer.log(row)
    writer.close(timeout=None)
    sys.exit(writer.failed)


if __name__ == "__main__":
    main()
