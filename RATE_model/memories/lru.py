"""LRU, the Linear Recurrent Unit (Orvieto et al. 2023, arXiv 2303.06349; of the family of S5, Smith et al. 2023).

    s_t = Lambda * s_{t-1} + gamma * (B x_t)                 complex, element by element       equation 5, with gamma
    Lambda = exp(-exp(nu) + i exp(theta))                    |Lambda| < 1 whatever is learned  section 3.3
    gamma = exp(log_gamma), sqrt(1 - |Lambda|^2) at the start                                  equation 7
    y_t = Re(C s_t) + D * x_t
    layer: x_t + W1 u_t * sigmoid(W2 u_t), u_t = gelu(y_t)   a gated linear unit

At the start |Lambda| lies on a ring between r_min and r_max, uniformly by area. A decay of r forgets within about
1 / (1 - r) steps.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State, as_wide
from RATE_model.memories.scan import scan
from RATE_model.memories.stack import Cell, CellState, Stack, StackConfig, StepSignals, last_valid
from RATE_model.system.products import Linear, linear


@dataclass(frozen=True, kw_only=True)
class LRUConfig(StackConfig):
    """Sizes and initial eigenvalues."""

    # Complex state size of a layer
    width: int = 64
    # Initial moduli of the eigenvalues
    r_min: float = 0.9
    r_max: float = 0.999

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"lru_layers": self.layers, "lru_width": self.width}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if not 0 <= self.r_min < self.r_max < 1:
            raise UserError(
                f"--lru_r_min {self.r_min} --lru_r_max {self.r_max}: must be at least 0, below 1, and the first below "
                "the second"
            )


@dataclass(frozen=True)
class LRUState(State):
    """The states of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"states": ("states",)}

    states: tuple[Tensor, ...]  # (B, width, 2) float32, real and imaginary parts

    @property
    def slots(self) -> Tensor:
        """One vector per layer, `(B, layers, 2 width)`."""
        return torch.stack(self.states, dim=1).flatten(2)


class LRUCell(Cell):
    """One layer."""

    def __init__(self, config: LRUConfig) -> None:
        super().__init__()
        d, n = config.d_model, config.width
        inner, outer = config.r_min**2, config.r_max**2
        squared = inner + (outer - inner) * torch.rand(n)
        self.log_nu = nn.Parameter((-0.5 * squared.log()).log())
        self.log_theta = nn.Parameter((2 * math.pi * torch.rand(n)).log())
        self.log_gamma = nn.Parameter(0.5 * (1 - squared).log())
        self.write = nn.Parameter(torch.randn(n, d, 2) * (2 * d) ** -0.5)  # B
        self.read = nn.Parameter(torch.randn(d, n, 2) * n**-0.5)  # C
        self.through = nn.Parameter(torch.randn(d))  # D
        self.unit = Linear(d, 2 * d)

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        return (torch.zeros(batch_size, len(self.log_nu), 2, device=device),)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        (before,) = state
        # Real products of both parts at once: W [n, d, 2] as a map from d to 2 n, and back.
        n, d = len(self.log_nu), len(self.through)
        gained = self.write * self.log_gamma.exp()[:, None, None]
        entering = linear(x, gained.transpose(1, 2).reshape(2 * n, d)).float()
        decay = torch.exp(torch.complex(-self.log_nu.exp(), self.log_theta.exp()))
        entering = torch.view_as_complex(entering.unflatten(-1, (n, 2)))
        states = torch.view_as_real(scan(decay[None, None], entering, torch.view_as_complex(before)))
        # Re(C s) = Re C Re s - Im C Im s: a real product with the conjugate's parts.
        read = torch.view_as_real(torch.view_as_complex(self.read).conj().resolve_conj())
        y = linear(states.flatten(2), read.flatten(1)) + self.through * x
        value, gate = self.unit(F.gelu(y)).chunk(2, dim=-1)
        gate = torch.sigmoid(gate)
        return value * gate, (last_valid(states, before, valid),), {"output gate": gate}


class LRU(Stack):
    """Stacked linear recurrent units. Layers are normalised with LayerNorm, not the paper's BatchNorm: see the page."""

    cell, state = LRUCell, LRUState


@dataclass(frozen=True)
class LRUOptions(MemoryOptions):
    """Linear Recurrent Units."""

    makes, prefix = LRUConfig, "lru_"
    derived = {"width": as_wide}

    # Layers
    lru_layers: int = 2
    # Complex numbers in a layer's state; none = d_model
    lru_width: int | None = None
    # Smallest initial modulus of an eigenvalue
    lru_r_min: float = 0.9
    # Largest initial modulus; a modulus r forgets within about 1 / (1 - r) steps
    lru_r_max: float = 0.999
