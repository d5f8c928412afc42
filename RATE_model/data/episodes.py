"""Files of whole episodes, converted once to the project's own layout (see `RATE_model.data.trajectories`).

    pickle   a list of episodes, dicts of the arrays observations, actions, rewards, terminals: D4RL as stored by the
             Decision Transformer's code
    Minari   see `RATE_model.data.minari`

The converted file is ``<name>.converted.hdf5`` beside its source, or in another folder if that one is read-only
(`as_trajectory_file`). It is converted again when the source changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from RATE_model.data.ends import (
    SUCCESSORS,
    UnclearEnds,
    can_mark_every_end,
    kind_of,
    one_column,
    successors_follow,
    within_episode,
)
from RATE_model.data.hdf5 import attributes_of, open_hdf5, raise_if_machine_error
from RATE_model.data.minari import DATA as MINARI_FILE
from RATE_model.data.minari import episode_number, stored_episodes
from RATE_model.data.npz import conversion_path
from RATE_model.data.pickles import load_pickle
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.locks import ensure

# An episode: observations (T, obs), actions (T, act), rewards (T,), and whether it ended in a terminal state.
Episode = tuple[np.ndarray, np.ndarray, np.ndarray, bool]

_KEYS = ("observations", "actions", "rewards")
_MINARI_MARKS = ("terminations", "truncations")
_VERSION = 2  # of the conversion; files of other versions are converted again


def as_trajectory_file(
    source: Path, directory: Path, *, prefix: str, max_episode_steps: int | None = None, beside: bool = True
) -> Path:
    """A file in D4RL's HDF5 layout: ``source`` itself, or a converted copy, made if necessary.

    Args:
        source: an HDF5 file, a pickle (.pkl or .pickle), or the folder of a Minari dataset.
        directory: for the copy if the source's own folder is read-only.
        prefix: prefix of its name there.
        max_episode_steps: longest possible episode.
        beside: put the copy beside its source if possible; otherwise always in the directory.

    Raises:
        UserError: the source is damaged or of another format, or the copy cannot be written.
    """
    if source.is_dir():
        if not (source / MINARI_FILE).is_file():
            raise UserError(f"'{source}' is not a Minari dataset: it has no file {MINARI_FILE}.")
        source /= MINARI_FILE
    pickled = source.suffix.lower() in (".pkl", ".pickle")
    if not pickled and not _is_minari(source):
        return source
    places = [source.with_name(f"{source.name}.converted.hdf5")] if beside else []
    places.append(conversion_path(source, directory, prefix))

    def convert(target: Path, identity: Mapping[str, int]) -> None:
        episodes = (read_pickle if pickled else read_minari)(source, max_episode_steps)
        _convert(source, "pickle" if pickled else "Minari", episodes, target, identity)

    return converted_once(source, places, convert, conversion=_VERSION)


def converted_once(
    source: Path, places: Sequence[Path], convert: Callable[[Path, Mapping[str, int]], None], **identity: int
) -> Path:
    """The conversion of a file, made unless an up-to-date one exists.

    Args:
        source: the file.
        places: candidate paths of the conversion; it is made at the first one, unless that is in the source's own
            folder and the folder is not writable.
        convert: writes it to a path, with the given attributes.
        identity: further attributes that it must have.
    """
    state = source.stat()
    attributes = {"source_bytes": state.st_size, "source_changed_ns": state.st_mtime_ns, **identity}

    def is_converted(path: Path) -> bool:
        return attributes.items() <= attributes_of(path).items()

    made = places[0] if places[0].parent != source.parent or os.access(source.parent, os.W_OK) else places[-1]
    target = next(filter(is_converted, places), made)

    def make() -> None:
        print(f"Converting '{source}' to '{target}', once.", flush=True)
        convert(target, attributes)

    waiting = f"another process is converting '{source}'; waiting for it"
    ensure(target, make, is_good=is_converted, waiting=waiting)
    return target


def read_pickle(source: Path, max_steps: int | None = None) -> Iterator[Episode]:
    """The episodes of a pickle. Only NumPy arrays and plain containers are unpickled; no code is run.

    Raises:
        UserError: the file is damaged or does not contain episodes.
    """
    episodes = load_pickle(source)
    if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
        raise UserError(f"'{source}' is not a list of episodes, dicts of {', '.join(_KEYS)}, terminals")
    for number, episode in enumerate(episodes):
        yield from _episodes(f"episode {number} of '{source}'", episode, max_steps)


def read_minari(source: Path, max_steps: int | None = None) -> Iterator[Episode]:
    """The episodes of a Minari dataset's main_data.hdf5, in the order of their numbers.

    The observation after the last action is dropped, as in D4RL's files.

    Raises:
        UserError: the file is damaged, or an episode is incomplete.
    """
    try:
        with open_hdf5(source) as file:
            for name, episode in stored_episodes(file, source):
                place = f"'{name}' of '{source}'"
                yield from _episodes(place, episode, max_steps, marks=_MINARI_MARKS, more_observations=1)
    except (OSError, RuntimeError, KeyError) as error:
        raise_if_machine_error(source, error)
        raise UserError(f"'{source}' cannot be read; it is truncated or damaged ({error})") from error


def _episodes(
    place: str, episode: Any, max_steps: int | None, *, marks: tuple[str, ...] = (), more_observations: int = 0
) -> Iterator[Episode]:
    """Split a stored episode into several where successors show that it is not one.

    Args:
        place: name used in errors.
        episode: arrays by name.
        max_steps: longest possible episode.
        marks: end marks that it must have; empty: any will do.
        more_observations: how many more observations than actions there are.
    """
    names = [name for name in episode if isinstance(name, str) and kind_of(name)]
    missing = [key for key in (*_KEYS, *marks) if key not in episode]
    missing += [] if marks or can_mark_every_end(names) else ["terminals"]
    if missing:
        raise UserError(f"{place} has no {', '.join(missing)} (available: {', '.join(map(str, episode)) or 'nothing'})")
    after = [] if more_observations else [name for name in SUCCESSORS if name in episode][:1]
    observations, actions, rewards, *rest = _arrays(place, episode, [*_KEYS, *names, *after], more_observations)
    steps = len(rewards)
    try:
        if after and rest[-1].shape != observations.shape:
            raise UnclearEnds(f"has '{after[0]}' of shape {rest[-1].shape}; expected {observations.shape}")
        ends = within_episode(
            dict(zip(names, rest, strict=False)),
            steps,
            follows=successors_follow(observations, rest[-1]) if after else None,
            max_steps=max_steps,
        )
    except UnclearEnds as unclear:
        raise UserError(f"{place} {unclear}") from None
    for note in ends.notes:
        print(f"note: {place} {note}", flush=True)
    stops = np.flatnonzero(ends.last) + 1
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        rows = slice(start, stop)
        yield observations[rows], actions[rows], rewards[rows], bool(ends.terminal[stop - 1])


def _convert(source: Path, kind: str, episodes: Iterator[Episode], target: Path, identity: Mapping[str, int]) -> None:
    """Write the episodes of a source to a trajectory file."""
    first = next(episodes, None)
    if first is None:
        raise UserError(f"'{source}' contains no episodes")
    writer = TrajectoryWriter(
        target,
        observation_shape=first[0].shape[1:],
        observation_dtype="float32",
        action_shape=first[1].shape[1:],
        action_dtype="float32",
        attributes={"generator": f"converted from {kind}", "source": source.name, **identity},
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


def _arrays(place: str, episode: Any, keys: list[str], more_observations: int) -> list[np.ndarray]:
    """The arrays of an episode, all of length T, columns (T, 1) as (T,); extra observations are dropped."""
    if nested := [key for key in keys if isinstance(episode[key], h5py.Group)]:
        raise UserError(f"{place}: '{nested[0]}' is a group of arrays; expected one array")
    arrays = [np.asarray(episode[key]) for key in keys]
    if wrong := [key for key, array in zip(keys, arrays, strict=True) if array.dtype.kind not in "biuf"]:
        raise UserError(f"{place}: '{wrong[0]}' is not numeric")
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    lengths[0] -= more_observations
    if len(set(lengths)) > 1 or lengths[0] < 1:
        listed = ", ".join(f"{key} {len(array) if array.ndim else 0}" for key, array in zip(keys, arrays, strict=True))
        wanted = "; expected one observation more than actions" if more_observations else ""
        raise UserError(f"{place} has arrays of inconsistent lengths ({listed}){wanted}")
    rewards = one_column(arrays[2])
    if rewards.ndim != 1:
        raise UserError(f"{place} has 'rewards' of shape {rewards.shape}; expected one number per step")
    return [arrays[0][: lengths[0]], arrays[1], rewards, *arrays[3:]]


def _is_minari(path: Path) -> bool:
    """Whether it is an HDF5 file with a group per episode instead of flat arrays."""
    try:
        with open_hdf5(path) as file:
            return "observations" not in file and any(map(episode_number, file))
    except (OSError, RuntimeError):
        return False  # opening it as data reports the error
