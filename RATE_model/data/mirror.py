"""Mirrored images, which double the data if left and right are alike."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from RATE_model.data.batch import Batch


@dataclass(frozen=True)
class Mirror:
    """A batch transform: shows every trajectory of dense images as it is or mirrored left to right, with equal
    probability.

    Draws from torch's global generator.
    """

    variants: ClassVar[int] = 2  # of a window: as it is, and mirrored

    actions: tuple[int, ...]  # what each action becomes when mirrored
    keeps: tuple[str, ...] = ()  # infos that stay valid when mirrored; others are not available

    def __call__(self, batch: Batch) -> Batch:
        """The batch with some of its trajectories mirrored."""
        images = batch.observations
        if not isinstance(images, Tensor):
            raise TypeError(f"a mirror takes dense images, not {type(images).__name__}")
        chosen = torch.rand(len(batch), device=images.device) < 0.5
        becomes = torch.tensor(self.actions, device=images.device)

        def mirrored(actions: Tensor) -> Tensor:
            return torch.where(chosen[:, None], becomes[actions], actions)

        return replace(
            batch,
            observations=torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images),
            actions=mirrored(batch.actions),
            labels=None if batch.labels is None else mirrored(batch.labels),
            variants=chosen.long(),
        )
