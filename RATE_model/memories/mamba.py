"""Mamba (Gu and Dao 2023, arXiv 2312.00752); DMamba is it over return, observation and action, one after the other
(Decision Mamba, Ota 2024, arXiv 2403.19925).

    u, z = W x_t                                       two branches of d_inner = 2 d_model                   figure 3
    v_t = silu(conv(u_{t-3}, ..., u_t))                every channel's own filter
    B_t, C_t, delta_t = W v_t, W v_t, softplus(W W v_t + b)                                          section 3.2, alg. 2
    s_t = exp(delta_t A) * s_{t-1} + delta_t B_t v_t   A = -exp(log_rate), (n, d_inner)               equations 1a, 4
    y_t = C_t s_t + D v_t
    layer: x_t + W (y_t * silu(z_t)), x after an RMSNorm

delta_t is the gate: near 0 the state stays as it is, large it is replaced by what comes in (theorem 1). States are
(B, T, n, d_inner).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State
from RATE_model.memories.scan import Decay, scan_and_read
from RATE_model.memories.stack import (
    CausalConvolution,
    Cell,
    CellState,
    CellStepper,
    Stack,
    StackConfig,
    StepInput,
    StepSignals,
)
from RATE_model.system.products import Linear

_LOG2_E = math.log2(math.e)
# Largest initial delta.
_DELTA_MAX = 0.1


@dataclass(frozen=True, kw_only=True)
class MambaConfig(StackConfig):
    """Sizes."""

    # n: state size per channel
    state: int = 16
    # d_inner / d_model
    expand: int = 2
    # Taps of the filter
    taps: int = 4
    # Smallest initial delta
    delta_min: float = 1e-3

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {
            "mamba_layers": self.layers,
            "mamba_state": self.state,
            "mamba_expand": self.expand,
            "mamba_conv": self.taps,
        }

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if not 0 < self.delta_min <= _DELTA_MAX:
            raise UserError(f"--mamba_delta_min {self.delta_min}: must be above 0 and at most {_DELTA_MAX}")


@dataclass(frozen=True)
class MambaState(State):
    """The state of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"states": ("states",), "conv": ("conv",)}

    states: tuple[Tensor, ...]  # (B, n, d_inner) float32
    conv: tuple[Tensor, ...]  # (B, taps - 1, d_inner) float32, the last inputs of the filter

    @property
    def slots(self) -> Tensor:
        """The n states of every layer, `(B, layers n, d_inner)`."""
        return torch.cat(self.states, dim=1)


class MambaCell(Cell):
    """One layer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        d, inner, n = config.d_model, config.expand * config.d_model, config.state
        rank = math.ceil(d / 16)
        self.split = (rank, n, n)
        self.branches = Linear(d, 2 * inner, bias=False)
        self.convolution = CausalConvolution(inner, config.taps)
        self.select = Linear(inner, sum(self.split), bias=False)
        self.delta = Linear(rank, inner)
        self.log_rate = nn.Parameter(
            torch.arange(1, n + 1).float().log()[:, None].repeat(1, inner)
        )  # S4D-Real: A = -(1, 2, ..., n)
        self.through = nn.Parameter(torch.ones(inner))  # D
        self.output = Linear(inner, d, bias=False)
        # delta begins between delta_min and 0.1, evenly on a logarithmic scale; the paper's minimum is 0.001
        # (section 3.6).
        with torch.no_grad():
            nn.init.uniform_(self.delta.weight, -(rank**-0.5), rank**-0.5)
            delta = torch.exp(torch.empty(inner).uniform_(math.log(config.delta_min), math.log(_DELTA_MAX)))
            self.delta.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        taps, inner = self.convolution.weight.shape
        states = torch.zeros(batch_size, len(self.log_rate), inner, device=device)
        return states, torch.zeros(batch_size, taps - 1, inner, device=device)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        states, conv = state
        u, z = self.branches(x).chunk(2, dim=-1)
        u, conv = self.convolution(u, conv, valid)
        v = F.silu(u)
        delta, write, read = self.select(v).split(self.split, dim=-1)
        delta = F.softplus(self.delta(delta).float())
        if valid is not None:
            delta = delta * valid[..., None]  # with delta 0 nothing is written and nothing decays
        rate = self.log_rate.exp()
        y, states = scan_and_read(DISCRETISED, (delta,), write, delta * v, read, states, shared=(rate,))
        y = torch.addcmul(y, self.through, v)
        return self.output(y * F.silu(z)), (states, conv), {"step size": delta}

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return MambaStepper(self, state, dtype)


def _discretised(delta: Tensor, rate: Tensor, out: Tensor) -> Tensor:
    """exp(delta_t A), `(B, T, n, d_inner)`, from delta `(B, T, d_inner)` and rate = -A `(n, d_inner)`."""
    return torch.mul(delta[:, :, None], rate * -_LOG2_E, out=out).exp2_()  # on AMD's CPUs much faster than exp


def _of_discretised(to_decay: Tensor, decay: Tensor, delta: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of delta and rate."""
    to_exponent = to_decay.mul_(decay)
    to_delta = torch.mul(to_exponent, -rate, out=decay).sum(dim=2)
    return to_delta, -to_exponent.mul_(delta[:, :, None]).sum(dim=(0, 1))


DISCRETISED = Decay(_discretised, _of_discretised)


class MambaStepper(CellStepper):
    """A layer in acting; updates the states in place."""

    cell: MambaCell

    def __init__(self, cell: MambaCell, state: CellState, dtype: torch.dtype) -> None:
        super().__init__(cell, state, dtype)
        self.exponent = cell.log_rate.exp() * -_LOG2_E

    def pack(self, state: CellState) -> list[Tensor]:
        """State, and the inputs of the filter one by one."""
        return [state[0], *state[1].unbind(1)]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        return buffers[0], self.cell.convolution.state_of_inputs(buffers[1:])

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        cell, states, inputs = self.cell, self.buffers[0], self.buffers[1:]
        u, z = cell.branches(x).chunk(2, dim=-1)
        v = F.silu(cell.convolution.step(u, inputs))
        delta, write, read = cell.select(v).split(cell.split, dim=-1)
        delta = F.softplus(cell.delta(delta).float())
        with torch.autocast(x.device.type, enabled=False):
            states.mul_((delta[:, None] * self.exponent).exp2_()).addcmul_(
                write.float()[..., None], (delta * v)[:, None]
            )
            y = (read.float()[:, None] @ states).squeeze(1) + cell.through * v
        self.buffers = [states, *inputs]
        return cell.output(y * F.silu(z))


class Mamba(Stack):
    """Stacked Mamba layers."""

    cell, state = MambaCell, MambaState
    norm = nn.RMSNorm


@dataclass(frozen=True)
class MambaOptions(MemoryOptions):
    """Mamba."""

    makes, prefix = MambaConfig, "mamba_"
    renamed = {"mamba_conv": "taps", "mamba_input": "step_input"}

    # Layers
    mamba_layers: int = 2
    # State size per channel
    mamba_state: int = 16
    # Channels, as a multiple of d_model
    mamba_expand: int = 2
    # Taps of the convolution before the state
    mamba_conv: int = 4
    # Smallest initial step size delta; a state forgets within 1 / delta steps, so smaller values remember longer
    mamba_delta_min: float = 1e-3
    # joined: a step is one input; sequence: its parts enter one by one, as in DMamba
    mamba_input: StepInput = "joined"
