"""Imports a user's Python: files, and functions that an experiment names."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
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
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's file may fail in any way
        del sys.modules[spec.name]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path}: {kind}{first_line(error)}") from error
    return module


@functools.cache
def imported(name: str) -> Callable[..., Any]:
    """Returns the function "FILE.py:NAME" or "MODULE:NAME"; see `validate.Function`.

    Modules of the working directory are found, too.

    Raises:
        UserError: the file or module is missing or fails, or has no such function.
    """
    where, _, attribute = name.rpartition(":")
    try:
        if where.endswith(".py"):
            loaded, path = sys.modules.get(module_name(Path(where))), Path(where).resolve()
            is_loaded = loaded and loaded.__file__ == str(path)
            module = loaded if loaded and is_loaded else module_of(path)
        else:
            sys.path.append(str(Path.cwd()))
            module = importlib.import_module(where)
    except (ImportError, UserError) as error:
        raise UserError(f"cannot import the function {name}: {first_line(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"cannot import the function {name}: {where} has no function {attribute}")
    return function
