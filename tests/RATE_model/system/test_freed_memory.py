"""Freed memory stays in the process."""

import resource

import pytest
import torch

from RATE_model.system.freed_memory import keep_freed_memory


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_what_was_freed_is_used_again_without_new_pages():
    if not keep_freed_memory():
        pytest.skip("the C library has no mallopt")
    pages = 16 * 2**20 // resource.getpagesize()

    def fill() -> int:
        before = faults()
        for tensor in [torch.empty(2**20, dtype=torch.int64) for _ in range(2)]:  # 8 MiB each
            tensor.fill_(1)
        return faults() - before

    # At first the heap grows; and what it has may have been freed by others before it was touched.
    assert min(fill() for _ in range(12)) < pages / 4
