"""DNC and RMC against examples and steps that are written out, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from RATE_model.errors import UserError
from RATE_model.memories.dnc import DNCCell, DNCConfig, allocation, by_content, linked
from RATE_model.memories.rmc import RMCCell, RMCConfig
from RATE_model.memories.stack import Cell
from tests.written_out import attended, linear, mlp, norm

CPU = torch.device("cpu")


@torch.no_grad()
def drawn(cell: Cell) -> Cell:
    torch.manual_seed(0)
    for parameter in cell.double().parameters():
        parameter.normal_(std=0.7)
    return cell


def double(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.double() for tensor in state)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- DNC's addressing: examples ---


def test_the_least_used_slot_is_allocated_first():
    """Usage .9, .1, .5, so the order is 1, 2, 0: 1 - .1 = .9; (1 - .5) .1 = .05; (1 - .9) .1 .5 = .005."""
    found = allocation(torch.tensor([[0.9, 0.1, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[0.005, 0.9, 0.05], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found[:2], expected[:2])
    assert found[2].sum() == 1 and found[2].max() == 1  # one of two free slots, all of it


def test_of_unused_slots_the_first_is_written():
    """Sorting does not keep their order by itself, from 17 numbers on, and differs between devices."""
    assert torch.equal(allocation(torch.zeros(1, 40)), torch.eye(40)[:1])


def test_content_is_found_by_direction_and_not_by_length():
    """Slots along x, y and -x; the key along x: cosines 1, 0, -1, sharpened by beta = 2."""
    contents = torch.tensor([[[0.1, 0.0], [0.0, 5.0], [-3.0, 0.0]]], dtype=torch.float64)
    found = by_content(contents, torch.tensor([[[7.0, 0.0]]], dtype=torch.float64), torch.tensor([[2.0]]))
    shares = np.exp([2.0, 0.0, -2.0])
    np.testing.assert_allclose(found[0, 0].numpy(), shares / shares.sum(), atol=1e-6)


def test_links_lead_from_one_write_to_the_next():
    """Slots 2, 0 and 1 are written one after the other: 2 -> 0 -> 1 forward, and back again."""
    links, precedence = torch.zeros(1, 3, 3), torch.zeros(1, 3)
    for slot in (2, 0, 1):
        links, precedence = linked(links, precedence, torch.eye(3)[[slot]])
    assert links[0].nonzero().tolist() == [[0, 2], [1, 0]]
    assert precedence.tolist() == [[0, 1, 0]]
    at = torch.eye(3)[[2]]
    assert (at @ links[0].T).tolist() == [[1, 0, 0]] and (torch.eye(3)[[1]] @ links[0]).tolist() == [[1, 0, 0]]
    half, _ = linked(links, precedence, torch.tensor([[0.0, 0.0, 0.5]]))
    assert half[0].tolist() == [[0, 0, 0.5], [1, 0, 0], [0, 0.5, 0]]  # a soft write halves what it overwrites


# --- whole steps ---


def dnc_step(cell: DNCCell, x: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
    """One row, slot by slot and head by head."""
    hidden, c, memory, usage, links, precedence, w, read, found = state
    slots, heads, width = len(memory), len(read), memory.shape[1]
    with torch.no_grad():
        inputs = torch.from_numpy(np.concatenate([x, found.ravel()]))[None]
        pair = cell.controller(inputs, (torch.from_numpy(hidden)[None], torch.from_numpy(c)[None]))
    hidden, c = (tensor[0].numpy() for tensor in pair)
    xi, parts, at = linear(cell.interface, hidden), [], 0
    for size in (heads * width, heads, heads, 3 * heads, width, 1, width, width, 2):
        parts.append(xi[at : at + size])
        at += size
    keys, betas, free, modes, key, beta, erase, vector, gates = parts

    def content(k: np.ndarray, strength: float) -> np.ndarray:
        cosine = np.array([k @ row / max(np.linalg.norm(k) * np.linalg.norm(row), 1e-12) for row in memory])
        taken = np.exp((1 + np.log1p(np.exp(strength))) * cosine)
        return taken / taken.sum()

    usage = np.array(
        [
            (usage[i] + w[i] - usage[i] * w[i]) * np.prod([1 - sigmoid(free[r]) * read[r, i] for r in range(heads)])
            for i in range(slots)
        ]
    )
    a, order = np.zeros(slots), np.argsort(usage, kind="stable")
    for place, slot in enumerate(order):
        a[slot] = (1 - usage[slot]) * np.prod(usage[order[:place]])
    g_a, g_w = sigmoid(gates)
    w = g_w * (g_a * a + (1 - g_a) * content(key, beta[0]))
    memory = np.array([memory[i] * (1 - w[i] * sigmoid(erase)) + w[i] * vector for i in range(slots)])
    links = np.array(
        [
            [0 if i == j else (1 - w[i] - w[j]) * links[i, j] + w[i] * precedence[j] for j in range(slots)]
            for i in range(slots)
        ]
    )
    precedence = (1 - w.sum()) * precedence + w
    weights = []
    for r in range(heads):
        pi = np.exp(modes[3 * r : 3 * r + 3])
        pi /= pi.sum()
        looked_up = content(keys[r * width : (r + 1) * width], betas[r])
        weights.append(pi[0] * links.T @ read[r] + pi[1] * looked_up + pi[2] * links @ read[r])
    return [hidden, c, memory, usage, links, precedence, w, np.array(weights), np.array(weights) @ memory]


def test_dnc_is_its_equations():
    cell = DNCCell(DNCConfig(d_model=5, context_length=4, hidden=6, slots=4, width=3, heads=2))
    drawn(cell)
    x = torch.randn(1, 7, 5, dtype=torch.float64)
    initial = double(cell.initial(1, CPU))
    state, expected = [tensor[0].numpy() for tensor in initial], []
    for step in range(7):
        state = dnc_step(cell, x[0, step].numpy(), state)
        expected.append(linear(cell.output, np.concatenate([state[0], state[-1].ravel()])))
    with torch.no_grad():
        outputs, after, seen = cell(x, initial, None)
    np.testing.assert_allclose(outputs[0].numpy(), np.array(expected), atol=1e-10)
    for found, wanted in zip(after, state, strict=True):
        np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-10)
    assert seen["written"].shape == (1, 7, 4) and seen["read by head 2"].shape == (1, 7, 4)


def test_rmc_is_its_equations():
    d, slots = 6, 3
    cell = RMCCell(RMCConfig(d_model=d, context_length=4, heads=2, inner=5, slots=slots))
    drawn(cell)
    x = torch.randn(1, 5, d, dtype=torch.float64)
    initial = double(cell.initial(1, CPU))
    cells, hidden = (tensor[0].numpy() for tensor in initial)
    expected = []
    for step in range(5):
        inputs, m, h = x[0, step].numpy(), [], []
        for slot in range(slots):
            mixed = attended(cell.attention, cells[slot], [*cells, inputs], lambda head, index: 0.0)
            g = norm(cell.norms[0], cells[slot] + linear(cell.attention.output, mixed))
            g = norm(cell.norms[1], g + mlp(cell.forward_slot, g))
            f, i, o = np.split(linear(cell.from_input, inputs) + linear(cell.from_hidden, hidden[slot]), 3)
            m.append(sigmoid(f + 1) * cells[slot] + sigmoid(i) * np.tanh(g))
            h.append(sigmoid(o) * np.tanh(m[-1]))
        cells, hidden = np.array(m), np.array(h)
        expected.append(linear(cell.output, hidden.ravel()))
    with torch.no_grad():
        outputs, after, _ = cell(x, initial, None)
    np.testing.assert_allclose(outputs[0].numpy(), np.array(expected), atol=1e-12)
    np.testing.assert_allclose(after[0][0].numpy(), cells, atol=1e-12)


@pytest.mark.parametrize("cell", [DNCCell, RMCCell])
@torch.no_grad()
def test_nothing_overflows_in_a_long_episode(cell):
    config = {DNCCell: DNCConfig(d_model=4, context_length=4, slots=3, width=4, hidden=4)}.get(
        cell, RMCConfig(d_model=4, context_length=4, slots=2, heads=2)
    )
    made: nn.Module = cell(config)
    state = made.initial(1, CPU)
    for _ in range(3):
        outputs, state, _ = made(10 * torch.randn(1, 300, 4), state, None)
        assert outputs.isfinite().all() and all(tensor.abs().max() < 100 for tensor in state)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [(DNCConfig, {"slots": 0}, "--dnc_slots 0"), (RMCConfig, {"slots": 0}, "--rmc_slots 0")],
)
def test_sizes_that_cannot_be_built_are_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        config(d_model=8, context_length=4, **changes).validate()
