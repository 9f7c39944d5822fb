"""What all commands share: experiment files, exit codes and how failures are reported."""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError
from heatmap.runtime.machine import first_line, is_out_of_memory

logger = logging.getLogger("heatmap")


R = TypeVar("R")


def with_experiment(
    program: str,
    arguments: Sequence[str],
    command_for: Callable[[Experiment], Callable[..., int]],
    usage: str,
) -> int:
    """Runs a command on the experiment of a file, whose fields the command line overrides.

    arguments: the experiment file, then the options; command_for: gives the command, whose first
    parameter is the experiment and whose others become options, and which returns the exit code.
    """
    if not arguments or arguments[0].startswith("-"):
        found = repr(arguments[0]) if arguments else "nothing"
        sys.stderr.write(f"the first argument is an experiment file, not {found}\n{usage}")
        return 2
    try:
        command = command_for(load_experiment(Path(arguments[0])))
        title = sys.modules[_module_name(Path(arguments[0]))].__doc__ or ""
        return options_of(command, f"{program} {arguments[0]}", arguments[1:], title)
    except UserError as error:
        _say(str(error))
        return 2


def options_of(
    command: Callable[..., R], program: str, arguments: Sequence[str], title: str = ""
) -> R:
    """What the command returns for an experiment whose fields the arguments override.

    Raises:
        UsageError: by the `Experiment` itself; tyro reports its parts' and ends the program.
    """
    try:
        return tyro.cli(
            command, prog=program, description=title.partition("\n")[0] or None,
            args=list(arguments), console_outputs=is_first(),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        )  # fmt: skip
    except UserError as error:
        raise UsageError(str(error)) from None


def load_experiment(path: Path) -> Experiment:
    """The `EXPERIMENT` that a Python file defines; it may import its siblings by their folder.

    Raises:
        UserError: no such file, or no EXPERIMENT in it.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path}: there is no such experiment file")
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a person's own file may do wrong
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: defines no EXPERIMENT = Experiment(...)")
    return experiment


def run_command(action: Callable[[], None]) -> int:
    """Runs the action of a tool; a failure becomes one message and exit code 1, or 2.

    Of torchrun's processes the first tells what it does, and the first that fails tells why and
    ends at once; torchrun ends the others.
    """
    if sys.platform == "win32":
        _say("heatmap runs on Linux and macOS; on Windows, install it within WSL (wsl --install)")
        return 1
    # before torch is imported: its threads wait asleep, else a busy machine slows them 50 times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        action()
        if "RANK" in os.environ:
            from heatmap.runtime import distributed

            distributed.stop()
    except UserError as error:
        _say(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        named = error.filename is not None
        _say(f"{error.filename2 or error.filename}: {error.strerror}" if named else str(error))
        return 1
    except KeyboardInterrupt:
        if is_first():
            sys.stderr.write("stopped\n")
        return 1
    except Exception as error:
        if is_out_of_memory(error):
            _say(f"there is too little memory ({first_line(error)}): make something smaller")
        elif _speaks():
            raise
        return 1
    return 0


def is_first() -> bool:
    """Whether this is the only process, or the first that torchrun started.

    Reads the environment and not `distributed.rank`, which would import torch for every `--help`.
    """
    return os.environ.get("RANK", "0") == "0"


def _say(problem: str) -> None:
    if _speaks():
        rank = os.environ.get("RANK")
        where = f" in process {rank} on {socket.gethostname()}" if rank else ""
        sys.stderr.write(f"error{where}: {problem}\n")


def _speaks() -> bool:
    """Whether this process, which fails, is to say so."""
    if "RANK" not in os.environ:
        return True
    from heatmap.runtime import distributed

    return distributed.is_first_failure()


def _module_name(path: Path) -> str:
    return f"{path.resolve().parent.name}.{path.stem}"
