"""Optional packages, imported on use; a missing one is named with the command that installs it."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from RATE_model.errors import UserError


def extra(name: str) -> str:
    """The command that installs this project with an optional dependency group of pyproject.toml."""
    return f"pip install -c constraints.txt -e '.[{name}]'"


def needed(sentence: str, module: str, *more: str, install: str, with_reason: bool = False) -> ModuleType:
    """Import a module, and more, such as its submodules; returns the first one.

    Args:
        sentence: says what needs which package; the message starts with it.
        module, more: their full names.
        install: the command that installs the package; the message ends with it.
        with_reason: whether the message includes the error of the import.

    Raises:
        UserError: one of them is missing or lacks what it imports. Other errors of an import are not caught.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # nothing here opens a window, so skip pygame's greeting
    try:
        first, *_ = [importlib.import_module(name) for name in (module, *more)]
    except ImportError as error:
        reason = f" ({error})" if with_reason else ""
        raise UserError(f"{sentence}{reason}: {install}") from error
    return first
