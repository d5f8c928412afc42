"""Attention of a segment in large batches on a CPU: the scores of `attention`, computed by distance.

Three things make it fast there. The results differ from `attention`'s by rounding alone, which a test holds.

*   What a query has to say to a distance p is linear in the token: (W_q x + v) . W_r t(p) = U_p x + c_p. All U_p are
    projected once per pass, for all trajectories. One product then gives a token's scores by distance, head by head,
    from the distance between the last row and column 0 down to one per column. Those of a trajectory, read from one
    number later for each row up to the last, are scores by column; with a number left over at the end of each row,
    rows follow one another without a gap. Three columns, two heads of the rows 1 and 2:

        by distance     | 2 1 0  2 1 0  - | 2 1 0  2 1 0  - |
        by column         | 0 1 2  0 1 2  | 0 1 2  0 1 2  |        (row 1: distances 1 0 2, row 2: distances 2 1 0)

    After a row's distance 0 comes a number of another head or row: it is hidden, as later columns are. No query is
    rotated, and nothing is copied.
*   Pieces of rows end where columns are a multiple of 32: the softmax of a bfloat16 row of 95 numbers takes three times
    as long as that of 96.
*   Trajectories go through a piece in blocks, whose scores stay in the cache in float32; and the gradient is written
    out, which saves autograd's copies.

A block of memory tokens is a piece of its own. Its tokens also see columns to their right, by the distances of
`wrap_around`, which are part of the same table.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from RATE_model.memories.rate.dropout import scaled_mask
from RATE_model.memories.rate.layout import Layout
from RATE_model.memories.rate.wrap_around import right_of_self, shifted, unshifted
from RATE_model.system.products import linear

# Columns of a piece end at multiples of this.
_COLUMNS = 32
# ... and in acting at multiples of this, the float32 numbers in a register of AVX-512: softmax is slow on fewer.
_LANES = 16
# Widths whose weights acting keeps.
_WIDTHS = 8
# A piece has columns up to this far to the right of its last row.
AHEAD = _COLUMNS
# Scores of a block. In float32 they are to stay in the cache; in bfloat16 products are so fast that calls count more.
_SCORES = {torch.float64: 2**17, torch.float32: 3 * 2**18, torch.bfloat16: 2**21}


@dataclass(frozen=True)
class Distances:
    """What a layer's queries have to say to each distance, from `farthest` down to `nearest`; see the module."""

    weight: Tensor  # (n_head, distances, d_model): U
    bias: Tensor  # (n_head, distances): c
    farthest: int


@dataclass(frozen=True)
class Piece:
    """Some rows of a segment, and the range of columns of [cache; segment] outside which none of them may see."""

    rows: slice
    count: int
    columns: slice
    cached: int
    heads: int
    wrap: int | None = None  # of a block of memory tokens: the farthest of the distances that wrap around
    # In acting, scores begin this many distances before the farthest, and `padding` numbers are left over at the end of
    # a row, so that weights depend on the width alone.
    ahead: int = 0
    padding: int | None = None

    @property
    def width(self) -> int:
        """How many columns there are."""
        return self.columns.stop - self.columns.start

    @property
    def stride(self) -> int:
        """From row to row."""
        return self.rows.step

    @property
    def spread(self) -> int:
        """From the first row to the last."""
        return (self.count - 1) * self.stride

    @property
    def farthest(self) -> int:
        """The first of the distances: that from the last row to the first column, or `ahead` more."""
        return self.cached + self.rows.start + self.spread - self.columns.start + self.ahead

    @property
    def scores(self) -> int:
        """How many numbers a row of scores by distance has."""
        return self.heads * self.width + (self.stride if self.padding is None else self.padding)

    @property
    def own(self) -> slice:
        """Where the rows of a block of memory tokens are among the columns."""
        first = self.farthest - self.ahead - self.spread
        return slice(first, first + self.count)

    def tokens(self, states: Tensor) -> Tensor:
        """The rows of `states` `(B, k, d)`: a view `(B, r, d)`."""
        return states[:, self.cached + self.rows.start : self.cached + self.rows.stop : self.stride]

    def keys(self, states: Tensor) -> Tensor:
        """The columns of `states` `(B, k, d)`: `(B, columns, d)`.

        In bfloat16 a copy: every product with a view would make one of its own.
        """
        keys = states[:, self.columns]
        return keys.contiguous() if states.dtype == torch.bfloat16 else keys

    def near(self, tensor: Tensor, farthest: int) -> Tensor:
        """Of `Distances.weight` or `.bias`, or their gradients, a view of the distances of this piece."""
        first = farthest - self.farthest
        return tensor[:, first : first + self.width]

    def wrapped(self, tensor: Tensor, farthest: int) -> Tensor:
        """The same of the distances that wrap around."""
        assert self.wrap is not None
        return tensor[:, farthest - self.wrap : farthest - self.wrap + self.count]

    def weights(self, weight: Tensor, bias: Tensor, farthest: int) -> list[Tensor]:
        """Weight `(scores, d_model)` and bias `(scores,)` of scores by distance; of a block of memory tokens also those
        of the distances that wrap around."""
        weight_bias, padding = [weight, bias.unsqueeze(-1)], self.scores - self.heads * self.width
        found = [F.pad(self.near(part, farthest).flatten(0, 1), (0, 0, 0, padding)) for part in weight_bias]
        if self.wrap is not None:
            found += [self.wrapped(part, farthest).flatten(0, 1) for part in weight_bias]
        found[1::2] = [part.squeeze(-1) for part in found[1::2]]
        return found

    def by_column(self, by_distance: Tensor) -> Tensor:
        """Scores by distance `(B * r, scores)`, read by column: a view `(B, r, n_head, k)`."""
        shape = (len(by_distance) // self.count, self.count, self.heads, self.width)
        strides = (self.count * self.scores, self.scores - self.stride, self.width, 1)
        return by_distance.as_strided(shape, strides, by_distance.storage_offset() + self.spread + self.ahead)

    def buffer(self, batch: int, like: Tensor) -> Tensor:
        """For scores by distance `(batch * r, scores)`, to be filled by column: what no column covers is zero."""
        buffer = like.new_empty(batch * self.count, self.scores)
        by_trajectory = buffer.view(batch, -1)
        by_trajectory[:, : self.spread] = 0
        by_trajectory[:, -self.stride :] = 0
        return buffer

    def hide(self, scores: Tensor) -> Tensor:
        """A copy of scores `(B, r, n_head, k)` with -inf in later columns, and in those to the right of a block."""
        first, stride = (self.own.start + 1, self.stride) if self.wrap is None else (self.own.stop, 0)
        start = first // _COLUMNS * _COLUMNS
        if first < self.width and (self.width - start) % _COLUMNS:  # sums over so few columns are slow
            return (scores + _later(self.count, self.width, first, stride, scores.dtype, self.heads)).contiguous()
        scores = scores.contiguous()
        if first < self.width:
            scores[..., start:].add_(_later(self.count, self.width - start, first - start, stride, scores.dtype))
        return scores

    def blocks(self, batch: int, dtype: torch.dtype) -> Iterator[slice]:
        """Trajectories that are computed together; each of torch's threads has a cache of its own."""
        most = max(1, torch.get_num_threads() * _SCORES[dtype] // (self.count * self.heads * self.width))
        size = -(-batch // -(-batch // most))
        return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


@lru_cache(maxsize=256)
def _later(rows: int, columns: int, seen: int, stride: int, dtype: torch.dtype, heads: int = 1) -> Tensor:
    """-inf in columns `(rows, heads, columns)` that are later than a row, else 0; row i may see `seen + stride * i`."""
    later = torch.arange(columns) >= seen + stride * torch.arange(rows)[:, None]
    later = later[:, None].expand(-1, heads, -1)
    return torch.zeros(later.shape, dtype=dtype).masked_fill(later, float("-inf"))


@lru_cache(maxsize=256)
def acting_piece(start: int, count: int, columns: int, heads: int, wrap: int | None = None) -> Piece:
    """For `ActingAttention`: `count` rows from `start` on, among `columns` columns, of which it takes what it needs."""
    seen = min(-(-(start + count) // _LANES) * _LANES, columns)
    ahead = seen - start - count
    return Piece(slice(start, start + count, 1), count, slice(0, seen), 0, heads, wrap, ahead=ahead, padding=_LANES)


def pieces(layout: Layout, *, last: bool, heads: int, wrap: int) -> list[Piece]:
    """The rows of a segment in order, or those that the `last` layer is asked for; `wrap` as in `Piece`."""
    cached, tokens = layout.cached, layout.tokens
    found = step_pieces(layout.step_rows(last=last), cached=cached, columns=cached + layout.length, heads=heads)
    if tokens and not last:
        read = Piece(slice(0, tokens, 1), tokens, slice(cached, cached + tokens), cached, heads, wrap)
        found.insert(0, read)
    if tokens:
        written = slice(layout.written.start, layout.written.stop, 1)
        found.append(Piece(written, tokens, slice(cached, cached + layout.length), cached, heads, wrap))
    return found


def step_pieces(rows: range, *, cached: int, columns: int, heads: int) -> list[Piece]:
    """Cut the rows of a segment's steps after `cached` columns, `columns` in all."""
    span = _COLUMNS if rows.step == 1 else 2 * _COLUMNS
    found, start = [], rows.start
    while start < rows.stop:
        border = (cached + start + span) // span * span
        part = range(start, min(rows.stop, border - cached), rows.step)
        seen = min(-(-(cached + part[-1] + 1) // _COLUMNS) * _COLUMNS, columns)
        found.append(Piece(slice(start, part[-1] + 1, rows.step), len(part), slice(0, seen), cached, heads))
        start = part[-1] + rows.step
    return found


class BlockAttention(torch.autograd.Function):
    """Attention of the rows of some pieces, before the dropout of the output.

    `apply(states, content_weight, content_bias, weight, bias, output_weight, farthest, pieces, dropatt)`: states
    `(B, k, d_model)` in the type to compute in; weights as in `attention.Folded` and `Distances`, in float32, as their
    gradients are. Returns `(B, rows, d_model)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        content_weight: Tensor,
        content_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        output_weight: Tensor,
        farthest: int,
        pieces: list[Piece],
        dropatt: float,
    ) -> Tensor:
        dtype, (batch, _, width) = states.dtype, states.shape
        queries_weight, queries_bias, output = (t.to(dtype) for t in (content_weight, content_bias, output_weight.t()))
        outputs, saved = states.new_empty(batch, sum(piece.count for piece in pieces), width), []
        weight, bias = weight.to(dtype), bias.to(dtype)
        begin = 0
        for piece in pieces:
            weights = piece.weights(weight, bias, farthest)
            saved += weights[::2]
            for block in piece.blocks(batch, dtype):
                tokens, keys = piece.tokens(states[block]).flatten(0, 1), piece.keys(states[block])
                queries, probabilities = _attention_probabilities(
                    tokens, keys, [queries_weight, queries_bias, *weights], piece
                )
                mask = scaled_mask(probabilities, dropatt) if dropatt else None
                context = torch.bmm(probabilities if mask is None else probabilities * mask, keys)
                context = context.view(len(tokens), -1)
                outputs[block, begin : begin + piece.count] = linear(context, output.t()).view(
                    len(keys), piece.count, width
                )
                saved += [queries, probabilities, context, mask]
            begin += piece.count
        ctx.save_for_backward(states, queries_weight, output, *saved)
        ctx.plan = farthest, pieces, weight.shape, content_weight.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        states, queries_weight, output, *saved = ctx.saved_tensors
        farthest, pieces, shape, dtype = ctx.plan
        width = states.shape[-1]
        held = iter(saved)
        of_states = torch.zeros_like(states)
        # Products with the tokens on the left are faster than their transposes.
        of_queries = torch.zeros(queries_weight.shape[::-1], dtype=dtype)
        of_query_bias = torch.zeros(len(queries_weight), dtype=dtype)
        of_weight, of_bias = torch.zeros(shape, dtype=dtype), torch.zeros(shape[:2], dtype=dtype)
        of_output = torch.zeros(output.shape[::-1], dtype=dtype)
        begin = 0
        for piece in pieces:
            near = next(held)
            wrapped = None if piece.wrap is None else next(held)
            rows = piece.heads * piece.count
            sums, bias_sums = torch.zeros(width, len(near), dtype=dtype), torch.zeros(len(near), dtype=dtype)
            blocks = list(piece.blocks(len(states), states.dtype))
            buffer = piece.buffer(blocks[0].stop, states)
            for block in blocks:
                queries, probabilities, context, mask = (next(held) for _ in range(4))
                tokens, keys = piece.tokens(states[block]).flatten(0, 1), piece.keys(states[block])
                block_grad = grad[block, begin : begin + piece.count].flatten(0, 1)
                of_output += linear(block_grad.t(), context.t())
                of_context = linear(block_grad, output).view(len(keys), rows, width)
                of_probabilities = torch.bmm(of_context, keys.transpose(1, 2))
                taken = probabilities
                if mask is not None:
                    of_probabilities *= mask
                    taken = probabilities * mask
                of_keys = torch.bmm(taken.transpose(1, 2), of_context)
                of_scores = torch.ops.aten._softmax_backward_data(
                    of_probabilities, probabilities, -1, probabilities.dtype
                )
                of_keys.baddbmm_(of_scores.transpose(1, 2), queries)
                of_states[block, piece.columns].add_(of_keys)  # += would copy the sum onto itself
                of_block = torch.bmm(of_scores, keys).view(len(tokens), -1)
                by_distance = buffer[: len(tokens)]
                by_column = piece.by_column(by_distance)
                of_scores = of_scores.view(by_column.shape)
                by_column.copy_(of_scores)
                of_tokens = linear(of_block, queries_weight.t())
                if wrapped is not None:
                    right = right_of_self(piece.count)
                    by_column[..., piece.own].masked_fill_(right, 0)
                    far = unshifted(of_scores[..., piece.own] * right).reshape(len(tokens), -1)
                    of_tokens += linear(far, wrapped.t())
                    piece.wrapped(of_weight, farthest).add_(linear(far.t(), tokens.t()).unflatten(0, (piece.heads, -1)))
                    piece.wrapped(of_bias, farthest).add_(far.sum(0).view(piece.heads, -1))
                of_tokens += linear(by_distance, near.t())
                piece.tokens(of_states[block]).add_(of_tokens.view(len(keys), piece.count, width))
                of_queries += linear(tokens.t(), of_block.t())
                of_query_bias += of_block.sum(0)
                sums += linear(tokens.t(), by_distance.t())
                bias_sums += by_distance.sum(0)
            used, by_head = slice(piece.heads * piece.width), (piece.heads, piece.width)
            piece.near(of_weight, farthest).add_(sums[:, used].t().unflatten(0, by_head))
            piece.near(of_bias, farthest).add_(bias_sums[used].view(by_head))
            begin += piece.count
        return of_states, of_queries.t(), of_query_bias, of_weight, of_bias, of_output, None, None, None


def _attention_probabilities(
    tokens: Tensor, keys: Tensor, weights: list[Tensor], piece: Piece
) -> tuple[Tensor, Tensor]:
    """Queries and probabilities of the rows of a piece.

    Args:
        tokens: `(B * r, d_model)`, their attention inputs.
        keys: `(B, columns, d_model)`.
        weights: queries' weight and bias, `(n_head * d_model, d_model)` and `(n_head * d_model,)`, and `piece.weights`.

    Returns:
        `(B, r * n_head, d_model)` and `(B, r * n_head, columns)`.
    """
    queries = linear(tokens, *weights[:2]).view(len(keys), -1, keys.shape[-1])
    scores = piece.hide(piece.by_column(linear(tokens, *weights[2:4])))
    if piece.wrap is not None:
        own = scores[..., piece.own]
        far = shifted(linear(tokens, *weights[4:]).view(own.shape))
        own.copy_(torch.where(right_of_self(piece.count), far, own))
    scores = scores.view(*queries.shape[:2], piece.width)
    return queries, scores.baddbmm_(queries, keys.transpose(1, 2)).softmax(-1)


class ActingAttention:
    """`BlockAttention` of one piece in one block, without gradients or dropout, for acting.

    Args:
        weights, farthest: as `BlockAttention.apply` has them.
    """

    def __init__(self, weights: tuple[Tensor, ...], farthest: int) -> None:
        *self._queries, self._weight, self._bias, self._output = weights
        self._farthest = farthest
        self._held: dict[Hashable, list[Tensor]] = {}

    def __call__(self, tokens: Tensor, states: Tensor, piece: Piece) -> Tensor:
        """Attention of `tokens` `(B, r, d_model)`, the rows of the piece, to `states` `(B, k, d_model)`, at least its
        columns: `(B, r, d_model)`."""
        rows, keys = tokens.flatten(0, 1), piece.keys(states)
        _, probabilities = _attention_probabilities(rows, keys, [*self._queries, *self._of(piece)], piece)
        context = torch.bmm(probabilities, keys).view(len(rows), -1)
        return linear(context, self._output).view_as(tokens)

    def _of(self, piece: Piece) -> list[Tensor]:
        """`piece.weights`, which are the same for all pieces of a width."""
        key = piece.width, piece.wrap, piece.wrap is not None and piece.count
        if key not in self._held:
            if len(self._held) == _WIDTHS:
                self._held.clear()
            self._held[key] = piece.weights(self._weight, self._bias, self._farthest)
        return self._held[key]


def by_distance(
    position_weight: Tensor, position_bias: Tensor, sinusoids: Tensor, heads: int, farthest: int
) -> Distances:
    """U and c, from what `attention.Folded` has of positions and `(distances, d_model)` sinusoids, far to near."""
    sinusoids = sinusoids.to(position_weight.dtype)
    weight = sinusoids @ position_weight.unflatten(0, (heads, -1))
    bias = position_bias.view(heads, -1) @ sinusoids.t()
    return Distances(weight, bias, farthest)
