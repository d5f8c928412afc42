"""ELMUR, External Layer Memory with Update/Rewrite (Cherepanov et al. 2025, arXiv 2510.07151).

Every layer has M slots m_j of d numbers, each with an anchor p_j, the step at which it was last written. A segment of K
steps is read and written at once:

    tokens   h <- norm(x + SelfAttention(x))                                  causal, within the segment
             h <- norm(h + CrossAttention(query = h, source = m) )            "mem2tok", with a bias E[t - p_j]
             h <- norm(h + FFN(h))
    slots    u <- norm(m + CrossAttention(query = m, source = h))             "tok2mem", with a bias E'[t - p_j]
             u <- norm(u + FFN'(u))
             j = the first empty slot, else the one written longest ago       least recently used
             m_j <- u_j if it was empty, else lambda u_j + (1 - lambda) m_j;  p_j <- t

A slot's content decays by 1 - lambda each time it is written: after M L ln(eps) / ln(1 - lambda) segments of L steps a
share of eps is left. Deviations from the paper are on the page, docs/memories/elmur.md.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
)
from RATE_model.memories.stack import CellState, CellStepper, StepSignals

# Ages of slots share a bias from here on by ratio, as distances do in T5 (Raffel et al. 2020).
_EXACT, _BUCKETS, _FARTHEST = 16, 32, 100_000


@dataclass(frozen=True, kw_only=True)
class ELMURConfig(AttentionConfig):
    """Sizes, and how a slot is overwritten."""

    flag = "elmur"

    # M: slots of a layer
    slots: int = 8
    # lambda: share of the new in a slot that is overwritten
    blend: float = 0.8
    # Standard deviation of the slots' initial values
    spread: float = 1.0

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, elmur_slots=self.slots)
        at_most(MAX_SIZE, elmur_slots=self.slots)
        if not 0 < self.blend <= 1:
            raise UserError(f"--elmur_blend {self.blend}: must be above 0 and at most 1")
        if not 0 < self.spread < math.inf:
            raise UserError(f"--elmur_spread {self.spread}: must be above 0")


@dataclass(frozen=True)
class ELMURState(SegmentState):
    """Slots and anchors; see `SegmentState`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"slots": ("contents", "anchors")}

    contents: Any  # (B, M, d)
    anchors: Any  # (B, M) int64, steps; below 0: empty
    time: Any  # (B,) int64, the step at which the running segment began

    @property
    def slots(self) -> Tensor:
        """The slots of all layers, `(B, layers M, d)`."""
        return torch.cat(self.contents, dim=1)


class ELMURCell(SegmentCell):
    """One layer."""

    state = ELMURState

    def __init__(self, config: ELMURConfig) -> None:
        d, heads = config.d_model, config.heads
        super().__init__(config.context_length, kept=3 * d)  # keys and values; the layer's output
        self.blend = config.blend
        self.within, self.read, self.write = (Attention(d, heads) for _ in range(3))
        self.distance_bias = nn.Parameter(torch.zeros(heads, config.context_length))
        self.read_bias, self.write_bias = (nn.Parameter(torch.zeros(heads, _BUCKETS)) for _ in range(2))
        self.forward_token, self.forward_slot = feed_forward(d, config.inner), feed_forward(d, config.inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(5))
        self.initial_slots = nn.Parameter(config.spread * torch.randn(config.slots, d))

    def begin(self, batch_size: int, device: torch.device) -> ELMURState:
        """Learned slots, all of them empty: what they hold is read, but the first write of a slot replaces it."""
        count = len(self.initial_slots)
        return ELMURState(
            **self.empty(batch_size, device),
            contents=self.initial_slots.expand(batch_size, -1, -1),
            anchors=torch.arange(-count, 0, device=device).expand(batch_size, -1),
            time=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def attend(self, x: Tensor, state: ELMURState, places: Tensor) -> tuple[Tensor, ELMURState, StepSignals]:
        """See `SegmentCell.attend`."""
        d = x.shape[-1]
        columns = self.within.source(x)
        running = self.extended(state.running[..., : 2 * d], columns, places)
        back, bias = self.causal(places)
        bias = bias + self.distance_bias[:, back.clamp(min=0)].transpose(0, 1)
        h = self.norms[0](x + self.within(x, running, bias))
        age = self.age(state, places)  # (B, t, M)
        source = self.read.source(state.contents)
        read, taken = self.read.look(h, source, self.read_bias[:, age].transpose(0, 1))
        h = self.norms[1](h + read)
        h = self.norms[2](h + self.forward_token(h))
        outputs = self.extended(state.running[..., 2 * d :], h, places)
        state = replace(state, running=torch.cat([running, outputs], dim=-1))
        return h, state, {"slots read": taken}

    def close(self, state: ELMURState) -> ELMURState:
        """Write one slot; see `SegmentCell.close`."""
        tokens, slots = state.running[..., -state.contents.shape[-1] :], state.contents
        places = torch.arange(self.segment, device=tokens.device)[None]
        bias = self.write_bias[:, self.age(state, places)].permute(1, 0, 3, 2)  # (B, heads, M, K)
        new = self.norms[3](slots + self.write(slots, self.write.source(tokens), bias))
        new = self.norms[4](new + self.forward_slot(new))
        end = state.time + self.segment
        chosen = F.one_hot(state.anchors.argmin(dim=1), slots.shape[1]).bool()
        share = torch.where(state.anchors < 0, 1.0, self.blend) * chosen
        contents = torch.lerp(slots, new.to(slots.dtype), share[..., None].to(slots.dtype))
        anchors = torch.where(chosen, end[:, None], state.anchors)
        return ELMURState(state.running, state.count, contents, anchors, end)

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return ELMURStepper(self, state, dtype)

    @staticmethod
    def age(state: ELMURState, places: Tensor) -> Tensor:
        """Buckets `(B, t, M)` int64 of the steps since every slot was written; the last bucket: it is empty."""
        age = (state.time[:, None] + places)[..., None] - state.anchors[:, None]
        logarithm = (age.clamp(min=_EXACT) / _EXACT).log() / math.log(_FARTHEST / _EXACT)
        far = (_EXACT + logarithm * (_BUCKETS - 1 - _EXACT)).long().clamp(max=_BUCKETS - 2)
        bucket = torch.where(age < _EXACT, age, far)
        return torch.where(state.anchors[:, None] < 0, _BUCKETS - 1, bucket)


class ELMURStepper(SegmentStepper):
    """A layer that acts: keys and values of slots, and their ages, are laid out once a segment."""

    cell: ELMURCell

    def __init__(self, cell: ELMURCell, state: CellState, dtype: torch.dtype) -> None:
        super().__init__(cell, state, dtype)
        self.bias = by_place(cell.distance_bias, cell.segment)
        self.read_bias = cell.read_bias.transpose(0, 1)

    def pack(self, state: CellState) -> list[Tensor]:
        """Count; keys, values and outputs of the segment; slots, anchors, time; keys, values and ages of slots."""
        cell, fields = self.cell, ELMURState(*state)
        d = fields.contents.shape[-1]
        running = fields.running.to(self.dtype)
        slots = cell.read.split(cell.read.source(fields.contents).to(self.dtype))
        ages = cell.age(fields, torch.arange(cell.segment, device=running.device)[None])
        kept = fields.contents, fields.anchors, fields.time
        return [fields.count, *cell.within.split(running[..., : 2 * d]), running[..., 2 * d :], *kept, *slots, ages]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        count, keys, values, outputs, *kept = buffers[:7]
        return torch.cat([merge_heads(keys, values), outputs], dim=-1), count, *kept

    def attend(self, x: Tensor, rows: Tensor | slice, places: Tensor | int) -> Tensor:
        """See `SegmentStepper.attend`."""
        cell = self.cell
        _, keys, values, outputs, _, _, _, slot_keys, slot_values, ages = self.buffers
        self.write(rows, places, cell.within.source(x))
        h = cell.norms[0](x + cell.within.of_one_step(x, keys, values, self.bias[places]))
        bias = self.read_bias[ages[rows, places]].transpose(1, 2)  # (B, heads, M)
        h = cell.norms[1](h + cell.read.of_one_step(h, slot_keys, slot_values, bias))
        h = cell.norms[2](h + cell.forward_token(h))
        outputs[rows, places] = h.to(outputs.dtype)
        return h


class ELMUR(SegmentStack):
    """Layers with slots of their own."""

    cell, state = ELMURCell, ELMURState


@dataclass(frozen=True)
class ELMUROptions(MemoryOptions):
    """ELMUR: slots in every layer; each segment is written to the least recently used one."""

    makes, prefix = ELMURConfig, "elmur_"
    derived = {"inner": twice_as_wide}

    # Layers
    elmur_layers: int = 2
    # Attention heads
    elmur_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    elmur_inner: int | None = None
    # Slots per layer; each segment writes one
    elmur_slots: int = 8
    # Share of the new content in an overwritten slot; 1 = replace
    elmur_blend: float = 0.8
    # Standard deviation of the slots' initial values
    elmur_spread: float = 1.0
