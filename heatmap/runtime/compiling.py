"""torch.compile where there is a compiler; without one, the same arithmetic as it stands."""

import logging
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

logger = logging.getLogger("heatmap")

P = ParamSpec("P")
R = TypeVar("R")

_failures: list[str] = []  # names of functions that could not be compiled here


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call, once for all shapes.

    Where that fails, as without a compiler, this is said once, and all functions run as they are.
    """

    @cache  # at the first call: torch.compile imports the compiler, which takes seconds
    def fast() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _failures:
            try:
                return fast()(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                _failures.append(function.__name__)
                reason = " ".join(str(error).strip().splitlines()[:2]).strip()
                logger.warning(
                    f"{function.__name__} is not compiled and may run slower ({reason}). "
                    "--train.compile off silences this."
                )
        return function(*args, **kwargs)

    return call
