"""Scans against the loop, in float64; far beyond what is trained on; in bfloat16."""

import pytest
import torch
from torch import Tensor

from RATE_model.memories import scan as module
from RATE_model.memories.mamba import DISCRETISED
from RATE_model.memories.scan import Decay, in_chunks, scan, scan_and_read
from RATE_model.memories.shm import CALIBRATED
from RATE_model.memories.stack import CausalConvolution


def loop(decay: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """The recurrence, step by step."""
    states = []
    for new, a in zip(x.unbind(1), decay.expand(-1, x.shape[1], -1).unbind(1), strict=True):
        state = a * state + new
        states.append(state)
    return torch.stack(states, dim=1)


def numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 10**9], ids=["sweep", "tree"])
def way(request, monkeypatch) -> None:
    """Both ways to find the states."""
    monkeypatch.setattr(module, "_WIDE", request.param)


@pytest.mark.parametrize(
    ("dtype", "of_x"),
    [(torch.float64, torch.float64), (torch.complex128, torch.complex128), (torch.complex128, torch.float64)],
)
@pytest.mark.parametrize("length", [1, 2, 7, 32])
@pytest.mark.parametrize("one_decay", [True, False])
def test_states_and_gradients_are_the_loops(way, dtype, of_x, length, one_decay):
    shape = (1, 1, 5) if one_decay else (3, length, 5)
    dtypes = dtype, of_x, dtype
    arguments = [
        numbers(*size, dtype=dtypes[seed], seed=seed).requires_grad_()
        for seed, size in enumerate((shape, (3, length, 5), (3, 5)))
    ]
    weights = numbers(3, length, 5, dtype=dtype, seed=9)
    found, expected = scan(*arguments), loop(*arguments)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((states * weights).sum().abs(), arguments) for states in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("decay", [1.0, 0.9999, 0.5, 0.0])
def test_nothing_overflows_in_a_hundred_thousand_steps(decay):
    steps = 100_000
    states = scan(torch.full((1, 1, 1), decay), torch.ones(1, steps, 1), torch.zeros(1, 1))
    expected = steps if decay == 1 else (1 - decay**steps) / (1 - decay)
    assert states.isfinite().all() and states[0, -1, 0] == pytest.approx(expected, rel=1e-3)


def test_bfloat16_is_added_up_in_float32(way):
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    states = scan(ones, ones, torch.zeros(1, 1, dtype=torch.bfloat16))
    assert states.dtype == torch.float32 and states[0, -1, 0] == 1000  # bfloat16 stops at 256


GIVEN = Decay(of=lambda factor, out: out.copy_(factor), gradients=lambda to_decay, decay, factor: (to_decay.clone(),))


@pytest.fixture
def pairs(monkeypatch) -> None:
    """Chunks of two steps."""
    monkeypatch.setattr(module, "_NUMBERS", {"cpu": 1})


@pytest.mark.parametrize(
    ("rule", "sizes", "num_shared"),
    [(CALIBRATED, ((2, 3, 5), (2, 3, 4)), 0), (DISCRETISED, ((2, 3, 5), (4, 5)), 1)],
    ids=["SHM", "Mamba"],
)
def test_gradients_of_reading_are_right_with_the_decays_of_memories(way, pairs, rule, sizes, num_shared):
    shapes = (*sizes, (2, 3, 4), (2, 3, 5), (2, 3, 4), (2, 4, 5))
    tensors = [numbers(*shape, dtype=torch.float64, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]

    def read(one: Tensor, other: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        factors, shared = ((one,), (other,)) if num_shared else ((one, other), ())
        return scan_and_read(rule, factors, *others, shared=shared)

    assert torch.autograd.gradcheck(read, tensors)


def test_decays_of_memories_are_as_written():
    theta, calibration, rate = (numbers(2, 3, 5, dtype=torch.float64, seed=seed) for seed in range(3))
    expected = 1 + torch.tanh(calibration[..., None] * theta[:, :, None])
    torch.testing.assert_close(CALIBRATED.of(theta, calibration, torch.empty_like(expected)), expected)
    expected = torch.exp(-theta[:, :, None] * rate[0])
    torch.testing.assert_close(DISCRETISED.of(theta, rate[0], torch.empty_like(expected)), expected)


def matrices(length: int) -> list[Tensor]:
    """Decays, keys, values, queries and an initial state, in 3 rows."""
    shapes = (3, length, 4, 5), (3, length, 4), (3, length, 5), (3, length, 4), (3, 4, 5)
    return [numbers(*shape, dtype=torch.float64, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("numbers_of_a_chunk", [1, 3 * 60, 2**20])
def test_reading_with_the_scan_is_reading_after_it(way, length, numbers_of_a_chunk, monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", {"cpu": numbers_of_a_chunk})
    arguments = decay, key, value, query, initial = matrices(length)
    states = scan(decay, key[..., None] * value[:, :, None], initial)
    expected = torch.einsum("btp,btpq->btq", query, states), states[:, -1]
    found = scan_and_read(GIVEN, (decay,), key, value, query, initial)
    weights = numbers(3, length, 5, dtype=torch.float64, seed=8), numbers(3, 4, 5, dtype=torch.float64, seed=9)
    gradients = []
    for read, last in (found, expected):
        loss = (read * weights[0]).sum() + (last * weights[1]).sum()
        gradients.append(torch.autograd.grad(loss, arguments, retain_graph=True))
        for one, again in zip(gradients[-1], torch.autograd.grad(loss, arguments), strict=True):
            assert one.equal(again)
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other)


def test_reading_goes_on_from_a_state(pairs):
    decay, key, value, query, initial = arguments = matrices(7)
    whole, _ = scan_and_read(GIVEN, (decay,), key, value, query, initial)
    parts, state = [], initial
    for steps in (slice(3), slice(3, 7)):
        read, state = scan_and_read(GIVEN, (decay[:, steps],), key[:, steps], value[:, steps], query[:, steps], state)
        parts.append(read)
    joined = torch.cat(parts, dim=1)
    torch.testing.assert_close(joined, whole)
    ours, theirs = (torch.autograd.grad(each.square().sum(), arguments) for each in (joined, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_states_of_a_chunk_fit_into_a_cache():
    sizes = [module._steps_of_a_chunk(torch.empty(batch, 16, 128), 512) for batch in (1, 32, 64, 256, 2000)]
    assert sizes == [512, 16, 8, 2, 2]
    assert module._steps_of_a_chunk(torch.empty(0, 16, 128), 7) == 7
    assert module._steps_of_a_chunk(torch.empty(256, 16, 128, device="meta"), 512) == 64


def test_chunks_are_the_whole_with_its_gradients():
    x = numbers(2, 11, 3, dtype=torch.float64, seed=0).requires_grad_()
    decay = torch.rand(2, 11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    lengths = []

    def piece(state: Tensor, *chunk: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(chunk[0].shape[1])
        states = scan(*chunk, state)
        return states.square(), states[:, -1]

    found, last = in_chunks(piece, torch.zeros(2, 3, dtype=torch.float64), (decay, x), size=4)
    states = loop(decay, x, torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(torch.cat(found, dim=1), states.square())
    torch.testing.assert_close(last, states[:, -1])
    ours, theirs = (
        torch.autograd.grad(squares.sum(), (decay, x)) for squares in (torch.cat(found, dim=1), states.square())
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert lengths == [4, 4, 3]


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_filter_is_torchs_depthwise_convolution(taps):
    convolution = CausalConvolution(5, taps)
    x, before = (numbers(3, length, 5, dtype=torch.float32, seed=length).requires_grad_() for length in (7, taps - 1))
    found, left = convolution(x, before, None)
    joined = torch.cat([before, x], dim=1)
    expected = torch.nn.functional.conv1d(
        joined.transpose(1, 2), convolution.weight.T[:, None], convolution.bias, groups=5
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(left, joined[:, 7:])
    arguments = (x, before, convolution.weight, convolution.bias)
    ours, theirs = (
        torch.autograd.grad(each.square().sum(), arguments, allow_unused=True) for each in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
