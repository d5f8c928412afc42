"""Other formats of the same data, converted once to our own layout (see `RATE_model.data.trajectories`).

    pickle   a list of episodes, dicts of the arrays observations, actions, rewards, terminals: D4RL as the published
             code kept it
    Minari   data/main_data.hdf5, one group per episode with observations (T + 1, ...), actions, rewards, terminations,
             truncations (Farama Foundation's Minari)

The converted file lies beside its source as ``<name>.converted.hdf5``, or in MuJoCo/MuJoCo_data where that folder is
read-only. It is made again when the source changes.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from MuJoCo.files import DATA_DIRECTORY
from RATE_model.data.hdf5 import attributes_of, open_hdf5, refuse_if_unreadable
from RATE_model.data.npz import conversion_path
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.processes import check_writable

# An episode: observations (T, obs), actions (T, act), rewards (T,), and whether it ended in a terminal state.
Episode = tuple[np.ndarray, np.ndarray, np.ndarray, bool]

_PICKLED_KEYS = ("observations", "actions", "rewards", "terminals")
_MINARI_KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
_MINARI_FILE = Path("data") / "main_data.hdf5"


def as_trajectory_file(source: Path) -> Path:
    """The data in the layout of D4RL's HDF5: ``source`` itself, or a converted copy of it, made if need be.

    Args:
        source: an HDF5 file, a pickle (by its ending .pkl or .pickle), or the folder of a Minari dataset.

    Raises:
        UserError: the source is damaged or holds something else, or the copy cannot be written.
    """
    if source.is_dir():
        if not (source / _MINARI_FILE).is_file():
            raise UserError(f"'{source}' is no Minari dataset: it has no file {_MINARI_FILE}.")
        source /= _MINARI_FILE
    if source.suffix.lower() in (".pkl", ".pickle"):
        return _converted(source, "pickle")
    if _is_minari(source):
        return _converted(source, "Minari")
    return source


def read_pickle(source: Path) -> Iterator[Episode]:
    """The episodes of a pickle. Only NumPy arrays and plain containers are unpickled, no code of the file's choice.

    Raises:
        UserError: the file is damaged or does not hold episodes.
    """
    try:
        with open(source, "rb") as file:
            episodes = _ArrayUnpickler(file).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"'{source}' is damaged or no pickle of trajectories ({error})") from error
    if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
        raise UserError(f"'{source}' does not hold a list of episodes, dicts of {', '.join(_PICKLED_KEYS)}")
    for number, episode in enumerate(episodes):
        arrays = _arrays(f"episode {number} of '{source}'", episode, _PICKLED_KEYS)
        yield (*arrays[:3], bool(arrays[3][-1]))


def read_minari(source: Path) -> Iterator[Episode]:
    """The episodes of a Minari dataset's main_data.hdf5, in the order of their numbers.

    The observation behind the last action is left out, as it is in D4RL's files.

    Raises:
        UserError: the file is damaged, or an episode lacks something.
    """
    try:
        with open_hdf5(source) as file:
            for name in sorted(filter(_episode_number, file), key=_episode_number):
                place = f"'{name}' of '{source}'"
                arrays = _arrays(place, file[name], _MINARI_KEYS, more_observations=1)
                yield arrays[0][:-1], arrays[1], arrays[2], bool(arrays[3][-1])
    except (OSError, RuntimeError, KeyError) as error:
        refuse_if_unreadable(source, error)
        raise UserError(f"'{source}' cannot be read; it is truncated or damaged ({error})") from error


def _converted(source: Path, kind: str) -> Path:
    """The converted copy of a source, made unless there is one of this very source."""
    state = source.stat()
    identity = {"source_bytes": state.st_size, "source_changed_ns": state.st_mtime_ns}
    places = [source.with_name(f"{source.name}.converted.hdf5"), conversion_path(source, DATA_DIRECTORY, "mujoco")]
    for target in places:
        if identity.items() <= attributes_of(target).items():
            return target
    target = places[0] if os.access(source.parent, os.W_OK) else places[1]
    check_writable(target)
    print(f"Converting '{source}' to '{target}', once.")
    episodes = read_pickle(source) if kind == "pickle" else read_minari(source)
    first = next(episodes, None)
    if first is None:
        raise UserError(f"'{source}' holds no episode")
    writer = TrajectoryWriter(
        target,
        observation_shape=first[0].shape[1:],
        observation_dtype="float32",
        action_shape=first[1].shape[1:],
        action_dtype="float32",
        attributes={"generator": f"converted from {kind}", "source": source.name} | identity,
    )
    with writer:
        number = 0
        episode: Episode | None = first
        while episode is not None:
            observations, actions, rewards, terminal = episode
            try:
                writer.add_episode(observations, actions, rewards, terminal=terminal)
            except ValueError as error:
                raise UserError(f"episode {number} of '{source}': {error}") from error
            number, episode = number + 1, next(episodes, None)
    return target


def _arrays(place: str, episode: Any, keys: tuple[str, ...], *, more_observations: int = 0) -> list[np.ndarray]:
    """The arrays of an episode, of one length T; observations may have more steps."""
    if missing := [key for key in keys if key not in episode]:
        raise UserError(f"{place} has no {', '.join(missing)} (it has: {', '.join(map(str, episode)) or 'nothing'})")
    if nested := [key for key in keys if isinstance(episode[key], h5py.Group)]:
        raise UserError(f"{place}: '{nested[0]}' is a group of arrays; expected one array")
    arrays = [np.asarray(episode[key]) for key in keys]
    if wrong := [key for key, array in zip(keys, arrays, strict=True) if array.dtype.kind not in "biuf"]:
        raise UserError(f"{place}: '{wrong[0]}' are not numbers")
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    lengths[0] -= more_observations
    if len(set(lengths)) > 1 or lengths[0] < 1:
        listed = ", ".join(f"{key} {len(array) if array.ndim else 0}" for key, array in zip(keys, arrays, strict=True))
        raise UserError(f"{place} has arrays of lengths that do not fit ({listed})")
    return [arrays[0], arrays[1], arrays[2].reshape(lengths[0], -1)[:, 0], *(array for array in arrays[3:])]


def _is_minari(path: Path) -> bool:
    """Whether it is an HDF5 file with groups of episodes instead of arrays of steps."""
    try:
        with open_hdf5(path) as file:
            return "observations" not in file and any(map(_episode_number, file))
    except (OSError, RuntimeError):
        return False  # opening it as data tells what is wrong


def _episode_number(name: str) -> int | None:
    """1 for "episode_0", 2 for "episode_1", ...; None for another name."""
    match = re.fullmatch(r"episode_(\d+)", name)
    return int(match[1]) + 1 if match else None


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers. Everything else could run code on loading, and is refused."""

    _ALLOWED = {
        "numpy": ("ndarray", "dtype", "float32", "float64", "bool_"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.numeric": ("_frombuffer",),
        "numpy._core.numeric": ("_frombuffer",),
        "collections": ("OrderedDict", "defaultdict"),
        "builtins": ("list", "bytearray"),
        "_codecs": ("encode",),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise UserError(f"a pickle that holds {module}.{name} is not read: only NumPy arrays and plain containers are")
