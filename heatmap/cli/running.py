"""Shared by all commands: reading experiment files, reporting errors, exit codes."""

import difflib
import functools
import importlib.util
import inspect
import io
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar, get_type_hints

import tyro

from heatmap.config import Experiment
from heatmap.errors import UsageError, UserError, shortened
from heatmap.runtime.machine import first_line, problem_of_machine
from heatmap.runtime.validate import typed

logger = logging.getLogger("heatmap")

R = TypeVar("R")


def with_experiment(
    program: str,
    arguments: Sequence[str],
    command_for: Callable[[Experiment], Callable[..., int]],
    usage: str,
) -> int:
    """Runs a command on an experiment file, whose fields the command line overrides.

    Args:
        arguments: the experiment file, then options.
        command_for: returns the command for an experiment. Its first parameter is the experiment,
            the others become options, and it returns the exit code.
    """
    if not arguments or arguments[0].startswith("-"):
        actual = repr(arguments[0]) if arguments else "nothing"
        sys.stderr.write(f"the first argument must be an experiment file, got {actual}\n{usage}")
        return 2
    path = Path(arguments[0])
    try:
        command = command_for(load_experiment(path))
        title = sys.modules[_module_name(path)].__doc__ or ""
        return parse_and_call(command, f"{program} {path}", arguments[1:], title)
    except UserError as error:
        _print_error(str(error))
        return 2


def parse_and_call(
    command: Callable[..., R], program: str, arguments: Sequence[str], title: str = ""
) -> R:
    """Calls a command with the options that the arguments give, checked against its type hints.

    Raises:
        UsageError: an option's value is invalid. If it cannot be parsed, tyro prints why and exits.
    """

    @functools.wraps(command)
    def checked(*values: object, **named_values: object) -> Callable[[], R]:
        bound = inspect.signature(command).bind(*values, **named_values)
        hints = get_type_hints(command, include_extras=True)
        for name, value in bound.arguments.items():
            bound.arguments[name] = typed(hints[name], value, f"--{name.replace('_', '-')}")
        return functools.partial(command, *bound.args, **bound.kwargs)

    try:
        call = tyro.cli(
            checked, prog=program, description=title.partition("\n")[0] or None,
            args=list(arguments), console_outputs=is_first(),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        )  # fmt: skip
    except UserError as error:
        raise UsageError(str(error)) from None
    return call()


def check_ending(option: str, path: Path, *endings: str) -> None:
    """Raises UsageError if the name of an output file has another ending than these."""
    if path.suffix not in endings:
        raise UsageError(f"{option} must end in {' or '.join(endings)}, not {path.name!r}")


def load_experiment(path: Path) -> Experiment:
    """Returns the `EXPERIMENT` of a Python file, which may import its siblings as FOLDER.NAME.

    The environment variables of Weights & Biases come before the file's settings of it.

    Raises:
        UserError: the file is missing, fails, or defines no EXPERIMENT.
    """
    from heatmap.runs.wandb import with_environment  # late, for the commands without experiments

    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it may fail in any way
        raise UserError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: defines no EXPERIMENT = Experiment(...)")
    return with_environment(experiment)


def _module_name(path: Path) -> str:
    return f"{path.resolve().parent.name}.{path.stem}"


def run_command(action: Callable[[], None]) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failure, 2 for wrong usage.

    UserError, OSError and what `problem_of_machine` knows are reported in one line; any other
    exception is raised. Under torchrun only the first process logs, and only the first to fail
    reports.
    """
    if sys.platform == "win32":
        _print_error("heatmap runs on Linux and macOS; on Windows use WSL (wsl --install)")
        return 1
    # set before torch is imported: spinning threads slow a busy machine by up to 50 times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_cuda_home)
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        action()
        if "RANK" in os.environ:
            from heatmap.runtime import distributed

            distributed.stop()
    except UserError as error:
        _print_error(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        path = error.filename2 or error.filename
        _print_error(str(error) if path is None else f"{path}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        if is_first():
            sys.stderr.write("stopped\n")
        return 1
    except Exception as error:
        if problem := problem_of_machine(error):
            _print_error(problem)
        elif _is_first_to_fail():
            raise
        return 1
    return 0


def _is_not_about_cuda_home(record: logging.LogRecord) -> bool:
    """False for the warning of torch's compiler on a machine with a CUDA toolkit but no GPU."""
    return not str(record.msg).startswith("No CUDA runtime is found")


def unknown_command(arguments: Sequence[str], commands: Iterable[str], usage: str) -> int:
    """Suggests the closest command, or prints the usage if none is close; returns 2."""
    matches = difflib.get_close_matches(arguments[0], commands, 1) if arguments else []
    if matches:
        _print_error(f"unknown command {arguments[0]!r}; did you mean {matches[0]!r}?")
    else:
        sys.stderr.write(usage)
    return 2


def is_first() -> bool:
    """Whether this is the only process, or the first that torchrun started.

    Reads the environment, because `distributed.rank` would import torch for every `--help`.
    """
    return os.environ.get("RANK", "0") == "0"


def _print_error(message: str) -> None:
    if _is_first_to_fail():
        rank = os.environ.get("RANK")
        where = f" in process {rank} on {socket.gethostname()}" if rank else ""
        sys.stderr.write(f"error{where}: {shortened(message)}\n")


def _is_first_to_fail() -> bool:
    if "RANK" not in os.environ:
        return True
    from heatmap.runtime import distributed

    return distributed.is_first_failure()
