"""HCAM and the Compressive Transformer against slow loops over steps, heads and columns, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.memories.compressive import CompressiveCell, CompressiveConfig
from RATE_model.memories.hcam import HCAMCell, HCAMConfig
from RATE_model.memories.segments import SegmentCell, softmax
from tests.written_out import attended, linear, mlp, norm

K, D, HEADS, STEPS = 4, 6, 2, 22
CPU = torch.device("cpu")


def drawn(cell: SegmentCell) -> SegmentCell:
    """With weights that hide no mistake: norms and biases begin at 1 and 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in cell.double().parameters():
            parameter.normal_(std=0.6)
    return cell


@torch.no_grad()
def outputs(cell: SegmentCell, x: Tensor) -> np.ndarray:
    return cell(x[None], cell.initial(1, CPU), None)[0][0].numpy()


@pytest.mark.parametrize("function", ["conv", "mean", "max"])
@pytest.mark.parametrize("cached", [1, 2])
def test_compressive_is_a_slow_loop(function, cached):
    sizes = dict(d_model=D, context_length=K, heads=HEADS, inner=5)
    cell = CompressiveCell(CompressiveConfig(**sizes, cached=cached, compressed=2, rate=2, function=function))
    drawn(cell)
    x = torch.randn(STEPS, D, dtype=torch.float64)
    by_distance, by_slot = cell.distance_bias.detach().numpy(), cell.slot_bias.detach().numpy()
    cache: list[np.ndarray] = []
    compressed: list[np.ndarray] = []
    expected, running = [], []
    for step in range(STEPS):
        n = norm(cell.norms[0], x[step].numpy())
        running.append(n)
        near = cache + running

        def bias(head: int, index: int, near: int = len(near), far: int = len(compressed)) -> float:
            if index < far:
                return by_slot[head, by_slot.shape[1] - far + index]  # the newest has the last bias
            return by_distance[head, near - 1 - (index - far)]

        mixed = attended(cell.attention, n, compressed + near, bias)
        h = x[step].numpy() + linear(cell.attention.output, mixed)
        expected.append(h + mlp(cell.forward_token, norm(cell.norms[1], h)))
        if len(running) == K:
            cache, running = cache + running, []
            if len(cache) > cached * K:
                leaving, cache = cache[:K], cache[K:]
                pairs = [leaving[:2], leaving[2:]]
                functions = {
                    "conv": lambda pair: linear(cell.convolution, np.concatenate(pair)),
                    "mean": lambda pair: (pair[0] + pair[1]) / 2,
                    "max": lambda pair: np.maximum(*pair),
                }
                compressed = (compressed + [functions[function](pair) for pair in pairs])[-4:]
    np.testing.assert_allclose(outputs(cell, x), np.array(expected), atol=1e-12)
    assert len(compressed) == 4


@pytest.mark.parametrize("top_k", [1, 2])
def test_hcam_is_a_slow_loop(top_k):
    """Which picks chunks, gathers them and looks at each alone."""
    cell = HCAMCell(HCAMConfig(d_model=D, context_length=K, heads=HEADS, inner=5, chunks=3, top_k=top_k))
    drawn(cell)
    x = torch.randn(STEPS, D, dtype=torch.float64)
    by_distance, by_place = cell.distance_bias.detach().numpy(), cell.place_bias.detach().numpy()
    chunks: list[list[np.ndarray]] = []
    expected, running = [], []
    for step in range(STEPS):
        running.append(norm(cell.norms[0], x[step].numpy()))
        mixed = attended(
            cell.within,
            running[-1],
            running,
            lambda head, index, last=step % K: by_distance[head, last - index],
        )
        h = x[step].numpy() + linear(cell.within.output, mixed)
        n = norm(cell.norms[1], h)
        if chunks:
            relevance = np.array(
                [linear(cell.ask, n) @ linear(cell.summarise, np.mean(chunk, 0)) / math.sqrt(D) for chunk in chunks]
            )
            picks = np.argsort(-relevance)[:top_k]
            weights = np.exp(relevance[picks]) / np.exp(relevance[picks]).sum()
            found = [
                attended(cell.detail, n, chunks[pick], lambda head, index: by_place[head, index]) for pick in picks
            ]
            h = h + linear(cell.detail.output, weights @ np.array(found))
        expected.append(h + mlp(cell.forward_token, norm(cell.norms[2], h)))
        if len(running) == K:
            chunks, running = [*chunks, running][-3:], []
    np.testing.assert_allclose(outputs(cell, x), np.array(expected), atol=1e-12)


@torch.no_grad()
def test_hcam_shows_which_chunks_it_picked():
    cell = HCAMCell(HCAMConfig(d_model=D, context_length=K, heads=HEADS, inner=5, chunks=3, top_k=2))
    drawn(cell)
    _, _, seen = cell(torch.randn(2, STEPS, D, dtype=torch.float64), cell.initial(2, CPU), None)
    picked = seen["chunks picked"]
    assert picked.shape == (2, STEPS, 3)
    assert ((picked > 0).sum(-1)[:, ::K] == torch.tensor([0, 1, 2, 2, 2, 2])).all()
    torch.testing.assert_close(picked.sum(-1)[:, K:], torch.ones(2, STEPS - K, dtype=torch.float64))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (HCAMConfig, {"top_k": 5, "chunks": 4}, "--hcam_top_k 5: must be at most --hcam_chunks, which is 4"),
        (HCAMConfig, {"chunks": 0}, "--hcam_chunks 0"),
        (CompressiveConfig, {"rate": 3}, "--compressive_rate 3 does not divide --context_length 4.*1, 2, 4"),
        (CompressiveConfig, {"cached": 0}, "--compressive_cached 0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        config(d_model=8, context_length=4, **changes).validate()


@pytest.mark.parametrize("columns", [1, 10, 15, 16])
def test_softmax_and_its_gradient_are_torchs(columns):
    """Also with hidden columns and large scores."""
    scores = 100 * torch.randn(3, 4, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[:, 0, 1:] = -math.inf
    scores.requires_grad_()
    weights = torch.arange(columns, dtype=torch.float64)
    ours, theirs = softmax(scores), scores.softmax(dim=-1)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((shares * weights).sum(), scores)[0] for shares in (ours, theirs)]
    torch.testing.assert_close(*gradients)
