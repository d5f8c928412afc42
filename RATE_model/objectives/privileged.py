"""Privileged arrays of the data, `infos/NAME`: what a step was like, and what no agent that plays is told.

Real numbers are normalised by the training data: a squared error of 1 is that of who predicts its mean. Integers are
classes, those that the training data shows. What is NaN or infinite, and a class that training data does not show, is
not known: it is neither predicted nor seen.
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
    """How well numbers or classes are predicted: `(..., n)` errors, and whether each is known, bool."""

    errors: Tensor
    known: Tensor


class Privileged(nn.Module):
    """One array of `infos/`, n numbers a step, as a model sees or predicts it; what it learned of data is in buffers.

    Args:
        kind: what it is.
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
        """Of an array of the training data, `(steps, n)` float32 or int64.

        Raises:
            UserError: there are too many classes, or nothing is known; it names the flag.
        """
        if rows.dtype.kind == "i":
            classes = np.unique(rows)
            if len(classes) > MAX_CLASSES:
                raise UserError(
                    f"--{flag} {PREFIX}{name}: holds {len(classes)} different integers, more than {MAX_CLASSES} "
                    "classes; store numbers that are near to one another as floats"
                )
            found = cls(PrivilegedKind(name, rows.shape[1], len(classes)))
            found.values.copy_(torch.from_numpy(classes))
            return found
        numbers = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        if np.isnan(numbers).all(axis=0).any():
            raise UserError(f"--{flag} {PREFIX}{name}: is not a finite number anywhere in the training data")
        found = cls(PrivilegedKind(name, rows.shape[1], 0))
        deviation = np.nanstd(numbers, axis=0)
        found.mean.copy_(torch.from_numpy(np.nanmean(numbers, axis=0)))
        found.std.copy_(torch.from_numpy(np.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0)))
        return found

    def inputs(self, rows: Tensor) -> Tensor:
        """`(..., n)` as they are in a batch to the numbers that a model sees, `(..., kind.numbers)`; 0 if not known."""
        if self.kind.classes:
            index, known = self._classes(rows)
            hot = F.one_hot(index, self.kind.classes) * known[..., None]
            return hot.flatten(-2).to(torch.float32)
        normalised = (rows - self.mean) / self.std
        return torch.where(normalised.isfinite(), normalised, normalised.new_zeros(()))

    def scores(self, predictions: Tensor, rows: Tensor) -> Scores:
        """Of predictions `(..., kind.numbers)`: squared errors, or cross-entropies in nats; 0 where not known."""
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
        """The number of each value among the classes, and whether it is one."""
        index = torch.searchsorted(self.values, rows.contiguous()).clamp(max=self.kind.classes - 1)
        return index, self.values[index] == rows


def named(texts: Sequence[str]) -> tuple[str, ...]:
    """Names that are written in one word with commas, in several words, or both."""
    return tuple(name for text in texts for name in text.split(","))


def check_infos(names: Sequence[str], *, flag: str) -> None:
    """Raise `UserError` for a name that is not `infos/NAME`, or stands there twice."""
    for place, name in enumerate(names):
        if not name.startswith(PREFIX) or name == PREFIX:
            raise UserError(f"--{flag} {name or repr(name)}: give arrays of the data, as {PREFIX}NAME")
        if name in names[:place]:
            raise UserError(f"--{flag}: names {name} twice; once is enough")


def infos_of(names: Sequence[str]) -> tuple[str, ...]:
    """Of names such as `infos/agent_pos` those of arrays, without the prefix; each once, in the order given."""
    return tuple(dict.fromkeys(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)))


def with_infos(data: WindowDataset, names: Sequence[str], *, flag: str) -> WindowDataset:
    """`WindowDataset.with_infos`; the error of what is missing lists what there is, with the shape of a step.

    Raises:
        UserError: it names the flag.
    """
    for file in data.files:
        offered = file.info_names()
        if missing := [name for name in names if name not in offered]:
            held = ", ".join(f"{PREFIX}{name} {_shape(file.column(PREFIX + name, 0, 1))}" for name in sorted(offered))
            raise UserError(
                f"--{flag} {PREFIX}{missing[0]}: '{file.path}' has no such array; it has {held or 'no infos'}"
            )
    return data.with_infos(names)


def _shape(step: np.ndarray) -> str:
    return f"({', '.join(map(str, step.shape[1:])) or 'one number'})"
