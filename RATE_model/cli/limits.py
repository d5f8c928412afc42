"""Checks of flag values, with shared error messages.

A dataclass of flags declares the limits of a number in its type, `steps: Count = 90`, and derives from `Ranged`.
"""

import numbers
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Annotated, Any

from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores, is_special_file

# Upper limits on model sizes and on steps seen at once; memory runs out earlier.
MAX_SIZE = 65_536
MAX_STEPS = 1_000_000
# Upper limit on the length of an episode, which may exceed what an agent sees at once.
MAX_EPISODE_STEPS = 2**31
# The generators of torch and NumPy accept seeds up to this.
MAX_SEED = 2**63 - 1
# The largest float32.
MAX_FLOAT = 3.4028234663852886e38


@dataclass(frozen=True)
class Range:
    """In `Annotated`: the limits of a number, or of every number of a list; None: no limit."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, value: float, *, flag: str) -> None:
        """Raise a UserError for a value beyond a limit, which it names; both limits of a half-open range."""
        limits = {"at least": (self.least, le), "above": (self.above, lt)}
        limits |= {"at most": (self.most, ge), "below": (self.below, gt)}
        bounds = {words: bound for words, (bound, _) in limits.items() if bound is not None}
        broken = {words: bound for words, bound in bounds.items() if not limits[words][1](bound, value)}
        if broken:
            named = bounds if "below" in bounds else broken
            allowed = " and ".join(f"{words} {bound}" for words, bound in named.items())
            raise UserError(f"--{flag} {value}: must be {allowed}")


@dataclass(frozen=True)
class Check:
    """In `Annotated`: a function of a value, or of every item of a list, and of its flag's name that may raise a
    UserError."""

    check: Callable[..., object]


Count = Annotated[int, Range(1)]
Steps = Annotated[int, Range(1, MAX_STEPS)]
EpisodeSteps = Annotated[int, Range(1, MAX_EPISODE_STEPS)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(above=0)]
Probability = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, below=1)]
Return = Annotated[float, Range(-MAX_FLOAT, MAX_FLOAT)]


class Ranged:
    """A dataclass of flags whose types say what is allowed, by a `Range` or a `Check`; None always is."""

    def validate(self) -> None:
        """Raise a UserError for a value out of range. Subclasses add to it."""
        for name, allowed in _declared(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None:
                    allowed.check(item, flag=name)


@cache
def _declared(cls: type) -> dict[str, Range | Check]:
    """What the types of a class's fields allow, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: found for name, hint in hints.items() for found in _within(hint)}


def _within(hint: Any) -> Iterator[Range | Check]:
    """What a type allows."""
    yield from (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Range | Check))
    for part in typing.get_args(hint):
        yield from _within(part)


def at_least(minimum: float, **values: float | None) -> None:
    """Raise `UserError` for the first flag below the minimum; None is skipped."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise UserError(f"--{name} {value}: must be at least {minimum}")


def each_once(**paths: Sequence[Path]) -> None:
    """Raise `UserError` for the first path that a flag names twice, which would count as two."""
    for name, given in paths.items():
        places = [path.resolve() for path in given]
        for path, place in zip(given, places, strict=True):
            if places.count(place) > 1:
                raise UserError(f"--{name} {path}: was given twice; name every one once")


def check_seed(seed: Any) -> None:
    """Raise `UserError` unless it is a whole number that random generators take."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise UserError(f"seed {seed!r}: must be a whole number, at least 0")
    at_least(0, seed=int(seed))
    at_most(MAX_SEED, seed=int(seed))


def at_most(maximum: float, **values: float | None) -> None:
    """Raise `UserError` for the first flag above the maximum; None is skipped."""
    for name, value in values.items():
        if value is not None and value > maximum:
            raise UserError(f"--{name} {value}: must be at most {maximum}")


def at_most_processes(**values: int | None) -> None:
    """Raise `UserError` for the first flag with more processes than are useful or fit in memory."""
    at_most(max(64, 8 * available_cores()), **values)


def writable_file(**files: Path | None) -> None:
    """Raise `UserError` for the first flag that does not name a writable file; creates nothing."""
    for name, file in files.items():
        if file is None:
            continue
        folder = Path(os.path.abspath(file)).parent
        if os.path.isdir(file) or not os.path.isdir(folder):
            raise UserError(f"--{name} {file}: give a file in an existing folder")
        if len(os.fsencode(file.name)) > 250:  # temporary names are longer
            raise UserError(f"--{name} {file}: the name is too long; give a shorter one")
        if not os.access(file if is_special_file(file) else folder, os.W_OK):
            raise UserError(f"--{name} {file}: is not writable; give another file")


def writable(**folders: Path | None) -> None:
    """Raise `UserError` for the first flag whose folder cannot be made or written to; creates nothing."""
    for name, folder in folders.items():
        if folder is None:
            continue
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"--{name} {folder}: {there} is a file; give a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"--{name} {folder}: {there} is not writable; give another folder")
