"""What all tests have in common."""

import os
import signal
from collections.abc import Iterator

import pytest

# Tests that run beside each other, `pytest -n auto`, share the cores: a thread each, for what they start as well.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  it reads that once

# A shell ignores Ctrl-C for what it runs in the background, and what is started from there inherits that: tests that
# send it would hold in a terminal only.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    """With other numbers of threads the last bits differ: what a test sets must not reach the next."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
