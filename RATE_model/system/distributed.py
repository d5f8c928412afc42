"""Processes that train one run together, as torchrun starts them: who does what, and what they tell each other.

    process 0    its part of every batch and of every evaluation; prints, logs, saves, makes data
    process r    its part of every batch and of every evaluation

Whatever decides how training goes on is decided from what all of them know, so that they stay in step. In one process
everything here does nothing and costs nothing.

Three ways to talk, by what they are for: sums of tensors, in one message each; small Python objects (`gather`,
`together`); and torchrun's store, which is asked from time to time and can be waited for without an end
(`by_first`, and a thread that passes signals on: one that reaches a single process stops all of them).
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
"""A process waits so long for the others to start, and for the first of them to be reached."""
_MESSAGE_MINUTES = 60  # between processes that are at work; waiting for process 0 alone has no limit
_LEAVE_SECONDS, _ERROR_SECONDS = 20.0, 3.0
_POLL_SECONDS = 0.05
_WATCH_SECONDS = 0.3
_STOP, _ENDED = "stop", "ended"


@dataclass
class _Group:
    """The processes of a run, as one of them sees it."""

    rank: int
    size: int
    store: Any
    watched_store: Any  # the same over a connection of its own, for the thread: neither waits for the other
    turns: int = 0  # of `by_first`
    over: threading.Event = field(default_factory=threading.Event)  # signals are passed on no more


_group: _Group | None = None


def size() -> int:
    """How many processes train this run together."""
    return 1 if _group is None else _group.size


def rank() -> int:
    """This process's number among them, from 0."""
    return 0 if _group is None else _group.rank


def is_first() -> bool:
    """Whether this process is the one that prints, logs and saves."""
    return rank() == 0


def local_rank() -> int:
    """This process's number among those of its machine."""
    return 0 if _group is None else int(os.environ.get("LOCAL_RANK", _group.rank))


def part(count: int) -> slice:
    """This process's part of this many rows: consecutive ones, in the order of the processes, maybe none."""
    return slice(rank() * count // size(), (rank() + 1) * count // size())


def pairs(count: int) -> np.ndarray:
    """This process's part of this many episodes, (count,) bool.

    Pairs of neighbours stay together, as control experiments compare them; pairs take turns, as long episodes often lie
    side by side.
    """
    return np.arange(count) // 2 % size() == rank()


def own_seed(seed: int) -> int:
    """A seed of this process's own; the first has the one that is given."""
    return seed if is_first() else int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0])


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun started are one group; only the first one's prints are seen.

    Raises:
        UserError: its variables are not complete, or the other processes do not come.
    """
    global _group
    count, number = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK")
    if number is None or count == "1" or _group is not None:
        yield
        return
    group = _join(_variable("RANK"), _variable("WORLD_SIZE"))
    watch = threading.Thread(target=_watch, args=(group, _launcher()), daemon=True)
    watch.start()
    _group = group
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if group.rank == 0 else nowhere):
            yield
    except BaseException as error:  # the others are told why: they cannot go on without this process
        group.over.set()
        if isinstance(error, KeyboardInterrupt):
            _tell(group, _STOP, signal_name(error))
        elif not isinstance(error, SystemExit) or error.code:
            _tell(group, _ENDED, f"process {group.rank} ended: {(str(error) or repr(error)).splitlines()[0]}")
        _leave(group, _ERROR_SECONDS if _keeps_store(group.rank) else 0.0)
        raise
    else:
        _leave(group, _LEAVE_SECONDS)
        _close()
    finally:
        _group = None
        group.over.set()


def _launcher() -> int | None:
    """The process id of torchrun, if it has started this process."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _keeps_store(number: int) -> bool:
    """Whether a process keeps the store for all; most often torchrun does."""
    return number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _variable(name: str) -> int:
    """A number that torchrun gives."""
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name}={value}: must be a number; start several processes with torchrun, which sets it")
    return int(value)


def _join(number: int, count: int) -> _Group:
    """Find the other processes; signals are obeyed meanwhile."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError(f"WORLD_SIZE={count}: this PyTorch has no torch.distributed; start one process")
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented

    host, port = os.environ.get("MASTER_ADDR", ""), _variable("MASTER_PORT")
    who = f"process {number} of {count}"
    try:
        connection = TCPStore(
            host,
            port,
            None,
            _keeps_store(number),
            timedelta(seconds=JOIN_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:  # of the network, or of a name or a number
        raise UserError(f"{who} cannot reach process 0 at {host}:{port}: {_line(error)}") from None
    attempt = f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store, deadline = PrefixStore(attempt, connection), time.monotonic() + JOIN_SECONDS
    again = connection.clone()  # pyright: ignore[reportAttributeAccessIssue]  its stubs lack it
    group = _Group(number, count, store, PrefixStore(attempt, again))
    with _in_touch(group):
        store.add("present", 1)
        while (present := store.add("present", 0)) < count:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{who}: {count - present} of them did not come within {JOIN_SECONDS} s; see what they say, or "
                    "whether all were started"
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
    """In a thread: pass signals on between processes; when the launcher is gone, stop as if it had said so."""
    store = group.watched_store
    while not group.over.wait(_WATCH_SECONDS):
        asked, name = received(), None
        try:
            if asked:
                store.set(_STOP, asked)
                return
            if store.check([_STOP]):
                name = store.get(_STOP).decode()
        except RuntimeError:  # whoever keeps the store is gone
            name = "SIGTERM"
        if name is None and launcher is not None and os.getppid() != launcher:
            name = "SIGTERM"
        if name is not None and not group.over.is_set():
            request(name)
            return


def _leave(group: _Group, seconds: float) -> None:
    """Wait a little for the others: a connection that is closed while a message is under way is an error to them.

    The first process goes last: without a launcher it keeps the store.
    """
    deadline = time.monotonic() + seconds
    with suppress(RuntimeError):
        _count_up(group, "leaving", group.size, deadline)
        group.over.set()
        if group.rank:
            group.store.add("gone", 1)
        else:
            _count_up(group, "gone", group.size, deadline)


def _count_up(group: _Group, key: str, goal: int, deadline: float) -> None:
    """Count this process among those that have come to some point, and wait for the others."""
    group.store.add(key, 1)
    while group.store.add(key, 0) < goal and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _close() -> None:
    """Close the connections; after an error they end with the process."""
    import torch.distributed as dist

    with suppress(RuntimeError):
        dist.destroy_process_group()


def _tell(group: _Group, key: str, text: str) -> None:
    with suppress(RuntimeError):
        group.store.set(key, text)


@contextmanager
def _in_touch(group: _Group) -> Iterator[None]:
    """An error of a message becomes one that says which process ended, and why, where that is known."""
    try:
        yield
    except RuntimeError as error:
        stop_if_asked()  # that may be why
        raise _lost(group, error) from error


def _lost(group: _Group, error: Exception | None = None) -> UserError:
    """What is said where another process is gone."""
    reason = ""
    with suppress(RuntimeError):
        for _ in range(10):  # it may be about to say why
            if group.store.check([_ENDED]):
                reason = group.store.get(_ENDED).decode()
                break
            time.sleep(_POLL_SECONDS)
    reason = reason or f"another process was killed or cannot be reached ({_line(error) if error else 'no answer'})"
    return UserError(f"process {group.rank} of {group.size} stops: {reason}; continue with --resume auto")


def _line(error: Exception) -> str:
    """The first sentence of an error of the network, which may have pages."""
    return str(error).splitlines()[0].split(". ")[0][:200]


def gather(value: Result) -> list[Result]:
    """A value of every process, in their order, in all of them."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _group.size
    with _in_touch(_group):
        dist.all_gather_object(values, value)
    return values


class _Agreed(Interrupted):
    """An interruption that all processes know of."""


def together(work: Callable[[], Result]) -> list[Result]:
    """What `work` gives in every process.

    A signal that interrupts it in one process, or in several at different places, interrupts it in all: none waits for
    what another has left. `together` may be nested; inside, processes talk in no other way.

    Raises:
        Interrupted: in all processes, if it was raised in any.
    """
    if _group is None:
        return [work()]
    name, result = "", cast(Result, None)  # of a process that was interrupted nobody looks at it
    try:
        result = work()
    except _Agreed:
        raise
    except Interrupted as interruption:
        name = interruption.name
    outcomes = gather((name, result))
    if interrupted := [name for name, _ in outcomes if name]:
        _group.over.set()  # all know
        raise _Agreed(interrupted[0])
    return [result for _, result in outcomes]


def by_first(work: Callable[[], Result]) -> Result:
    """What `work` gives in the first process, in all; it does it alone, as if there were no others, for any time.

    It must not be large: it goes through the store.
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
        with _in_touch(group):
            group.store.set(key, pickle.dumps(result))
        return result
    with _in_touch(group):
        while not group.store.check([key]):  # a signal that is only noted waits as well: process 0 may be saving
            if group.store.check([_ENDED]):
                raise _lost(group)
            time.sleep(_POLL_SECONDS)
        return pickle.loads(group.store.get(key))


def first_before_others(work: Callable[[], Result]) -> Result:
    """What `work` gives in each process, which the first does before the others begin: files that it makes are there.

    Each does it as if there were no others.
    """
    global _group
    if (group := _group) is None:
        return work()
    kept: list[Result] = []
    by_first(lambda: kept.append(work()))
    if group.rank == 0:
        return kept[0]
    _group = None
    try:
        return work()
    finally:
        _group = group


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same bits in all of them, in its own memory."""
    if _group is not None:
        import torch.distributed as dist

        with _in_touch(_group):
            dist.all_reduce(tensor)
    return tensor


def totals(numbers: Sequence[int]) -> list[int]:
    """Sums over all processes."""
    if _group is None:
        return list(numbers)
    import torch

    return add_up(torch.tensor(numbers, dtype=torch.int64)).tolist()


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if _group is None:
        return
    import torch.distributed as dist

    with _in_touch(_group):
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_of(mine: bool) -> bool:
    """Whether something holds in any process."""
    return mine if _group is None else totals([mine]) != [0]


def signal_anywhere(mine: str | None) -> str | None:
    """The name of a signal that any process was sent, given this one's; the same in all processes."""
    if _group is None:
        return mine
    counts = totals([mine == name for name in SIGNALS])
    found = next((name for name, count in zip(SIGNALS, counts, strict=True) if count), None)
    if found is not None:
        _group.over.set()  # all know
    return found


def check_same(flags: dict[str, Any]) -> None:
    """Raise `UserError`, in all processes, where they were started with different flags."""
    first, *others = gather(flags)
    for number, other in enumerate(others, 1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise UserError(
                    f"--{name} is {first.get(name)} in process 0 and {other.get(name)} in process {number}: start all "
                    "with the same flags"
                )
