"""Fixtures and settings of all tests."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest

# Parallel tests (`pytest -n auto`) share the cores: one thread each, also for processes that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  it reads that once

# Shells ignore Ctrl-C for background jobs, and their children inherit this: tests that send it would only pass in a
# terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    """The last bits depend on the number of threads, so a test's setting must not affect the next one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ends_its_processes() -> Iterator[None]:
    """A process that stays would be counted by a later test that checks that its own have ended."""
    before = set(multiprocessing.active_children())
    yield
    if set(multiprocessing.active_children()) - before:
        gc.collect()  # ends those that only a cycle of references keeps, such as an error's traceback
    assert set(multiprocessing.active_children()) <= before
