"""The fast attention against the plain one; scores in one buffer against PyTorch's own steps."""

import pytest
import torch
from torch import Tensor

from RATE_model.memories.rate.attention import _Scores
from RATE_model.memories.rate.layout import Layout
from RATE_model.memories.rate.memory import _assemble_map
from RATE_model.memories.rate.plain import may_attend, plain_attention
from tests.reference import attention_mask
from tests.small_models import small_model


@pytest.mark.parametrize("cached", [0, 5, 20])
@pytest.mark.parametrize(
    "change",
    [{}, {"num_mem_tokens": 1, "n_head_ca": 0}, {"num_mem_tokens": 0, "n_head_ca": 0}, {"conditioned": False}],
    ids=str,
)
def test_the_fast_attention_is_the_plain_one(change, cached):
    """Outputs, probabilities and gradients, in segments that are longer than what is computed at once."""
    memory = small_model(context_length=24, mem_len=20, **change).memory
    layer, config = memory.layers[0], memory.config
    layout = Layout(steps=24, tokens=config.num_mem_tokens, cached=cached, step_tokens=config.step_tokens)
    x, cache = torch.randn(2, layout.length, 16, requires_grad=True), torch.randn(2, cached, 16)
    plain, probabilities = plain_attention(
        layer.attention, x, cache, memory.content_bias, memory.position_bias, may_attend(layout)
    )
    plain = layer.finish(x, x, plain)
    folded = layer.attention.fold(memory.content_bias, memory.position_bias)
    fast, groups = memory._layer(layer, x, cache, folded, memory._places(layout, "shared")[False], last=False)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(_assemble_map(groups, layout, x.device), probabilities, rtol=0, atol=1e-5)
    weights = torch.randn_like(x)
    ours, expected = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (fast, plain))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_who_may_attend_to_whom():
    for tokens, cached in ((3, 5), (0, 4), (2, 0)):
        layout = Layout(steps=4, tokens=tokens, cached=cached)
        assert torch.equal(may_attend(layout), attention_mask(q=layout.length, m=cached, n=tokens))


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
