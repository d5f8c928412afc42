"""Windows over the last steps that slide with every step. The state holds the past; training sees all steps at once.

columns   0 ... W-1             | W ... W+T-1
          the window before     | these steps         step t is column W + t and may look W columns back
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from RATE_model.memories.segments import bias_of
from RATE_model.memories.stack import CellState, CellStepper


@dataclass(frozen=True)
class SlidingWindow:
    """What steps may attend to, and the window after them."""

    columns: Tensor  # (B, W + T, n)
    back: Tensor  # (T, W + T) int64, how many steps back a column is; below 0: later
    there: Tensor  # (B, 1, W + T) bool, whether there is anything in a column
    window: Tensor  # (B, W, n)
    count: Tensor  # (B,) int64, how much of the window is filled, from its end


def slide(window: Tensor, count: Tensor, new: Tensor, valid: Tensor | None) -> SlidingWindow:
    """Put new steps after a window.

    Args:
        window: `(B, W, n)`.
        count: `(B,)` int64, how many of its last columns hold a step.
        new: `(B, T, n)`.
        valid: `(B, T)` bool, True on a row's first steps; None: everywhere.
    """
    size, length = window.shape[1], new.shape[1]
    columns = torch.cat([window.to(new.dtype), new], dim=1)
    places = torch.arange(size + length, device=new.device)
    back = places[size:, None] - places
    there = (places >= size - count[:, None])[:, None]
    if valid is None:
        after, passed = columns[:, length:].clone(), length  # without holding on to the others
    else:
        passed = valid.sum(dim=1)
        index = passed[:, None] + torch.arange(size, device=new.device)
        after = columns.gather(1, index[..., None].expand(-1, -1, columns.shape[-1]))
    return SlidingWindow(columns, back, there, after, (count + passed).clamp(max=size))


class SlidingStepper(CellStepper):
    """A layer that acts in a window: a step is written over the oldest of W columns.

    A state is a window of W - 1 steps and its count. `held` begins with what hides columns that hold nothing,
    `(B, 1, W)`, and goes on with the columns, as the layer lays them out, each of a dimension W that is the last but
    one.

    Args:
        size: W.
    """

    def __init__(self, cell: Any, state: CellState, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.newest = size - 1  # its column, in all rows; the next is the oldest
        super().__init__(cell, state, dtype)

    def columns_of(self, window: Tensor) -> list[Tensor]:
        """Columns of steps `(B, W, n)`, as they are held."""
        raise NotImplementedError

    def steps_of(self, columns: list[Tensor]) -> Tensor:
        """The steps that columns hold."""
        raise NotImplementedError

    def laid_out(self, state: CellState) -> list[Tensor]:
        """See `CellStepper.laid_out`."""
        window, count = state
        window = F.pad(window.to(self.dtype), (0, 0, 1, 0)).roll(self.newest + 1, 1)
        there = torch.arange(self.size, 0, -1, device=count.device) <= count[:, None]
        unseen = bias_of(there.roll(self.newest + 1, 1)[:, None]).squeeze(1)
        return [unseen, *self.columns_of(window)]

    def state_of(self, held: list[Tensor]) -> CellState:
        """See `CellStepper.state_of`."""
        unseen, *columns = held
        window = self.steps_of(columns).roll(-self.newest - 1, 1)[:, 1:]
        count = (unseen.squeeze(1).roll(-self.newest - 1, 1)[:, 1:] == 0).sum(dim=1)
        return window, count

    def write(self, source: Tensor) -> Tensor:
        """Write a step `(B, n)` as the newest; how many steps back every column lies then, `(W,)` int64."""
        self.newest = (self.newest + 1) % self.size
        self.held[0][..., self.newest] = 0
        for column, new in zip(self.held[1:], self.columns_of(source[:, None]), strict=True):
            column.select(-2, self.newest).copy_(new.squeeze(-2))
        return (self.newest - torch.arange(self.size, device=source.device)) % self.size
