"""Files that are there whole or not at all, whatever kills the process or the machine while they are written."""

import os
from pathlib import Path


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` so that a reader sees the old content or the new, never a part; raises OSError.

    The data goes to ``<name>.tmp`` in the same directory, reaches the disk, and takes the name's place in one step.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """As atomic_write_bytes, for text in UTF-8."""
    atomic_write_bytes(path, text.encode())


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file in place and returns once the disk has it; raises OSError."""
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
