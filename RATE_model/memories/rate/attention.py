"""Self-attention with relative positions (Dai et al. 2019, "Transformer-XL"), laid out for shared keys.

`plain.py` computes the same in forty lines; start reading there. A test compares the two.

The score of a query in column position i for a key in column position j, per head (Transformer-XL, section 3.3), is

    [ (W_q x_i + u) . (W_k x_j)  +  (W_q x_i + v) . W_r t(i - j) ] / sqrt(d_head)

with sinusoids t(p) = [sin(p w), cos(p w)]. Two rewritings make it cheap, both exact:

*   Sinusoids turn a difference into an inner product. With (a, b) = W_r^T (W_q x_i + v),

        a . sin((i-j) w) + b . cos((i-j) w) = [a sin iw + b cos iw,  b sin iw - a cos iw] . [cos jw, sin jw]

    so a query is rotated once by its own position and meets a fixed table: no table of distances is projected, and
    nothing is shifted.
*   W_k and W_v may be applied on the query's and the output's side of the sum over j. Then the keys and values of
    all heads are the hidden states themselves, `(B, k, d_model)`: the scores of all heads are one matrix product per
    trajectory, and acting only has to keep d_model numbers per past token instead of 2 * n_head * d_head.
    This costs more than separate keys if d_head is far below d_model; in every published setting they are equal.

Memory tokens see one another in both directions. For keys to their right the published model computes no distance;
`wrap_around` contains what it computes instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.rate.blocks import BlockAttention, Distances, Piece
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.dropout import Dropout, dropout
from RATE_model.memories.rate.layout import MaskedRows
from RATE_model.memories.rate.wrap_around import wrap_around, wrapped
from RATE_model.system.products import Linear, linear

# How attention is computed: "shared" (`RelativeAttention.forward`; everywhere), "blocks" (`blocks`; large batches on a
# CPU), "whole" (all rows at once; GPUs) or "fused" (PyTorch's fused kernels; long segments on GPUs; memory tokens' rows
# are "shared"). They differ by rounding.
Form = Literal["shared", "blocks", "whole", "fused"]


class Positions(nn.Module):
    """Sines and cosines of column positions; no parameters.

    Positions count from the first column of a full cache, so a token keeps its position however long the cache is.
    """

    frequencies: Tensor
    sin: Tensor
    cos: Tensor
    keys: Tensor

    def __init__(self, d_model: int, columns: int) -> None:
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
        self.register_buffer("frequencies", frequencies, persistent=False)
        angles = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies
        # Angles reach thousands of radians, so they are computed in float64: float32 would lose their last digits.
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        # (columns, d_model): multiplies rotated queries
        self.register_buffer("keys", torch.cat([self.cos, self.sin], dim=-1), persistent=False)

    def distances(self, distances: Tensor) -> Tensor:
        """t(p) for integer distances `(r,)`: `(r, d_model)` float32."""
        angles = distances.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


_FoldedTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Folded:
    """One layer's projections with keys, values and scale folded in; computed once per forward pass."""

    content_weight: Tensor  # (n_head * d_model, d_model)
    content_bias: Tensor  # (n_head * d_model,)
    position_weight: Tensor  # as those of content
    position_bias: Tensor
    output_weight: Tensor  # (d_model, n_head * d_model)
    form: Form = "shared"
    distances: Distances | None = None  # for "blocks" alone

    def for_blocks(self) -> tuple[tuple[Tensor, ...], int]:
        """The weights and the farthest distance that `BlockAttention` takes."""
        assert self.distances is not None
        distances = self.distances.weight, self.distances.bias
        weights = (self.content_weight, self.content_bias, *distances, self.output_weight)
        return weights, self.distances.farthest

    def to(self, dtype: torch.dtype) -> "Folded":
        """The same in another type."""
        tensors = {name: value.to(dtype) for name, value in vars(self).items() if isinstance(value, Tensor)}
        d = self.distances
        distances = None if d is None else replace(d, weight=d.weight.to(dtype), bias=d.bias.to(dtype))
        return replace(self, **tensors, distances=distances)


@dataclass(frozen=True)
class Queries:
    """Queries of some rows, each `(B, r, n_head, d_model)`, not yet rotated; kept apart because products copy
    non-contiguous inputs."""

    content: Tensor
    position: Tensor


@dataclass(frozen=True)
class Keys:
    """What the queries of a segment may attend to."""

    states: Tensor  # (B, k, d_model): attention inputs of cache and segment
    positions: Tensor  # (k, d_model): rows of `Positions.keys` for these columns

    def columns(self, start: int, stop: int) -> "Keys":
        """The columns from `start` to `stop`."""
        return Keys(self.states[:, start:stop], self.positions[start:stop])


def _scores(
    content: Tensor,
    states: Tensor,
    rotated: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    far: Tensor | None = None,
    rows: MaskedRows | None = None,
) -> Tensor:
    """Scores `(B, r, n_head, k)` from content, rotated positions and the bias of the last columns, in one buffer.

    `far`: wrapped scores of all blocks of memory tokens in `rows`, `(blocks * B, w, n_head, w)`; see `wrap_around`.
    """
    batch, count, heads, width = content.shape
    columns = len(positions)
    scores = (rotated.view(-1, width) @ positions.T).view(batch, count, heads, columns)
    if far is not None and rows is not None:
        for block, of_block in zip(rows.cut(scores), far.chunk(len(rows.blocks)), strict=True):
            block.copy_(torch.where(rows.right, of_block, block))
    scores = scores.view(batch, count * heads, columns).baddbmm_(content.flatten(1, 2), states.transpose(1, 2))
    scores = scores.view(batch, count, heads, columns)
    if bias is not None:
        scores[..., columns - bias.shape[-1] :].add_(bias.unsqueeze(-2))
    return scores


class _Scores(torch.autograd.Function):
    """`_scores` with its gradient.

    PyTorch's own steps would copy the scores twice, and would return the states' gradient transposed, which is slow to
    accumulate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        content: Tensor,
        states: Tensor,
        rotated: Tensor,
        positions: Tensor,
        bias: Tensor | None,
        far: Tensor | None = None,
        rows: MaskedRows | None = None,
    ) -> Tensor:
        scores = _scores(content, states, rotated, positions, bias, far, rows)
        ctx.save_for_backward(content, states, positions)
        ctx.rows = None if far is None else rows
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        content, states, positions = ctx.saved_tensors
        grad = grad.contiguous()
        by_row = grad.flatten(1, 2)
        of_content = torch.bmm(by_row, states).view_as(content) if ctx.needs_input_grad[0] else None
        of_states = torch.bmm(by_row.transpose(1, 2), content.flatten(1, 2)) if ctx.needs_input_grad[1] else None
        of_far = None
        if ctx.rows is not None:
            of_far = torch.cat([block.masked_fill(~ctx.rows.right, 0.0) for block in ctx.rows.cut(grad)])
            grad = grad.clone()  # autograd may use it elsewhere
            for block in ctx.rows.cut(grad):  # what was replaced has no part in the loss
                block.masked_fill_(ctx.rows.right, 0.0)
        of_rotated = (grad.flatten(0, 2) @ positions).view_as(content) if ctx.needs_input_grad[2] else None
        return of_content, of_states, of_rotated, None, None, of_far, None


def fold_together(layers: Sequence["RelativeAttention"], content_bias: Tensor, position_bias: Tensor) -> list[Folded]:
    """`RelativeAttention.fold` of all layers in one: on a GPU, a few launches in place of a few for every layer."""
    stacked = [torch.stack(weights) for weights in zip(*(layer.weights() for layer in layers), strict=True)]
    folded = layers[0].folded(stacked, content_bias, position_bias)
    by_layer = zip(*(tensor.unbind() for tensor in folded), strict=True)
    return [Folded(a, a_bias, b, b_bias, output) for a, a_bias, b, b_bias, output in by_layer]


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions, without the residual around it.

    The biases u and v are shared by all layers, so the model owns them and passes them to `fold`.
    """

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        self.n_head, self.d_head, self.d_model = config.n_head, config.d_head, config.d_model
        inner = config.n_head * config.d_head
        self.query = Linear(config.d_model, inner, bias=False)
        self.key = Linear(config.d_model, inner, bias=False)
        self.value = Linear(config.d_model, inner, bias=False)
        self.position = Linear(config.d_model, inner, bias=False)
        self.output = Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)
        self.dropatt = config.dropatt

    def fold(self, content_bias: Tensor, position_bias: Tensor) -> Folded:
        """Fold W_k, W_r and the scale into the queries, W_v into the output.

        Args:
            content_bias: u, `(n_head, d_head)`.
            position_bias: v, `(n_head, d_head)`.
        """
        return Folded(*self.folded(self.weights(), content_bias, position_bias))

    def weights(self) -> list[Tensor]:
        """Those of all projections."""
        return [layer.weight for layer in (self.query, self.key, self.value, self.position, self.output)]

    def folded(self, weights: Sequence[Tensor], content_bias: Tensor, position_bias: Tensor) -> _FoldedTensors:
        """The tensors of `Folded`, from `weights()` or from those of several layers, stacked."""
        heads, width = self.n_head, self.d_head
        query, key, value, position = (weight.unflatten(-2, (heads, width)) for weight in weights[:4])
        scale = 1 / math.sqrt(width)

        def into_queries(target: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return (target.transpose(-1, -2) @ query).flatten(-3, -2), (bias[:, None] @ target).flatten(-3)

        by_head = weights[4].unflatten(-1, (heads, width)).transpose(-3, -2)
        output = by_head @ value  # (..., heads, d, d)
        return (
            *into_queries(key * scale, content_bias),
            *into_queries(position * scale, position_bias),
            output.transpose(-3, -2).flatten(-2),
        )

    def queries(self, inputs: Tensor, folded: Folded) -> Queries:
        """The queries of rows `(B, r, d_model)`."""
        # Rows cut out of a segment are not contiguous; `linear` would then copy the weight once per trajectory.
        inputs = inputs.contiguous()
        content = linear(inputs, folded.content_weight, folded.content_bias)
        position = linear(inputs, folded.position_weight, folded.position_bias)
        return Queries(*(part.unflatten(-1, (self.n_head, -1)) for part in (content, position)))

    def forward(
        self,
        queries: Queries,
        keys: Keys,
        folded: Folded,
        *,
        sin: Tensor,
        cos: Tensor,
        bias: Tensor | None = None,
        wrap: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend from some rows to some columns.

        Args:
            queries: of r rows, from `queries`.
            keys: the k columns that these rows may see.
            folded: this layer's folded projections.
            sin, cos: `(r, d_model/2)` or `(B, r, d_model/2)`, positions of the rows (`Positions`).
            bias: `(r, c)` or `(B, r, c)` float for the last c columns, 0 where a row may attend and -inf where not; all
                columns before them are visible. None: everything is visible.
            wrap: `(w, d_model)` sinusoids of the wrap-around distances if the rows are a block of w memory tokens whose
                own columns are the last w of `keys`; see `wrap_around`.

        Returns:
            `(B, r, d_model)` after the output projection and dropout, and the attention probabilities
            `(B, r, n_head, k)`.
        """
        content = queries.content
        batch, rows, heads, _ = content.shape
        dtype = content.dtype
        states, positions = keys.states.to(dtype), keys.positions.to(dtype)
        if dtype == torch.bfloat16:
            states = states.contiguous()  # otherwise each product with them, and each gradient, makes a copy
        columns = positions.shape[0]
        # Autocast would compute the softmax through float32 copies of the whole score tensor, although the kernel uses
        # float32 internally anyway.
        with torch.autocast(content.device.type, enabled=False):
            a, b = queries.position.chunk(2, dim=-1)
            rotated = _rotate(a, b, sin.to(dtype), cos.to(dtype))
            score = _Scores.apply if torch.is_grad_enabled() else _scores
            scores = score(content, states, rotated, positions, None if bias is None else bias.to(dtype))
            if wrap is not None:
                scores = scores + wrap_around(queries.position, rotated, positions, wrap.to(dtype))
            probabilities = scores.softmax(dim=-1)
            dropped = dropout(probabilities, self.dropatt, self.training)
            context = torch.bmm(dropped.view(batch, rows * heads, columns), states)
        attended = linear(context.view(batch, rows, heads * self.d_model), folded.output_weight)
        return self.dropout(attended), probabilities

    def blocks(self, states: Tensor, folded: Folded, pieces: list[Piece]) -> Tensor:
        """The attention output of all query tokens, `(B, r, d_model)`, by `BlockAttention`.

        Args:
            states: `(B, k, d_model)`, attention inputs of cache and segment.
            folded: with `distances`.
            pieces: of the rows.
        """
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        weights, farthest = folded.for_blocks()
        dropatt = self.dropatt if self.training else 0.0
        with torch.autocast(device, enabled=False):
            attended = BlockAttention.apply(states.to(dtype), *weights, farthest, pieces, dropatt)
        return self.dropout(attended)

    def whole(
        self,
        queries: Queries,
        keys: Keys,
        folded: Folded,
        rows: MaskedRows,
        *,
        sin: Tensor,
        cos: Tensor,
        wrap: Tensor | None = None,
    ) -> Tensor:
        """The attention output of all query tokens in one piece, `(B, r, d_model)`: more arithmetic, far fewer kernels.

        Args:
            queries: of `rows`.
            keys: all columns, padded to those of `rows.bias`.
            folded: this layer's folded projections.
            rows: which rows, and what they may see.
            sin, cos: `(r, d_model / 2)`, positions of the rows.
            wrap: as for `forward`, for every block of memory tokens in `rows`.
        """
        content, dtype = queries.content, queries.content.dtype
        batch, count, heads, width = content.shape
        states = keys.states.to(dtype)
        with torch.autocast(content.device.type, enabled=False):
            a, b = queries.position.chunk(2, dim=-1)
            rotated, far = _rotate(a, b, sin, cos), None
            if wrap is not None and rows.blocks:
                of_blocks = [queries.position[:, row : row + len(wrap)] for row, _ in rows.blocks]
                far = wrapped(torch.cat(of_blocks), wrap)
            score = _Scores.apply if torch.is_grad_enabled() else _scores
            scores = score(content, states, rotated, keys.positions, rows.bias, far, rows)
            dropped = dropout(scores.softmax(dim=-1), self.dropatt, self.training)
            context = torch.bmm(dropped.view(batch, count * heads, -1), states)
        return self.dropout(linear(context.view(batch, count, heads * width), folded.output_weight))

    def fused(
        self, queries: Queries, keys: Keys, folded: Folded, *, sin: Tensor, cos: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The attention output `(B, r, d_model)` by PyTorch's fused attention, which never stores the scores.

        Arguments as for `forward`.

        Content and position are one inner product, of [content; rotated position] and [state; cos, sin].
        """
        content, dtype = queries.content, queries.content.dtype
        a, b = queries.position.chunk(2, dim=-1)
        query = torch.cat([content, _rotate(a, b, sin.to(dtype), cos.to(dtype))], dim=-1).transpose(1, 2)
        states = keys.states.to(dtype)
        key = torch.cat([states, keys.positions.to(dtype).expand_as(states)], dim=-1)
        key, value = (part.unsqueeze(1).expand(-1, self.n_head, -1, -1) for part in (key, states))
        if bias is not None:
            columns = F.pad(bias, (key.shape[2] - bias.shape[-1], 0)).to(dtype)
            bias = columns if columns.ndim == 2 else columns.unsqueeze(1)
        dropatt = self.dropatt if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropatt, scale=1.0)
        return self.dropout(linear(mixed.transpose(1, 2).flatten(2), folded.output_weight))


def _rotate(a: Tensor, b: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate (a, b), each `(B, r, n_head, d_model/2)`, by the rows' own positions."""
    sin, cos = sin.unsqueeze(-2), cos.unsqueeze(-2)
    return torch.cat([torch.addcmul(a * sin, b, cos), torch.addcmul(b * sin, a, cos, value=-1)], dim=-1)
