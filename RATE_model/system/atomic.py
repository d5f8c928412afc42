"""Files that exist completely or not at all, even if the process or the machine dies while writing."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from RATE_model.system.locks import temporary
from RATE_model.system.processes import is_special_file


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: readers see either the old or the new content; raises OSError.

    The data goes to a temporary file in the same directory, is flushed to disk, and is renamed in one step.
    Anything that is not a regular file, such as /dev/stdout or a pipe, is written to rather than replaced.
    """
    if is_special_file(path):
        _append(path, data)
        return
    with temporary(path) as place:
        write_durably(place, data)
        os.replace(place, path)
    sync_directory(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Like atomic_write_bytes, for text in UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, document: Any, *, indent: int | None = 2) -> None:
    """Like atomic_write_text, for plain data. JSON has no NaN or infinity: null is written instead, with a warning."""
    missing: list[str] = []
    text = json.dumps(_finite(document, "", missing), indent=indent, allow_nan=False)
    atomic_write_text(path, text + "\n")
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        print(f"warning: {path}: {names}: not a finite number, written as null", file=sys.stderr)


def _append(path: Path, data: bytes) -> None:
    """Append to an existing device or pipe; a file opened through /dev/stdout keeps its earlier content."""
    sys.stdout.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _finite(value: Any, name: str, missing: list[str]) -> Any:
    """Replace non-finite numbers by None and add their names to ``missing``."""
    if isinstance(value, dict):
        return {key: _finite(item, f"{name}.{key}" if name else str(key), missing) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{name}[{index}]", missing) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        missing.append(name or "the value")
        return None
    return value


def write_durably(path: Path, data: bytes) -> None:
    """Write a file in place and flush it to disk; raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to disk: only then does a rename survive a power loss; raises OSError."""
    if os.name == "nt":  # Windows cannot open a directory.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
