"""torch.compile that falls back to eager mode, with a warning."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import ParamSpec, TypeVar

import torch

logger = logging.getLogger("heatmap")

P = ParamSpec("P")
R = TypeVar("R")

_failures: list[str] = []  # functions that could not be compiled


def compiled(function: Callable[P, R], dynamic: bool | None = True) -> Callable[P, R]:
    """Compiles the function at its first call.

    Without a compiler, or when the function needs more graphs than torch allows, a warning is
    logged once and the function runs in eager mode from then on.

    Args:
        dynamic: True compiles once for all shapes, except that a dimension of size 1 needs its own
            graph; None lets `torch.compile` decide.
    """

    @cache  # late, since torch.compile takes seconds to import the compiler
    def compile_once() -> tuple[Callable[P, R], AbstractContextManager[None]]:
        # else torch falls back to eager mode silently
        raising = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
        return torch.compile(function, dynamic=dynamic), raising

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if function.__name__ not in _failures:
            compiled_function, raising = compile_once()
            try:
                with raising:
                    return compiled_function(*args, **kwargs)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                limit = torch._dynamo.config.recompile_limit
                _fall_back(function.__name__, f"it needs more than {limit} graphs")
            except torch._dynamo.exc.TorchDynamoException as error:
                _fall_back(function.__name__, " ".join(str(error).strip().splitlines()[:2]).strip())
        return function(*args, **kwargs)

    return call


def _fall_back(name: str, reason: str) -> None:
    _failures.append(name)
    logger.warning(
        f"{name} is not compiled and may run slower ({reason}). --train.compile off silences this."
    )
