"""Shared by all commands: reading experiment files, reporting errors, exit codes."""

import difflib
import functools
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
from heatmap.runtime.functions import module_name, module_of
from heatmap.runtime.machine import is_first, log_to_terminal, problem_of_machine
from heatmap.runtime.validate import nearest, typed

RECIPES = Path(__file__).resolve().parents[2] / "heatmap_experiments"

R = TypeVar("R")


def with_experiment(
    program: str,
    arguments: Sequence[str],
    command_for: Callable[[Experiment], Callable[..., int]],
    usage: str,
) -> int:
    """Runs a command on an experiment file, whose fields the command line overrides.

    Args:
        arguments: the experiment's name or file, then options.
        command_for: returns the command for an experiment. Its first parameter is the experiment,
            the others become options, and it returns the exit code.
    """
    if not arguments or arguments[0].startswith("-"):
        actual = repr(arguments[0]) if arguments else "nothing"
        sys.stderr.write(f"the first argument must be an experiment, got {actual}\n{usage}")
        return 2
    try:
        path = experiment_file(arguments[0])
        command = command_for(load_experiment(path))
        title = sys.modules[module_name(path)].__doc__ or ""
        return parse_and_call(command, f"{program} {arguments[0]}", arguments[1:], title)
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


def experiment_file(name: str) -> Path:
    """Returns the file of a recipe, such as unet, or of an experiment given by its path.

    Raises:
        UserError: there is neither such a recipe nor such a file.
    """
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    recipes = {path.stem: path for path in sorted(RECIPES.glob("[!_]*.py"))}
    if name in recipes:
        return recipes[name]
    expected = f"expected a .py file or one of {', '.join(recipes)}"
    raise UserError(f"{name}: no such experiment, {expected}{nearest(name, recipes)}")


def load_experiment(path: Path) -> Experiment:
    """Returns the `EXPERIMENT` of a Python file, which may import its siblings as FOLDER.NAME.

    The environment variables of Weights & Biases come before the file's settings of it.

    Raises:
        UserError: the file fails, or defines no EXPERIMENT.
    """
    from heatmap.runs.wandb import with_environment  # late, for the commands without experiments

    module = module_of(path)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: defines no EXPERIMENT = Experiment(...)")
    return with_environment(experiment)


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
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each retry of a download is shown
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    log_to_terminal()
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_cuda_home)
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
        if isinstance(error, ModuleNotFoundError) and error.name == "matplotlib":
            _print_error("matplotlib is missing: run pip install matplotlib")
        elif problem := problem_of_machine(error):
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
