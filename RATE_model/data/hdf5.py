"""HDF5 files, opened for reading on whatever file system they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from RATE_model.data.attributes import decoded
from RATE_model.errors import UserError, is_of_the_machine, reason_of

# A file, a group or an array of h5py. Which of them a name stands for is seen when it is read, not by a type checker.
Hdf5 = Any

_SAID: set[Path] = set()  # folders without locks of which this process has said so


class BeingWritten(OSError):
    """Another process has the file open for writing."""


def open_hdf5(path: Path) -> Hdf5:
    """A file, opened for reading; without a lock where the file system has none, which is said once.

    Raises:
        BeingWritten: another process writes it.
        OSError: it cannot be opened; `errno` is set where the system said why.
    """
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise BeingWritten("it is being written by another process; wait until that is done") from error
    except OSError as error:
        if "unable to lock file" not in str(error):
            raise
    if path.parent not in _SAID:
        _SAID.add(path.parent)
        print(f"'{path.parent}' is on a file system without locks: data is read without them.", flush=True)
    return h5py.File(path, "r", locking=False)


def attributes_of(path: Path) -> dict[str, Any]:
    """The attributes of a file; none of one that is missing, damaged or not HDF5.

    Raises:
        UserError: the machine does not let it be read, which says nothing about the file.
    """
    try:
        with open_hdf5(path) as file:
            return {name: decoded(value) for name, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        refuse_if_unreadable(path, error)
        return {}


def refuse_if_unreadable(path: Path, error: BaseException) -> None:
    """Raise a `UserError` where an error is the machine's: then nothing is known to be wrong with the file."""
    if is_of_the_machine(error) or isinstance(error, BeingWritten):
        raise UserError(f"'{path}' cannot be read: {reason_of(error)}.") from error
