"""Files that exist completely or not at all, even if the process or the machine dies while writing."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from RATE_model.system.locks import temporary
from RATE_model.system.processes import is_no_file


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` so that a reader sees either the old or the new content, never a part; raises
    OSError.

    The data goes to a temporary file in the same directory, is flushed to disk, and is renamed in one step.
    Anything that is not a file, such as /dev/stdout or a pipe, is not replaced: the data is written to it.
    """
    if is_no_file(path):
        _append(path, data)
        return
    with temporary(path) as place:
        write_durably(place, data)
        os.replace(place, path)
    sync_directory(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """As atomic_write_bytes, for text in UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, document: Any, *, indent: int | None = 2) -> None:
    """As atomic_write_text, for plain data. JSON has no NaN and no infinity: null stands for them, with a warning."""
    missing: list[str] = []
    text = json.dumps(_finite(document, "", missing), indent=indent, allow_nan=False)
    atomic_write_text(path, text + "\n")
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        print(f"warning: {path}: {names}: not a finite number, written as null", file=sys.stderr)


def _append(path: Path, data: bytes) -> None:
    """Writes to an existing target; an open file named by /dev/stdout keeps its earlier content."""
    sys.stdout.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _finite(value: Any, name: str, missing: list[str]) -> Any:
    """The value with None for numbers that are not finite; adds their names to ``missing``."""
    if isinstance(value, dict):
        return {key: _finite(item, f"{name}.{key}" if name else str(key), missing) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{name}[{index}]", missing) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        missing.append(name or "the value")
        return None
    return value


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file in place and returns once it is on disk; raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: a rename survives a power loss only after this; raises OSError."""
    if os.name == "nt":  # Windows cannot open a directory.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
