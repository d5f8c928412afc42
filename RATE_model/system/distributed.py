"""The processes that train one run together, started by torchrun: how they split the work and communicate.

    process 0    its share of every batch and evaluation; also prints, logs, saves and makes data
    process r    its share of every batch and evaluation

Decisions about the course of training are made from information that all processes share, so they stay in step. In a
single process everything here is a no-op.

There are three ways to communicate: sums of tensors, one message each; small Python objects (`gather`,
`run_in_all`); and torchrun's store, which is polled, can be waited on without a timeout (`run_on_first`), and lets a
thread forward signals, so that a signal to one process stops all of them.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from RATE_model.errors import UserError
from RATE_model.system.interrupts import SIGNALS, Interrupted, received, request, signal_name, stop_if_asked

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

JOIN_SECONDS = 50
"""How long a process waits for the others to start, and to reach process 0."""
_MESSAGE_MINUTES = 60  # timeout of a message between busy processes; waiting for process 0 alone has no limit
_LEAVE_SECONDS, _ERROR_SECONDS = 20.0, 3.0
_POLL_SECONDS = 0.05
_WATCH_SECONDS = 0.3
_STOP, _ENDED = "stop", "ended"


@dataclass
class _Group:
    """The processes of a run, as seen by one of them."""

    rank: int
    size: int
    store: Any
    watched_store: Any  # the watching thread's own connection to it, so that neither blocks the other
    turns: int = 0  # calls of `run_on_first`
    over: threading.Event = field(default_factory=threading.Event)  # set: stop forwarding signals


_group: _Group | None = None


def size() -> int:
    """Number of processes that train this run."""
    return 1 if _group is None else _group.size


def rank() -> int:
    """Index of this process, from 0."""
    return 0 if _group is None else _group.rank


def is_first() -> bool:
    """Whether this process prints, logs and saves."""
    return rank() == 0


def local_rank() -> int:
    """Index of this process on its machine."""
    return 0 if _group is None else int(os.environ.get("LOCAL_RANK", _group.rank))


def row_slice(count: int) -> slice:
    """This process's share of ``count`` rows: a contiguous slice, in order of rank, possibly empty."""
    return slice(rank() * count // size(), (rank() + 1) * count // size())


def episode_mask(count: int) -> np.ndarray:
    """Mask of this process's share of ``count`` episodes, (count,) bool.

    Neighbouring episodes (2i, 2i+1) stay together because control experiments compare them. Pairs alternate between
    processes because long episodes are often adjacent.
    """
    return np.arange(count) // 2 % size() == rank()


def process_seed(seed: int) -> int:
    """A seed for this process; process 0 keeps the given one."""
    return seed if is_first() else int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0])


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started into one group; only process 0 prints to stdout.

    Raises:
        UserError: torchrun's variables are incomplete, or the other processes do not start.
    """
    global _group
    count, number = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK")
    if number is None or count == "1" or _group is not None:
        yield
        return
    group = _join(_read_variable("RANK"), _read_variable("WORLD_SIZE"))
    watch = threading.Thread(target=_watch, args=(group, _launcher()), daemon=True)
    watch.start()
    _group = group
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if group.rank == 0 else nowhere):
            yield
    except BaseException as error:  # tell the others why: they cannot continue without this process
        group.over.set()
        if isinstance(error, KeyboardInterrupt):
            _publish(group, _STOP, signal_name(error))
        elif not isinstance(error, SystemExit) or error.code:
            _publish(group, _ENDED, f"process {group.rank} ended: {(str(error) or repr(error)).splitlines()[0]}")
        _leave(group, _ERROR_SECONDS if _hosts_store(group.rank) else 0.0)
        raise
    else:
        _leave(group, _LEAVE_SECONDS)
        _close()
    finally:
        _group = None
        group.over.set()


def _launcher() -> int | None:
    """The process id of torchrun, if it started this process."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _hosts_store(number: int) -> bool:
    """Whether this process hosts the store; usually torchrun does."""
    return number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _read_variable(name: str) -> int:
    """The value of a numeric variable that torchrun sets."""
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name}={value}: must be a number; start several processes with torchrun, which sets it")
    return int(value)


def _join(number: int, count: int) -> _Group:
    """Connect to the other processes; signals are handled while waiting."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError(f"WORLD_SIZE={count}: this PyTorch has no torch.distributed; start one process")
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented

    host, port = os.environ.get("MASTER_ADDR", ""), _read_variable("MASTER_PORT")
    who = f"process {number} of {count}"
    try:
        connection = TCPStore(
            host,
            port,
            None,
            _hosts_store(number),
            timedelta(seconds=JOIN_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:  # a network error, or an invalid host or port
        raise UserError(f"{who} cannot reach process 0 at {host}:{port}: {_first_sentence(error)}") from None
    attempt = f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store, deadline = PrefixStore(attempt, connection), time.monotonic() + JOIN_SECONDS
    again = connection.clone()  # pyright: ignore[reportAttributeAccessIssue]  its stubs lack it
    group = _Group(number, count, store, PrefixStore(attempt, again))
    with _explaining_errors(group):
        store.add("present", 1)
        while (present := store.add("present", 0)) < count:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{who}: {count - present} of them did not start within {JOIN_SECONDS} s; check their output, and "
                    "that all were launched"
                )
            stop_if_asked()
            time.sleep(_POLL_SECONDS)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("messages", store),
            rank=number,
            world_size=count,
            timeout=timedelta(minutes=_MESSAGE_MINUTES),
        )
    return group


def _watch(group: _Group, launcher: int | None) -> None:
    """In a thread: forward signals between processes; stop when the launcher is gone."""
    store = group.watched_store
    while not group.over.wait(_WATCH_SECONDS):
        asked, name = received(), None
        try:
            if asked:
                store.set(_STOP, asked)
                return
            if store.check([_STOP]):
                name = store.get(_STOP).decode()
        except RuntimeError:  # the process that hosts the store is gone
            name = "SIGTERM"
        if name is None and launcher is not None and os.getppid() != launcher:
            name = "SIGTERM"
        if name is not None and not group.over.is_set():
            request(name)
            return


def _leave(group: _Group, seconds: float) -> None:
    """Wait briefly for the others: closing a connection while they send a message is an error for them.

    Process 0 leaves last: without a launcher it hosts the store.
    """
    deadline = time.monotonic() + seconds
    with suppress(RuntimeError):
        _wait_for_all(group, "leaving", group.size, deadline)
        group.over.set()
        if group.rank:
            group.store.add("gone", 1)
        else:
            _wait_for_all(group, "gone", group.size, deadline)


def _wait_for_all(group: _Group, key: str, goal: int, deadline: float) -> None:
    """Increment a counter in the store and wait until all processes have."""
    group.store.add(key, 1)
    while group.store.add(key, 0) < goal and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _close() -> None:
    """Close the connections; after an error they are closed when the process exits."""
    import torch.distributed as dist

    with suppress(RuntimeError):
        dist.destroy_process_group()


def _publish(group: _Group, key: str, text: str) -> None:
    with suppress(RuntimeError):
        group.store.set(key, text)


@contextmanager
def _explaining_errors(group: _Group) -> Iterator[None]:
    """Turn a communication error into one that says which process ended and, if known, why."""
    try:
        yield
    except RuntimeError as error:
        stop_if_asked()  # a signal may be the cause
        raise _lost_process(group, error) from error


def _lost_process(group: _Group, error: Exception | None = None) -> UserError:
    """The error for a lost process."""
    reason = ""
    with suppress(RuntimeError):
        for _ in range(10):  # it may be about to report why
            if group.store.check([_ENDED]):
                reason = group.store.get(_ENDED).decode()
                break
            time.sleep(_POLL_SECONDS)
    reason = (
        reason
        or f"another process was killed or cannot be reached ({_first_sentence(error) if error else 'no answer'})"
    )
    return UserError(f"process {group.rank} of {group.size} stops: {reason}; continue with --resume auto")


def _first_sentence(error: Exception) -> str:
    """The first sentence of a network error, which may be pages long."""
    return str(error).splitlines()[0].split(". ")[0][:200]


def gather(value: Result) -> list[Result]:
    """Collect one value from every process, in order of rank; all processes get the list."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _group.size
    with _explaining_errors(_group):
        dist.all_gather_object(values, value)
    return values


class _AgreedInterruption(Interrupted):
    """An interruption that all processes know about."""


def run_in_all(work: Callable[[], Result]) -> list[Result]:
    """Run ``work`` in every process and collect the results.

    A signal that interrupts it in one process interrupts it in all, so that no process waits for one that has left.
    Calls may be nested; ``work`` may not communicate in any other way.

    Raises:
        Interrupted: in all processes, if raised in any.
    """
    if _group is None:
        return [work()]
    name, result = "", cast(Result, None)  # the result of an interrupted process is never used
    try:
        result = work()
    except _AgreedInterruption:
        raise
    except Interrupted as interruption:
        name = interruption.name
    outcomes = gather((name, result))
    if interrupted := [name for name, _ in outcomes if name]:
        _group.over.set()  # all know about it now
        raise _AgreedInterruption(interrupted[0])
    return [result for _, result in outcomes]


def run_on_first(work: Callable[[], Result]) -> Result:
    """Run ``work`` in process 0 only, as if there were no others, and return its result in all; there is no time limit.

    The result goes through the store, so it must be small.
    """
    global _group
    if (group := _group) is None:
        return work()
    group.turns += 1
    key = f"first/{group.turns}"
    if group.rank == 0:
        _group = None
        try:
            result = work()
        finally:
            _group = group
        with _explaining_errors(group):
            group.store.set(key, pickle.dumps(result))
        return result
    with _explaining_errors(group):
        while not group.store.check([key]):  # a recorded signal waits too: process 0 may be saving
            if group.store.check([_ENDED]):
                raise _lost_process(group)
            time.sleep(_POLL_SECONDS)
        return pickle.loads(group.store.get(key))


def run_first_then_rest(work: Callable[[], Result]) -> Result:
    """Run ``work`` in process 0 first, then in the others, which find the files that it made.

    Each runs it as if there were no other processes.
    """
    global _group
    if (group := _group) is None:
        return work()
    kept: list[Result] = []
    run_on_first(lambda: kept.append(work()))
    if group.rank == 0:
        return kept[0]
    _group = None
    try:
        return work()
    finally:
        _group = group


def sum_tensor(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place; bit-identical in all of them."""
    if _group is not None:
        import torch.distributed as dist

        with _explaining_errors(_group):
            dist.all_reduce(tensor)
    return tensor


def sum_integers(numbers: Sequence[int]) -> list[int]:
    """Sums of integers over all processes."""
    if _group is None:
        return list(numbers)
    import torch

    return sum_tensor(torch.tensor(numbers, dtype=torch.int64)).tolist()


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with those of process 0."""
    if _group is None:
        return
    import torch.distributed as dist

    with _explaining_errors(_group):
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_process(mine: bool) -> bool:
    """Whether the condition holds in any process."""
    return mine if _group is None else sum_integers([mine]) != [0]


def signal_in_any(mine: str | None) -> str | None:
    """The name of a signal received by any process, or None; the same in all processes."""
    if _group is None:
        return mine
    counts = sum_integers([mine == name for name in SIGNALS])
    found = next((name for name, count in zip(SIGNALS, counts, strict=True) if count), None)
    if found is not None:
        _group.over.set()  # all know about it now
    return found


def check_same(flags: dict[str, Any]) -> None:
    """Raise `UserError` in all processes if their flags differ."""
    first, *others = gather(flags)
    for number, other in enumerate(others, 1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise UserError(
                    f"--{name} is {first.get(name)} in process 0 but {other.get(name)} in process {number}: start all "
                    "processes with the same flags"
                )
