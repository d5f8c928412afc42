"""`UserError`, and one-line explanations of operating system errors."""

import errno
import os
from typing import TypeGuard

from RATE_model.system.secrets import redact


class UserError(Exception):
    """A mistake in a flag, a file or the environment.

    The message says, in one or two lines, what was wrong (flag, file, key, value), what is allowed and what to do.
    Scripts print it as ``error: MESSAGE`` and exit with status 2, without a traceback. It never contains a wandb key.
    """

    def __str__(self) -> str:
        return redact(super().__str__())


class RunError(UserError):
    """A `UserError` of one run that does not affect other seeds of the same command."""


_ELSEWHERE = "name another folder"
_WAYS_OUT = {
    errno.ENOSPC: f"free some space there, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some space there, or {_ELSEWHERE}",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: f"change its permissions, or {_ELSEWHERE}",
    errno.EPERM: f"change its permissions, or {_ELSEWHERE}",
    errno.EMFILE: "raise the limit on open files (ulimit -n 1024)",
    errno.ENFILE: "close other programs: the machine has reached its limit on open files",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOMEM: "free some memory",
    errno.EIO: "the disk is failing; copy what you can and use another one",
    errno.ESTALE: "the file server was restarted; start again",
}


def is_machine_error(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error comes from the machine, such as a full disk, rather than from the content of a file."""
    return isinstance(error, OSError) and error.errno in _WAYS_OUT


def error_reason(error: BaseException) -> str:
    """The error's reason and a remedy, on one line without a full stop, to end a message with."""
    if not is_machine_error(error) or error.errno is None:
        return " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{os.strerror(error.errno)}; {_WAYS_OUT[error.errno]}"
