"""A per-user cache of files shared by all runs."""

import os
from pathlib import Path

from RATE_model.errors import UserError
from RATE_model.system.atomic import write_durably
from RATE_model.system.locks import temporary


def directory(name: str) -> Path:
    """The cache folder of one kind of file: ``rate-memory/NAME`` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "rate-memory" / name


def write(path: Path, content: bytes, *, executable: bool = False) -> None:
    """Write a cache file atomically. Several processes may write the same file at once.

    Raises:
        UserError: the file cannot be written.
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
