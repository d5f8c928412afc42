"""HCAM, Hierarchical Chunk Attention Memory (Lampinen et al. 2021, arXiv 2105.14039): recall, then look closely.

Every layer keeps past segments of K steps as chunks; a chunk's summary is the mean of its steps. With n = norm(h):

    h <- h + SelfAttention(norm(h))                                  causal, within the segment
    relevance of chunk i:  r_i = (W_q n) . (W_s summary_i) / sqrt(d)
    w = softmax of the k largest r_i, zero for all other chunks      section 3
    h <- h + sum_i w_i MultiHead(query = n, key = value = chunk i)   attention in detail, within one chunk at a time
    h <- h + FFN(norm(h))

The last C chunks are kept, so that memory and time per step do not grow with the episode.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from RATE_model.cli.limits import MAX_SIZE, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, twice_as_wide
from RATE_model.memories.segments import (
    Attention,
    AttentionConfig,
    SegmentCell,
    SegmentStack,
    SegmentState,
    SegmentStepper,
    by_place,
    feed_forward,
    merge_heads,
    softmax,
)
from RATE_model.memories.stack import CellState, CellStepper, StepSignals
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class HCAMConfig(AttentionConfig):
    """Sizes."""

    flag = "hcam"

    # C: number of chunks kept, and k: number of chunks a step attends to in detail
    chunks: int = 16
    top_k: int = 4

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, hcam_chunks=self.chunks, hcam_top_k=self.top_k)
        at_most(MAX_SIZE, hcam_chunks=self.chunks)
        if self.top_k > self.chunks:
            raise UserError(f"--hcam_top_k {self.top_k}: must be at most --hcam_chunks, which is {self.chunks}")


@dataclass(frozen=True)
class HCAMState(SegmentState):
    """Chunks, oldest first; see `SegmentState`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"chunks": ("details", "summaries", "filled")}

    details: Any  # (B, C, K, 2 d), keys and values of every step
    summaries: Any  # (B, C, d), W_s summary
    filled: Any  # (B,) int64, number of chunks, at the end

    @property
    def slots(self) -> Tensor:
        """The summaries of all layers, `(B, layers C, d)`."""
        return torch.cat(self.summaries, dim=1)


class HCAMCell(SegmentCell):
    """One layer."""

    state = HCAMState

    def __init__(self, config: HCAMConfig) -> None:
        d, heads = config.d_model, config.heads
        super().__init__(config.context_length, kept=5 * d)  # for the segment; for the chunk; for its summary
        self.chunks, self.top_k = config.chunks, config.top_k
        self.within, self.detail = Attention(d, heads), Attention(d, heads)
        self.ask, self.summarise = Linear(d, d, bias=False), Linear(d, d, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(heads, config.context_length))
        self.place_bias = nn.Parameter(torch.zeros(heads, config.context_length))  # of steps within a chunk
        self.forward_token = feed_forward(d, config.inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))

    def begin(self, batch_size: int, device: torch.device) -> HCAMState:
        """No chunks."""
        d = self.ask.in_features
        return HCAMState(
            **self.empty(batch_size, device),
            details=torch.zeros(1, self.chunks, self.segment, 2 * d, device=device).expand(batch_size, -1, -1, -1),
            summaries=torch.zeros(1, self.chunks, d, device=device).expand(batch_size, -1, -1),
            filled=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def attend(self, x: Tensor, state: HCAMState, places: Tensor) -> tuple[Tensor, HCAMState, StepSignals]:
        """See `SegmentCell.attend`."""
        inputs, d = self.norms[0](x), x.shape[-1]
        kept = torch.cat([self.within.source(inputs), self.detail.source(inputs), self.summarise(inputs)], dim=-1)
        running = self.extended(state.running, kept, places)
        back, bias = self.causal(places)
        bias = bias + self.distance_bias[:, back.clamp(min=0)].transpose(0, 1)
        h = x + self.within(inputs, running[..., : 2 * d], bias)
        recalled, picked = self.recall(self.norms[1](h), state)
        h = h + recalled
        state = replace(state, running=running)
        return h + self.forward_token(self.norms[2](h)), state, {"chunks picked": picked}

    def recall(self, n: Tensor, state: HCAMState) -> tuple[Tensor, Tensor]:
        """The result of recall for steps `(B, t, d)`, and w, `(B, t, C)`.

        All chunks are attended to in detail and most weighted with zero: on a CPU one matrix product is faster than
        gathering k chunks for every step, up to a few thousand kept steps.
        """
        there = torch.arange(self.chunks, device=n.device) >= self.chunks - state.filled[:, None]  # (B, C)
        chosen, picks = self.pick(n, state.summaries, there)
        weights = chosen.new_zeros(*n.shape[:2], self.chunks).scatter(2, picks, chosen)
        query, key, value = self.detail.by_head(n, state.details.flatten(1, 2))
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).unflatten(-1, (self.chunks, -1))
        within = softmax(scores + self.place_bias[:, None, None]) * weights[:, None, ..., None]
        mixed = within.flatten(-2).to(value.dtype) @ value
        return self.detail.output(mixed.transpose(1, 2).flatten(2)), weights

    def pick(self, n: Tensor, summaries: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """w of the k chunks chosen by steps `(B, t, d)`, and their indices, `(B, t, k)` each.

        Args:
            n: the steps.
            summaries: `(B, C, d)`.
            there: `(B, C)` bool, which chunks exist; what is chosen beyond them has w = 0.
        """
        relevance = self.ask(n) @ summaries.to(n.dtype).transpose(1, 2) / math.sqrt(n.shape[-1])
        relevance = relevance.to(torch.promote_types(relevance.dtype, torch.float32))
        chosen, picks = relevance.masked_fill(~there[:, None], float("-inf")).topk(self.top_k, dim=-1)
        # A finite number instead of -inf, so that the gradient is not NaN if there are no chunks.
        return softmax(chosen.clamp(min=-1e9)) * (chosen > float("-inf")), picks

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return HCAMStepper(self, state, dtype)

    def close(self, state: HCAMState) -> HCAMState:
        """Make the segment the newest chunk and drop the oldest; see `SegmentCell.close`."""
        d = state.summaries.shape[-1]
        _, details, summary = state.running.split((2 * d, 2 * d, d), dim=-1)
        # The gradient of parts is written once; that of an index is added to zeros.
        (_, chunks), (_, summaries) = (
            each.split((1, self.chunks - 1), dim=1) for each in (state.details, state.summaries)
        )
        return HCAMState(
            state.running,
            state.count,
            torch.cat([chunks.to(details.dtype), details[:, None]], dim=1),
            torch.cat([summaries.to(summary.dtype), summary.mean(dim=1, keepdim=True)], dim=1),
            (state.filled + 1).clamp(max=self.chunks),
        )


class HCAMStepper(SegmentStepper):
    """A layer in acting: a finished segment overwrites the oldest chunk."""

    cell: HCAMCell

    def __init__(self, cell: HCAMCell, state: CellState, dtype: torch.dtype) -> None:
        super().__init__(cell, state, dtype)
        self.bias = by_place(cell.distance_bias, cell.segment)

    def pack(self, state: CellState) -> list[Tensor]:
        """Count; keys and values of the segment, and the inputs of its chunk and summary; keys beside values of chunks,
        `(B, heads, C, K, 2 d / heads)`; summaries; which chunks exist; index of the oldest.
        """
        cell, fields = self.cell, HCAMState(*state)
        d, running = fields.summaries.shape[-1], fields.running.to(self.dtype)
        details = torch.cat(cell.detail.split(fields.details.flatten(1, 2).to(self.dtype)), dim=-1)
        there = torch.arange(cell.chunks, device=running.device) >= cell.chunks - fields.filled[:, None]
        return [
            fields.count,
            *cell.within.split(running[..., : 2 * d]),
            running[..., 2 * d :],
            details.unflatten(2, (cell.chunks, -1)),
            fields.summaries,
            there,
            torch.zeros_like(fields.filled),
        ]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        count, keys, values, kept, chunks, summaries, there, oldest = buffers
        order = (oldest[:, None] + torch.arange(self.cell.chunks, device=oldest.device)) % self.cell.chunks
        details = merge_heads(*chunks.flatten(2, 3).chunk(2, dim=-1)).unflatten(1, (self.cell.chunks, -1))
        rows = torch.arange(len(order), device=order.device)[:, None]
        running = torch.cat([merge_heads(keys, values), kept], dim=-1)
        return running, count, details[rows, order], summaries[rows, order], there.sum(dim=1)

    def attend(self, x: Tensor, rows: Tensor | slice, places: Tensor | int) -> Tensor:
        """See `SegmentStepper.attend`."""
        cell, (_, keys, values, kept, *_) = self.cell, self.buffers
        inputs = cell.norms[0](x)
        self.write(rows, places, cell.within.source(inputs))
        new = torch.cat([cell.detail.source(inputs), cell.summarise(inputs)], dim=-1)
        kept[rows, places] = new.to(kept.dtype)
        h = x + cell.within.of_one_step(inputs, keys, values, self.bias[places])
        h = h + self.recall(cell.norms[1](h))
        return h + cell.forward_token(cell.norms[2](h))

    def recall(self, n: Tensor) -> Tensor:
        """`HCAMCell.recall` for one step of every row, `(B, d)`, which here gathers the chosen chunks."""
        cell, (details, summaries, there, _) = self.cell, self.buffers[4:]
        weights, picks = cell.pick(n[:, None], summaries, there)  # (B, 1, k) each
        batch, heads, chunks, segment, size = *details.shape[:4], details.shape[4] // 2
        first = torch.arange(batch * heads, device=n.device).view(batch, heads, 1) * chunks
        places = (first + picks).flatten()  # of picked chunks, (B heads k)
        # Fewer, longer reads than of keys and values apart.
        found = details.view(-1, segment * 2 * size).index_select(0, places)
        keys, values = found.view(batch * heads, -1, 2 * size).split(size, dim=-1)
        query = (cell.detail.query(n) * size**-0.5).view(-1, 1, size)
        scores = torch.bmm(query, keys.transpose(1, 2))
        within = softmax(scores.view(batch, heads, -1, segment) + cell.place_bias[:, None]) * weights[..., None]
        shares = within.to(values.dtype).view(batch * heads, 1, -1)
        return cell.detail.output(torch.bmm(shares, values).view(n.shape))

    def close(self, rows: Tensor | None) -> None:
        """See `SegmentStepper.close`."""
        count, _, _, kept, chunks, summaries, there, oldest = self.buffers
        rows = torch.arange(len(count)) if rows is None else rows
        count[rows] = 0
        rows = rows.to(oldest.device)
        places = oldest[rows]
        details, summary = kept[rows].split((kept.shape[-1] - summaries.shape[-1], summaries.shape[-1]), dim=-1)
        chunks[rows, :, places] = torch.cat(self.cell.detail.split(details), dim=-1)
        summaries[rows, places] = summary.mean(dim=1).to(summaries.dtype)
        there[rows, places] = True
        oldest[rows] = (places + 1) % self.cell.chunks


class HCAM(SegmentStack):
    """Layers, each with its own chunks."""

    config: HCAMConfig
    cell, state = HCAMCell, HCAMState

    @property
    def reach(self) -> int | None:
        """Every layer sees its segment and C before it, each of which saw as much."""
        return self.config.context_length * (1 + self.config.layers * self.config.chunks)


@dataclass(frozen=True)
class HCAMOptions(MemoryOptions):
    """HCAM: keeps past segments and attends closely to the most relevant ones."""

    makes, prefix = HCAMConfig, "hcam_"
    derived = {"inner": twice_as_wide}

    # Layers
    hcam_layers: int = 2
    # Attention heads
    hcam_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    hcam_inner: int | None = None
    # Past segments to keep
    hcam_chunks: int = 16
    # Kept segments that each step attends to
    hcam_top_k: int = 4
