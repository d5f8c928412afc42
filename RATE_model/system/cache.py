"""Files that are made once and kept for every run of a user."""

import os
from pathlib import Path

from RATE_model.errors import UserError
from RATE_model.system.atomic import write_durably
from RATE_model.system.locks import temporary


def directory(name: str) -> Path:
    """Where files of a kind are kept: ``rate-memory/NAME`` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "rate-memory" / name


def write(path: Path, content: bytes, *, executable: bool = False) -> None:
    """Create a cache file in one step. Processes that create the same file at once do not disturb each other.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as place:
            write_durably(place, content)
            place.chmod(0o755 if executable else 0o644)
            os.replace(place, path)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}' ({error}): set XDG_CACHE_HOME to a folder for files like this one"
        ) from error
