"""Profile training: shares of phases and kinds of operations, by PyTorch's profiler."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

# Kinds of operations, by words in their names; the first match counts.
_KINDS = {
    "matrix products": ("mm", "linear", "convolution", "scaled_dot_product"),
    "softmax": ("softmax",),
    "norms": ("layer_norm",),
    "random numbers": ("random_", "bernoulli", "dropout"),
    "copies": ("copy", "cat", "clone", "fill", "zero", "index", "contiguous", "stack", "pad"),
    "optimizer": ("adam", "foreach"),
    "element by element": ("add", "mul", "sub", "div", "relu", "sum", "where", "exp", "tanh", "ge", "sigmoid", "lerp"),
}
_BACKWARD, _OPTIMIZER = "autograd::engine::evaluate_function", "Optimizer.step"


def kind_of(name: str) -> str:
    """The kind of a PyTorch operation; "rest" is autograd, Python and views."""
    if not name.startswith("aten::"):
        return "rest"
    words = name.removeprefix("aten::")
    return next((kind for kind, parts in _KINDS.items() if any(part in words for part in parts)), "rest")


def shares(run: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Shares of one call's CPU time inside operations: `{"phases": {name: share}, "kinds": {name: share}}`.

    Phases are backward, optimizer and forward (everything else, including copies to the device).
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    kinds: dict[str, float] = defaultdict(float)
    for event in events:
        kinds[kind_of(event.key)] += event.self_cpu_time_total / total
    phases = {
        name: sum(event.cpu_time_total for event in events if event.key.startswith(mark)) / total
        for name, mark in (("backward", _BACKWARD), ("optimizer", _OPTIMIZER))
    }
    phases = {"forward": max(0.0, 1 - sum(phases.values())), **phases}
    return {"phases": phases, "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]))}


def words(found: Mapping[str, float]) -> str:
    """The shares as text: forward 40%, backward 55%, ..."""
    return ", ".join(f"{name} {share:.0%}" for name, share in found.items())


def on_gpu(run: Callable[[], object]) -> dict[str, float]:
    """How many kernels, copies and fills one call runs on a GPU, and their seconds in total: `kernels`, `kernel_s`."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    seconds = sum(event.self_device_time_total for event in kernels) / 1e6
    return {"kernels": sum(event.count for event in kernels), "kernel_s": seconds}
