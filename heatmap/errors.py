"""Errors to show to the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 80  # characters of a quoted value
_QUOTED = re.compile(r"""(?<!\w)(['"])((?:\\.|(?!\1)[^\\]){81,})\1(?!\w)""", re.DOTALL)
_WORD = re.compile(r"\w{300,}")  # longer than any file name


def shortened(message: str) -> str:
    """Shortens what a message quotes, as '...' or "...", and very long words in their middle."""
    message = _QUOTED.sub(lambda match: match[1] + _cut(match[2]) + match[1], message)
    return _WORD.sub(lambda match: _cut(match[0]), message)


def _cut(text: str) -> str:
    return f"{text[: _LONGEST - 23]}...{text[-20:]}"


class UserError(ValueError):
    """An error that the user can fix: in an option, a file or a value in it.

    The message is one line with the place, what is wrong there and what was expected; values that
    it quotes are `shortened`. The command line prints it and exits with 1. Any other exception is a
    bug and shows its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class UsageError(UserError):
    """Options that are invalid alone or together; the command line exits with 2."""


@contextmanager
def located(where: object) -> Iterator[None]:
    """Puts a place, such as a file, before the messages of the block's user errors."""
    try:
        yield
    except UserError as error:
        error.args = (f"{where}: {error}",)
        raise
