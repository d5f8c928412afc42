"""Pickles of arrays, read without running code from the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from RATE_model.errors import UserError, error_reason


def load_pickle(path: Path) -> Any:
    """Load a pickle of NumPy arrays in plain containers.

    Raises:
        UserError: the file is missing or damaged, or contains anything else, which could run code.
    """
    try:
        with open(path, "rb") as file:
            return ArrayUnpickler(file).load()
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error_reason(error)}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"'{path}' is damaged or not a pickle of trajectories ({error})") from error


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers. Everything else could run code on loading and is refused.

    Raises:
        UserError: from `load`, if the pickle contains anything else.
    """

    _ALLOWED = {
        "numpy": ("ndarray", "dtype", "float32", "float64", "bool_"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.numeric": ("_frombuffer",),
        "numpy._core.numeric": ("_frombuffer",),
        "collections": ("OrderedDict", "defaultdict"),
        "builtins": ("list", "set", "bytearray"),
        "__builtin__": ("list", "set", "bytearray"),
        "_codecs": ("encode",),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise UserError(f"a pickle with {module}.{name} is refused: only NumPy arrays in plain containers are allowed")
