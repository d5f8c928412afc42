"""The description in a trajectory file: attributes of an HDF5 file, and versions of the software that made it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from typing import Any

import numpy as np


def encoded(value: Any) -> Any:
    """Convert a value for storage in HDF5 attributes: lists and dicts become JSON."""
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`; tuples come back as lists."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value


def version(distribution: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout without installation
        return "not installed"
