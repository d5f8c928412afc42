"""Dropout: how much is dropped, the scale of the rest, and the random numbers."""

import pytest
import torch
from torch.nn import functional as F

from RATE_model.memories.rate.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_so_much_is_dropped_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 333, dtype=dtype)
    y = dropout(x, p)
    assert y.dtype == dtype and y.shape == x.shape
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=4e-3)
    torch.testing.assert_close(y[kept], F.dropout(x, p).max().expand(int(kept.sum())))
    for rows in kept.float().mean(1), kept.float().mean(0):  # no row and no column is special
        assert rows.std() < 1.5 * (p * (1 - p) / min(x.shape)) ** 0.5


def test_neighbours_are_dropped_independently():
    """Also those that share a draw."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3) == 0).view(-1, 4).float()
    assert dropped.mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.01)
    together = torch.corrcoef(dropped.T) - torch.eye(4)
    assert together.abs().max() < 0.02


def test_the_gradient_is_that_of_what_was_kept():
    x = torch.randn(7, 5, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0) / 0.6)
    torch.testing.assert_close(y, x * x.grad)


def test_it_follows_torchs_generator():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(1000), 0.5)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_nothing_everything_and_the_edges():
    x = torch.randn(4096)
    assert dropout(x, 0.0) is x and dropout(x, 0.5, training=False) is x
    assert not dropout(x, 1.0).any() and not dropout(x, 0.99999999).any()
    assert dropout(x[:0], 0.5).shape == (0,)
    assert dropout(torch.ones(()), 0.5).shape == ()
    strided = torch.randn(8, 6).T
    assert dropout(strided, 0.5).shape == (6, 8)


def test_the_module_drops_in_training_only():
    module, x = Dropout(0.5), torch.ones(1000)
    assert (module(x) == 0).any() and module.eval()(x) is x
