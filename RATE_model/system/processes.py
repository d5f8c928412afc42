"""Worker processes: how many to use, and how to start and end them cleanly."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType
from typing import TypeVar

from RATE_model.errors import UserError
from RATE_model.system.interrupts import SIGNALS, RaisedBySignal, keep_raising

Task = TypeVar("Task")
Result = TypeVar("Result")

# Time a process has between being asked to stop and being killed.
_SECONDS_TO_TIDY_UP = 3.0


def available_cores() -> int:
    """Cores this process may use; torchrun's processes on one machine share its cores evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(beside))) if beside.isdecimal() else cores


def is_special_file(path: Path) -> bool:
    """Whether ``path`` exists but is written to rather than replaced: a device, a pipe or /dev/stdout."""
    if not os.path.exists(path) or os.path.isdir(path):
        return False
    return not os.path.isfile(path) or re.match(r"/dev/(stdout|stderr|fd/)|/proc/", os.path.abspath(path)) is not None


def check_writable(path: Path) -> None:
    """Raise `UserError` if no file can be created at ``path``, before minutes are spent on it. Creates nothing."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is not writable" if folder.is_dir() else "is not a directory"
        raise UserError(
            f"cannot write '{path}': '{folder}' {problem}; name another folder (--data_dir, --data_path or --output)."
        )
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a directory.")
    if is_special_file(path):
        raise UserError(f"cannot write '{path}': it is a device or a pipe; give the name of a file.")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result]:
    """Yield the results of all tasks in order of completion; with one worker, run them in this process.

    Processes are spawned, not forked: the threads of torch and of a progress bar do not survive a fork. Only this
    process handles signals. Closing the iterator early drops unfinished tasks.

    Args:
        work: a module-level function, or a `functools.partial` of one.
        tasks: its arguments.
        workers: number of processes; at most one per task is started.

    Raises:
        UserError: a process was killed or could not start.
        Exception: whatever ``work`` raises.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    with _pool(workers) as pool:
        for done in as_completed([pool.submit(_busy_with, work, task) for task in tasks]):
            yield done.result()


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, *, ahead: int = 4
) -> Generator[Result]:
    """Like `in_processes`, but yields results in the order of the tasks, which may be endless.

    Args:
        work, workers: see `in_processes`.
        tasks: consumed lazily; with processes, at most ``ahead`` per process ahead of the results.
        ahead: tasks per process that are started before their results are requested.
    """
    if workers <= 1:
        yield from map(work, tasks)
        return
    tasks = iter(tasks)
    with _pool(workers) as pool:
        waiting = deque(pool.submit(_busy_with, work, task) for task in itertools.islice(tasks, ahead * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_busy_with, work, task) for task in itertools.islice(tasks, 1))


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A process pool; its workers are interrupted if the caller leaves early."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, begin_worker, (theirs,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed or could not start; use --workers 1 to do without") from error
    except (KeyboardInterrupt, GeneratorExit):
        ours.send_bytes(b"stop")
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        theirs.close()
        ours.close()


def begin_worker(stop: multiprocessing.connection.Connection | None = None) -> None:
    """In a worker process: leave signals to the parent, and exit when the parent does, even if it is killed.

    Args:
        stop: data to read on this connection, shared by any number of processes, asks them to stop; running work can
            still remove its temporary files.
    """
    for name in SIGNALS:  # often sent to all processes of a job, but only the parent knows what to save
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if stop is not None:
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(1))  # nothing to clean up yet
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process that was started"
    alive = parent.sentinel

    def follow() -> None:
        ready = multiprocessing.connection.wait([alive, *([] if stop is None else [stop])])
        if alive not in ready:
            os.kill(os.getpid(), signal.SIGALRM)
            if not multiprocessing.connection.wait([alive], _SECONDS_TO_TIDY_UP) and not _busy:
                multiprocessing.connection.wait([alive])  # it may be sending; the pool ends it
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if stop is not None:
        keep_raising()
        signal.signal(signal.SIGALRM, _leave)


class _Leave(RaisedBySignal, SystemExit):
    """Taken by `multiprocessing` without a traceback."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.code = 128 + signal.Signals[name]


# Whether this worker process is at work on a task, and whether it has been asked to stop.
_busy = _asked = False


def _busy_with(work: Callable[[Task], Result], task: Task) -> Result:
    """``work(task)``, in a worker."""
    global _busy
    try:
        _busy = True
        if _asked:
            raise _Leave("SIGALRM")
        return work(task)
    finally:
        _busy = False


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave the task. Between tasks, the worker may be halfway through a message that the other end of the pipe waits
    for. So it carries on: `_busy_with` refuses further tasks, and the pool's closing message ends the worker."""
    global _asked
    _asked = True
    if _busy:
        raise _Leave(signal.Signals(number).name)
