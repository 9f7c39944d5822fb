"""The one exception that is meant for people."""


class UserError(ValueError):
    """Something that the user can mend: an option, a file, a value in it.

    The message is one line. It names the place, what is wrong there and what was expected. The
    command line prints it and exits with 1; any other exception is a bug and shows its traceback.
    """


class UsageError(UserError):
    """Options that are wrong by themselves or together; the command line exits with 2."""
