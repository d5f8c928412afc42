"""Images shared by several steps: each is stored and moved once.

Some environments show few distinct images (`Frames`): 640,000 steps of a grid world may show only sixty. A batch then
has the images it shows and an image index per step. The model computes the same result, but the cost depends on the
number of images, not of steps.

In others an observation is the last few frames (`FrameStack`), all but one of which were part of the previous
observation. A batch then has a sequence of single frames, and observations are views of it.
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
    """Observations of B windows of T steps as distinct images and an index per step.

    Replaces a dense `(B, T, *shape)` tensor: indexing and selection act on rows and steps.

    Attributes:
        images: `(U, *shape)` uint8, or after `map` its function's output.
        index: `(B, T)` int64, the image of each step.
    """

    images: Tensor
    index: Tensor

    @classmethod
    def of(cls, observations: np.ndarray) -> Frames:
        """One step of B environments, `(B, *shape)` uint8, with an index `(B, 1)`."""
        numbers: dict[bytes, int] = {}
        index = [numbers.setdefault(image.tobytes(), len(numbers)) for image in observations]
        first = np.unique(index, return_index=True)[1]
        return cls(torch.from_numpy(observations[first]), torch.tensor(index)[:, None])

    def __getitem__(self, rows_and_steps: Any) -> Frames:
        """The same images for other rows or steps."""
        return replace(self, index=self.index[rows_and_steps])

    def index_select(self, dim: int, rows: Tensor) -> Frames:
        """Select rows; see `Tensor.index_select`."""
        return replace(self, index=self.index.index_select(dim, rows))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Frames:
        """The same on another device."""
        return Frames(*(part.to(device, non_blocking=non_blocking) for part in (self.images, self.index)))

    def pin_memory(self) -> Frames:
        """The same in page-locked memory."""
        return Frames(self.images.pin_memory(), self.index.pin_memory())

    def share_memory_(self) -> Frames:
        """Move both to shared memory; see `Tensor.share_memory_`."""
        self.images.share_memory_()
        self.index.share_memory_()
        return self

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """See `Tensor.record_stream`."""
        self.images.record_stream(stream)
        self.index.record_stream(stream)

    def map(self, function: Callable[[Tensor], Tensor]) -> Frames:
        """Apply `function`, `(U, *shape)` to `(U, ...)`, to every distinct image."""
        return replace(self, images=function(self.images))

    def dense(self) -> Tensor:
        """One image per step, `(B, T, *shape)`."""
        # index_select instead of indexing: its gradient is a scatter of rows, which is many times faster. A GPU
        # accumulates in the given dtype, and bfloat16 is too coarse for a sum over hundreds of steps that show the same
        # image.
        images = self.images.float() if self.images.dtype == torch.bfloat16 else self.images
        rows = images.index_select(0, self.index.flatten()).to(self.images.dtype)
        return rows.view(*self.index.shape, *self.images.shape[1:])


@dataclass(frozen=True, eq=False)
class FrameStack:
    """Observations of B windows of T steps, each the last S frames, as the sequence of single frames.

        frames   f-3 f-2 f-1 f0 f1 f2 ...       frames before an episode's first one are zeros
        step 0  [f-3 f-2 f-1 f0]
        step 1      [f-2 f-1 f0 f1]             oldest first

    Replaces a dense `(B, T, S * C, H, W)` tensor: indexing with two slices acts on rows and steps.

    Attributes:
        frames: `(B, T + S - 1, C, H, W)` uint8.
        size: S, frames per observation.
    """

    frames: Tensor
    size: int

    def __getitem__(self, rows_and_steps: tuple[slice, slice]) -> FrameStack:
        """Other rows or steps, both as slices; copies nothing."""
        rows, steps = rows_and_steps
        first, last, _ = steps.indices(self.frames.shape[1] - self.size + 1)
        return replace(self, frames=self.frames[rows, first : last + self.size - 1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FrameStack:
        """The same on another device."""
        return replace(self, frames=self.frames.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameStack:
        """The same in page-locked memory."""
        return replace(self, frames=self.frames.pin_memory())

    def share_memory_(self) -> FrameStack:
        """Move the frames to shared memory; see `Tensor.share_memory_`."""
        self.frames.share_memory_()
        return self

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """See `Tensor.record_stream`."""
        self.frames.record_stream(stream)

    def dense(self) -> Tensor:
        """Every step's observation, `(B, T, S * C, H, W)`; with one channel a view, which takes no memory."""
        return self.frames.unfold(1, self.size, 1).movedim(-1, 2).flatten(2, 3)
