"""Windows over the last steps that slide with every step. The state holds the past; training sees all steps at once.

columns   0 ... W-1             | W ... W+T-1
          the window before     | these steps         step t is column W + t and may look W columns back
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slid:
    """What steps may attend to, and the window after them."""

    columns: Tensor  # (B, W + T, n)
    back: Tensor  # (T, W + T) int64, how many steps back a column is; below 0: later
    there: Tensor  # (B, 1, W + T) bool, whether there is anything in a column
    window: Tensor  # (B, W, n)
    count: Tensor  # (B,) int64, how much of the window is filled, from its end


def slide(window: Tensor, count: Tensor, new: Tensor, valid: Tensor | None) -> Slid:
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
    return Slid(columns, back, there, after, (count + passed).clamp(max=size))
