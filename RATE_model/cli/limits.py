"""Checks of flag values, with shared error messages."""

import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores, is_special_file

# Upper limits on model sizes and on steps seen at once; memory runs out earlier.
MAX_SIZE = 65_536
MAX_STEPS = 1_000_000
# Upper limit on the length of an episode, which may exceed what an agent sees at once.
MAX_EPISODE_STEPS = 2**31
# The generators of torch and NumPy accept seeds up to this.
MAX_SEED = 2**63 - 1


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
