"""Memories against other implementations of the same papers, and against their equations written out.

The other implementations are the extra `oracles`; without it their tests are skipped.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from RATE_model.memories.amrl import AMRL, AMRLConfig
from RATE_model.memories.contract import Steps
from RATE_model.memories.ffm import FFMCell, FFMConfig
from RATE_model.memories.lru import LRUCell, LRUConfig
from RATE_model.memories.mamba import MambaCell, MambaConfig
from RATE_model.memories.mlstm import MLSTMCell, MLSTMConfig, attend, recur
from RATE_model.memories.shm import SHMCell, SHMConfig, _drawn

BATCH, STEPS, D = 2, 40, 16
CPU = torch.device("cpu")
CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, STEPS, D)


def run(cell, x: Tensor) -> Tensor:
    return cell(x, cell.initial(len(x), CPU), None)[0]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_mamba_is_mambapys(x):
    theirs = pytest.importorskip("mambapy.mamba")
    cell = MambaCell(MambaConfig(d_model=D, context_length=4))
    other = theirs.MambaBlock(theirs.MambaConfig(d_model=D, n_layers=1, use_cuda=False))
    with torch.no_grad():
        for own, its in (
            (cell.branches, other.in_proj), (cell.select, other.x_proj), (cell.delta, other.dt_proj),
            (cell.output, other.out_proj),
        ):  # fmt: skip
            its.load_state_dict(own.state_dict())
        other.conv1d.weight.copy_(cell.convolution.weight.T[:, None])
        other.conv1d.bias.copy_(cell.convolution.bias)
        other.A_log.copy_(cell.log_rate.T)
        torch.testing.assert_close(run(cell, x), other(x), **CLOSE)


def test_mlstm_is_xlstms(x):
    theirs = pytest.importorskip("xlstm")
    x = torch.cat([x, x.flip(1)], dim=-1)  # xlstm rounds twice the width up to a multiple of 64
    cell = MLSTMCell(MLSTMConfig(d_model=2 * D, context_length=4))
    other = theirs.mLSTMLayer(theirs.mLSTMLayerConfig(embedding_dim=2 * D, num_heads=4, context_length=STEPS))
    with torch.no_grad():
        cell.gates.weight.normal_(std=0.5)
        other.proj_up.weight.copy_(cell.branches.weight)
        other.proj_down.weight.copy_(cell.output.weight)
        for layer, weight in zip((other.q_proj, other.k_proj, other.v_proj), cell.project, strict=True):
            layer.weight.copy_(weight)
        other.conv1d.conv.weight.copy_(cell.convolution.weight.T[:, None])
        other.conv1d.conv.bias.copy_(cell.convolution.bias)
        write, forget = cell.gates.weight.chunk(2), cell.gates.bias.chunk(2)
        for gate, weight, bias in zip((other.mlstm_cell.igate, other.mlstm_cell.fgate), write, forget, strict=True):
            gate.weight.copy_(weight)
            gate.bias.copy_(bias)
        torch.testing.assert_close(run(cell, x), other(x), **CLOSE)


@pytest.mark.parametrize("gate", [-100.0, 0.0, 100.0])
def test_mlstm_chunks_are_its_steps_with_gates_of_any_size(gate):
    heads = [torch.randn(BATCH, STEPS, 2, 4, dtype=torch.float64) for _ in range(3)]
    write = gate + 10 * torch.randn(BATCH, STEPS, 2, dtype=torch.float64)
    forget = nn.functional.logsigmoid(10 * torch.randn(BATCH, STEPS, 2, dtype=torch.float64))
    state = tuple(torch.zeros(BATCH, *shape, dtype=torch.float64) for shape in ((2, 4, 4), (2, 4), (2,)))
    found, last = attend(state, *heads, write, forget)
    expected = []
    for step in range(STEPS):
        h, state = recur(state, *(part[:, step : step + 1] for part in (*heads, write, forget)))
        expected.append(h)
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    for own, other in zip(last, state, strict=True):
        torch.testing.assert_close(own, other)


def test_ffm_is_its_equations(x):
    cell = FFMCell(FFMConfig(d_model=D, context_length=4, traces=3, contexts=2, horizon=50))
    decay = np.exp(-np.exp(array(cell.log_decay))[:, None] + 1j * array(cell.frequency))
    state, found = np.zeros((BATCH, 3, 2), complex), []
    for new in array(x).swapaxes(0, 1):
        z = linear(cell.write, new) * sigmoid(linear(cell.write_gate, new))
        state = state * decay + z[..., None]
        read = linear(cell.read, np.stack([state.real, state.imag], axis=-1).reshape(BATCH, -1))
        read = (read - read.mean(-1, keepdims=True)) / np.sqrt(read.var(-1, keepdims=True) + 1e-5)
        gate = sigmoid(linear(cell.read_gate, new))
        found.append(read * gate + linear(cell.skip, new) * (1 - gate))
    np.testing.assert_allclose(array(run(cell, x)), np.stack(found, axis=1), rtol=1e-3, atol=1e-4)


def test_lru_is_its_equations(x):
    cell = LRUCell(LRUConfig(d_model=D, context_length=4, width=5))
    decay = np.exp(-np.exp(array(cell.log_nu)) + 1j * np.exp(array(cell.log_theta)))
    write, read = (array(weight)[..., 0] + 1j * array(weight)[..., 1] for weight in (cell.write, cell.read))
    state, found = np.zeros((BATCH, 5), complex), []
    for new in array(x).swapaxes(0, 1):
        state = decay * state + np.exp(array(cell.log_gamma)) * (new @ write.T)
        y = torch.from_numpy((state @ read.T).real + array(cell.through) * new)
        value, gate = np.split(linear(cell.unit, nn.functional.gelu(y).numpy()), 2, axis=-1)
        found.append(value * sigmoid(gate))
    np.testing.assert_allclose(array(run(cell, x)), np.stack(found, axis=1), rtol=1e-3, atol=1e-5)
    modulus = np.abs(np.exp(-np.exp(array(cell.log_nu))))
    assert (modulus >= 0.9).all() and (modulus <= 0.999).all()
    np.testing.assert_allclose(np.exp(array(cell.log_gamma)), np.sqrt(1 - modulus**2), rtol=1e-4)


def test_shm_is_its_equations(x):
    m = 5
    cell = SHMCell(SHMConfig(d_model=D, context_length=4, size=m, table=7))
    matrix, found = np.zeros((BATCH, m, m)), []
    for step, new in enumerate(array(x).swapaxes(0, 1)):
        key, query, value, calibration, eta = np.split(linear(cell.maps, new), [m, 2 * m, 3 * m, 4 * m], axis=-1)
        key, query = (np.maximum(part, 0) for part in (key, query))
        key, query = (part / (part.sum(-1, keepdims=True) + 1e-5) for part in (key, query))
        theta = array(cell.table)[int(_drawn(torch.tensor(step), 7))]
        kept = 1 + np.tanh(theta[:, None] * calibration[:, None, :])
        matrix = matrix * kept + sigmoid(eta)[..., None] * value[..., None] * key[:, None, :]
        found.append(linear(cell.output, (matrix @ query[..., None])[..., 0]))
    np.testing.assert_allclose(array(run(cell, x)), np.stack(found, axis=1), rtol=1e-3, atol=1e-5)


def test_shm_draws_every_row_about_equally_often():
    counts = torch.bincount(_drawn(torch.arange(12_800), 128), minlength=128)
    assert counts.min() > 50 and counts.max() < 160


@pytest.mark.parametrize("aggregate", ["max", "mean", "sum"])
def test_amrl_aggregates_and_passes_gradients_straight_through(aggregate):
    memory = AMRL(AMRLConfig(d_model=D, context_length=4, hidden=D, aggregate=aggregate))
    steps = Steps(
        observations=torch.randn(BATCH, STEPS, D), previous_actions=torch.randn(BATCH, STEPS, D),
        rtg=torch.randn(BATCH, STEPS, D),
    )  # fmt: skip
    valid = torch.ones(BATCH, STEPS, dtype=torch.bool)
    outputs = memory._outputs(steps, valid, memory.initial(BATCH).recurrent)[0]
    _, state = memory(steps, valid, memory.initial(BATCH))
    torch.testing.assert_close(state.aggregate, getattr(torch, f"a{aggregate}" if aggregate == "max" else aggregate)(
        outputs[..., : D // 2], dim=1))  # fmt: skip
    ours = torch.autograd.grad(state.aggregate.sum(), list(memory.cells.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(outputs[..., : D // 2].sum(), list(memory.cells.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
