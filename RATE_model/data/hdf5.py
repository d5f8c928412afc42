"""Open HDF5 files for reading on any file system."""

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

fcntl: Any = None  # on Windows
with contextlib.suppress(ImportError):
    import fcntl

# An h5py file, group or dataset: which one a name refers to is only known at run time.
Hdf5 = Any

_WARNED: set[Path] = set()  # folders without file locks that this process has warned about


class WriteInProgress(OSError):
    """Another process has the file open for writing."""


class Source(io.RawIOBase):
    """A file that HDF5 reads through Python, so that checksums are verified during the read, not in a second one.

    Attributes:
        watch: called with the offset and content of every read.

    Raises:
        WriteInProgress: another process is writing the file.
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
        """Take the lock that HDF5 takes for reading; skipped, with a warning, on file systems without locks."""
        if fcntl is None or os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteInProgress("another process is writing it; wait until it is done") from error
        except OSError:
            if path.parent not in _WARNED:
                _WARNED.add(path.parent)
                print(f"'{path.parent}' is on a file system without locks; reading without them.", flush=True)

    @property
    def state(self) -> tuple[int, int]:
        """Size in bytes and time of the last change in nanoseconds."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def readable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position of the next read."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        self._position = offset
        return offset

    def readinto(self, buffer: memoryview) -> int:
        """Read into a buffer, up to the end of the file."""
        count = self.read_at(self._position, buffer)
        if self.watch is not None:
            self.watch(self._position, buffer[:count])
        return count

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Read at an offset into a buffer, without calling ``watch``; returns the number of bytes read."""
        return os.preadv(self._descriptor, [buffer], offset)

    def close(self) -> None:
        """Close the file; may be called repeatedly."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class ReadableFile(h5py.File):
    """An HDF5 file on top of a `Source`, which it closes.

    HDF5 crashes if it closes a Python file object after the interpreter has shut down, so open files are closed at
    exit.
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
        """Close the file; may be called repeatedly."""
        super().close()
        self.source.close()


_open: weakref.WeakSet[ReadableFile] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for file in list(_open):
        file.close()


def open_hdf5(path: Path) -> Hdf5:
    """Open a file for reading, as a `ReadableFile`.

    Raises:
        WriteInProgress: another process is writing it.
        OSError: it cannot be opened; `errno` is set if the system gave a reason.
    """
    return ReadableFile(path)


def attributes_of(path: Path) -> dict[str, Any]:
    """The attributes of a file; empty if it is missing, damaged or not HDF5.

    Raises:
        UserError: the system refuses to read it, so nothing is known about its content.
    """
    try:
        with open_hdf5(path) as file:
            return {name: decoded(value) for name, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise_if_machine_error(path, error)
        return {}


def raise_if_machine_error(path: Path, error: BaseException) -> None:
    """Raise a `UserError` if the system, not the file, is at fault."""
    if is_machine_error(error) or isinstance(error, WriteInProgress):
        raise UserError(f"'{path}' cannot be read: {error_reason(error)}.") from error
