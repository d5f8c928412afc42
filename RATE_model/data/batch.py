"""Batches of windows: what a training loop is given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from RATE_model.data.frames import Frames, FrameStack


class Share(NamedTuple):
    """A mean over something else than trajectories, such as steps: so that batches and processes can be added up."""

    total: torch.Tensor
    count: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Not a number where nothing counts."""
        return self.total / self.count


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows padded to T steps.

    Attributes:
        observations: (B, T, ...) uint8 images or float32 vectors, or images as `Frames` or `FrameStack`.
        actions: (B, T) int64, or (B, T, A) float32; 0 in padding.
        rtg: (B, T) float32 scaled returns-to-go; 0 in padding.
        valid: (B, T) bool, True on real steps.
        lengths: (B,) int64, real steps per window; stays on the CPU, so that asking for it never waits for a GPU.
        indices: (B,) int64, the windows' numbers in the dataset; stays on the CPU.
        labels: as the actions, but what is to be predicted in their place; None: the actions.
        begins: (B,) bool, whether a window begins its episode; stays on the CPU. None: all do.
        variants: (B,) int64, which of its `variants` a batch transform made of each window; None: there is one.
    """

    observations: torch.Tensor | Frames | FrameStack
    actions: torch.Tensor
    rtg: torch.Tensor
    valid: torch.Tensor
    lengths: torch.Tensor
    indices: torch.Tensor
    labels: torch.Tensor | None = None
    begins: torch.Tensor | None = None
    variants: torch.Tensor | None = None

    @property
    def targets(self) -> torch.Tensor:
        """What the model is to predict, shaped as the actions."""
        return self.actions if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def real_rows(self) -> int:
        """Rows that are windows of data; the others are all padding."""
        return int((self.lengths > 0).sum())

    def as_padding(self) -> Batch:
        """The batch with nothing in it that counts: all steps are padding."""
        return replace(self, valid=torch.zeros_like(self.valid), lengths=torch.zeros_like(self.lengths))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; ``lengths``, ``indices`` and ``begins`` stay on the CPU."""
        kept = ("lengths", "indices", "begins")
        moved = {name: value for name, value in self._arrays().items() if name not in kept}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in moved.items()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU. Torch's loader calls this by name."""
        return Batch(**{name: value.pin_memory() for name, value in self._arrays().items()})

    def share_memory_(self) -> Batch:
        """Move all of it to memory that other processes can read. Raises as torch does where there is too little."""
        for value in self._arrays().values():
            value.share_memory_()
        return self

    def _arrays(self) -> dict[str, Any]:
        """All that it holds, by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if value is not None}


class BatchTransform(Protocol):
    """What training puts every batch through first, on the model's device."""

    variants: ClassVar[int]
    """How many kinds of windows it makes of one; where they are several, `Batch.variants` says which it was."""

    def __call__(self, batch: Batch) -> Batch:
        """The changed batch. What is drawn is drawn from torch's global generator."""
        ...
