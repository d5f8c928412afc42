"""Retrieval: each segment also reads the training data most similar to its history, as in RA-DT (Schmied et al. 2024).

    at the first step of a segment:  the k nearest pieces of the index by phi (`neighbours.History`), each a segment of
                                     K embedded steps that started in a similar situation
    h <- h + SelfAttention(norm(h))                                       causal, within the segment
    h <- h + CrossAttention(query = norm(h), source = [nothing; pieces])  scores less distance / temperature
    h <- h + FFN(norm(h))                                                 in every layer

Training fills the index with the newest pieces that it shows. A piece is stored after the window that shows it, so a
window never finds its own pieces. RA-DT: arXiv 2410.07071.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import Gather, MemoryOptions, single_process, twice_as_wide
from RATE_model.memories.neighbours import History, Index
from RATE_model.memories.segments import (
    Attention,
    AttentionConfig,
    SegmentCell,
    SegmentStack,
    SegmentState,
    feed_forward,
    tensors_of,
)
from RATE_model.memories.stack import CellState, StepSignals


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(AttentionConfig):
    """Sizes; there is one index, read by every layer."""

    flag = "retrieval"

    layers: int = 1  # of the stack; the reading layers are `reads`
    reads: int = 2
    # Stored pieces, and k: pieces that a segment reads
    entries: int = 2048
    neighbours: int = 4
    # Distance, in standard deviations, that lowers a piece's attention scores by 1
    temperature: float = 0.5
    # In training, nearer pieces are ignored: they may be of the same episode
    cutoff: float = 0.01
    # Averages of the history in a key, over 2, 8, 32, ... steps
    horizons: int = 5

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"retrieval_layers": self.reads, "retrieval_heads": self.heads, "retrieval_inner": self.inner}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        counts = {"retrieval_entries": self.entries, "retrieval_neighbours": self.neighbours}
        at_least(1, **counts, retrieval_horizons=self.horizons)
        at_most(MAX_STEPS, **counts)
        at_most(12, retrieval_horizons=self.horizons)
        at_least(0, retrieval_cutoff=self.cutoff)
        if self.neighbours > self.entries:
            raise UserError(
                f"--retrieval_neighbours {self.neighbours}: must be at most --retrieval_entries, {self.entries}"
            )
        if not self.temperature > 0:
            raise UserError(f"--retrieval_temperature {self.temperature}: must be above 0")


@dataclass(frozen=True)
class RetrievalState(SegmentState):
    """The history, and the pieces retrieved for the running segment; see `SegmentState`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"history": ("averages",)}

    averages: Any  # (B, horizons, projected)
    key: Any  # (B, n), of the segment's first step
    retrieved: Any  # (B, k K, reads 2 d), keys and values for every layer
    distances: Any  # (B, k), infinite where nothing was found

    @property
    def slots(self) -> Tensor:
        """The averages of the history."""
        return self.averages[0]


class RetrievalCell(SegmentCell):
    """The index and the layers that read it."""

    state = RetrievalState
    projected = 16  # size of a step's random projection

    def __init__(self, config: RetrievalConfig) -> None:
        d, heads, reads = config.d_model, config.heads, config.reads
        super().__init__(config.context_length, kept=reads * 2 * d + d)  # keys and values; the steps themselves
        self.config, self.d_model = config, d
        self.history = History(d, self.projected, config.horizons)
        self.index = Index(config.entries, self.history.key_size, (config.context_length, d))
        self.within = nn.ModuleList(Attention(d, heads) for _ in range(reads))
        self.reading = nn.ModuleList(Attention(d, heads) for _ in range(reads))
        self.forwards = nn.ModuleList(feed_forward(d, config.inner) for _ in range(reads))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3 * reads))
        self.distance_bias = nn.Parameter(torch.zeros(reads, heads, config.context_length))
        self._step = 0  # of this call, up to which steps have been attended from

    def begin(self, batch_size: int, device: torch.device) -> RetrievalState:
        """An empty history, nothing retrieved."""
        config = self.config
        columns = config.neighbours * self.segment
        retrieved = torch.zeros(1, columns, config.reads * 2 * self.d_model, device=device)
        return RetrievalState(
            **self.empty(batch_size, device),
            averages=self.history.initial(batch_size, device),
            key=torch.zeros(batch_size, self.history.key_size, device=device),
            retrieved=retrieved.expand(batch_size, -1, -1),
            distances=torch.full((batch_size, config.neighbours), float("inf"), device=device),
        )

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`. In training mode finished segments are offered to the index."""
        before = RetrievalState(*state)
        keys, averages = self.history(x.detach(), before.averages, valid)
        self._step = 0
        y, after, seen = super().forward(torch.cat([x, keys], dim=-1), state, valid)
        return y, tensors_of(replace(RetrievalState(*after), averages=averages)), seen

    def attend(self, x: Tensor, state: RetrievalState, places: Tensor) -> tuple[Tensor, RetrievalState, StepSignals]:
        """See `SegmentCell.attend`; x holds keys beside the steps."""
        h, keys = x[..., : self.d_model], x[..., self.d_model :]
        self._step += x.shape[1]
        state = self._look_up(state, keys[:, 0], places[:, 0] == 0)
        back, causal = self.causal(places)
        retrieved, running = state.retrieved.chunk(self.config.reads, dim=-1), state.running
        found = self._found(state)
        new, taken_sum = [], []
        for index, (within, reading) in enumerate(zip(self.within, self.reading, strict=True)):
            within, reading = cast(Attention, within), cast(Attention, reading)
            n = self.norms[3 * index](h)
            part = slice(index * 2 * self.d_model, (index + 1) * 2 * self.d_model)
            new.append(self.extended(running[..., part], within.source(n), places))
            bias = causal + self.distance_bias[index][:, back.clamp(min=0)].transpose(0, 1)
            h = h + within(n, new[-1], bias)
            columns = F.pad(retrieved[index], (0, 0, 1, 0))  # nothing: a column of zeros
            read, taken = reading.look(self.norms[3 * index + 1](h), columns, found[:, None, None])
            h = h + read
            h = h + self.forwards[index](self.norms[3 * index + 2](h))
            taken_sum.append(taken[..., 1:].unflatten(-1, (self.config.neighbours, -1)).sum(dim=-1))
        steps = self.extended(running[..., -self.d_model :], x[..., : self.d_model].detach(), places)
        state = replace(state, running=torch.cat([*new, steps], dim=-1))
        return h, state, {"neighbours read": torch.stack(taken_sum).mean(dim=0)}

    def close(self, state: RetrievalState) -> RetrievalState:
        """Offer the segment to the index; see `SegmentCell.close`."""
        if self.training:
            self.index.offer(state.key, state.running[..., -self.d_model :], step=self._step)
        return state

    def _look_up(self, state: RetrievalState, keys: Tensor, begins: Tensor) -> RetrievalState:
        """Find the pieces nearest to keys `(B, n)` for the rows `(B or 1,)` bool whose segment begins."""
        if not bool(begins.any()):
            return state
        rows = begins.expand(len(keys)).nonzero().squeeze(1)
        asked = keys[rows]
        distances = asked.new_full((len(rows), self.config.neighbours), float("inf"))
        pieces = asked.new_zeros(len(rows), self.config.neighbours, self.segment, self.d_model)
        if self.index.count:
            places, near = self.index.nearest(asked, self.config.neighbours)
            if self.training:
                near = near.masked_fill(near < self.config.cutoff, float("inf"))
            distances[:, : near.shape[1]], pieces[:, : near.shape[1]] = near, self.index.values[places]
        sources = [cast(Attention, reading).source(pieces.flatten(1, 2)) for reading in self.reading]
        retrieved = torch.cat(sources, dim=-1)
        return replace(
            state,
            key=state.key.index_copy(0, rows, asked),
            retrieved=state.retrieved.to(retrieved.dtype).index_copy(0, rows, retrieved),
            distances=state.distances.index_copy(0, rows, distances),
        )

    def _found(self, state: RetrievalState) -> Tensor:
        """The bias of scores, `(B, 1 + k K)`: 0 for the empty column, decreasing with distance for pieces."""
        less = -state.distances / self.config.temperature
        return F.pad(less.repeat_interleave(self.segment, dim=1), (1, 0))


class Retrieval(SegmentStack):
    """A transformer over segments that reads what it retrieves."""

    config: RetrievalConfig
    cell, state = RetrievalCell, RetrievalState
    keeps_data = True

    @property
    def gradient_reach(self) -> int | None:
        """One segment: neither the lookup nor the retrieved pieces carry gradients."""
        return self.config.context_length

    @property
    def index(self) -> Index:
        """The index of training data."""
        return cast(RetrievalCell, self.cells[0]).index

    def store_shown(self, gather: Gather = single_process) -> None:
        """See `Memory.store_shown`: the newest segments."""
        self.index.store_offered(gather, newest=True)


@dataclass(frozen=True)
class RetrievalOptions(MemoryOptions):
    """Retrieval from the data: pieces of trajectories that started in a similar situation."""

    makes, prefix = RetrievalConfig, "retrieval_"
    renamed = {"retrieval_layers": "reads"}
    derived = {"inner": twice_as_wide}

    # Layers
    retrieval_layers: int = 2
    # Attention heads
    retrieval_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    retrieval_inner: int | None = None
    # Pieces to store, one segment each: the newest that training has shown
    retrieval_entries: int = 2048
    # Pieces that a segment reads
    retrieval_neighbours: int = 4
    # Distance, in standard deviations, that lowers a piece's attention scores by 1
    retrieval_temperature: float = 0.5
    # In training, ignore pieces nearer than this: they may be of the same episode
    retrieval_cutoff: float = 0.01
    # Averages of the history in a key, over 2, 8, 32, ... steps
    retrieval_horizons: int = 5
