"""Windows that slide with every step. The state holds the past; training processes all steps at once.

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
    """The columns that steps may attend to, and the window after them."""

    columns: Tensor  # (B, W + T, n)
    back: Tensor  # (T, W + T) int64, distance to a column in steps; negative: later
    there: Tensor  # (B, 1, W + T) bool, whether a column is filled
    window: Tensor  # (B, W, n)
    count: Tensor  # (B,) int64, number of filled columns, at the end of the window


def slide(window: Tensor, count: Tensor, new: Tensor, valid: Tensor | None) -> SlidingWindow:
    """Append new steps to a window.

    Args:
        window: `(B, W, n)`.
        count: `(B,)` int64, number of filled columns, at its end.
        new: `(B, T, n)`.
        valid: `(B, T)` bool, True on a row's first steps; None: everywhere.
    """
    size, length = window.shape[1], new.shape[1]
    columns = torch.cat([window.to(new.dtype), new], dim=1)
    places = torch.arange(size + length, device=new.device)
    back = places[size:, None] - places
    there = (places >= size - count[:, None])[:, None]
    if valid is None:
        after, passed = columns[:, length:].clone(), length  # frees the others
    else:
        passed = valid.sum(dim=1)
        index = passed[:, None] + torch.arange(size, device=new.device)
        after = columns.gather(1, index[..., None].expand(-1, -1, columns.shape[-1]))
    return SlidingWindow(columns, back, there, after, (count + passed).clamp(max=size))


class SlidingStepper(CellStepper):
    """A layer in acting with a window: each step overwrites the oldest of W columns.

    A state is a window of W - 1 steps and its count. `buffers` starts with the bias that hides empty columns,
    `(B, 1, W)`, followed by the columns in the layer's own layout, with W as the second to last dimension.

    Args:
        size: W.
    """

    def __init__(self, cell: Any, state: CellState, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.newest = size - 1  # its column, in all rows; the next is the oldest
        super().__init__(cell, state, dtype)

    def columns_of(self, window: Tensor) -> list[Tensor]:
        """Columns of steps `(B, W, n)`, as stored."""
        raise NotImplementedError

    def steps_of(self, columns: list[Tensor]) -> Tensor:
        """The steps in columns."""
        raise NotImplementedError

    def pack(self, state: CellState) -> list[Tensor]:
        """See `CellStepper.pack`."""
        window, count = state
        window = F.pad(window.to(self.dtype), (0, 0, 1, 0)).roll(self.newest + 1, 1)
        there = torch.arange(self.size, 0, -1, device=count.device) <= count[:, None]
        unseen = bias_of(there.roll(self.newest + 1, 1)[:, None]).squeeze(1)
        return [unseen, *self.columns_of(window)]

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """See `CellStepper.unpack`."""
        unseen, *columns = buffers
        window = self.steps_of(columns).roll(-self.newest - 1, 1)[:, 1:]
        count = (unseen.squeeze(1).roll(-self.newest - 1, 1)[:, 1:] == 0).sum(dim=1)
        return window, count

    def write(self, source: Tensor) -> Tensor:
        """Write a step `(B, n)` as the newest; returns the distance of every column in steps, `(W,)` int64."""
        self.newest = (self.newest + 1) % self.size
        self.buffers[0][..., self.newest] = 0
        for column, new in zip(self.buffers[1:], self.columns_of(source[:, None]), strict=True):
            column.select(-2, self.newest).copy_(new.squeeze(-2))
        return (self.newest - torch.arange(self.size, device=source.device)) % self.size
