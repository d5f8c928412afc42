"""Images of which many are equal: each distinct one is kept, moved and encoded once.

Some environments show few different pictures: 640,000 steps of a grid world may hold sixty. A batch then carries the
pictures it shows, and for every step the number of its picture. What the model computes is the same; what it costs
follows the number of pictures, not of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Frames:
    """Observations of B windows of T steps as distinct images and a number per step.

    Stands where a dense `(B, T, *shape)` tensor stands: indexing and selection act on rows and steps.

    Attributes:
        images: `(U, *shape)` uint8; behind `map`, whatever its function made of them.
        index: `(B, T)` int64, which image each step shows.
    """

    images: Tensor
    index: Tensor

    @classmethod
    def of(cls, observations: np.ndarray) -> Frames:
        """One step of B environments, `(B, *shape)` uint8, as frames with an index `(B, 1)`."""
        numbers: dict[bytes, int] = {}
        index = [numbers.setdefault(image.tobytes(), len(numbers)) for image in observations]
        first = np.unique(index, return_index=True)[1]
        return cls(torch.from_numpy(observations[first]), torch.tensor(index)[:, None])

    def __getitem__(self, rows_and_steps: Any) -> Frames:
        """The same images, other rows or steps."""
        return replace(self, index=self.index[rows_and_steps])

    def index_select(self, dim: int, rows: Tensor) -> Frames:
        """Some rows, as `Tensor.index_select`."""
        return replace(self, index=self.index.index_select(dim, rows))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Frames:
        """The same on another device."""
        return Frames(*(part.to(device, non_blocking=non_blocking) for part in (self.images, self.index)))

    def pin_memory(self) -> Frames:
        """The same in page-locked memory."""
        return Frames(self.images.pin_memory(), self.index.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Frames:
        """`function`, `(U, *shape)` to `(U, ...)`, applied to every distinct image."""
        return replace(self, images=function(self.images))

    def dense(self) -> Tensor:
        """One image per step, `(B, T, *shape)`."""
        # index_select and not plain indexing: its gradient is a scatter of rows, which is many times faster. A GPU adds
        # up in the type it is given, and the sum over hundreds of steps that show an image is too long for bfloat16.
        images = self.images.float() if self.images.dtype == torch.bfloat16 else self.images
        rows = images.index_select(0, self.index.flatten()).to(self.images.dtype)
        return rows.view(*self.index.shape, *self.images.shape[1:])
