"""Privileged arrays of the data, `infos/NAME`, which acting agents never see.

Real numbers are normalised by the training data, so predicting the mean has a squared error of 1. Integers are classes,
the values that occur in the training data. NaN, infinity and other classes count as unknown: they are neither predicted
nor seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.spec import PrivilegedKind

if TYPE_CHECKING:
    from RATE_model.data.dataset import WindowDataset

PREFIX = "infos/"
MAX_CLASSES = 256
_SMALLEST_DEVIATION = 1e-6


class Scores(NamedTuple):
    """Errors of predicted numbers or classes, `(..., n)`, and a mask of the known ones, bool."""

    errors: Tensor
    known: Tensor


class Privileged(nn.Module):
    """One array of `infos/`, n numbers per step, as a model sees or predicts it. Statistics of the data are buffers.

    Args:
        kind: its description.
    """

    mean: Tensor
    std: Tensor
    values: Tensor

    def __init__(self, kind: PrivilegedKind) -> None:
        super().__init__()
        self.kind = kind
        if kind.classes:
            self.register_buffer("values", torch.zeros(kind.classes, dtype=torch.int64))  # ascending
        else:
            self.register_buffer("mean", torch.zeros(kind.width))
            self.register_buffer("std", torch.ones(kind.width))

    @classmethod
    def of(cls, name: str, rows: np.ndarray, *, flag: str) -> Self:
        """From an array of the training data, `(steps, n)` float32 or int64.

        Raises:
            UserError: it has too many classes, or no finite number; the message names the flag.
        """
        if rows.dtype.kind == "i":
            classes = np.unique(rows)
            if len(classes) > MAX_CLASSES:
                raise UserError(
                    f"--{flag} {PREFIX}{name}: has {len(classes)} different integers, more than {MAX_CLASSES} "
                    "classes; store quantities as floats"
                )
            found = cls(PrivilegedKind(name, rows.shape[1], len(classes)))
            found.values.copy_(torch.from_numpy(classes))
            return found
        numbers = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        if np.isnan(numbers).all(axis=0).any():
            raise UserError(f"--{flag} {PREFIX}{name}: has no finite number in the training data")
        found = cls(PrivilegedKind(name, rows.shape[1], 0))
        deviation = np.nanstd(numbers, axis=0)
        found.mean.copy_(torch.from_numpy(np.nanmean(numbers, axis=0)))
        found.std.copy_(torch.from_numpy(np.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0)))
        return found

    def inputs(self, rows: Tensor) -> Tensor:
        """From `(..., n)` in a batch to the numbers that a model sees, `(..., kind.numbers)`; 0 if unknown."""
        if self.kind.classes:
            index, known = self._classes(rows)
            hot = F.one_hot(index, self.kind.classes) * known[..., None]
            return hot.flatten(-2).to(torch.float32)
        normalised = (rows - self.mean) / self.std
        return torch.where(normalised.isfinite(), normalised, normalised.new_zeros(()))

    def scores(self, predictions: Tensor, rows: Tensor) -> Scores:
        """Scores of predictions `(..., kind.numbers)`: squared errors, or cross-entropies in nats; 0 if unknown."""
        predictions = predictions.float()
        if self.kind.classes:
            index, known = self._classes(rows)
            logits = predictions.unflatten(-1, (self.kind.width, self.kind.classes))
            errors = F.cross_entropy(logits.flatten(0, -2), index.flatten(), reduction="none").view(index.shape)
        else:
            known = rows.isfinite()
            errors = (predictions - self.inputs(rows)).square()
        return Scores(torch.where(known, errors, errors.new_zeros(())), known)

    def _classes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The class index of each value, and a mask of values that are classes."""
        index = torch.searchsorted(self.values, rows.contiguous()).clamp(max=self.kind.classes - 1)
        return index, self.values[index] == rows


def named(texts: Sequence[str]) -> tuple[str, ...]:
    """Names given as several words, separated by commas, or both."""
    return tuple(name for text in texts for name in text.split(","))


def check_infos(names: Sequence[str], *, flag: str) -> None:
    """Raise `UserError` for a name that is not `infos/NAME`, or a duplicate."""
    for place, name in enumerate(names):
        if not name.startswith(PREFIX) or name == PREFIX:
            raise UserError(f"--{flag} {name or repr(name)}: give arrays of the data, as {PREFIX}NAME")
        if name in names[:place]:
            raise UserError(f"--{flag}: names {name} twice; give it once")


def infos_of(names: Sequence[str]) -> tuple[str, ...]:
    """The arrays among names such as `infos/agent_pos`, without the prefix and duplicates, in order."""
    return tuple(dict.fromkeys(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)))


def with_infos(data: WindowDataset, names: Sequence[str], *, flag: str) -> WindowDataset:
    """`WindowDataset.with_infos`, with an error that lists the available arrays and their shapes per step.

    Raises:
        UserError: an array is missing; the message names the flag.
    """
    for file in data.files:
        offered = file.info_names()
        if missing := [name for name in names if name not in offered]:
            available = ", ".join(
                f"{PREFIX}{name} {_shape(file.column(PREFIX + name, 0, 1))}" for name in sorted(offered)
            )
            raise UserError(
                f"--{flag} {PREFIX}{missing[0]}: '{file.path}' has no such array; it has {available or 'no infos'}"
            )
    return data.with_infos(names)


def _shape(step: np.ndarray) -> str:
    return f"({', '.join(map(str, step.shape[1:])) or 'one number'})"
