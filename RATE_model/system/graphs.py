"""Functions captured as CUDA graphs: one launch in place of hundreds, for models so small that launches take the time.

A captured function computes the same again on other inputs of the same shapes. It must not read from the GPU or copy
from pageable memory, and must depend on nothing but its key, its inputs, and tensors that stay where they are, such as
parameters that an optimizer changes in place.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
# (function, inputs, memory pool) -> the function for inputs of the same shapes, captured.
Capture = Callable[[Callable[..., Result], Sequence[Tensor], Any], Callable[..., Result]]

# A function runs as it is until its third call. Shapes that occur once are not worth capturing, and libraries allocate
# and compile what they need on the first calls.
_PLAIN_CALLS = 2


def capture_graph(function: Callable[..., Result], inputs: Sequence[Tensor], pool: Any) -> Callable[..., Result]:
    """Capture a function as a CUDA graph, on the device of its first input.

    The tensors that it returns are overwritten by the next call of this function, or of another one in the same pool.
    """
    held = [value.clone() for value in inputs]
    with torch.cuda.device(held[0].device):  # streams and graphs are made on the current one
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Once on the stream that captures, where libraries may need workspaces of their own; its random draws do not
        # count.
        with torch.cuda.stream(stream), torch.random.fork_rng([torch.cuda.current_device()]):
            function(*held)
        torch.cuda.current_stream().wait_stream(stream)
        # A cast of weights that autocast keeps is freed when autocast ends, and the graph would still read it. So the
        # graph makes its own, which nothing else may use.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        # Meanwhile the data loader's thread may allocate page-locked memory, which would otherwise end the capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = function(*held)
        torch.clear_autocast_cache()

    def replay(*values: Tensor) -> Result:
        for place, value in zip(held, values, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return result

    return replay


def graphs_on(device: torch.device, *, most: int = 64) -> "Graphs | None":
    """`Graphs` on a GPU, None elsewhere."""
    return Graphs(most=most) if device.type == "cuda" else None


class Graphs:
    """Functions by key and shapes, captured on their third call. They share one pool of memory.

    Args:
        most: captured functions; further functions run as they are.
        capture: `capture_graph`, or a substitute that needs no GPU.
    """

    def __init__(self, *, most: int = 64, capture: Capture | None = None) -> None:
        self._most, self._capture = most, capture_graph if capture is None else capture
        self._has_pool = capture is None
        self.clear()

    def clear(self) -> None:
        """Forget all captured functions, for example because tensors that they use have moved."""
        # A new pool: an old one whose graphs are gone cannot be used again while tensors in it are left.
        self._pool = torch.cuda.graph_pool_handle() if self._has_pool else None
        self._calls: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Callable[..., Any]] = {}

    def run(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """`function(*inputs)`. The next call, with any key, may overwrite the tensors in it: clone what is kept."""
        key = (key, *((value.shape, value.dtype) for value in inputs))
        if key not in self.captured:
            self._calls[key] += 1
            if self._calls[key] <= _PLAIN_CALLS or len(self.captured) >= self._most:
                return function(*inputs)
            self.captured[key] = self._capture(function, inputs, self._pool)
        return self.captured[key](*inputs)
