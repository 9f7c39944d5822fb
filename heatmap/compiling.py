"""torch.compile where there is a compiler, and the same arithmetic as it stands where there is not."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

logger = logging.getLogger("heatmap")

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call, once for all shapes.

    Where it cannot be compiled this is said once, and from then on it runs as it is.
    """
    fast = torch.compile(function, dynamic=True)
    broken = False

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal broken
        if not broken:
            try:
                return fast(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                broken = True
                reason = str(error).strip().splitlines()[0]
                logger.warning(
                    f"{function.__name__} is not compiled and runs slower ({reason}). A C++ "
                    "compiler is needed on CPUs; --train.compile off silences this."
                )
        return function(*args, **kwargs)

    return call
