"""Locks that are released when their process dies, and temporary files that the next writer cleans up.

A lock is a file that names its owner. The operating system locks it (flock) and releases it however the process ends.
Process ids play no part, so containers that share a disk exclude each other.

Where a file system has no locks (some NFS, Lustre and FUSE mounts; Windows), the file itself is the lock: it is
created exclusively and its owner touches it every `BEAT_SECONDS`. An owner on the same machine and in the same process
namespace is looked up by process id. Any other owner counts as dead if its file did not change while being watched for
`STALE_SECONDS`. An owner that was suspended for longer and has lost its lock exits at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from RATE_model.errors import UserError
from RATE_model.system.processes import check_writable

fcntl: Any = None  # on Windows
with contextlib.suppress(ImportError):
    import fcntl

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 1.0  # if two processes take over from a dead owner, after this both see which one came last
_LEFTOVER = re.compile(r"\.(.+)\.(?:lock|\w+\.tmp)")  # a lock or a temporary file

_held: dict[Path, _Lock] = {}  # locks of this process, by absolute path
_watched: set[Path] = set()  # announced once


class LockHeld(Exception):
    """Another process holds the lock. The message names it: "process 12 on HOST since 2026-01-01 12:00:00 UTC"."""


@contextlib.contextmanager
def hold(lock: Path, *, waiting: str | None = None) -> Iterator[bool]:
    """Hold a lock file; yields whether it had to wait. Reentrant within a thread.

    Args:
        lock: the file, which exists while the lock is held. A leftover file of a killed process locks nothing.
        waiting: message printed once before waiting; None: do not wait.

    Raises:
        LockHeld: another process or thread holds the lock, and ``waiting`` is None.
        OSError: the file cannot be created.
    """
    key, waited = lock.absolute(), False
    if _is_held_here(key):
        yield False
        return
    while True:
        try:
            ours = _take_flock(key) if _has_flock(key.parent) else _take_heartbeat(key)
            break
        except LockHeld:
            if waiting is None:
                raise
            if not waited:
                print(waiting, flush=True)
            waited = True
            time.sleep(_POLL_SECONDS)
    _held[key] = ours
    try:
        yield waited
    finally:
        if ours.process == os.getpid():
            del _held[key]
            ours.release()


def owner(lock: Path) -> str | None:
    """Who holds a lock file, as in the message of `LockHeld`; None if nobody does. Changes nothing."""
    try:
        if not _has_flock(lock.parent):
            known = _read_owner(lock)
            return _describe(known) if _is_alive(lock, known) else None
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe(_read_owner(lock))
    except OSError:  # usually there is no such file
        return None
    return None


def how_to_stop(lock: Path) -> str:
    """The command that ends a lock's owner, in brackets, to follow "stop it"; empty if the owner is unknown."""
    known = _read_owner(lock)
    return f" (kill {known['pid']} on {known['host']})" if known else ""


@contextlib.contextmanager
def exclusive(path: Path, waiting: str = "", *, folder: bool = False) -> Iterator[bool]:
    """Only this process may write ``path`` inside; leftovers of killed writers are removed first.

    Yields whether it had to wait; another process may then have made what this one wants. The path itself is not
    touched; its folder is created if missing.

    Args:
        path: the file or folder to write.
        waiting: message printed before waiting; by default, that another process is writing the path.
        folder: the path is a folder, which may exist and is filled further.

    Raises:
        UserError: the path cannot be written.
    """
    check_writable(path / "file" if folder else path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folder(path.parent))
            waited = stack.enter_context(_exclusive(path, waiting))
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}.") from error
        yield waited


def ensure(
    path: Path, make: Callable[[], object], *, is_good: Callable[[Path], bool] = Path.exists, waiting: str = ""
) -> bool:
    """Make ``path`` unless it exists. One process makes it; others wait and then use the result.

    Args:
        path: the file or folder wanted.
        make: creates it.
        is_good: whether an existing one is acceptable.
        waiting: see `exclusive`.

    Returns:
            Whether it was made by this call.

    Raises:
        UserError: the path cannot be written, or whatever `make` raises.
    """
    if is_good(path):
        clear_leftovers(path.parent, path.name)
        return False
    with exclusive(path, waiting):
        if is_good(path):
            return False
        make()
    return True


@contextlib.contextmanager
def making(path: Path, *, overwrite: bool) -> Iterator[bool]:
    """Like `exclusive`; yields whether to make the path, which is False if another process has just made it.

    Raises:
        UserError: the path exists and ``overwrite`` is False, or it cannot be written.
    """
    if path.is_file() and not overwrite:
        raise UserError(f"'{path}' exists; add --overwrite true to replace it.")
    with exclusive(path, f"another process is making '{path}'; waiting for it") as waited:
        yield not path.exists() or (overwrite and not waited)


@contextlib.contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A unique temporary name beside ``path``, to be moved there once complete.

    A temporary left at the end is removed; one left by a killed process is removed by the next writer of the path.

    Args:
        path: the final place.
        folder: create the temporary as an empty folder; a file is created by the caller.

    Raises:
        OSError: the folder of ``path`` is missing or not writable.
    """
    with _exclusive(path):
        place = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.tmp")
        try:
            if folder:
                place.mkdir()
            yield place
        finally:
            _remove(place)


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing; an error inside removes it again if it is still empty."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


@contextlib.contextmanager
def _exclusive(path: Path, waiting: str = "") -> Iterator[bool]:
    """`exclusive` for an existing folder. Raises OSError."""
    lock = _lock_of(path)
    entered = not _is_held_here(lock.absolute())
    with hold(lock, waiting=waiting or f"another process is writing '{path}'; waiting for it") as waited:
        if entered:
            _remove_temporaries(path)
        yield waited


def _is_held_here(lock: Path) -> bool:
    """Whether this thread holds a lock, given by its absolute path."""
    return lock in _held and _held[lock].thread == threading.get_ident()


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove locks and temporaries of dead writers from a folder; ``name``: only those of this file."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    found = {match[1] for entry in entries if (match := _LEFTOVER.fullmatch(entry))}
    for left in found if name is None else found & {_shortened(name)}:
        with contextlib.suppress(LockHeld, OSError), hold(_lock_of(folder / left)):
            _remove_temporaries(folder / left)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{_shortened(path.name)}.lock")


def _shortened(name: str) -> str:
    """A file name, shortened so that names derived from it fit the file system's limit."""
    return name if len(os.fsencode(name)) <= 200 else os.fsdecode(os.fsencode(name)[:200])


def _remove_temporaries(path: Path) -> None:
    """Remove the temporaries of a path whose lock is held: their writers are dead."""
    for entry in os.listdir(path.parent):
        if (match := _LEFTOVER.fullmatch(entry)) and match[1] == _shortened(path.name) and entry.endswith(".tmp"):
            _remove(path.with_name(entry))


def _remove(place: Path) -> None:
    """Remove a file or a folder if possible."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink()


class _Lock:
    """A lock held by this process: an open file with a flock, or a file that a thread touches."""

    def __init__(self, path: Path, identity: dict[str, Any], descriptor: int | None) -> None:
        self.path, self.identity, self.descriptor = path, identity, descriptor
        self.process, self.thread = os.getpid(), threading.get_ident()
        self._released = threading.Event()
        if descriptor is None:
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()

    def release(self) -> None:
        """Remove the file, then unlock it."""
        if self.descriptor is None:
            self._released.set()
            self._beating.join()
            if _read_owner(self.path).get("token") == self.identity["token"]:
                self.path.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.descriptor), self.path.stat()):
                self.path.unlink()
        os.close(self.descriptor)

    def _beat(self) -> None:
        """Touch the file until released; exit if another process has taken it over."""
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                known = _read_owner(self.path)
                if known and known["token"] != self.identity["token"]:
                    text = f"error: lost {self.path} to {_describe(known)} while this process was suspended\n"
                    os.write(2, text.encode())
                    os._exit(1)
                os.utime(self.path)


def _forget_after_fork() -> None:
    """In a forked child: drop the locks, which belong to the parent and must not outlive it."""
    for lock in _held.values():
        if lock.descriptor is not None:
            os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _has_flock(folder: Path) -> bool:
    """Whether a folder's file system supports locks. Raises OSError if there is no such folder."""
    if fcntl is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _take_flock(path: Path) -> _Lock:
    """Take the lock with flock. Raises LockHeld."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _flock(descriptor):
                raise LockHeld(_describe(_read_owner(path)))
            with contextlib.suppress(FileNotFoundError):
                # The previous owner removed its file; a later process may hold a new file of this name.
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    identity = _identity()
                    os.ftruncate(descriptor, 0)
                    with contextlib.suppress(OSError):  # on a full disk the owner's name is missing
                        os.pwrite(descriptor, json.dumps(identity).encode(), 0)
                    return _Lock(path, identity, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Lock an open file; False if another process has it. `owner` locks it only for a moment."""
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL_SECONDS / 5)
    return False


def _take_heartbeat(path: Path) -> _Lock:
    """Take the lock with a heartbeat file. Raises LockHeld."""
    identity = _identity()
    content = json.dumps(identity).encode()
    try:
        with open(path, "xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        known = _read_owner(path)
        if _is_alive(path, known):
            raise LockHeld(_describe(known)) from None
        replacement = path.with_name(f"{path.name.removesuffix('.lock')}.{identity['token']}.tmp")
        replacement.write_bytes(content)
        os.replace(replacement, path)
        time.sleep(_SETTLE_SECONDS)
        if (last := _read_owner(path)).get("token") != identity["token"]:
            raise LockHeld(_describe(last)) from None
    return _Lock(path, identity, None)


def _is_alive(path: Path, known: dict[str, Any]) -> bool:
    """Whether the owner named in a heartbeat file is alive. Raises OSError."""
    here = _machine_id()
    if known and here["boot"] and all(known.get(key) == value for key, value in here.items()):
        return _start_time(known["pid"]) == known.get("started")
    before, deadline = _file_state(path), time.monotonic() + STALE_SECONDS
    if path not in _watched:
        print(f"watching '{path}' for up to {STALE_SECONDS:g} s: is {_describe(known)} alive?", file=sys.stderr)
        _watched.add(path)
    while time.monotonic() < deadline:
        if _file_state(path) != before:
            return True
        time.sleep(min(0.5, STALE_SECONDS / 10))
    return False


def _file_state(path: Path) -> tuple[int, int]:
    """Modification time and inode. Opens the file, as network file systems otherwise answer from their cache."""
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
    return state.st_mtime_ns, state.st_ino


def _read_owner(path: Path) -> dict[str, Any]:
    """The owner's identity; empty if there is none yet."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"pid", "host", "token"} <= content.keys() else {}


def _describe(known: dict[str, Any]) -> str:
    if not known:
        return "another process"
    return f"process {known['pid']} on {known['host']} since {known.get('since', 'an unknown time')}"


def _identity() -> dict[str, Any]:
    """The content of a lock file."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    own = {"pid": os.getpid(), "host": platform.node(), "started": _start_time(os.getpid())}
    return own | _machine_id() | {"since": since, "token": secrets.token_hex(8)}


@functools.cache
def _machine_id() -> dict[str, str]:
    """Identifies processes that can look each other up by id; empty strings where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": "", "namespace": ""}


def _start_time(process: int) -> str | None:
    """Start time of a process on this machine, in ticks since boot, as ids are reused. None if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
