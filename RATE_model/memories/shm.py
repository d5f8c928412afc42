"""SHM, Stable Hadamard Memory (Le, Do, Nguyen, Nguyen, Gupta, Venkatesh 2024, arXiv 2410.10132): a matrix in which
every entry has its own gate.

    M_t = M_{t-1} * C_t + U_t                    (m, m), element by element; here transposed, keys by values
    C_t = 1 + tanh(theta_t v_c(x_t)^T)           strengthens, weakens or forgets; theta_t a row of a learned table
    U_t = eta(x_t) v(x_t) k(x_t)^T               eta a sigmoid; k >= 0 sums to 1
    h_t = W M_t q(x_t)                           q >= 0 sums to 1

The row of the table is drawn at random, so that products of many C_t neither vanish nor explode (the paper's
proposition on random theta). Here the draw is a fixed function of the step's number, so the acting model is exactly the
trained one.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State
from RATE_model.memories.scan import Decay, scan_and_read, times
from RATE_model.memories.stack import Cell, CellState, CellStepper, Stack, StackConfig, StepSignals
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class SHMConfig(StackConfig):
    """Sizes."""

    layers: int = 1
    # m: rows and columns of the matrix
    size: int = 32
    # Rows of the table that theta is drawn from
    table: int = 128
    # Factor of the initial weights of v_c; 0: C is 1 at first, and nothing is forgotten
    calibration: float = 1.0

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"shm_layers": self.layers, "shm_size": self.size, "shm_table": self.table}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if not 0 <= self.calibration < math.inf:
            raise UserError(f"--shm_calibration {self.calibration}: must be at least 0, and finite")


@dataclass(frozen=True)
class SHMState(State):
    """The state of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"matrix": ("matrix", "step")}

    matrix: tuple[Tensor, ...]  # (B, m, m) float32, keys by values
    step: tuple[Tensor, ...]  # (B,) int64, number of steps so far, which determines the draws

    @property
    def slots(self) -> Tensor:
        """The value under each of the m keys of every layer, `(B, layers m, m)`."""
        return torch.cat(self.matrix, dim=1)


class SHMCell(Cell):
    """One layer."""

    def __init__(self, config: SHMConfig) -> None:
        super().__init__()
        d, m = config.d_model, config.size
        self.size = m
        self.maps = Linear(d, 4 * m + 1, bias=False)  # k, q, v, v_c, eta
        self.table = nn.Parameter(torch.empty(config.table, m))
        nn.init.xavier_uniform_(self.table)
        with torch.no_grad():
            self.maps.weight[3 * m : 4 * m] *= config.calibration
        self.output = Linear(m, d)

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        matrix = torch.zeros(batch_size, self.size, self.size, device=device)
        return matrix, torch.zeros(batch_size, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        matrix, passed = state
        m, length = self.size, x.shape[1]
        key, query, value, calibration, eta = self.maps(x).float().split((m, m, m, m, 1), dim=-1)
        key, query, eta = _shares(key), _shares(query), torch.sigmoid(eta)
        step = passed[:, None] + torch.arange(length, device=x.device)
        theta = self.table[_drawn(step, len(self.table))]
        written = eta * value
        if valid is not None:  # C = 1 and U = 0
            calibration, written = calibration * valid[..., None], written * valid[..., None]
        read, matrix = scan_and_read(CALIBRATED, (theta, calibration), key, written, query, matrix)
        passed = passed + (length if valid is None else valid.sum(dim=1))
        seen = {"write gate": eta, "calibration": calibration}
        return self.output(read), (matrix, passed), seen

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return SHMStepper(self, state, dtype)


class SHMStepper(CellStepper):
    """A layer in acting; updates the matrix in place."""

    cell: SHMCell

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        m, (matrix, passed) = self.cell.size, self.buffers
        key, query, value, calibration, eta = self.cell.maps(x).float().split((m, m, m, m, 1), dim=-1)
        theta = self.cell.table[_drawn(passed, len(self.cell.table))]
        passed += 1
        with torch.autocast(x.device.type, enabled=False):
            matrix.mul_(_calibrated(theta, calibration))
            matrix.addcmul_(_shares(key)[..., None], (torch.sigmoid(eta) * value)[:, None])
            read = (_shares(query)[:, None] @ matrix).squeeze(1)
        return self.cell.output(read)


def _calibrated(theta: Tensor, calibration: Tensor, out: Tensor | None = None) -> Tensor:
    """C, `(..., m, m)` keys by values, from theta and v_c, `(..., m)` each.

    1 + tanh of their outer product, as 2 sigmoid(2 x), which a CPU computes several times as fast.
    """
    return torch.mul((2 * calibration)[..., None], theta[..., None, :], out=out).sigmoid_().mul_(2)


def _of_calibrated(to_kept: Tensor, kept: Tensor, theta: Tensor, calibration: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of theta and v_c: the derivative of 2 sigmoid(2 x) is C (2 - C)."""
    to_product = to_kept.mul_(kept).mul_(torch.sub(2, kept, out=kept))
    return (calibration[:, :, None] @ to_product).squeeze(2), times(to_product, theta)


CALIBRATED = Decay(_calibrated, _of_calibrated)


def _shares(x: Tensor) -> Tensor:
    """Non-negative numbers that sum to 1."""
    x = torch.relu(x)
    return x / (x.sum(dim=-1, keepdim=True) + 1e-5)


def _drawn(step: Tensor, count: int) -> Tensor:
    """A row of the table for every step, as if drawn at random: a hash of 32 bits (Mueller's multiply and shift)."""
    for _ in range(2):
        step = ((step >> 16 ^ step) * 0x45D9F3B) & 0xFFFFFFFF
    return (step >> 16 ^ step) % count


class SHM(Stack):
    """Stable Hadamard Memory."""

    cell, state = SHMCell, SHMState


@dataclass(frozen=True)
class SHMOptions(MemoryOptions):
    """Stable Hadamard Memory."""

    makes, prefix = SHMConfig, "shm_"

    # Layers
    shm_layers: int = 1
    # Rows and columns of the matrix
    shm_size: int = 32
    # Rows of the table of theta
    shm_table: int = 128
    # Factor of the initial weights that calibrate the matrix; 0: nothing is forgotten at first
    shm_calibration: float = 1.0
