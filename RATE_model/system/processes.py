"""Work in processes of their own: how many, started and ended cleanly."""

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

# Between being told to stop and being ended, for a process.
_SECONDS_TO_TIDY_UP = 3.0


def available_cores() -> int:
    """Cores that this process may use; those of a machine are divided among the processes that torchrun starts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(beside))) if beside.isdecimal() else cores


def is_no_file(path: Path) -> bool:
    """Whether ``path`` is there and is written to rather than replaced: a device, a pipe, or a name of an open file."""
    if not os.path.exists(path) or os.path.isdir(path):
        return False
    return not os.path.isfile(path) or re.match(r"/dev/(stdout|stderr|fd/)|/proc/", os.path.abspath(path)) is not None


def check_writable(path: Path) -> None:
    """Raise a `UserError` where no file can be made, before minutes are spent on it. Nothing is created."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is not writable" if folder.is_dir() else "is not a directory"
        raise UserError(
            f"cannot write '{path}': '{folder}' {problem}; name another folder (--data_dir, --data_path or --output)."
        )
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a directory.")
    if is_no_file(path):
        raise UserError(f"cannot write '{path}': it is a device or a pipe; give the name of a file.")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result]:
    """Results of all tasks, in the order in which they are done; with one worker, in this process.

    Processes are spawned, not forked: the threads of torch and of a progress bar do not survive a fork. Signals are for
    this process. Left early, the iterator drops the tasks that are not done.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        tasks: its arguments.
        workers: processes; no more are started than there are tasks.

    Raises:
        UserError: a process was killed or could not start.
        Exception: what ``work`` raises.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    with _pool(workers) as pool:
        for done in as_completed([pool.submit(work, task) for task in tasks]):
            yield done.result()


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, *, ahead: int = 4
) -> Generator[Result]:
    """As `in_processes`, but results come in the order of the tasks, and there may be tasks without end.

    Args:
        work, workers: as there.
        tasks: taken from as results are; with processes, at most ``ahead`` tasks per process more than that.
        ahead: tasks per process that are begun or done before their results are asked for.
    """
    if workers <= 1:
        yield from map(work, tasks)
        return
    tasks = iter(tasks)
    with _pool(workers) as pool:
        waiting = deque(pool.submit(work, task) for task in itertools.islice(tasks, ahead * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, task) for task in itertools.islice(tasks, 1))


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that wait for work, ended at the end; amid their tasks when whoever uses them leaves early."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, begin_worker, (theirs,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, or could not start; with --workers 1 none is needed") from error
    except (KeyboardInterrupt, GeneratorExit):
        ours.send_bytes(b"stop")
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        theirs.close()
        ours.close()


def begin_worker(stop: multiprocessing.connection.Connection | None = None) -> None:
    """In a process of `multiprocessing`: leave signals to the parent, and end when it ends, even when it is killed.

    Args:
        stop: something to read there, by any number of processes, means that they are to stop: what runs gets the
            chance to remove its temporary files.
    """
    for name in SIGNALS:  # often sent to all processes of a job, of which the parent alone knows what to save
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if stop is not None:
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(1))  # nothing has begun that is to be tidied up
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process that was started"
    alive = parent.sentinel

    def follow() -> None:
        ready = multiprocessing.connection.wait([alive, *([] if stop is None else [stop])])
        if alive not in ready:
            os.kill(os.getpid(), signal.SIGALRM)
            multiprocessing.connection.wait([alive], _SECONDS_TO_TIDY_UP)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if stop is not None:
        keep_raising()
        signal.signal(signal.SIGALRM, _leave)


class _Leave(RaisedBySignal, SystemExit):
    """Which `multiprocessing` takes without a traceback."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.code = 128 + signal.Signals[name]


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Leave(signal.Signals(number).name)
