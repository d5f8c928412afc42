"""Compressive Transformer (Rae et al. 2019, arXiv 1911.05507): steps that leave the cache are compressed, not dropped.

Every layer attends to its segment of K steps, to a cache of the M steps before it, as in Transformer-XL, and to older
steps, of which each c have become one:

    columns     compressed, S c steps in S slots | cache, M steps | the segment
    h <- h + MultiHead(query = norm(h), key = value = [compressed; cache; segment]), h <- h + FFN(norm(h))
    after a segment:  cache <- its last M of [cache; segment];  the K oldest leave it
                      compressed <- its last S of [compressed; f_c(those that left)]   algorithm 1
    f_c:  a convolution over c steps with stride c, or their mean, or their maximum   section 3.2

With equal memory it sees c times as far as a cache.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, twice_as_wide
from RATE_model.memories.segments import (
    Attention,
    AttentionConfig,
    SegmentCell,
    SegmentStack,
    SegmentState,
    SegmentStepper,
    bias_of,
    by_place,
    feed_forward,
    merge_heads,
)
from RATE_model.memories.stack import CellState, CellStepper, StepSignals
from RATE_model.system.products import Linear

Compression = Literal["conv", "mean", "max"]


@dataclass(frozen=True, kw_only=True)
class CompressiveConfig(AttentionConfig):
    """Sizes, and the compression."""

    flag = "compressive"

    # Number of segments cached unchanged, and number kept compressed
    cached: int = 1
    compressed: int = 8
    # c: steps that become one
    rate: int = 2
    # f_c
    function: Compression = "conv"

    @property
    def slots(self) -> int:
        """S: compressed steps of a layer."""
        return self.compressed * self.context_length // self.rate

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, compressive_cached=self.cached, compressive_compressed=self.compressed, compressive_rate=self.rate)
        at_most(MAX_SIZE, compressive_cached=self.cached, compressive_compressed=self.compressed)
        at_most(MAX_STEPS, compressive_rate=self.rate)
        if self.context_length % self.rate:
            fitting = [rate for rate in range(1, self.context_length + 1) if self.context_length % rate == 0]
            raise UserError(
                f"--compressive_rate {self.rate} does not divide --context_length {self.context_length}, the steps of "
                f"a segment: choose one of {', '.join(map(str, fitting))}"
            )
        if self.function not in ("conv", "mean", "max"):
            raise UserError(f"--compressive_function {self.function!r}: choose one of conv, mean, max")


@dataclass(frozen=True)
class CompressiveState(SegmentState):
    """Both caches, oldest first; see `SegmentState`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "cache": ("cache", "cached"),
        "compressed": ("compressed", "squeezed"),
    }

    cache: Any  # (B, M, 3 d): keys and values, and their inputs
    compressed: Any  # (B, S, 2 d): keys and values
    cached: Any  # (B,) int64, number of segments in the cache, at its end
    squeezed: Any  # (B,) int64, number of compressed segments, at the end

    @property
    def slots(self) -> Tensor:
        """The values of the compressed steps of all layers, `(B, layers S, d)`."""
        return torch.cat([layer.chunk(2, dim=-1)[1] for layer in self.compressed], dim=1)


class CompressiveCell(SegmentCell):
    """One layer."""

    state = CompressiveState

    def __init__(self, config: CompressiveConfig) -> None:
        d, heads, segment = config.d_model, config.heads, config.context_length
        super().__init__(segment, kept=3 * d)
        self.d_model, self.rate, self.slots = d, config.rate, config.slots
        self.cached, self.compressed = config.cached, config.compressed
        self.attention = Attention(d, heads)
        self.distance_bias = nn.Parameter(torch.zeros(heads, segment * (1 + config.cached)))
        self.slot_bias = nn.Parameter(torch.zeros(heads, config.slots))
        self.forward_token = feed_forward(d, config.inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.function = config.function
        self.convolution = Linear(config.rate * d, d) if config.function == "conv" else None

    def begin(self, batch_size: int, device: torch.device) -> CompressiveState:
        """Empty."""
        cache = torch.zeros(1, self.cached * self.segment, 3 * self.d_model, device=device)
        compressed = torch.zeros(1, self.slots, 2 * self.d_model, device=device)
        none = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return CompressiveState(
            **self.empty(batch_size, device),
            cache=cache.expand(batch_size, -1, -1),
            compressed=compressed.expand(batch_size, -1, -1),
            cached=none,
            squeezed=none,
        )

    def attend(
        self, x: Tensor, state: CompressiveState, places: Tensor
    ) -> tuple[Tensor, CompressiveState, StepSignals]:
        """See `SegmentCell.attend`."""
        inputs, d = self.norms[0](x), self.d_model
        running = self.extended(state.running, torch.cat([self.attention.source(inputs), inputs], dim=-1), places)
        parts = (state.compressed, state.cache[..., : 2 * d], running[..., : 2 * d])
        columns = torch.cat([part.to(running.dtype) for part in parts], dim=1)
        attended, taken = self.attention.look(inputs, columns, self._bias(state, places))
        h = x + attended
        shares = [part.sum(dim=-1) for part in taken.split([part.shape[1] for part in parts], dim=-1)]
        seen = {"compressed, cache, segment": torch.stack(shares, dim=-1)}
        return h + self.forward_token(self.norms[1](h)), replace(state, running=running), seen

    def _bias(self, state: CompressiveState, places: Tensor) -> Tensor:
        """The bias of scores, `(B, heads, t, S + M + K)`: by age for slots, by distance for steps."""
        steps = places.shape[1]
        columns = torch.arange(-self.cached * self.segment, self.segment, device=places.device)
        back = places[..., None] - columns  # (B or 1, t, M + K)
        by_distance = bias_of(back >= 0) + self.distance_bias[:, back.clamp(min=0)].transpose(0, 1)
        unseen = bias_of(self.there(state)[:, None])  # (B, 1, 1, S + M)
        by_slot = self.slot_bias[:, None].expand(-1, steps, -1)[None].expand(len(by_distance), -1, -1, -1)
        bias = torch.cat([by_slot, by_distance], dim=-1)
        return bias + F.pad(unseen, (0, self.segment))

    def there(self, state: CompressiveState) -> Tensor:
        """`(B, S + M)` bool: whether a column is filled."""
        compressed = _filled(state.squeezed, self.compressed, self.slots)
        return torch.cat([compressed, _filled(state.cached, self.cached, self.cached * self.segment)], dim=1)

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return CompressiveStepper(self, state, dtype)

    def close(self, state: CompressiveState) -> CompressiveState:
        """Move the segment into the cache and compress what leaves it; see `SegmentCell.close`."""
        joined = torch.cat([state.cache.to(state.running.dtype), state.running], dim=1)
        leaving = self.compress(joined[:, : self.segment, 2 * self.d_model :])
        compressed = torch.cat([state.compressed.to(leaving.dtype), self.attention.source(leaving)], dim=1)
        full = state.cached == self.cached
        return CompressiveState(
            state.running,
            state.count,
            joined[:, self.segment :],
            compressed[:, -self.slots :],
            (state.cached + 1).clamp(max=self.cached),
            (state.squeezed + full).clamp(max=self.compressed),
        )

    def compress(self, inputs: Tensor) -> Tensor:
        """f_c: `(B, K, d)` to `(B, K / c, d)`."""
        groups = inputs.unflatten(1, (-1, self.rate))
        if self.convolution is not None:  # kernel and stride are c: a linear map of c steps
            return self.convolution(groups.flatten(2))
        return groups.mean(dim=2) if self.function == "mean" else groups.amax(dim=2)


class CompressiveStepper(SegmentStepper):
    """A layer in acting: compressed steps, cache and segment are side by side."""

    cell: CompressiveCell

    def __init__(self, cell: CompressiveCell, state: CellState, dtype: torch.dtype) -> None:
        super().__init__(cell, state, dtype)
        by_distance = by_place(cell.distance_bias, cell.segment)
        self.bias = torch.cat([cell.slot_bias.expand(cell.segment, -1, -1), by_distance], dim=-1)

    def pack(self, state: CellState) -> list[Tensor]:
        """Count; keys and values of all columns; the inputs of cache and segment; the bias that hides empty columns;
        and the numbers of cached and compressed segments.
        """
        cell, fields = self.cell, CompressiveState(*state)
        d, steps = cell.d_model, torch.cat([fields.cache.to(self.dtype), fields.running.to(self.dtype)], dim=1)
        columns = torch.cat([fields.compressed.to(self.dtype), steps[..., : 2 * d]], dim=1)
        unseen = F.pad(bias_of(cell.there(fields)[:, None]).squeeze(1), (0, cell.segment))  # (B, 1, S + M + K)
        counts = fields.cached, fields.squeezed
        return [fields.count, *cell.attention.split(columns), steps[..., 2 * d :], unseen, *counts]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        count, keys, values, inputs, _, cached, squeezed = buffers
        compressed, steps = merge_heads(keys, values).tensor_split((self.cell.slots,), dim=1)
        cache, running = torch.cat([steps, inputs], dim=-1).tensor_split((-self.cell.segment,), dim=1)
        return running, count, cache, compressed, cached, squeezed

    def attend(self, x: Tensor, rows: Tensor | slice, places: Tensor | int) -> Tensor:
        """See `SegmentStepper.attend`."""
        cell, (_, keys, values, steps, unseen, *_) = self.cell, self.buffers
        inputs = cell.norms[0](x)
        self.write(rows, keys.shape[2] - cell.segment + places, cell.attention.source(inputs))
        steps[rows, steps.shape[1] - cell.segment + places] = inputs.to(steps.dtype)
        h = x + cell.attention.of_one_step(inputs, keys, values, self.bias[places] + unseen)
        return h + cell.forward_token(cell.norms[1](h))


def _filled(count: Tensor, segments: int, columns: int) -> Tensor:
    """`(B, columns)` bool: the columns of the last `count` of ``segments`` segments."""
    age = torch.arange(columns - 1, -1, -1, device=count.device) // (columns // segments)
    return age < count[:, None]


class Compressive(SegmentStack):
    """Layers with both caches."""

    config: CompressiveConfig
    cell, state = CompressiveCell, CompressiveState

    @property
    def reach(self) -> int | None:
        """Every layer sees its segment, and those cached and compressed before it, each of which saw as much."""
        config = self.config
        return config.context_length * (1 + config.layers * (config.cached + config.compressed))


@dataclass(frozen=True)
class CompressiveOptions(MemoryOptions):
    """Compressive Transformer: a cache of hidden states, and a compressed cache of older ones."""

    makes, prefix = CompressiveConfig, "compressive_"
    derived = {"inner": twice_as_wide}

    # Layers
    compressive_layers: int = 2
    # Attention heads
    compressive_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    compressive_inner: int | None = None
    # Segments in the uncompressed cache
    compressive_cached: int = 1
    # Segments' worth of compressed slots, filled by what leaves the cache
    compressive_compressed: int = 8
    # Steps compressed into one
    compressive_rate: int = 2
    # Compression: convolution, mean or maximum
    compressive_function: Compression = "conv"
