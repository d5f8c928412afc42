"""Loader processes that assemble batches, with their failures reported in the training process.

Torch's loader passes batches in shared memory from a thread whose errors are lost, so the training process would wait
forever. Here a batch is moved to shared memory before that thread gets it, an error is returned in its place, and a
process that cannot send one exits, which the loader notices.
"""

from __future__ import annotations

import multiprocessing.queues
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset

from RATE_model.errors import UserError, error_reason

_SECONDS_TO_LEARN = 1.0
_HANDLES_OF_A_WORKER = 4  # file handles that the training process opens per worker
_HANDLES_OF_A_BATCH = 8  # one per array


# Torch's messages when a process has ended or cannot be reached.
_FAILURES = ("DataLoader worker", "Too many open files", "received 0 items of ancdata")


class TooFewResources(UserError):
    """The machine lacks shared memory, file handles or processes."""


class DatasetInWorker(Dataset):
    """A dataset of whole batches, for use in a loader process: errors become values."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """The batch in shared memory, or the `UserError` that explains why there is none."""
        try:
            batch = self._dataset.__getitems__(indices)
        except UserError as error:
            return UserError(str(error))  # without its causes, which may not be picklable
        try:
            return batch.share_memory_()
        except (OSError, RuntimeError) as error:
            return TooFewResources(_first_sentence(error))


def begin_worker(_: int) -> None:
    """In a new loader process: exit if a batch cannot be sent, with the error number as exit code."""

    def cannot_send(error: BaseException, _: Any) -> None:
        os._exit(getattr(error, "errno", None) or 1)

    # Private, so not in typeshed.
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(cannot_send)


def worker_batches(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader whose dataset is `DatasetInWorker`.

    Raises:
        TooFewResources: processes cannot be started, would run out of file handles, or find no shared memory.
        UserError: raised by the dataset, or a process has ended.
    """
    _check_file_handles(loader)
    try:
        batches: Any = iter(loader)
    except OSError as error:
        raise TooFewResources(f"a process cannot be started: {error_reason(error)}") from error
    try:
        while (item := next(batches, None)) is not None:
            if isinstance(item, UserError):
                raise item
            yield item
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # a batch from a process that has ended
        time.sleep(_SECONDS_TO_LEARN)  # torch interrupts this once it learns how the process ended
        raise _ended("it does not answer") from error
    finally:
        batches._shutdown_workers()  # now: an error's traceback would keep the iterator, and its processes, alive


def _check_file_handles(loader: DataLoader) -> None:
    """Raise `TooFewResources` if batches in transit need more file handles than this process may have."""
    import resource  # late, because Windows has none

    batches = (loader.prefetch_factor or 0) * (loader.num_workers + 1)  # None without workers
    needed = len(os.listdir("/dev/fd")) + _HANDLES_OF_A_WORKER * loader.num_workers + _HANDLES_OF_A_BATCH * batches
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise TooFewResources(f"{needed} open files are needed but only {limit} allowed (ulimit -n)")


@contextmanager
def worker_failures() -> Iterator[None]:
    """Turn the death of a loader process, which torch may report at any time, into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        text = _first_sentence(error)
        if not any(known in text for known in _FAILURES):
            raise
        code = re.search(r"exit code (\d+)", text)
        raise _ended(error_reason(OSError(int(code[1]), os.strerror(int(code[1])))) if code else text) from error


def _ended(reason: str) -> UserError:
    return UserError(
        f"--num_workers: a loader process ended ({reason}). If memory is short, use fewer workers or 0; then continue "
        "with --resume auto"
    )


def _first_sentence(error: BaseException) -> str:
    """The first sentence of torch's message, which may contain a traceback."""
    return str(error).split(". ")[0].splitlines()[0][:200]
