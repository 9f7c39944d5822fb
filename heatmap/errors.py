"""Errors to show to the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can fix: in an option, a file or a value in it.

    The message is one line with the place, what is wrong there and what was expected. The command
    line prints it and exits with 1. Any other exception is a bug and shows its traceback.
    """


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
