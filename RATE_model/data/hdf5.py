"""HDF5 files, opened for reading on whatever file system they lie."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from RATE_model.data.attributes import decoded
from RATE_model.errors import UserError, error_reason, is_machine_error

fcntl: Any = None  # of Windows
with contextlib.suppress(ImportError):
    import fcntl

# A file, a group or an array of h5py. Which of them a name stands for is seen when it is read, not by a type checker.
Hdf5 = Any

_SAID: set[Path] = set()  # folders without locks of which this process has said so


class BeingWritten(OSError):
    """Another process has the file open for writing."""


class Source(io.RawIOBase):
    """A file that HDF5 reads from through Python, so that checksums are compared as bytes go by, not in a second read.

    Attributes:
        watch: called with the offset and the content of everything that is read.

    Raises:
        BeingWritten: another process writes the file.
        OSError: it cannot be opened.
    """

    watch: Callable[[int, memoryview], object] | None = None

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor, self._position = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), 0
        try:
            self._lock(path)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        """As HDF5 locks what it reads; without where the file system has no locks, which is said once."""
        if fcntl is None or os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BeingWritten("it is being written by another process; wait until that is done") from error
        except OSError:
            if path.parent not in _SAID:
                _SAID.add(path.parent)
                print(f"'{path.parent}' is on a file system without locks: data is read without them.", flush=True)

    @property
    def state(self) -> tuple[int, int]:
        """Size in bytes and time of the last change in nanoseconds."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def readable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Choose where the next read begins."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        self._position = offset
        return offset

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer as far as the file goes."""
        count = self.read_at(self._position, buffer)
        if self.watch is not None:
            self.watch(self._position, buffer[:count])
        return count

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer with what lies at an offset, unwatched; returns how many bytes there were."""
        return os.preadv(self._descriptor, [buffer], offset)

    def close(self) -> None:
        """Close it; again does nothing."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class ReadableFile(h5py.File):
    """An HDF5 file over a `Source`, which it closes.

    HDF5 crashes if it closes a file through Python when the interpreter has ended: what is still open is closed before.
    """

    def __init__(self, path: Path) -> None:
        self.source = Source(path)
        try:
            super().__init__(self.source, "r")
        except BaseException:
            self.source.close()
            raise
        _open.add(self)

    def close(self) -> None:
        """Close it; again does nothing."""
        super().close()
        self.source.close()


_open: weakref.WeakSet[ReadableFile] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for file in list(_open):
        file.close()


def open_hdf5(path: Path) -> Hdf5:
    """A file, opened for reading: a `ReadableFile`.

    Raises:
        BeingWritten: another process writes it.
        OSError: it cannot be opened; `errno` is set where the system said why.
    """
    return ReadableFile(path)


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
    if is_machine_error(error) or isinstance(error, BeingWritten):
        raise UserError(f"'{path}' cannot be read: {error_reason(error)}.") from error
