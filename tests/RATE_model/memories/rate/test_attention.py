"""Scores in one buffer: their values, and their gradients, against PyTorch's own steps."""

import pytest
import torch
from torch import Tensor

from RATE_model.memories.rate.attention import _Scores

B, ROWS, HEADS, D, COLUMNS = 2, 3, 2, 4, 7


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Content, states, rotated positions; the table of positions."""
    torch.manual_seed(0)
    shapes = ((B, ROWS, HEADS, D), (B, COLUMNS, D), (B, ROWS, HEADS, D))
    return (
        *(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes),
        torch.randn(COLUMNS, D).to(dtype),
    )


def plain(content: Tensor, states: Tensor, rotated: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.einsum("brhd,bkd->brhk", content, states) + torch.einsum("brhd,kd->brhk", rotated, positions)
    if bias is not None:
        scores = torch.cat([scores[..., :-3], scores[..., -3:] + bias.unsqueeze(-2)], dim=-1)
    return scores


@pytest.mark.parametrize("bias", [None, torch.randn(ROWS, 3).double(), torch.randn(B, ROWS, 3).double()])
def test_scores_and_gradients_are_those_of_plain_steps(bias):
    leaves = inputs()
    weights = torch.randn(B, ROWS, HEADS, COLUMNS).double()
    results = []
    for function in (_Scores.apply, plain):
        scores = function(*leaves, bias)
        results.append((scores, *torch.autograd.grad((scores * weights).sum(), leaves[:3])))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_gradients_that_come_strided_are_taken():
    leaves = inputs()
    gradient = torch.randn(B, HEADS, ROWS, COLUMNS).double().transpose(1, 2)
    ours, expected = (
        torch.autograd.grad(function(*leaves, None), leaves[:3], gradient) for function in (_Scores.apply, plain)
    )
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_wants_no_gradient_gets_none():
    content, states, rotated, positions = inputs()
    scores = _Scores.apply(content, states.detach(), rotated.detach(), positions, None)
    scores.sum().backward()
    torch.testing.assert_close(content.grad, states.detach().sum(1)[:, None, None].expand_as(content))


def test_masked_columns_are_the_last_ones():
    bias = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]]).repeat(2, 1)[:ROWS].double()
    scores = _Scores.apply(*inputs(), bias)
    hidden = torch.isinf(scores).any(dim=(0, 2))
    assert hidden.nonzero().tolist() == [[0, COLUMNS - 1], [2, COLUMNS - 1]]
