"""Captured functions: which calls are captured, and what they do then, with substitutes for the parts of a GPU."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

from RATE_model.system import graphs
from RATE_model.system.graphs import Graphs, capture_graph


def capture(function, inputs, pool):
    return lambda *values: ("captured", function(*values))


def test_the_third_call_is_captured():
    made = Graphs(capture=capture)
    results = [made.run("key", torch.neg, torch.full((2,), float(number))) for number in range(4)]
    assert [isinstance(result, tuple) for result in results] == [False, False, True, True]
    assert results[3][1].tolist() == [-3.0, -3.0]


def test_keys_shapes_and_types_are_captured_apart():
    made = Graphs(capture=capture)
    for number in range(3):
        made.run("key", torch.neg, torch.zeros(2))
        other = made.run("key", torch.neg, torch.zeros(number + 3)), made.run(number, torch.neg, torch.zeros(2))
        assert not any(isinstance(result, tuple) for result in other)
    assert len(made.captured) == 1


def test_functions_beyond_the_limit_run_as_they_are_until_cleared():
    made = Graphs(most=1, capture=capture)
    for _ in range(4):
        made.run("first", torch.neg, torch.zeros(2))
        last = made.run("second", torch.neg, torch.zeros(2))
    assert torch.is_tensor(last) and len(made.captured) == 1
    made.clear()
    for _ in range(3):
        last = made.run("second", torch.neg, torch.zeros(2))
    assert isinstance(last, tuple)


class FakeCuda:
    """The parts of `torch.cuda` that `capture_graph` uses; a replay repeats what ran inside `graph`."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda _: self.order.append("capture waits"))
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.order.append("replay"))

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda _: self.order.append("current waits"))

    def current_device(self) -> int:
        return 0

    def stream(self, _):
        return nullcontext()

    @contextmanager
    def device(self, device):
        self.order.append(f"on {device}")
        yield

    @contextmanager
    def graph(self, _, *, pool, stream, capture_error_mode="global"):
        self.order.append(f"begin, {capture_error_mode}")
        yield
        self.order.append("end")


def test_a_captured_function_holds_its_inputs_and_replays(monkeypatch):
    cuda, seen = FakeCuda(), []
    monkeypatch.setattr(graphs.torch, "cuda", cuda)
    monkeypatch.setattr(graphs.torch.random, "fork_rng", lambda _: nullcontext())

    def function(values):
        cuda.order.append("function")
        seen.append(values)
        return values

    given = torch.zeros(2)
    replay = capture_graph(function, [given], None)
    result = replay(torch.ones(2))
    # Not "global": that fails when a loader's thread pins memory meanwhile.
    begin = ["on cpu", "capture waits", "function", "current waits", "begin, thread_local"]
    assert cuda.order == [*begin, "function", "end", "replay"]
    assert result is seen[1] and result.tolist() == [1, 1] and given.tolist() == [0, 0]


def test_cleared_graphs_get_another_pool(monkeypatch):
    """PyTorch refuses a pool without graphs in which a tensor is left, such as a gradient."""
    handles, pools = iter(range(9)), []
    monkeypatch.setattr(graphs.torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(graphs, "capture_graph", lambda function, _, pool: pools.append(pool) or function)
    made = Graphs()
    for key in ("one", "other"):
        for _ in range(3):
            made.run(key, torch.neg, torch.zeros(2))
    made.clear()
    for _ in range(3):
        made.run("one", torch.neg, torch.zeros(2))
    assert pools[0] == pools[1] != pools[2]
