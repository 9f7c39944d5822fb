"""torch.compile that falls back to eager mode on machines without a compiler."""

import logging
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

logger = logging.getLogger("heatmap")

P = ParamSpec("P")
R = TypeVar("R")

_failures: list[str] = []  # functions that could not be compiled


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles the function at its first call, once for all shapes.

    After the first failure a warning is logged, and all compiled functions run in eager mode.
    """

    @cache  # late, since torch.compile takes seconds to import the compiler
    def compile_once() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _failures:
            try:
                return compile_once()(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                _failures.append(function.__name__)
                reason = " ".join(str(error).strip().splitlines()[:2]).strip()
                logger.warning(
                    f"{function.__name__} is not compiled and may run slower ({reason}). "
                    "--train.compile off silences this."
                )
        return function(*args, **kwargs)

    return call
