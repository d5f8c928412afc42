"""AMRL (Beck, Ciosek, Devlin, Tschiatschek, Zhang, Hofmann, ICLR 2020): an LSTM with half of its outputs aggregated
over time, independent of their order.

    y_t = LSTM(x_t)
    a_t = max, mean or sum of the first half of y_1, ..., y_t
    h_t = W [a_t; second half of y_t]

The gradient of a_t goes to every earlier step as if a_t were a sum ("straight through", section 4): a maximum would
only train the step that attains it, and a mean would scale gradients by 1 / t.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryOptions, State, Steps, as_wide
from RATE_model.memories.recurrent import LSTM, RecurrentConfig, RecurrentState

Aggregate = Literal["max", "mean", "sum"]
# Lower bound of an LSTM's output.
_LOWEST = -1.0


@dataclass(frozen=True, kw_only=True)
class AMRLConfig(RecurrentConfig):
    """Sizes of the LSTM, and how half of its outputs are aggregated."""

    aggregate: Aggregate = "max"

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"amrl_layers": self.layers, "amrl_hidden": self.hidden}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if self.hidden % 2:
            raise UserError(f"--amrl_hidden {self.hidden}: must be even; half of it is aggregated")


@dataclass(frozen=True)
class AMRLState(State):
    """The LSTM's state, and the aggregate."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"recurrent": ("recurrent",), "aggregate": ("aggregate", "count")}

    recurrent: RecurrentState
    aggregate: Tensor  # (B, hidden / 2) float32
    count: Tensor  # (B,) float32, number of steps so far

    @property
    def slots(self) -> Tensor:
        """The aggregate."""
        return self.aggregate[:, None]


class AMRL(LSTM):
    """An LSTM with an aggregate of its past outputs."""

    config: AMRLConfig

    def initial(self, batch_size: int) -> AMRLState:
        """Zeros; a maximum starts with the lowest possible output."""
        lowest = _LOWEST if self.config.aggregate == "max" else 0.0
        aggregate = torch.full((batch_size, self.config.hidden // 2), lowest, device=self.device)
        return AMRLState(super().initial(batch_size), aggregate, torch.zeros(batch_size, device=self.device))

    def forward(self, steps: Steps, valid: Tensor, state: AMRLState) -> tuple[Tensor, AMRLState]:
        """See `Memory.forward`."""
        outputs, recurrent = self._outputs(steps, valid, state.recurrent)
        new, rest = outputs.chunk(2, dim=-1)
        valid = valid.to(new.device, non_blocking=True)
        count = state.count[:, None] + valid.cumsum(dim=1)
        aggregate = _StraightThrough.apply(self._aggregated(new, valid, count, state), new, valid, state.aggregate)
        hidden = self.dropout(self.output(torch.cat([aggregate, rest], dim=-1)))
        return hidden, AMRLState(recurrent, aggregate[:, -1], count[:, -1])

    def _aggregated(self, new: Tensor, valid: Tensor, count: Tensor, state: AMRLState) -> Tensor:
        """The aggregate after every step, `(B, T, hidden / 2)`, without a gradient."""
        new, before = new.detach(), state.aggregate.detach()[:, None]
        if self.config.aggregate == "max":
            return torch.maximum(before, new.masked_fill(~valid[..., None], _LOWEST).cummax(dim=1).values)
        added = (new * valid[..., None]).cumsum(dim=1)
        if self.config.aggregate == "sum":
            return before + added
        return (before * state.count[:, None, None] + added) / count.clamp(min=1)[..., None]


class _StraightThrough(torch.autograd.Function):
    """An aggregate whose gradient is that of a sum."""

    @staticmethod
    def forward(ctx: Any, aggregate: Tensor, new: Tensor, valid: Tensor, before: Tensor) -> Tensor:
        ctx.save_for_backward(valid)
        return aggregate.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, Tensor]:
        (valid,) = ctx.saved_tensors
        later = gradient.flip(1).cumsum(dim=1).flip(1)
        return None, later * valid[..., None], None, later[:, 0]


@dataclass(frozen=True)
class AMRLOptions(MemoryOptions):
    """An LSTM with an aggregate over time."""

    makes, prefix = AMRLConfig, "amrl_"
    derived = {"hidden": as_wide}

    # Layers of the LSTM
    amrl_layers: int = 1
    # Size of its hidden state, half of which is aggregated; none = d_model
    amrl_hidden: int | None = None
    # Aggregate: max, mean or sum
    amrl_aggregate: Aggregate = "max"
