"""A bank of the last steps: each embedded step is stored, and the policy attends to the bank.

    e_t = norm(x_t) is stored; the bank holds e_t and the n - 1 before it, first in, first out
    h <- x_t,  then in every layer:  h <- h + MultiHead(query = norm(h), key = value = bank),  h <- h + FFN(norm(h))

Similar to the memory bank of SAM2Act+ (Fang et al. 2025, arXiv 2501.18564) and the attended frame memory of image-goal
policies (Mezghani et al. 2021, arXiv 2101.05181), which store images rather than whole steps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean
from RATE_model.memories.contract import MemoryOptions, State, a_trajectory, twice_as_wide
from RATE_model.memories.segments import Attention, AttentionConfig, bias_of, feed_forward, merge_heads
from RATE_model.memories.sliding import SlidingStepper, slide
from RATE_model.memories.stack import Cell, CellState, CellStepper, Stack, StepSignals
from RATE_model.system.products import linear


@dataclass(frozen=True, kw_only=True)
class BankConfig(AttentionConfig):
    """Sizes. There is one bank, read by every layer."""

    flag = "bank"

    layers: int = 1  # of the stack; the reading layers are `reads`
    reads: int = 2
    # n: steps in the bank
    steps: int = 64
    # Whether gradients flow into stored steps
    trained: bool = True

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"bank_layers": self.reads, "bank_heads": self.heads, "bank_inner": self.inner}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, bank_steps=self.steps)
        at_most(MAX_STEPS, bank_steps=self.steps)


@dataclass(frozen=True)
class BankState(State):
    """The bank, oldest step first; tuples of one."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"bank": ("stored", "count")}

    stored: tuple[Tensor, ...]  # (B, n - 1, reads 2 d), keys and values for every layer
    count: tuple[Tensor, ...]  # (B,) int64, number of stored steps

    @property
    def slots(self) -> Tensor:
        """The stored steps, `(B, n - 1, reads 2 d)`."""
        return self.stored[0]


class BankCell(Cell):
    """The bank and the layers that read it."""

    def __init__(self, config: BankConfig) -> None:
        super().__init__()
        d = config.d_model
        self.steps, self.trained = config.steps, config.trained
        self.attentions = nn.ModuleList(Attention(d, config.heads) for _ in range(config.reads))
        self.forwards = nn.ModuleList(feed_forward(d, config.inner) for _ in range(config.reads))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * config.reads))
        self.age_bias = nn.Parameter(torch.zeros(config.reads, config.heads, config.steps))

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """An empty bank."""
        width = sum(attention.source.out_features for attention in self.reading())
        stored = torch.zeros(1, self.steps - 1, width, device=device).expand(batch_size, -1, -1)
        return stored, torch.zeros(batch_size, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        embedded = F.layer_norm(x if self.trained else x.detach(), x.shape[-1:])
        new = torch.cat([attention.source(embedded) for attention in self.reading()], dim=-1)
        stored, count = state
        slid = slide(stored, count, new, valid)
        ages = slid.back.clamp(0, self.steps - 1)
        hidden = bias_of((slid.back == ages) & slid.there)
        columns = slid.columns.chunk(len(self.attentions), dim=-1)
        h, looked = x, {}
        for index, attention in enumerate(self.reading()):
            bias = hidden + self.age_bias[index][:, ages]
            read, taken = attention.look(self.norms[2 * index](h), columns[index], bias)
            h = h + read
            h = h + self.forwards[index](self.norms[2 * index + 1](h))
            looked[f"read {index + 1} by age"] = _by_age(taken, self.steps)
        return h, (slid.window, slid.count), looked

    def reading(self) -> list[Attention]:
        """The attention of every layer."""
        return list(self.attentions)  # type: ignore[arg-type]

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return BankStepper(self, state, dtype, self.steps)


class BankStepper(SlidingStepper):
    """The bank and the layers that read it, in acting."""

    cell: BankCell

    def __init__(self, cell: BankCell, state: CellState, dtype: torch.dtype, size: int) -> None:
        super().__init__(cell, state, dtype, size)
        self.source = torch.cat([attention.source.weight for attention in cell.reading()])

    def columns_of(self, window: Tensor) -> list[Tensor]:
        """Keys and values of every layer, by head."""
        reading = self.cell.reading()
        parts = zip(reading, window.chunk(len(reading), dim=-1), strict=True)
        return [part for attention, source in parts for part in attention.split(source)]

    def steps_of(self, columns: list[Tensor]) -> Tensor:
        """See `SlidingStepper.steps_of`."""
        return torch.cat([merge_heads(*pair) for pair in zip(columns[::2], columns[1::2], strict=True)], dim=-1)

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        cell = self.cell
        back = self.write(linear(F.layer_norm(x, x.shape[-1:]), self.source))
        unseen, *columns = self.buffers
        h, bias = x, cell.age_bias[..., back]
        for index, attention in enumerate(cell.reading()):
            keys, values = columns[2 * index : 2 * index + 2]
            h = h + attention.of_one_step(cell.norms[2 * index](h), keys, values, bias[index] + unseen)
            h = h + cell.forwards[index](cell.norms[2 * index + 1](h))
        return h


def _by_age(taken: Tensor, steps: int) -> Tensor:
    """Shares of columns `(B, T, n - 1 + T)` as shares of steps by age, `(B, T, n)`, the step itself first."""
    length = taken.shape[1]
    ends = torch.arange(steps - 1, steps - 1 + length, device=taken.device)
    columns = ends[:, None] - torch.arange(steps, device=taken.device)
    return taken.gather(2, columns.expand(len(taken), -1, -1))


class Bank(Stack):
    """A bank that is attended to."""

    config: BankConfig
    cell, state = BankCell, BankState
    norm: ClassVar[Any] = None

    @property
    def reach(self) -> int | None:
        """The steps in the bank, none of which depends on earlier ones."""
        return self.config.steps

    @property
    def gradient_reach(self) -> int | None:
        """Only the current step, if stored steps get no gradient."""
        return self.config.steps if self.config.trained else 1


@dataclass(frozen=True)
class BankOptions(MemoryOptions):
    """A bank of the last embedded steps."""

    makes, prefix = BankConfig, "bank_"
    renamed = {"bank_layers": "reads"}
    derived = {"inner": twice_as_wide, "steps": a_trajectory}

    # Layers that read the bank
    bank_layers: int = 2
    # Attention heads
    bank_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    bank_inner: int | None = None
    # Steps that the bank holds; none = those of a training trajectory
    bank_steps: int | None = None
    # Let gradients flow into stored steps; false: encoders learn from the present step only
    bank_trained: Boolean = True
