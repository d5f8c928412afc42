"""Batches of windows: the input of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from RATE_model.data.frames import Frames, FrameStack


class Share(NamedTuple):
    """A weighted mean over something other than trajectories, such as steps, summable over batches and processes."""

    total: torch.Tensor
    count: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """NaN if the weight is zero."""
        return self.total / self.count


# Fields of a batch that stay on the CPU.
_ON_CPU = ("lengths", "indices", "begins")


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows padded to T steps.

    Attributes:
        observations: (B, T, ...) uint8 images or float32 vectors, or images as `Frames` or `FrameStack`.
        actions: (B, T) int64, or (B, T, A) float32; 0 in padding.
        rtg: (B, T) float32 returns-to-go in units of reward; 0 in padding.
        valid: (B, T) bool, True on real steps.
        lengths: (B,) int64, real steps per window; kept on the CPU, so reading it never waits for a GPU.
        indices: (B,) int64, window numbers in the dataset; kept on the CPU.
        labels: the targets, shaped as the actions; None: the actions.
        begins: (B,) bool, whether a window starts its episode; kept on the CPU. None: all do.
        variants: (B,) int64, the variant of each window made by a batch transform; None: there is only one.
        infos: privileged arrays by name, (B, T, n) float32 or int64, 0 in padding. For objectives and probes, never for
            acting. None: none were requested.
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
        """The training targets, shaped like the actions."""
        return self.actions if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def real_rows(self) -> int:
        """Number of rows that are windows of data; the rest is padding."""
        return int((self.lengths > 0).sum())

    def as_padding(self) -> Batch:
        """The same batch with every step marked as padding."""
        return replace(self, valid=torch.zeros_like(self.valid), lengths=torch.zeros_like(self.lengths))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; ``lengths``, ``indices`` and ``begins`` stay on the CPU."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking), kept=_ON_CPU)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU. Called by torch's DataLoader."""
        return self._map(lambda value: value.pin_memory())

    def share_memory_(self) -> Batch:
        """Move everything to shared memory. Raises torch's error if there is too little."""
        return self._map(lambda value: value.share_memory_())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory on a GPU until what `stream` has queued now is done; see `Tensor.record_stream`."""
        for value in self._held(kept=_ON_CPU).values():
            for each in value.values() if isinstance(value, dict) else (value,):
                each.record_stream(stream)

    def _map(self, function: Callable[[Any], Any], kept: Collection[str] = ()) -> Batch:
        """Apply `function` to all tensors except those named in `kept`."""

        def changed(value: Any) -> Any:
            return {key: function(each) for key, each in value.items()} if isinstance(value, dict) else function(value)

        return replace(self, **{name: changed(value) for name, value in self._held(kept).items()})

    def _held(self, kept: Collection[str]) -> dict[str, Any]:
        """The fields that hold something, without those named in `kept`."""
        held = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in kept}
        return {name: value for name, value in held.items() if value is not None}


class DeviceCopies:
    """Copies batches to a device. To a GPU on a stream of its own: the next batch arrives while the GPU computes.

    Batches must be in page-locked memory, or the copy waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, ready for what the current stream is given next."""
        if self._stream is None:
            return batch.to(self._device, non_blocking=True)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        # Its memory belongs to the stream of the copies, which would reuse it before the current stream is done.
        moved.record_stream(current)
        return moved


class BatchTransform(Protocol):
    """A transform applied to every training batch, on the model's device."""

    variants: ClassVar[int]
    """Number of variants of a window; if above 1, `Batch.variants` tells them apart."""

    @property
    def keeps(self) -> Collection[str]:
        """Names of the infos that stay valid under the transform."""
        ...

    def __call__(self, batch: Batch) -> Batch:
        """The transformed batch. Random draws use torch's global generator."""
        ...
