"""Imports a user's Python: files, and functions that an experiment names."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from heatmap.errors import UserError
from heatmap.runtime.machine import first_line


def module_name(path: Path) -> str:
    """Returns FOLDER.NAME, under which the file's siblings can import it."""
    return f"{path.resolve().parent.name}.{path.stem}"


def module_of(path: Path) -> ModuleType:
    """Runs a Python file as the module FOLDER.NAME. It may import its siblings in the same way.

    Raises:
        UserError: the file is missing or fails.
    """
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(module_name(path), path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with _failing_as_user_error(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _failing_as_user_error(where: str) -> Iterator[None]:
    """Turns whatever a user's code raises, also SystemExit, into a UserError."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{first_line(error)}") from error


@functools.cache
def imported(name: str) -> Callable[..., Any]:
    """Returns the function "FILE.py:NAME" or "MODULE:NAME".

    A module may also be in the working directory.

    Raises:
        UserError: the file or module is missing or fails, or has no such function.
    """
    where, _, attribute = name.rpartition(":")
    with _failing_as_user_error(f"cannot import the function {name}"):
        if where.endswith(".py"):
            path = Path(where).resolve()
            loaded = sys.modules.get(module_name(path))
            module = loaded if loaded and loaded.__file__ == str(path) else module_of(path)
        else:
            sys.path.append(str(Path.cwd()))
            module = importlib.import_module(where)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"cannot import the function {name}: {where} has no function {attribute}")
    return function
