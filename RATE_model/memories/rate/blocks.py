"""Attention of a segment's steps in large batches on a CPU: the scores of `attention`, computed by distance.

Three things make it fast there. The results differ from `attention`'s by rounding alone, which a test holds.

*   What a query has to say to a distance p is linear in the token: (W_q x + v) . W_r t(p) = U_p x + c_p. All U_p are
    projected once per pass, for all trajectories. One product then gives a token's scores by distance, and reading it
    one number later in each row, as a view, gives them by column:

        by distance, far to near        by column 0 ... k-1
        row i    | 5 4 3 2 1 0 - -      | 3 2 1 0 - -       a row's own distances begin where the row says;
        row i+1  | 5 4 3 2 1 0 - -      | 4 3 2 1 0 -       - are later columns: their c_p is -inf, which masks them

    No query is rotated, and no mask is added.
*   Pieces of rows end where columns are a multiple of 32: the softmax of a bfloat16 row of 95 numbers takes three times
    as long as that of 96.
*   Trajectories go through a piece in blocks, whose scores stay in the cache in float32; and the gradient is written
    out, which saves autograd's copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from RATE_model.memories.rate.dropout import scaled_mask
from RATE_model.memories.rate.wrap_around import shifted
from RATE_model.system.products import linear

# Columns of a piece end at multiples of this.
_COLUMNS = 32
# ... and in acting at multiples of this, the float32 numbers in a register of AVX-512: softmax is slow on fewer.
_LANES = 16
# A piece has columns up to this far to the right of its first row.
AHEAD = 3 * _COLUMNS
# Scores of a block. In float32 they are to stay in the cache; in bfloat16 products are so fast that calls count more.
_SCORES = {torch.float64: 2**17, torch.float32: 3 * 2**18, torch.bfloat16: 2**21}


@dataclass(frozen=True)
class Distances:
    """What a layer's queries have to say to each distance, from `farthest` down to `nearest`; see the module."""

    weight: Tensor  # (n_head, distances, d_model): U
    bias: Tensor  # (n_head, distances): c, -inf below 0
    farthest: int


@dataclass(frozen=True)
class Piece:
    """Some rows of a segment, and the first `columns` of [cache; segment], more than which none of them may see."""

    rows: slice
    count: int
    columns: int
    cached: int
    heads: int

    @property
    def stride(self) -> int:
        """From row to row."""
        return self.rows.step

    @property
    def spread(self) -> int:
        """From the first row to the last."""
        return (self.count - 1) * self.stride

    @property
    def distances(self) -> int:
        """How many distances there are between any of its rows and any of its columns."""
        return self.columns + self.spread

    def tokens(self, states: Tensor) -> Tensor:
        """The rows of `states` `(B, k, d)`: a view `(B, r, d)`."""
        return states[:, self.cached + self.rows.start : self.cached + self.rows.stop : self.stride]

    def keys(self, states: Tensor) -> Tensor:
        """The columns of `states` `(B, k, d)`: `(B, columns, d)`.

        In bfloat16 a copy: every product with a view would make one of its own.
        """
        keys = states[:, : self.columns]
        return keys.contiguous() if states.dtype == torch.bfloat16 else keys

    def part(self, tensor: Tensor, farthest: int) -> Tensor:
        """Of `Distances.weight` or `.bias`, or their gradients, a view of the distances of this piece."""
        first = farthest - (self.cached + self.rows.start + self.spread)
        return tensor[:, first : first + self.distances]

    def by_column(self, by_distance: Tensor) -> Tensor:
        """Scores by distance `(B * r, n_head * distances)`, read by column: a view `(B, r, n_head, k)`."""
        width = self.heads * self.distances
        shape = (len(by_distance) // self.count, self.count, self.heads, self.columns)
        strides = (self.count * width, width - self.stride, self.distances, 1)
        return by_distance.as_strided(shape, strides, by_distance.storage_offset() + self.spread)

    def blocks(self, batch: int, dtype: torch.dtype) -> Iterator[slice]:
        """Trajectories that are computed together; each of torch's threads has a cache of its own."""
        most = max(1, torch.get_num_threads() * _SCORES[dtype] // (self.count * self.heads * self.columns))
        size = -(-batch // -(-batch // most))
        return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def step_piece(start: int, count: int, columns: int, heads: int) -> Piece:
    """For `step_attention`: `count` rows from `start` on, among `columns` columns, of which it takes what it needs."""
    seen = -(-(start + count) // _LANES) * _LANES
    return Piece(slice(start, start + count, 1), count, min(seen, columns), 0, heads)


def pieces(rows: range, *, cached: int, columns: int, heads: int) -> list[Piece]:
    """Cut the rows of a segment's steps behind `cached` columns, `columns` in all."""
    span = _COLUMNS if rows.step == 1 else 2 * _COLUMNS
    found, start = [], rows.start
    while start < rows.stop:
        border = (cached + start + span) // span * span
        part = range(start, min(rows.stop, border - cached), rows.step)
        seen = -(-(cached + part[-1] + 1) // _COLUMNS) * _COLUMNS
        found.append(Piece(slice(start, part[-1] + 1, rows.step), len(part), min(seen, columns), cached, heads))
        start = part[-1] + rows.step
    return found


class StepAttention(torch.autograd.Function):
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
            of_distances = piece.part(weight, farthest).flatten(0, 1)
            bias_of_distances = piece.part(bias, farthest).flatten()
            saved.append(of_distances)
            for block in piece.blocks(batch, dtype):
                tokens, keys = piece.tokens(states[block]).flatten(0, 1), piece.keys(states[block])
                queries, probabilities = _look(
                    tokens, keys, (queries_weight, queries_bias, of_distances, bias_of_distances), piece
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
            of_distances = next(held)
            rows = piece.heads * piece.count
            sums = torch.zeros(width, len(of_distances), dtype=dtype)
            bias_sums = torch.zeros(len(of_distances), dtype=dtype)
            blocks = list(piece.blocks(len(states), states.dtype))
            # What lies beside a row's columns stays zero, block after block.
            room = states.new_zeros(blocks[0].stop * piece.count, len(of_distances))
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
                of_states[block, : piece.columns] += of_keys
                of_block = torch.bmm(of_scores, keys).view(len(tokens), -1)
                by_distance = room[: len(tokens)]
                by_column = piece.by_column(by_distance)
                by_column.copy_(of_scores.view(by_column.shape))
                of_tokens = linear(of_block, queries_weight.t()).add_(linear(by_distance, of_distances.t()))
                piece.tokens(of_states[block]).add_(of_tokens.view(len(keys), piece.count, width))
                of_queries += linear(tokens.t(), of_block.t())
                of_query_bias += of_block.sum(0)
                sums += linear(tokens.t(), by_distance.t())
                bias_sums += by_distance.sum(0)
            piece.part(of_weight, farthest).add_(sums.t().view(piece.heads, piece.distances, width))
            piece.part(of_bias, farthest).add_(bias_sums.view(piece.heads, piece.distances))
            begin += piece.count
        return of_states, of_queries.t(), of_query_bias, of_weight, of_bias, of_output, None, None, None


def _look(
    tokens: Tensor,
    keys: Tensor,
    weights: tuple[Tensor, ...],
    piece: Piece,
    wrap: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and probabilities of the rows of a piece.

    Args:
        tokens: `(B * r, d_model)`, their attention inputs.
        keys: `(B, columns, d_model)`.
        weights: queries' weight and bias, `(n_head * d_model, d_model)` and `(n_head * d_model,)`, and those of the
            piece's distances, `(n_head * distances, d_model)` and `(n_head * distances,)`.
        wrap: of a block of memory tokens, weight and bias of the distances that wrap around, `(n_head * r, d_model)`
            and `(n_head * r,)`; see `wrap_around`.

    Returns:
        `(B, r * n_head, d_model)` and `(B, r * n_head, columns)`.
    """
    queries = linear(tokens, *weights[:2]).view(len(keys), -1, keys.shape[-1])
    scores = piece.by_column(linear(tokens, *weights[2:])).contiguous()
    if wrap is not None:
        own = scores[..., piece.rows]
        far = shifted(linear(tokens, *wrap).view(own.shape))
        right = torch.ones(piece.count, piece.count, dtype=torch.bool).triu(1)[:, None]
        own.copy_(torch.where(right, far, own))
    scores = scores.view(*queries.shape[:2], piece.columns)
    return queries, scores.baddbmm_(queries, keys.transpose(1, 2)).softmax(-1)


def step_attention(
    tokens: Tensor, states: Tensor, weights: tuple[Tensor, ...], piece: Piece, farthest: int, wrap: Distances | None
) -> Tensor:
    """`StepAttention` of one piece in one block, without gradients or dropout, for acting.

    Args:
        tokens: `(B, r, d_model)`, the rows of the piece.
        states: `(B, k, d_model)`, at least the columns of the piece.
        weights, farthest: as `StepAttention.apply` has them.
        wrap: for a block of memory tokens, the distances that wrap around.

    Returns:
        `(B, r, d_model)`.
    """
    content_weight, content_bias, weight, bias, output_weight = weights
    rows, keys = tokens.flatten(0, 1), piece.keys(states)
    of_distances = piece.part(weight, farthest).flatten(0, 1), piece.part(bias, farthest).flatten()
    of_wrap = None if wrap is None else (wrap.weight.flatten(0, 1), wrap.bias.flatten())
    _, probabilities = _look(rows, keys, (content_weight, content_bias, *of_distances), piece, of_wrap)
    context = torch.bmm(probabilities, keys).view(len(rows), -1)
    return linear(context, output_weight).view_as(tokens)


def by_distance(
    position_weight: Tensor, position_bias: Tensor, sinusoids: Tensor, heads: int, farthest: int
) -> Distances:
    """U and c, from what `attention.Folded` has of positions and `(distances, d_model)` sinusoids, far to near."""
    sinusoids = sinusoids.to(position_weight.dtype)
    weight = sinusoids @ position_weight.unflatten(0, (heads, -1))
    bias = position_bias.view(heads, -1) @ sinusoids.t()
    later = torch.arange(farthest, farthest - len(sinusoids), -1) < 0
    return Distances(weight, bias.masked_fill(later, float("-inf")), farthest)
