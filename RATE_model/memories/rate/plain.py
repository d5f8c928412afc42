"""The attention of the RATE family as in the papers: read this first. `attention.py` is the fast version that runs.

Relative positions are those of Transformer-XL (Dai et al. 2019, section 3.3). The score of a query in row i of a
segment for a key in column j of [cache; segment], per head, is

    [ (W_q x_i + u) . (W_k x_j)  +  (W_q x_i + v) . W_r t(i - j) ] / sqrt(d_head)

with sinusoids t(p) = [sin(p w), cos(p w)]. `shifted` moves the second term to its columns: distances are constant along
diagonals, so they are computed once, k - 1 ... 0, and each row is moved left by its own amount.
"""

import math

import torch
from torch import Tensor

from RATE_model.memories.rate.attention import RelativeAttention
from RATE_model.memories.rate.layout import Layout


def plain_attention(
    weights: RelativeAttention, x: Tensor, cache: Tensor, u: Tensor, v: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """A segment's tokens attend to the cache and to one another.

    Args:
        weights: W_q, W_k, W_v, W_r and the output projection of one layer.
        x: `(B, q, d_model)`, the segment's tokens.
        cache: `(B, m, d_model)`, hidden states of earlier segments; m may be 0.
        u, v: `(n_head, d_head)`, the biases of content and position.
        mask: `(q, m + q)` bool, True where a row may attend to a column (`may_attend`).

    Returns:
        `(B, q, d_model)` after the output projection, and the probabilities `(B, n_head, q, m + q)`.
    """
    heads = (weights.n_head, weights.d_head)
    columns = torch.cat([cache, x], dim=1)
    query = weights.query(x).unflatten(-1, heads)
    key, value = weights.key(columns).unflatten(-1, heads), weights.value(columns).unflatten(-1, heads)
    distances = torch.arange(columns.shape[1] - 1, -1, -1)
    position = weights.position(sinusoids(distances, weights.d_model)).unflatten(-1, heads)

    by_content = torch.einsum("bihd,bjhd->bhij", query + u, key)
    by_position = shifted(torch.einsum("bihd,jhd->bhij", query + v, position))
    scores = (by_content + by_position) / math.sqrt(weights.d_head)
    probabilities = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    context = torch.einsum("bhij,bjhd->bihd", probabilities, value)
    return weights.output(context.flatten(2)), probabilities


def sinusoids(distances: Tensor, d_model: int) -> Tensor:
    """t(p) of integer distances `(k,)`: `(k, d_model)` float32, half sines, half cosines."""
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def shifted(scores: Tensor) -> Tensor:
    """Scores `(..., q, k)` by distance k - 1 ... 0, with row i moved to the left by q - 1 - i: scores by column.

    A column of zeros is prepended and the matrix is read one row later. What enters on the right is not a distance but
    the beginning of the next row. It only affects memory tokens, which see to their right; see `wrap_around`.
    """
    *batch, rows, columns = scores.shape
    padded = torch.cat([scores.new_zeros(*batch, rows, 1), scores], dim=-1)
    return padded.reshape(*batch, columns + 1, rows)[..., 1:, :].reshape(*batch, rows, columns)


def may_attend(layout: Layout) -> Tensor:
    """`(q, m + q)` bool: the table in `layout.py`."""
    row, column = torch.arange(layout.length)[:, None], torch.arange(-layout.cached, layout.length)
    first_write = layout.length - layout.tokens
    reads, writes = row < layout.tokens, row >= first_write
    mask = column <= row
    mask |= (reads & (column < layout.tokens)) | (writes & (column >= first_write))
    return mask & ~((reads | writes) & (column < 0))
