"""Mirrored images, which double the data of left-right symmetric environments."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from RATE_model.data.batch import Batch


@dataclass(frozen=True)
class Mirror:
    """A batch transform that mirrors every trajectory of dense images left to right with probability 1/2.

    Draws from torch's global generator.
    """

    variants: ClassVar[int] = 2  # of a window: unchanged, and mirrored

    actions: tuple[int, ...]  # what each action becomes when mirrored
    same: tuple[str, ...] = ()  # infos that a mirror leaves as they are
    # Infos that change sign: the factors of a step's numbers, repeated as often as they fit. Others are not available
    signs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def keeps(self) -> tuple[str, ...]:
        """Infos that are right in the mirror, too."""
        return (*self.same, *self.signs)

    def __call__(self, batch: Batch) -> Batch:
        """Mirror some of the batch's trajectories."""
        images = batch.observations
        if not isinstance(images, Tensor):
            raise TypeError(f"Mirror needs dense images, not {type(images).__name__}")
        chosen = torch.rand(len(batch), device=images.device) < 0.5
        becomes = torch.tensor(self.actions).to(images.device, non_blocking=True)

        def mirrored(actions: Tensor) -> Tensor:
            return torch.where(chosen[:, None], becomes[actions], actions)

        def turned(name: str, rows: Tensor) -> Tensor:
            if name not in self.signs:
                return rows
            factors = torch.tensor(self.signs[name], dtype=rows.dtype).to(rows.device, non_blocking=True)
            return torch.where(chosen[:, None, None], rows * factors.repeat(rows.shape[-1] // len(factors)), rows)

        return replace(
            batch,
            observations=torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images),
            actions=mirrored(batch.actions),
            labels=None if batch.labels is None else mirrored(batch.labels),
            variants=chosen.long(),
            infos=None if batch.infos is None else {name: turned(name, rows) for name, rows in batch.infos.items()},
        )
