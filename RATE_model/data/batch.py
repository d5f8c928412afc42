"""Batches of windows: the input of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from RATE_model.data.frames import Frames, FrameStack


class Share(NamedTuple):
    """A mean over something other than trajectories, such as steps, so that batches and processes can be added up."""

    total: torch.Tensor
    count: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """NaN if nothing counts."""
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
        labels: the targets, shaped as the actions; None: the actions.
        begins: (B,) bool, whether a window starts its episode; stays on the CPU. None: all do.
        variants: (B,) int64, which of its `variants` a batch transform made of each window; None: there is only one.
        infos: privileged arrays of the data by name, (B, T, n) float32 or int64, 0 in padding. Objectives and probes
            may use them, playing agents may not. None: none were requested.
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
    infos: dict[str, torch.Tensor] | None = None

    @property
    def targets(self) -> torch.Tensor:
        """The targets, shaped as the actions."""
        return self.actions if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def real_rows(self) -> int:
        """Rows that are windows of data; all others are padding."""
        return int((self.lengths > 0).sum())

    def as_padding(self) -> Batch:
        """The same batch with every step marked as padding."""
        return replace(self, valid=torch.zeros_like(self.valid), lengths=torch.zeros_like(self.lengths))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; ``lengths``, ``indices`` and ``begins`` stay on the CPU."""
        return self._map(
            lambda value: value.to(device, non_blocking=non_blocking), kept=("lengths", "indices", "begins")
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU. Torch's loader calls this by name."""
        return self._map(lambda value: value.pin_memory())

    def share_memory_(self) -> Batch:
        """Move everything to memory that other processes can read. If there is too little, raises as torch does."""
        return self._map(lambda value: value.share_memory_())

    def _map(self, function: Callable[[Any], Any], kept: Collection[str] = ()) -> Batch:
        """Apply `function` to all tensors except those in `kept`."""

        def changed(value: Any) -> Any:
            return {key: function(each) for key, each in value.items()} if isinstance(value, dict) else function(value)

        held = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in kept}
        return replace(self, **{name: changed(value) for name, value in held.items() if value is not None})


class BatchTransform(Protocol):
    """A transform that training applies to every batch, on the model's device."""

    variants: ClassVar[int]
    """How many variants of a window it makes; if several, `Batch.variants` says which."""

    @property
    def keeps(self) -> Collection[str]:
        """Names of the data's infos that stay valid under the transform."""
        ...

    def __call__(self, batch: Batch) -> Batch:
        """The transformed batch. Random draws use torch's global generator."""
        ...
