"""FFM, Fast and Forgetful Memory (Morad, Kortvelesy, Liwicki, Prorok 2023, arXiv 2310.04128): sums of all inputs, each
fading and turning at a rate of its own.

    z_t = (W1 x_t + b1) * sigmoid(W2 x_t + b2)                      (B, T, m), what enters
    S_t = S_{t-1} * exp(-alpha_j + i omega_k) + z_t 1^T             (m, c) complex: m traces in c contexts
    g_t = sigmoid(W4 x_t + b4)
    h_t = LN(W3 [Re S_t, Im S_t] + b3) * g_t + (W5 x_t + b5) * (1 - g_t)

No gate depends on the state, so all states of a trajectory are one scan.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from RATE_model.cli.limits import MAX_EPISODE_STEPS, at_least, at_most
from RATE_model.memories.contract import MemoryOptions, State
from RATE_model.memories.scan import scan
from RATE_model.memories.stack import Cell, CellState, Stack, StackConfig, StepSignals, last_valid
from RATE_model.system.products import Linear

# The share of an input that remains after a trace's horizon, at the start.
_LEFT = 0.01


@dataclass(frozen=True, kw_only=True)
class FFMConfig(StackConfig):
    """Sizes, and the longest horizon at the start."""

    layers: int = 1
    # m and c: traces, each with a rate of decay, and contexts, each with a frequency
    traces: int = 32
    contexts: int = 4
    # Steps after which the slowest trace has faded at the start
    horizon: int = 1024

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"ffm_layers": self.layers, "ffm_traces": self.traces, "ffm_contexts": self.contexts}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(2, ffm_horizon=self.horizon)
        at_most(MAX_EPISODE_STEPS, ffm_horizon=self.horizon)


@dataclass(frozen=True)
class FFMState(State):
    """The faded sums of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"traces": ("traces",)}

    traces: tuple[Tensor, ...]  # (B, m, c, 2) float32, real and imaginary parts

    @property
    def slots(self) -> Tensor:
        """Every trace of every layer, `(B, layers m, 2 c)`."""
        return torch.cat(self.traces, dim=1).flatten(2)


class FFMCell(Cell):
    """One layer."""

    def __init__(self, config: FFMConfig) -> None:
        super().__init__()
        d, m, c = config.d_model, config.traces, config.contexts
        self.write, self.write_gate = Linear(d, m), Linear(d, m)
        self.read, self.read_gate, self.skip = Linear(2 * m * c, d), Linear(d, d), Linear(d, d)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        # Horizons from 1 step to the longest, periods from 2 steps to the longest. The paper spaces both evenly; evenly
        # on a logarithmic scale there are as many short ones as long ones. Decays stay positive as logarithms.
        top = math.log10(config.horizon)
        self.log_decay = nn.Parameter((-math.log(_LEFT) / torch.logspace(0, top, m)).log())
        self.frequency = nn.Parameter(2 * math.pi / torch.logspace(math.log10(2), top, c))

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        return (torch.zeros(batch_size, len(self.log_decay), len(self.frequency), 2, device=device),)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        (before,) = state
        write_gate, read_gate = torch.sigmoid(self.write_gate(x)), torch.sigmoid(self.read_gate(x))
        written = (self.write(x) * write_gate).float()
        rate = torch.complex(-self.log_decay.exp()[:, None], torch.zeros(1, device=x.device))
        decay = torch.exp(rate + 1j * self.frequency)  # (m, c)
        z = written[..., None].expand(*written.shape, decay.shape[-1])
        traces = torch.view_as_real(scan(decay[None, None], z, torch.view_as_complex(before)))
        read = self.norm(self.read(traces.flatten(2)))
        skip = self.skip(x)
        y = torch.addcmul(skip, read_gate, read - skip)
        seen = {"write gate": write_gate, "read gate": read_gate}
        return y, (last_valid(traces, before, valid),), seen


class FFM(Stack):
    """Fast and Forgetful Memory."""

    cell, state = FFMCell, FFMState
    norm = None  # a cell has a gated connection around it


@dataclass(frozen=True)
class FFMOptions(MemoryOptions):
    """Fast and Forgetful Memory."""

    makes, prefix = FFMConfig, "ffm_"

    # Layers
    ffm_layers: int = 1
    # Traces, each with its own decay rate
    ffm_traces: int = 32
    # Contexts: each trace rotates at this many frequencies
    ffm_contexts: int = 4
    # Steps after which the slowest trace has decayed to a hundredth, at the start
    ffm_horizon: int = 1024
