"""LSDT, the Long-Short Decision Transformer (Wang et al. 2025): half of every layer attends, half convolves.

    n = norm(h), its first half (channels) to the long branch, its second to the short
    long:   MultiHead over the last W steps
    short:  y_t = sum_{i < w} softmax(W_k n_t)_i  v_{t-i},  v = W_v n         dynamic convolution (Wu et al. 2019,
            one kernel of w numbers per head, computed from the step                    arXiv 1901.10430, section 4)
    h <- h + W_o [long; short],  h <- h + FFN(norm(h))

The window slides with every step, in every layer: nothing is computed twice when acting.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State, a_trajectory, twice_as_wide
from RATE_model.memories.scan import in_chunks
from RATE_model.memories.segments import Attention, AttentionConfig, bias_of, feed_forward, merge_heads
from RATE_model.memories.sliding import SlidingStepper, slide
from RATE_model.memories.stack import Cell, CellState, CellStepper, Stack, StepSignals
from RATE_model.system.products import Linear

# Steps of a chunk, at least: with a shorter window, operations would be many and small.
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class LSDTConfig(AttentionConfig):
    """Sizes."""

    flag = "lsdt"

    # W: steps that a layer sees, including the current one
    window: int = 90
    # w: steps that the convolution sees
    kernel: int = 6

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        at_least(1, lsdt_kernel=self.kernel, lsdt_window=self.window)
        at_most(MAX_STEPS, lsdt_window=self.window)
        if self.d_model % (2 * self.heads):
            raise UserError(
                f"--lsdt_heads {self.heads}: twice as many must divide --d_model {self.d_model}, half of which is the "
                "short branch"
            )
        if self.kernel > self.window:
            raise UserError(f"--lsdt_kernel {self.kernel}: must be at most --lsdt_window, which is {self.window}")


@dataclass(frozen=True)
class LSDTState(State):
    """The last steps, for every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"window": ("steps", "count")}

    steps: tuple[Tensor, ...]  # (B, W - 1, 3 d / 2), keys, values, and inputs of the convolution
    count: tuple[Tensor, ...]  # (B,) int64, number of steps


class LSDTCell(Cell):
    """One layer."""

    def __init__(self, config: LSDTConfig) -> None:
        super().__init__()
        d, half = config.d_model, config.d_model // 2
        self.window, self.kernel, self.heads = config.window, config.kernel, config.heads
        self.long = Attention(half, config.heads, project=False)  # one map for both branches
        self.value = Linear(half, half)
        self.weigh = Linear(half, config.heads * config.kernel)
        self.output = Linear(d, d)
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.window))
        self.forward_token = feed_forward(d, config.inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """An empty window."""
        width = 3 * self.value.in_features
        steps = torch.zeros(1, self.window - 1, width, device=device).expand(batch_size, -1, -1)
        return steps, torch.zeros(batch_size, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`. In chunks about as long as the window, cost does not grow with the square of T."""
        inputs = (x,) if valid is None else (x, valid)
        found, state = in_chunks(self._piece, state, inputs, size=max(self.window, _CHUNK))
        y, kernel = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return y, state, {"kernel": kernel}

    def _piece(
        self, state: CellState, x: Tensor, valid: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], CellState]:
        """Outputs and kernels of some steps, and the state after them."""
        far, near = self.norms[0](x).chunk(2, dim=-1)
        half = far.shape[-1]
        steps, count = state
        slid = slide(steps, count, torch.cat([self.long.source(far), self.value(near)], dim=-1), valid)
        back = slid.back.clamp(0, self.window - 1)
        bias = bias_of((slid.back == back) & slid.there) + self.distance_bias[:, back]
        attended = self.long(far, slid.columns[..., : 2 * half], bias)
        weights = self.weigh(near).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        convolved = self._convolve(slid.columns[:, :, 2 * half :], weights)
        h = x + self.output(torch.cat([attended, convolved.to(attended.dtype)], dim=-1))
        return (h + self.forward_token(self.norms[1](h)), weights.mean(dim=2)), (slid.window, slid.count)

    def _convolve(self, columns: Tensor, weights: Tensor) -> Tensor:
        """Values `(B, W - 1 + T, d / 2)`, zero where there is no step, with kernels `(B, T, heads, w)`."""
        length = weights.shape[1]
        first = columns.shape[1] - length  # W - 1, at least the kernel's size less one
        mixed = torch.zeros((), dtype=columns.dtype, device=columns.device)
        for lag in range(self.kernel):  # taps, not steps
            values = columns[:, first - lag : first - lag + length].unflatten(-1, (self.heads, -1))
            mixed = torch.addcmul(mixed, values, weights[..., lag, None].to(columns.dtype))
        return mixed.flatten(2)

    def stepper(self, state: CellState, dtype: torch.dtype) -> CellStepper:
        """See `Cell.stepper`."""
        return LSDTStepper(self, state, dtype, self.window)


class LSDTStepper(SlidingStepper):
    """One layer, in acting."""

    cell: LSDTCell

    def columns_of(self, window: Tensor) -> list[Tensor]:
        """Keys and values, by head, and inputs of the convolution."""
        source, convolved = window.tensor_split((-self.cell.value.in_features,), dim=-1)
        return [*self.cell.long.split(source), convolved]

    def steps_of(self, columns: list[Tensor]) -> Tensor:
        """See `SlidingStepper.steps_of`."""
        return torch.cat([merge_heads(*columns[:2]), columns[2]], dim=-1)

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        cell = self.cell
        far, near = cell.norms[0](x).chunk(2, dim=-1)
        back = self.write(torch.cat([cell.long.source(far), cell.value(near)], dim=-1))
        unseen, keys, values, convolved = self.buffers
        attended = cell.long.of_one_step(far, keys, values, cell.distance_bias[:, back] + unseen)
        weights = cell.weigh(near).unflatten(-1, (cell.heads, -1)).softmax(dim=-1)  # (B, heads, w)
        lags = (self.newest - torch.arange(cell.kernel, device=x.device)) % self.size
        mixed = convolved.index_select(1, lags).unflatten(-1, (cell.heads, -1)) * weights.transpose(1, 2)[..., None]
        near = mixed.sum(dim=1).flatten(1)
        h = x + cell.output(torch.cat([attended, near.to(attended.dtype)], dim=-1))
        return h + cell.forward_token(cell.norms[1](h))


class LSDT(Stack):
    """Layers with two branches."""

    config: LSDTConfig
    cell, state = LSDTCell, LSDTState
    norm: ClassVar[Any] = None

    @property
    def reach(self) -> int | None:
        """A window for every layer."""
        return 1 + self.config.layers * (self.config.window - 1)


@dataclass(frozen=True)
class LSDTOptions(MemoryOptions):
    """Long-Short Decision Transformer: half attention, half dynamic convolution."""

    makes, prefix = LSDTConfig, "lsdt_"
    derived = {"inner": twice_as_wide, "window": a_trajectory}

    # Layers
    lsdt_layers: int = 3
    # Attention heads, and kernels of the convolution
    lsdt_heads: int = 4
    # Width inside the feed-forward networks; none = 2 d_model
    lsdt_inner: int | None = None
    # Steps that a layer sees; none = those of a training trajectory
    lsdt_window: int | None = None
    # Steps that the convolution sees
    lsdt_kernel: int = 6
