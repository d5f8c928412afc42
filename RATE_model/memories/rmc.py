"""RMC, the Relational Memory Core (Santoro et al. 2018, arXiv 1806.01822): slots that attend to each other.

    A = norm(M + MultiHead(query = M, key = value = [M; x_t]))       each slot attends to all slots and to the step
    g = norm(A + MLP(A))                                              equation 4's attention, and g_psi, row by row
    f, i, o = W x_t + U H_{t-1}                                       a gate for every number           equations 5 to 7
    M_t = sigmoid(f + 1) * M_{t-1} + sigmoid(i) * tanh(g)             equation 8
    H_t = sigmoid(o) * tanh(M_t)                                      equation 9
    h_t = W_h [rows of H_t]

A step needs the one before it: there is no parallel form.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from RATE_model.cli.limits import MAX_SIZE, at_least, at_most
from RATE_model.memories.contract import MemoryOptions, State, as_wide
from RATE_model.memories.segments import Attention, AttentionConfig, feed_forward
from RATE_model.memories.stack import Cell, CellState, Stack, StepSignals
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class RMCConfig(AttentionConfig):
    """Sizes."""

    flag = "rmc"

    layers: int = 1
    # Slots per layer
    slots: int = 4

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, rmc_slots=self.slots)
        at_most(MAX_SIZE, rmc_slots=self.slots)


@dataclass(frozen=True)
class RMCState(State):
    """The state of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"slots": ("cells",), "hidden": ("hidden",)}

    cells: tuple[Tensor, ...]  # M, (B, slots, d)
    hidden: tuple[Tensor, ...]  # H, the same

    @property
    def slots(self) -> Tensor:
        """The slots of all layers, `(B, layers slots, d)`."""
        return torch.cat(self.cells, dim=1)


class RMCCell(Cell):
    """One layer."""

    def __init__(self, config: RMCConfig) -> None:
        super().__init__()
        d = config.d_model
        self.slots = config.slots
        self.attention = Attention(d, config.heads)
        self.forward_slot = feed_forward(d, config.inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.from_input = Linear(d, 3 * d)
        self.from_hidden = Linear(d, 3 * d, bias=False)
        self.output = Linear(config.slots * d, d)

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Distinct slots, rows of the identity: equal ones would stay equal."""
        d = self.from_input.in_features
        cells = torch.eye(self.slots, d, device=device).expand(batch_size, -1, -1)
        return cells, torch.zeros(1, self.slots, d, device=device).expand(batch_size, -1, -1)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        # In float32 even under autocast: a state rounded at every step drifts, and these products are small.
        with torch.autocast(x.device.type, enabled=False):
            # Steps as views of one tensor each: the gradient of an index would be as large as all steps.
            inputs = zip(self.from_input(x).unbind(1), self.attention.source(x).unbind(1), strict=True)
            cells, hidden = state
            outputs, keeping, writing = [], [], []
            for step, (gates, source) in enumerate(inputs):
                keep, write, after, shown = self._step(gates[:, None], source[:, None], cells, hidden)
                if valid is not None:
                    here = valid[:, step, None, None]
                    after, shown = torch.where(here, after, cells), torch.where(here, shown, hidden)
                cells, hidden = after, shown
                outputs.append(hidden.flatten(1))
                keeping.append(keep.mean(dim=-1))
                writing.append(write.mean(dim=-1))
            seen = {"forget gate": torch.stack(keeping, dim=1), "input gate": torch.stack(writing, dim=1)}
            return self.output(torch.stack(outputs, dim=1)), (cells, hidden), seen

    def _step(self, gates: Tensor, source: Tensor, cells: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        """Forget and input gates, M and H; all `(B, slots, d)`. `gates` and `source` are the input's contributions."""
        keep, write, show = (gates + self.from_hidden(hidden)).chunk(3, dim=-1)
        columns = torch.cat([self.attention.source(cells), source], dim=1)
        nothing_hidden = cells.new_zeros(1, 1, 1, columns.shape[1])  # as wide as a GPU's kernel wants it
        g = self.norms[0](cells + self.attention(cells, columns, nothing_hidden))
        g = self.norms[1](g + self.forward_slot(g))
        keep, write = torch.sigmoid(keep + 1), torch.sigmoid(write)
        cells = keep * cells + write * torch.tanh(g)
        return keep, write, cells, torch.sigmoid(show) * torch.tanh(cells)


class RMC(Stack):
    """Relational memory cores."""

    config: RMCConfig
    cell, state = RMCCell, RMCState


@dataclass(frozen=True)
class RMCOptions(MemoryOptions):
    """Relational Memory Core: slots that attend to each other."""

    makes, prefix = RMCConfig, "rmc_"
    derived = {"inner": as_wide}

    # Layers
    rmc_layers: int = 1
    # Attention heads
    rmc_heads: int = 4
    # Width inside the MLP; none = d_model
    rmc_inner: int | None = None
    # Slots per layer
    rmc_slots: int = 4
