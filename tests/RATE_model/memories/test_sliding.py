"""LSDT and the bank against slow loops, in float64."""

import numpy as np
import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.memories import lsdt
from RATE_model.memories.bank import BankCell, BankConfig
from RATE_model.memories.lsdt import LSDTCell, LSDTConfig
from RATE_model.memories.sliding import slide
from RATE_model.memories.stack import Cell
from tests.written_out import attended, linear, mlp, norm

D, STEPS = 8, 9
CPU = torch.device("cpu")


@torch.no_grad()
def drawn(cell: Cell) -> Cell:
    torch.manual_seed(0)
    for parameter in cell.double().parameters():
        parameter.normal_(std=0.6)
    return cell


@torch.no_grad()
def outputs(cell: Cell, x: torch.Tensor) -> np.ndarray:
    return cell(x[None], cell.initial(1, CPU), None)[0][0].numpy()


@pytest.mark.parametrize("chunk", [1, 64], ids=["two chunks", "one chunk"])
def test_lsdt_is_a_slow_loop(chunk, monkeypatch):
    monkeypatch.setattr(lsdt, "_CHUNK", chunk)
    cell = LSDTCell(LSDTConfig(d_model=D, context_length=4, heads=2, inner=5, window=5, kernel=3))
    drawn(cell)
    x, bias = torch.randn(STEPS, D, dtype=torch.float64), cell.distance_bias.detach().numpy()
    far, near, expected = [], [], []
    for step in range(STEPS):
        n = norm(cell.norms[0], x[step].numpy())
        far.append(n[: D // 2])
        near.append(linear(cell.value, n[D // 2 :]))
        shown, oldest = far[-5:], min(4, step)
        long = attended(cell.long, far[-1], shown, lambda head, index, oldest=oldest: bias[head, oldest - index])
        short = np.zeros(D // 2)
        for head in range(2):
            part = slice(2 * head, 2 * head + 2)
            kernel = np.exp(linear(cell.weigh, n[D // 2 :])[3 * head : 3 * head + 3])
            kernel /= kernel.sum()
            short[part] = sum(kernel[lag] * near[step - lag][part] for lag in range(min(3, step + 1)))
        h = x[step].numpy() + linear(cell.output, np.concatenate([long, short]))
        expected.append(h + mlp(cell.forward_token, norm(cell.norms[1], h)))
    np.testing.assert_allclose(outputs(cell, x), np.array(expected), atol=1e-12)


def test_chunks_of_lsdt_are_one_call_where_rows_end_early(monkeypatch):
    cell = drawn(LSDTCell(LSDTConfig(d_model=D, context_length=4, heads=2, inner=5, window=3, kernel=2)))
    x = torch.randn(4, STEPS, D, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([STEPS, 4, 3, 0])
    valid = torch.arange(STEPS) < lengths[:, None]
    found = []
    for chunk in (1, 64):
        monkeypatch.setattr(lsdt, "_CHUNK", chunk)
        y, (window, count), _ = cell(x, cell.initial(4, CPU), valid)
        (gradient,) = torch.autograd.grad(y[valid].square().sum() + window.sum(), x)
        found.append((y[valid], window, count, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][2].tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_bank_is_a_slow_loop(steps):
    cell = BankCell(BankConfig(d_model=D, context_length=4, heads=2, inner=5, reads=2, steps=steps))
    drawn(cell)
    x, bias = torch.randn(STEPS, D, dtype=torch.float64), cell.age_bias.detach().numpy()
    bank, expected = [], []
    for step in range(STEPS):
        h = x[step].numpy()
        oldest = min(steps - 1, step)
        bank = [*bank, (h - h.mean()) / np.sqrt(h.var() + 1e-5)][-steps:]
        for index, attention in enumerate(cell.attentions):
            read = attended(
                attention,
                norm(cell.norms[2 * index], h),
                bank,
                lambda head, place, index=index, oldest=oldest: bias[index, head, oldest - place],
            )
            h = h + linear(attention.output, read)
            h = h + mlp(cell.forwards[index], norm(cell.norms[2 * index + 1], h))
        expected.append(h)
    np.testing.assert_allclose(outputs(cell, x), np.array(expected), atol=1e-12)


@torch.no_grad()
def test_the_bank_shows_which_steps_were_read_by_age():
    cell = BankCell(BankConfig(d_model=D, context_length=4, heads=2, inner=5, reads=1, steps=4))
    _, _, seen = drawn(cell)(torch.randn(2, STEPS, D, dtype=torch.float64), cell.initial(2, CPU), None)
    read = seen["read 1 by age"]
    assert read.shape == (2, STEPS, 4)
    assert ((read > 0).sum(-1) == torch.tensor([1, 2, 3, 4, 4, 4, 4, 4, 4])).all()
    torch.testing.assert_close(read.sum(-1), torch.ones(2, STEPS, dtype=torch.float64))


def test_a_window_is_filled_from_its_end_in_every_row_alone():
    valid = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    new = torch.tensor([[1.0, 2, 3], [4, 0, 0], [0, 0, 0]])[..., None]
    slid = slide(torch.full((3, 2, 1), 9.0), torch.tensor([0, 1, 2]), new, valid)
    assert slid.window.squeeze(-1).tolist() == [[2, 3], [9, 4], [9, 9]]
    assert slid.count.tolist() == [2, 2, 2]
    assert slid.there[:, 0].tolist() == [[False, False, *[True] * 3], [False, *[True] * 4], [True] * 5]
    assert slid.back.tolist() == [[2, 1, 0, -1, -2], [3, 2, 1, 0, -1], [4, 3, 2, 1, 0]]


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (LSDTConfig, {"heads": 8}, "--lsdt_heads 8: twice as many must divide --d_model 8"),
        (LSDTConfig, {"window": 4, "kernel": 5}, "--lsdt_kernel 5: must be at most --lsdt_window, which is 4"),
        (BankConfig, {"steps": 0}, "--bank_steps 0"),
        (BankConfig, {"reads": 0}, "--bank_layers 0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        config(**{"d_model": 8, "context_length": 4} | changes).validate()
