"""Results on a GPU equal those on a CPU, and training never waits for the GPU.

`make gpu-check` runs the tests marked gpu. The default suite runs the same tests on a CPU, so they are known to work
without a GPU.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from RATE_model import Dataset, train
from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.memories import MEMORIES, MODES
from RATE_model.memories.rate import stepper
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.system.graphs import Graphs, capture_graph
from RATE_model.system.interrupts import Interrupted
from RATE_model.training import trainer as training
from RATE_model.training.captured import CapturedPasses
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests.interruptions import stopped_after
from tests.RATE_model.memories.test_contract import Case
from tests.RATE_model.own.toys import episodes
from tests.small_models import VECTOR, K, N, random_inputs

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)
DEVICES = ["cpu", CUDA]
# Tolerance of float32 results on a GPU, relative to the largest number: the order of additions differs.
CLOSE = 1e-4
ROWS = 6


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> torch.device:
    # PyTorch's default lets cuDNN's convolutions and recurrent layers round to 10 bits: not equal enough to compare.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


def agent(mode: str = "RATE", **flags) -> Agent:
    torch.manual_seed(0)
    return Agent(Case.of(mode, "rtg", **flags).config, VECTOR)


def make_batch(seed: int = 0) -> Batch:
    observations, actions, rtg = random_inputs(ROWS, K * N, seed=seed)
    lengths = torch.tensor([K * N, K * N, K * N - 1, K + 2, K, 1])
    valid = torch.arange(K * N) < lengths[:, None]
    return Batch(observations, actions * valid, rtg * valid, valid, lengths, torch.arange(ROWS))


def make_trainer(model: Agent, device: torch.device, **options) -> Trainer:
    options = TrainOptions(**{"learning_rate": 1e-3} | options)
    return Trainer(model.to(device), options, Schedule(0, None, 0, 1.0))


def given(batch: Batch, device: torch.device) -> Batch:
    """A batch as the loader returns it."""
    return batch.pin_memory() if device.type == "cuda" else batch


def losses(trainer: Trainer, steps: int, first: int = 0) -> list[float]:
    device = trainer.model.device
    found = [trainer.train_batch(given(make_batch(seed), device)) for seed in range(first, first + steps)]
    return torch.stack([metrics["train_loss"] for metrics in found]).tolist()


def assert_near(found: torch.Tensor, expected: torch.Tensor, name: str = "", close: float = CLOSE) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((found.detach().cpu().float() - expected.detach().float()).abs().max()) <= close * scale, name


# One mode per memory, and modes of RATE that pass on different states.
EVERY = [next(mode for mode in MODES if MODES[mode].memory == memory) for memory in MEMORIES] + ["TrXL", "DT"]


@pytest.mark.parametrize("mode", EVERY)
def test_forward_and_gradients_equal_the_cpu(mode, device):
    batch = make_batch()

    def passed(place: torch.device):
        model = agent(mode).eval().to(place)
        moved = batch.to(place)
        logits, _ = model(moved.observations, moved.actions, moved.rtg, batch.valid)
        loss = cloning_loss(VECTOR, logits, moved.targets, moved.valid)
        if loss.requires_grad:
            loss.backward()
        return logits.detach().cpu() * batch.valid[..., None], {n: p.grad for n, p in model.named_parameters()}

    (logits, grads), (expected, wanted) = passed(device), passed(torch.device("cpu"))
    assert_near(logits, expected)
    for name, grad in wanted.items():
        assert (grad is None) == (grads[name] is None), name
        if grad is not None:
            assert_near(grads[name], grad, name)


@pytest.mark.parametrize(
    ("options", "share"),
    [({}, 0.02), ({"precision": "bf16"}, 0.2), ({"precision": "bf16", "attention": "fused"}, 0.2)],
    ids=["float32", "bf16", "fused in bf16"],
)
def test_twenty_steps_of_training_equal_the_cpu(options, share, device):
    """Up to a share of what these steps change: a model that learns nothing fails."""
    steps = 20 if device.type == "cuda" else 3
    expected = np.array(losses(make_trainer(agent(), torch.device("cpu")), steps))
    untrained = losses(make_trainer(agent(), torch.device("cpu"), learning_rate=1e-12), steps)
    found = losses(make_trainer(agent(), device, **options), steps)
    assert np.abs(found - expected).max() < share * np.abs(untrained - expected).max()


@pytest.mark.timeout(900)  # eight compilations
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA], indirect=True)
@pytest.mark.parametrize("attention", ["whole", "fused"])
def test_compiled_training_equals_eager(attention, device):
    expected = losses(make_trainer(agent(), torch.device("cpu")), 3)
    # The compiler takes most of a minute on a CPU, so only its front end is used there.
    compiler = torch.compile
    backend = nullcontext()
    if device.type == "cpu":
        backend = mock.patch("torch.compile", lambda function: compiler(function, backend="eager"))
    with backend:
        found = losses(make_trainer(agent(), device, attention=attention, compile=True), 3)
    torch.compiler.reset()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def capture_on_cpu(function, inputs, pool):
    """Simulates `capture_graph` without a GPU: inputs are held, and a call overwrites what the last one returned."""
    held, returned = [value.clone() for value in inputs], []

    def replay(*values):
        for place, value in zip(held, values, strict=True):
            assert place.shape == value.shape
            place.copy_(value)
        for tensor in returned:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
        result = function(*held)
        returned[:] = [result.loss, result.logits, *result.state.memory.tensors()]
        returned[:] += [gradient for gradient in result.gradients if gradient is not None]
        return result

    return replay


def capture_passes(trainer: Trainer) -> None:
    """What --compile true does on a GPU, without the compiler; on a CPU with a substitute for graphs."""
    cuda = trainer.model.device.type == "cuda"
    graphs = Graphs(capture=None if cuda else capture_on_cpu)
    parameters = trainer.model.ordered_parameters()
    trainer.captured = CapturedPasses(trainer.model, parameters, trainer.options.precision, graphs)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RATE", {}),
        ("RATE", {"attention": "whole"}),
        ("RATE", {"attention": "whole", "bptt_segments": 0}),
        ("RATE", {"accumulate": 2}),
        ("TrXL", {"bptt_segments": 0}),
        ("DT", {}),
    ],
    ids=str,
)
def test_captured_training_equals_eager(mode, options, device):
    expected = losses(make_trainer(agent(mode), torch.device("cpu"), **options), 6)
    trainer = make_trainer(agent(mode), device, **options)
    capture_passes(trainer)
    found = losses(trainer, 6)
    assert trainer.captured.graphs.captured
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_captured_dropout_draws_new_masks(device):
    """The same batch twice, with a learning rate of zero."""
    trainer = make_trainer(agent(dropatt=0.5), device, learning_rate=0.0)
    capture_passes(trainer)
    found = [float(trainer.train_batch(given(make_batch(), device))["train_loss"]) for _ in range(6)]
    assert len(set(found)) == 6


def test_batches_that_no_graph_suits_are_trained_without(capsys, device):
    trainer = make_trainer(agent(), device)
    capture_passes(trainer)
    batch = make_batch()
    padded = replace(batch, valid=batch.valid.flip(1))
    for _ in range(4):
        assert torch.isfinite(trainer.train_batch(given(padded, device))["train_loss"])
    assert not trainer.captured.graphs.captured
    assert capsys.readouterr().out.count("no CUDA graph: windows are padded before their first step") == 1


def test_resumed_trainer_equals_uninterrupted_one(device):
    whole = make_trainer(agent(), device)
    losses(whole, 3)
    resumed = make_trainer(agent(), device)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.load_state_dict(deepcopy(whole.state_dict()))
    np.testing.assert_allclose(losses(resumed, 3, 3), losses(whole, 3, 3), rtol=1e-5)


def test_a_run_stopped_between_log_lines_resumes(device, tmp_path):
    """Its checkpoint holds metrics that are not logged yet."""
    flags = dict(
        memory="LSTM", output_dir=tmp_path / "run", context_length=4, segments=1, epochs=3, batch_size=4, d_model=16,
        log_every=10, wandb_mode="disabled", device=str(device),
    )  # fmt: skip
    data = Dataset.from_episodes(episodes())
    with stopped_after(2), pytest.raises(Interrupted):
        train(data, **flags)
    done = train(data, **flags, resume="auto")
    steps = [json.loads(line)["step"] for line in (done.directory / "metrics.jsonl").read_text().splitlines()]
    assert 3 in steps and done.result["optimizer_steps"] == max(steps)


def played(
    model: Agent,
    place: torch.device,
    actions: list[np.ndarray],
    *,
    steps: int,
    reset_at: int,
    keep: tuple[int, np.ndarray],
    **options,
) -> list[np.ndarray]:
    """Logits; `actions` are taken, or filled. From `reset_at` on a row is at another step; `keep`: a step and rows."""
    actor, generator, logits = Actor(model.to(place), ROWS, 1.0, **options), np.random.default_rng(0), []
    for step in range(steps):
        seen = generator.standard_normal((actor.batch_size, 4), dtype=np.float32)
        logits.append(actor.observe(seen, np.full(actor.batch_size, 0.1, np.float32)).cpu().numpy())
        if len(actions) == step:
            actions.append(logits[-1].argmax(-1))
        actor.take(actions[step])
        if step == reset_at:
            actor.reset(np.array([1]))
        if step == keep[0]:
            actor.keep(keep[1])
    return logits


def assert_plays_as_on_the_cpu(
    model: Agent,
    device: torch.device,
    *,
    cuda_graphs: bool = False,
    precision: str = "32",
    close: float = CLOSE,
    **moments,
) -> None:
    actions: list[np.ndarray] = []
    expected = played(model, torch.device("cpu"), actions, **moments)
    found = played(model, device, actions, cuda_graphs=cuda_graphs, precision=precision, **moments)
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=close, atol=close)


@pytest.mark.parametrize("mode", ["RATE", "TrXL", "DT", "GRU"])
def test_acting_equals_the_cpu(mode, device):
    assert_plays_as_on_the_cpu(
        agent(mode).eval(), device, steps=3 * K + 2, reset_at=K, keep=(2 * K, np.arange(1, ROWS))
    )


@pytest.mark.parametrize(("precision", "close"), [("32", CLOSE), ("bf16", 0.05)])
@pytest.mark.parametrize("mode", ["RATE", "TrXL", "DT"])
def test_captured_acting_equals_the_cpu(mode, precision, close, device, monkeypatch):
    captured: list[int] = []

    def capture(function, inputs, pool):
        captured.append(len(inputs[0]))
        return (capture_graph if device.type == "cuda" else capture_acting_on_cpu)(function, inputs, pool)

    monkeypatch.setattr(stepper, "graphs_on", lambda device, **options: Graphs(capture=capture, **options))
    moments = {"steps": 9 * K, "keep": (4 * K + 1, np.arange(ROWS)[::-1].copy()), "reset_at": 8 * K}
    model = agent(mode).eval()
    assert_plays_as_on_the_cpu(model, device, cuda_graphs=True, precision=precision, close=close, **moments)
    assert captured


def test_graphs_are_forgotten_when_buffers_move(monkeypatch):
    graphs = Graphs(capture=capture_acting_on_cpu)
    monkeypatch.setattr(stepper, "graphs_on", lambda *_, **__: graphs)
    actor = Actor(agent().eval(), ROWS, 1.0, cuda_graphs=True)
    for _ in range(4 * K):
        actor.act(np.zeros((ROWS, 4), np.float32))
    assert graphs.captured
    actor.keep(np.arange(ROWS)[::-1].copy())
    assert not graphs.captured


def capture_acting_on_cpu(function, inputs, pool):
    """As `capture_on_cpu`, for functions of one tensor that return another."""
    held = [value.clone() for value in inputs]
    result = torch.full_like(function(*held), torch.nan)

    def replay(value):
        held[0].copy_(value)
        return result.copy_(function(*held))

    return replay


class NoReads(TorchDispatchMode):
    """Simulates a GPU on a CPU: refuses to read values that would be on the device.

    Everything computed from parameters or moved batches is on the device; reading it would synchronise.
    """

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.held = WeakIdKeyDictionary()
        self.hold(held)

    def hold(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            self.held[tensor] = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if tensor in self.held]
        by_mask = name.startswith("index") and any(t.dtype == torch.bool for t in there) and name != "index_fill"
        if there and (name in self.READS or by_mask and name in ("index", "index_put", "index_put_")):
            raise AssertionError(f"a training step reads from the device: {name}")
        result = function(*args, **(kwargs or {}))
        if there:
            self.hold([leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)])
        return result


@contextmanager
def no_reads(trainer: Trainer) -> Iterator[None]:
    """A context in which waiting for the device raises."""
    if trainer.model.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    mode = NoReads(list(trainer.model.parameters()))

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        mode.hold([copy])
        return copy

    def to_device(batch: Batch, *_: object, **__: object) -> Batch:
        return batch._map(moved, kept=("lengths", "indices", "begins"))

    with mock.patch.object(Batch, "to", to_device), mock.patch.object(trainer, "check_finite"), mode:
        yield


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RATE", {}),
        ("RATE", {"precision": "bf16", "bptt_segments": 0, "action_noise": 0.1}),
        ("RATE", {"attention": "whole"}),  # on a GPU the default, here not
        ("RATE", {"attention": "fused"}),
        ("RATE", {"attention": "whole", "captured": True}),
        ("TrXL", {}),
        ("DT", {"accumulate": 2}),
        ("GRU", {}),
    ],
    ids=str,
)
def test_a_training_step_never_waits_for_the_device(mode, options, device):
    captured = options.get("captured", False)
    trainer = make_trainer(agent(mode), device, **{n: value for n, value in options.items() if n != "captured"})
    if captured:
        capture_passes(trainer)
    batches = [given(make_batch(seed), device) for seed in range(7)]
    for batch in batches[:4]:  # masks are made and copied once, graphs captured
        trainer.train_batch(batch)
    with no_reads(trainer):
        for batch in batches[4:]:
            trainer.train_batch(batch)
    trainer.check_finite()


def test_a_read_in_a_training_step_is_noticed():
    trainer = make_trainer(agent(), torch.device("cpu"))

    def reads(*arguments):
        value = cloning_loss(*arguments)
        return value if float(value) else value

    with mock.patch.object(training, "cloning_loss", reads), pytest.raises(AssertionError, match="reads from the"):
        with no_reads(trainer):
            trainer.train_batch(make_batch())
