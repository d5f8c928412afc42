"""Exceptions for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake in a flag, a file or the environment.

    The message says, in one or two lines, what was wrong (flag, file, key, value), what is allowed and what to do.
    Scripts print it as ``error: MESSAGE`` and exit with status 2; it never ends in a traceback.
    """


class RunError(UserError):
    """A `UserError` of one run that says nothing about other seeds of the same command."""
