"""One process at a time: locks that die with their process, and temporary files that the next maker clears away.

A lock is a file whose content names its owner. The operating system holds it (flock) and releases it when the process
ends, whatever ends it; process ids play no part, so that containers that share a disk exclude each other.

Where a file system has no locks (some NFS, Lustre and FUSE mounts; Windows), the file itself is the lock: it is made by
an exclusive create and its owner touches it every `BEAT_SECONDS`. An owner on the same machine and in the same process
namespace is looked up; any other one counts as dead when its file has not changed while it was watched for
`STALE_SECONDS`. An owner that was suspended for longer, and has lost its lock to another, ends at once.
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

fcntl: Any = None  # of Windows
with contextlib.suppress(ImportError):
    import fcntl

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 1.0  # two that take over from the same dead owner both see, after this, who came last
_LEFTOVER = re.compile(r"\.(.+)\.(?:lock|\w+\.tmp)")  # of a lock, or of a temporary file

_held: dict[Path, _Lock] = {}  # of this process, by absolute path
_watched: set[Path] = set()  # said once


class Held(Exception):
    """Another process holds a lock. The message names it: "process 12 on HOST since 2026-01-01 12:00:00 UTC"."""


@contextlib.contextmanager
def hold(lock: Path, *, waiting: str | None = None) -> Iterator[bool]:
    """Hold a lock file; gives whether another held it first. A thread that holds it already passes.

    Args:
        lock: the file; it is there while the lock is held. One that a killed process left behind locks nothing.
        waiting: printed once before a wait; None: do not wait.

    Raises:
        Held: another process, or another thread of this one, holds it, and ``waiting`` is None.
        OSError: the file cannot be made.
    """
    key, waited = lock.absolute(), False
    if _is_ours(key):
        yield False
        return
    while True:
        try:
            ours = _take_flock(key) if _has_flock(key.parent) else _take_heartbeat(key)
            break
        except Held:
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
    """Who holds a lock file, as `Held` says it; None if nobody does. Nothing is created or changed."""
    try:
        if not _has_flock(lock.parent):
            known = _read(lock)
            return _described(known) if _is_alive(lock, known) else None
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _described(_read(lock))
    except OSError:  # most often there is no such file
        return None
    return None


@contextlib.contextmanager
def only_one(path: Path, waiting: str = "", *, folder: bool = False) -> Iterator[bool]:
    """Inside, this process alone makes ``path``; what killed makers of it left beside it was removed.

    Gives whether it had to wait, which may mean that the other one has made what this one wants. The path itself is
    not touched; its folder is made if it is missing.

    Args:
        path: what is made inside.
        waiting: printed before a wait; by default that another process is writing the path.
        folder: the path is a folder, which may be there, and goes on being filled.

    Raises:
        UserError: the path cannot be written.
    """
    check_writable(path / "file" if folder else path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folder(path.parent))
            waited = stack.enter_context(_alone(path, waiting))
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}.") from error
        yield waited


def ensure(
    path: Path, make: Callable[[], object], *, is_good: Callable[[Path], bool] = Path.exists, waiting: str = ""
) -> bool:
    """Have ``path`` made unless it is there: by one process, for which others wait and then use what it made.

    Args:
        path: what is wanted.
        make: makes it.
        is_good: whether what is there is what is wanted.
        waiting: see `only_one`.

    Returns:
        Whether it was made now.

    Raises:
        UserError: the path cannot be written, or what `make` raises.
    """
    if is_good(path):
        clear_leftovers(path.parent, path.name)
        return False
    with only_one(path, waiting):
        if is_good(path):
            return False
        make()
    return True


@contextlib.contextmanager
def making(path: Path, *, overwrite: bool) -> Iterator[bool]:
    """As `only_one`; gives whether the path is to be made: not where another process has just made it.

    Raises:
        UserError: the path exists and is not to be replaced, or cannot be written.
    """
    if path.is_file() and not overwrite:
        raise UserError(f"'{path}' exists; add --overwrite true to replace it.")
    with only_one(path, f"another process is making '{path}'; waiting for it") as waited:
        yield not path.exists() or (overwrite and not waited)


@contextlib.contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A name beside ``path``, no other process's, for what is to be moved there when it is complete.

    What is still there at the end is removed; what a killed process leaves, the next maker of the path removes.

    Args:
        path: the final place.
        folder: make the temporary as an empty folder; a file is left to the caller.

    Raises:
        OSError: the folder of ``path`` is missing or cannot be written to.
    """
    with _alone(path):
        place = path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.tmp")
        try:
            if folder:
                place.mkdir()
            yield place
        finally:
            _remove(place)


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """A folder, made if it is missing; an error inside removes it again if nothing was put there."""
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
def _alone(path: Path, waiting: str = "") -> Iterator[bool]:
    """`only_one` where the folder is there. Raises OSError."""
    lock = _lock_of(path)
    entered = not _is_ours(lock.absolute())
    with hold(lock, waiting=waiting or f"another process is writing '{path}'; waiting for it") as waited:
        if entered:
            _remove_temporaries(path)
        yield waited


def _is_ours(lock: Path) -> bool:
    """Whether this very thread holds a lock, given by its absolute path."""
    return lock in _held and _held[lock].thread == threading.get_ident()


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the locks and temporaries of makers that are dead from a folder; ``name``: only those of this file."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    found = {match[1] for entry in entries if (match := _LEFTOVER.fullmatch(entry))}
    for left in found if name is None else found & {_short(name)}:
        with contextlib.suppress(Held, OSError), hold(_lock_of(folder / left)):
            _remove_temporaries(folder / left)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{_short(path.name)}.lock")


def _short(name: str) -> str:
    """A file's name, shortened so that one made of it is not too long for a file system."""
    return name if len(os.fsencode(name)) <= 200 else os.fsdecode(os.fsencode(name)[:200])


def _remove_temporaries(path: Path) -> None:
    """Those of a path whose lock is held: their makers are dead."""
    for entry in os.listdir(path.parent):
        if (match := _LEFTOVER.fullmatch(entry)) and match[1] == _short(path.name) and entry.endswith(".tmp"):
            _remove(path.with_name(entry))


def _remove(place: Path) -> None:
    """Remove a file or a folder, if it can be and is there."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink()


class _Lock:
    """A lock that this process holds: an open file with a flock, or a file that is touched by a thread."""

    def __init__(self, path: Path, identity: dict[str, Any], descriptor: int | None) -> None:
        self.path, self.identity, self.descriptor = path, identity, descriptor
        self.process, self.thread = os.getpid(), threading.get_ident()
        self._released = threading.Event()
        if descriptor is None:
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()

    def release(self) -> None:
        """Remove the file, then let go of it."""
        if self.descriptor is None:
            self._released.set()
            self._beating.join()
            if _read(self.path).get("token") == self.identity["token"]:
                self.path.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.descriptor), self.path.stat()):
                self.path.unlink()
        os.close(self.descriptor)

    def _beat(self) -> None:
        """Until the release: touch the file; end this process if it has become another's."""
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                known = _read(self.path)
                if known and known["token"] != self.identity["token"]:
                    text = f"error: lost {self.path} to {_described(known)} while this process was suspended\n"
                    os.write(2, text.encode())
                    os._exit(1)
                os.utime(self.path)


def _forget_after_fork() -> None:
    """In a forked child: the locks are the parent's alone, and must not outlive it."""
    for lock in _held.values():
        if lock.descriptor is not None:
            os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _has_flock(folder: Path) -> bool:
    """Whether the file system of a folder has locks. Raises OSError if there is no such folder."""
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
    """Raises Held."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _flock(descriptor):
                raise Held(_described(_read(path)))
            with contextlib.suppress(FileNotFoundError):
                # The owner before took its file away; whoever came since then holds another one of this name.
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    identity = _identity()
                    os.ftruncate(descriptor, 0)
                    with contextlib.suppress(OSError):  # on a full disk its owner has no name
                        os.pwrite(descriptor, json.dumps(identity).encode(), 0)
                    return _Lock(path, identity, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Lock an open file, unless another has; one who only looks (`owner`) has it for a moment."""
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL_SECONDS / 5)
    return False


def _take_heartbeat(path: Path) -> _Lock:
    """Raises Held."""
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
        known = _read(path)
        if _is_alive(path, known):
            raise Held(_described(known)) from None
        replacement = path.with_name(f"{path.name.removesuffix('.lock')}.{identity['token']}.tmp")
        replacement.write_bytes(content)
        os.replace(replacement, path)
        time.sleep(_SETTLE_SECONDS)
        if (last := _read(path)).get("token") != identity["token"]:
            raise Held(_described(last)) from None
    return _Lock(path, identity, None)


def _is_alive(path: Path, known: dict[str, Any]) -> bool:
    """Whether the owner that a lock file names is alive, where the file itself is the lock. Raises OSError."""
    here = _machine()
    if known and here["boot"] and all(known.get(key) == value for key, value in here.items()):
        return _started(known["pid"]) == known.get("started")
    before, deadline = _changed(path), time.monotonic() + STALE_SECONDS
    if path not in _watched:
        print(f"watching '{path}' for up to {STALE_SECONDS:g} s: is {_described(known)} alive?", file=sys.stderr)
        _watched.add(path)
    while time.monotonic() < deadline:
        if _changed(path) != before:
            return True
        time.sleep(min(0.5, STALE_SECONDS / 10))
    return False


def _changed(path: Path) -> tuple[int, int]:
    """Opened, as network file systems answer from memory otherwise."""
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
    return state.st_mtime_ns, state.st_ino


def _read(path: Path) -> dict[str, Any]:
    """The owner's identity; empty where there is none, or not yet."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"pid", "host", "token"} <= content.keys() else {}


def _described(known: dict[str, Any]) -> str:
    if not known:
        return "another process"
    return f"process {known['pid']} on {known['host']} since {known.get('since', 'an unknown time')}"


def _identity() -> dict[str, Any]:
    """What a lock file holds."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    own = {"pid": os.getpid(), "host": platform.node(), "started": _started(os.getpid())}
    return own | _machine() | {"since": since, "token": secrets.token_hex(8)}


@functools.cache
def _machine() -> dict[str, str]:
    """What is the same for processes that can look each other up by id; empty texts where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": "", "namespace": ""}


def _started(process: int) -> str | None:
    """When a process of this machine started, in ticks since the boot: ids are used again. None if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
