"""mLSTM, the LSTM with a matrix memory (xLSTM, Beck et al. 2024, arXiv 2405.04517, section 2.3); as an agent's memory:
LRAM (Schmied et al. 2025, arXiv 2410.22391).

    C_t = f_t C_{t-1} + i_t v_t k_t^T                    per head                                            equation 19
    n_t = f_t n_{t-1} + i_t k_t                                                                              equation 20
    h_t = C_t q_t / max(|n_t q_t|, 1)                    k_t is divided by sqrt(d)                           equation 21
    i_t = exp(~i_t), f_t = sigmoid(~f_t)                                                                equations 25, 26
    m_t = max(log f_t + m_{t-1}, log i_t)                C and n are stored divided by exp(m_t)              equation 15

A layer, figure 11: two branches of 2 d_model; one goes through a filter and silu, makes q and k, and v without filter;
h is normalised per head, what left the filter is added, times silu of the other branch, and a map back.

Steps of a chunk see one another as in attention, with the weights exp(log f_{s+1} + ... + log f_t + log i_s - m_t), and
all before it through C, n and m. That is the recurrence, written otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State
from RATE_model.memories.recurrent import MAX_FORGET_BIAS
from RATE_model.memories.scan import in_chunks, times
from RATE_model.memories.stack import CausalConvolution, Cell, CellState, CellStepper, Stack, StackConfig, StepSignals
from RATE_model.system.products import Linear, linear

# Steps per chunk, within which they attend to each other directly.
_CHUNK = 32
# Inputs of a block of the maps to queries, keys and values.
_BLOCK = 4

# C (B, H, D, D), keys by values; n (B, H, D); m (B, H).
Matrix = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig(StackConfig):
    """Sizes."""

    # Heads, each with its own matrix
    heads: int = 4
    # Taps of the filter
    taps: int = 4
    # Largest initial bias of a forget gate
    forget_bias: float = 6.0

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"mlstm_layers": self.layers, "mlstm_heads": self.heads, "mlstm_conv": self.taps}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if 2 * self.d_model % self.heads or 2 * self.d_model % _BLOCK:
            raise UserError(
                f"--mlstm_heads {self.heads}: must divide 2 * --d_model = {2 * self.d_model}, which must be a multiple "
                f"of {_BLOCK}"
            )
        if not 0 < self.forget_bias <= MAX_FORGET_BIAS:
            raise UserError(f"--mlstm_forget_bias {self.forget_bias}: must be above 0 and at most {MAX_FORGET_BIAS}")


@dataclass(frozen=True)
class MLSTMState(State):
    """The state of every layer, in float32."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "matrix": ("matrix", "normaliser", "maximum"),
        "conv": ("conv",),
    }

    matrix: tuple[Tensor, ...]  # (B, heads, D, D): C / exp(m), keys by values
    normaliser: tuple[Tensor, ...]  # (B, heads, D): n / exp(m)
    maximum: tuple[Tensor, ...]  # (B, heads): m
    conv: tuple[Tensor, ...]  # (B, taps - 1, 2 d_model), the last inputs of the filter

    @property
    def slots(self) -> Tensor:
        """The rows of all matrices, `(B, layers heads D, D)`."""
        return torch.cat([matrix.flatten(1, 2) for matrix in self.matrix], dim=1)


class MLSTMCell(Cell):
    """One layer."""

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__()
        d, inner, self.heads = config.d_model, 2 * config.d_model, config.heads
        self.branches = Linear(d, 2 * inner, bias=False)
        self.convolution = CausalConvolution(inner, config.taps)
        # Queries, keys and values are made block by block: (3, blocks, outputs, inputs).
        blocks = inner // _BLOCK
        self.own_block: Tensor
        self.register_buffer("own_block", torch.eye(blocks)[:, None, :, None], persistent=False)
        self.project = nn.Parameter(torch.randn(3, blocks, _BLOCK, _BLOCK) * (2 / (5 * _BLOCK)) ** 0.5)
        self.gates = Linear(3 * inner, 2 * self.heads)
        self.norm = nn.Parameter(torch.ones(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.output = Linear(inner, d, bias=False)
        with torch.no_grad():  # xLSTM's initialisation: small maps, constant gates, open forget gates
            nn.init.normal_(self.branches.weight, std=(2 / (5 * d)) ** 0.5)
            nn.init.normal_(self.output.weight, std=2 / config.layers / inner**0.5)
            nn.init.zeros_(self.gates.weight)
            nn.init.normal_(self.gates.bias[: self.heads], std=0.1)
            self.gates.bias[self.heads :] = torch.linspace(config.forget_bias / 2, config.forget_bias, self.heads)

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        taps, inner = self.convolution.weight.shape
        size = inner // self.heads
        shapes = (self.heads, size, size), (self.heads, size), (self.heads,), (taps - 1, inner)
        return tuple(torch.zeros(batch_size, *shape, device=device) for shape in shapes)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        *matrix, conv = state
        u, z = self.branches(x).chunk(2, dim=-1)
        filtered, conv = self.convolution(u, conv, valid)
        filtered = F.silu(filtered)
        of_filtered, of_inputs = self.projections().split((2 * u.shape[-1], u.shape[-1]))
        q, k = linear(filtered, of_filtered).chunk(2, dim=-1)
        v = linear(u, of_inputs)
        write, forget = self.gates(torch.cat([q, k, v], dim=-1)).float().chunk(2, dim=-1)  # (B, T, H) each
        forget = F.logsigmoid(forget)
        if valid is not None:
            write, forget = write.masked_fill(~valid[..., None], -torch.inf), forget * valid[..., None]
        heads = [part.float().unflatten(-1, (self.heads, -1)) for part in (q, k, v)]
        piece = attend if x.shape[1] > 1 else recur
        outputs, matrix = in_chunks(piece, tuple(matrix), (*heads, write, forget), size=_CHUNK)
        h = torch.cat(outputs, dim=1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-5).flatten(2) * self.norm
        y = self.output((h + self.skip * filtered) * F.silu(z))
        return y, (*matrix, conv), {"log write gate": write, "forget gate": forget.exp()}

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return MLSTMStepper(self, state, dtype)

    def projections(self) -> Tensor:
        """The maps to q, k and v, one above the other, `(3 inner, inner)`: zero outside their blocks."""
        return (self.project[:, :, :, None] * self.own_block).reshape(-1, self.norm.numel())


class MLSTMStepper(CellStepper):
    """A layer in acting; updates the matrix in place."""

    cell: MLSTMCell

    def __init__(self, cell: MLSTMCell, state: CellState, dtype: torch.dtype) -> None:
        super().__init__(cell, state, dtype)
        inner = cell.norm.numel()
        of_filtered, of_inputs = cell.projections().split((2 * inner, inner))
        # The gates are linear in q, k and v, and so in their inputs.
        by_filtered, by_inputs = cell.gates.weight.split((2 * inner, inner), dim=1)
        self.of_filtered = torch.cat([of_filtered, by_filtered @ of_filtered])
        self.of_inputs = torch.cat([of_inputs, by_inputs @ of_inputs])

    def pack(self, state: CellState) -> list[Tensor]:
        """Inputs of the filter one by one."""
        return [*state[:3], *state[3].unbind(1)]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        return *buffers[:3], self.cell.convolution.state_of_inputs(buffers[3:])

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        cell = self.cell
        inputs = self.buffers[3:]
        u, z = cell.branches(x).chunk(2, dim=-1)
        filtered = F.silu(cell.convolution.step(u, inputs))
        inner = u.shape[-1]
        q, k, by_filtered = linear(filtered, self.of_filtered).split((inner, inner, 2 * cell.heads), dim=-1)
        v, by_inputs = linear(u, self.of_inputs).split((inner, 2 * cell.heads), dim=-1)
        gates = by_filtered.float() + by_inputs.float() + cell.gates.bias
        write, forget = gates[:, None].chunk(2, dim=-1)  # (B, 1, H)
        heads = [part.float().unflatten(-1, (1, cell.heads, -1)) for part in (q, k, v)]  # (B, 1, H, D)
        matrix: Matrix = tuple(self.buffers[:3])  # type: ignore[assignment]
        h, matrix = recur(matrix, *heads, write, F.logsigmoid(forget), in_place=True)
        self.buffers = [*matrix, *inputs]
        h = F.layer_norm(h, h.shape[-1:], eps=1e-5).flatten(1) * cell.norm
        return cell.output((h + cell.skip * filtered) * F.silu(z))


def recur(
    state: Matrix, q: Tensor, k: Tensor, v: Tensor, write: Tensor, forget: Tensor, *, in_place: bool = False
) -> tuple[Tensor, Matrix]:
    """One step, following the equations; arguments and result as for `attend`, with L = 1. `in_place` changes C."""
    matrix, normaliser, maximum = state
    q, k, v = (part.transpose(1, 2) for part in (q, k * k.shape[-1] ** -0.5, v))  # (B, H, 1, D)
    write, forget = write.squeeze(1), forget.squeeze(1) + maximum  # (B, H)
    maximum = torch.maximum(forget, write)
    write, forget = torch.exp(write - maximum)[..., None], torch.exp(forget - maximum)[..., None]
    with torch.autocast(q.device.type, enabled=False):
        written = write * k.squeeze(2)
        matrix = matrix.mul_(forget[..., None]) if in_place else forget[..., None] * matrix
        matrix.addcmul_(written[..., None], v)  # in place: allocating another matrix costs more than the sum
        normaliser = forget * normaliser + written
        norm = (q.squeeze(2) * normaliser).sum(dim=-1).abs()
        h = q @ matrix / torch.maximum(norm, torch.exp(-maximum.clamp(min=-80)))[..., None, None]
        return h.transpose(1, 2), (matrix, normaliser, maximum)


def attend(state: Matrix, q: Tensor, k: Tensor, v: Tensor, write: Tensor, forget: Tensor) -> tuple[Tensor, Matrix]:
    """L steps of the matrix memory at once, in float32.

    Args:
        state: C, n and m before them.
        q, k, v: `(B, L, H, D)`.
        write, forget: `(B, L, H)`, logarithms of the gates.

    Returns:
        h, `(B, L, H, D)`, and C, n and m after them.
    """
    matrix, normaliser, maximum = state
    q, k, v = (part.transpose(1, 2) for part in (q, k * k.shape[-1] ** -0.5, v))  # (B, H, L, D)
    write, forget = write.transpose(1, 2), forget.transpose(1, 2).cumsum(dim=-1)  # (B, H, L)
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (forget[..., None] - forget[..., None, :] + write[..., None, :]).masked_fill(later, -torch.inf)
    carried = forget + maximum[..., None]
    maxima = torch.maximum(carried, weights.amax(dim=-1))
    weights, carried = torch.exp(weights - maxima[..., None]), torch.exp(carried - maxima)
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2) * weights
        found = scores @ v + carried[..., None] * (q @ matrix)
        norm = scores.sum(dim=-1) + carried * times(q, normaliser)
        h = found / torch.maximum(norm.abs(), torch.exp(-maxima.clamp(min=-80)))[..., None]
        kept, written = carried[..., -1:], weights[..., -1, :, None] * k
        matrix = kept[..., None] * matrix + written.transpose(-1, -2) @ v
        return h.transpose(1, 2), (matrix, kept * normaliser + written.sum(dim=2), maxima[..., -1])


class MLSTM(Stack):
    """Stacked mLSTM layers."""

    cell, state = MLSTMCell, MLSTMState


@dataclass(frozen=True)
class MLSTMOptions(MemoryOptions):
    """LSTM with a matrix memory."""

    makes, prefix = MLSTMConfig, "mlstm_"
    renamed = {"mlstm_conv": "taps"}

    # Layers
    mlstm_layers: int = 2
    # Heads, each with a matrix of its own
    mlstm_heads: int = 4
    # Taps of the convolution before queries and keys
    mlstm_conv: int = 4
    # Largest initial bias of a forget gate, the smallest is half of it; a bias b forgets within about exp(b) steps
    mlstm_forget_bias: float = 6.0
