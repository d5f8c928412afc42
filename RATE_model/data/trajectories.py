"""Trajectory files: one HDF5 layout for every environment, that of D4RL (Fu et al. 2020, arXiv 2004.07219).

All steps of all episodes are concatenated in flat arrays:

    observations  (steps, ...)   uint8 images or floating-point vectors
    actions       (steps,) integers, or (steps, A) floating point
    rewards       (steps,)
    terminals     (steps,)       1 on the last step of an episode that ended in a terminal state
    timeouts      (steps,)       1 on the last step of an episode that was cut off; may be absent
    infos/...     (steps, ...)   anything else: privileged data for objectives and probes (`TrajectoryFile.info`),
    except infos/first_seen     (steps,)   the first step with the same observation; may be absent
    infos/expert_action             what an expert would have done, shaped like the actions; may be absent

Images are returned with channels first. A file may store them with channels last, as the attribute ``channels_last``
of ``observations`` says: images with few colours compress better that way.

Files made here have checksums of all this (`RATE_model.data.checksums`), verified when bytes are read.

Step t has the observation, the action taken on it and the reward that followed. An episode ends where ``terminals``
or ``timeouts`` says so; steps after the last end (a truncated file) form the last episode. In a file from another
source, without the attribute ``format_version``, other arrays may mark ends too (`RATE_model.data.ends`), and columns
may be (steps, 1).

`TrajectoryWriter` (writer.py) makes such files atomically, with attributes that describe them; `TrajectoryFile` opens
them, and D4RL's own, validates them once and reads slices.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np

from RATE_model.data.arrays import TrajectoryArrays, info_rows, missing_info_error, returns_to_go
from RATE_model.data.attributes import decoded
from RATE_model.data.checksums import Checksums, read_checksums
from RATE_model.data.compression import hdf5plugin, uses_zstd
from RATE_model.data.ends import UnclearEnds, can_mark_every_end, ends_of_file, layout_of, one_column
from RATE_model.data.hdf5 import Hdf5, open_hdf5, raise_if_machine_error
from RATE_model.errors import UserError, error_reason

Learn = Literal["recorded", "expert"]  # the actions taken, or those that an expert would have taken

FORMAT_VERSION = 1
CHECK_BLOCK_BYTES = 64 * 2**20  # data is checked in blocks of about this size
FIRST_SEEN = "infos/first_seen"
EXPERT_ACTION = "infos/expert_action"
CHANNELS_LAST = "channels_last"


class TrajectoryFile:
    """An open, validated trajectory file; see the module docstring for the layout.

    All checks are done here, once, block by block; later reads are plain slices with checksums. Image content is not
    decoded, and observations of a file with checksums are not read, as its writer has checked them. Each process opens
    its own handle on its first read, and raises if the file has changed; pickling leaves the handle out, so the object
    can be sent to loader workers, forked or spawned.

    Attributes:
        path: the file.
        num_steps, num_episodes: int.
        starts, lengths: (E,) int64, first step and number of steps of every episode.
        whole: (E,) bool, whether an episode has an end; False for an unfinished last episode.
        terminals: (E,) bool, whether an episode is known to have ended in a terminal state.
        rewards: (num_steps,) float32.
        actions: (num_steps,) int64, or (num_steps, A) float32.
        observation_shape, observation_dtype: of one observation as returned, uint8 or float32.
        discrete: whether actions are integers.
        action_shape: ``()`` or ``(A,)``.
        attributes: written by the writer; empty for files from other sources.

    Args:
        observation_shape, observation_dtype: required values; any floating-point dtype satisfies a floating-point one.
        num_actions: actions must be discrete, 0 to num_actions - 1.
        action_size: actions must be vectors of this size.
        max_episode_steps: longest possible episode in a file from another source.
        hint: what to do if the file is missing or invalid: a sentence, such as the command that makes it.

    Raises:
        UserError: the file is missing, empty, not HDF5 or truncated; a key is missing; lengths disagree; a shape or
            type differs from the required one; a value is not finite; an action is out of range; there is no episode,
            or it is unclear where episodes end. Here and in later reads: bytes do not match their checksum. In later
            reads: the file was changed or replaced.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_shape: Sequence[int] | None = None,
        observation_dtype: Any = None,
        num_actions: int | None = None,
        action_size: int | None = None,
        max_episode_steps: int | None = None,
        hint: str = "",
    ) -> None:
        self.path = Path(path)
        self._hint, self._max_episode_steps = hint, max_episode_steps
        self._handle: Hdf5 = None
        self._arrays: dict[str, Hdf5] = {}  # of the handle: a lookup takes as long as reading a window
        self._process = -1
        self._state: tuple[int, int] | None = None  # of the file when it was first opened
        self._checksums: dict[str, Checksums] | None = None
        with contextlib.ExitStack() as refused:
            refused.callback(self.close)  # an error keeps this object, and so the handle, alive
            with self._reading():
                if self.path.is_dir():
                    raise self._error("is a directory, not a file")
                if not self.path.is_file():
                    raise self._error("does not exist")
                if self.path.stat().st_size == 0:
                    raise self._error("is an empty file")
                file = self._open()
                attributes = dict(file.attrs)
                self.attributes = {name: decoded(value) for name, value in attributes.items()}
                self._own = "format_version" in self.attributes
                self._check_layout(file)
                self._check_kinds(file, observation_shape, observation_dtype, num_actions, action_size)
                self._checksums = self._read_checksums(file, attributes)
                ends, terminal = self._ends(file)
                self.rewards = self._finite("rewards", one_column(self._verified("rewards")))
                self.actions = self._finite("actions", self._verified("actions").reshape(-1, *self.action_shape))
            # An unfinished last episode counts as an episode.
            stops = np.flatnonzero(np.concatenate([ends[:-1], [True]])) + 1
            self.whole, self.terminals = ends[stops - 1], terminal[stops - 1]
            self.starts = np.concatenate([[0], stops[:-1]])
            self.lengths = stops - self.starts
            self.num_episodes = len(stops)
            stated = self.attributes.get("num_episodes", self.num_episodes)
            if self._own and stated != self.num_episodes:
                raise self._error(
                    f"is damaged: written with {stated} episodes, but its end marks show {self.num_episodes}"
                )
            self._num_actions = num_actions
            self.actions = self._in_range("actions", self.actions)
            self._check_observations()
            refused.pop_all()

    def _ends(self, file: Hdf5) -> tuple[np.ndarray, np.ndarray]:
        """Whether an episode ends with each step, and whether it does in a terminal state: (num_steps,) bool each.

        Prints a note about doubtful marks.
        """
        if self._own:
            terminal = self._verified("terminals") != 0
            return (terminal | (self._verified("timeouts") != 0) if "timeouts" in file else terminal), terminal
        try:
            found = ends_of_file(file, self.num_steps, max_steps=self._max_episode_steps)
        except UnclearEnds as unclear:
            raise self._error(str(unclear)) from None
        for note in found.notes:
            _say(f"note: '{self.path}' {note}")
        return found.last, found.terminal

    def episode_returns(self) -> np.ndarray:
        """Returns of the whole episodes, (E,) float32; of all if none is whole."""
        return self.returns_to_go()[self.starts[self.whole] if self.whole.any() else self.starts]

    def returns_to_go(self) -> np.ndarray:
        """The undiscounted return-to-go of every step: (num_steps,) float32."""
        return returns_to_go(self.rewards, self.starts, self.lengths, f"trajectory file '{self.path}'")

    def expert_actions(self) -> np.ndarray:
        """The expert's action at each step, with the shape and dtype of the actions.

        Raises:
            UserError: the file has none, or its array is damaged.
        """
        with self._reading():
            if EXPERT_ACTION not in (file := self._open()):
                raise UserError(
                    f"trajectory file '{self.path}' has no '{EXPERT_ACTION}': the expert's actions are unknown. "
                    "Use --learn recorded to learn the actions that were taken, or give a new --data_dir, where data "
                    "with expert actions is made."
                )
            column, kinds = file[EXPERT_ACTION], "iu" if self.discrete else "f"
            if (
                not isinstance(column, h5py.Dataset)
                or column.shape != self.actions.shape
                or column.dtype.kind not in kinds
            ):
                raise self._error(f"is damaged: '{EXPERT_ACTION}' differs from 'actions' in shape or dtype")
            actions = self._finite(EXPERT_ACTION, self._verified(EXPERT_ACTION))
        return self._in_range(EXPERT_ACTION, actions)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps start to stop - 1: observations (n, ...) uint8 or float32, actions (n,) int64 or (n, A) float32."""
        observations = self._channels_first(self.column("observations", start, stop))
        with np.errstate(over="ignore"):  # values beyond float32 become inf, which is refused on opening
            return observations.astype(self.observation_dtype, copy=False), self.actions[start:stop]

    def column(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Steps start to stop - 1 of any array of the file, unconverted: (n, ...)."""
        with self._reading(f" at steps {start} to {self.num_steps - 1 if stop is None else stop - 1} of '{name}'"):
            return self._verified(name, slice(start, stop))

    def info_names(self) -> list[str]:
        """Names of the arrays under ``infos/``."""
        with self._reading():
            return list(self._open().get("infos", {}))

    def info(self, name: str) -> np.ndarray:
        """An array under ``infos/``, n numbers per step: (num_steps, n) float32 or int64; see `info_rows`.

        Raises:
            UserError: there is no array of this name (the message lists the names), it is damaged, or not numeric.
        """
        if name not in (offered := self.info_names()):
            raise missing_info_error(f"trajectory file '{self.path}'", name, offered)
        return info_rows(self.column(f"infos/{name}"), name, self.num_steps, f"trajectory file '{self.path}'")

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps, like `read`."""
        return self.read(0, self.num_steps)

    def frames(self, max_bytes: float = math.inf) -> tuple[np.ndarray, np.ndarray] | None:
        """The distinct observations (U, ...) and the index of each step's observation, (num_steps,) int64.

        None without `infos/first_seen`, or if they take more than `max_bytes`. Raises UserError if that array is
        damaged.
        """
        with self._reading():
            if FIRST_SEEN not in self._open():
                return None
            first = self._verified(FIRST_SEEN)
            steps = np.arange(self.num_steps)
            good = first.shape == steps.shape and first.dtype.kind in "iu" and np.all((first >= 0) & (first <= steps))
            if not good or np.any(first[first] != first):
                raise self._error(f"is damaged: '{FIRST_SEEN}' does not refer to earlier steps")
            distinct, index = np.unique(first, return_inverse=True)
            if self.num_bytes // self.num_steps * len(distinct) > max_bytes:
                return None
            frames = self._channels_first(self._verified("observations", distinct))
            return frames.astype(self.observation_dtype, copy=False), index

    def _channels_first(self, observations: np.ndarray) -> np.ndarray:
        """Convert stored observations (n, ...) to the form that `read` returns."""
        return np.ascontiguousarray(np.moveaxis(observations, -1, 1)) if self._channels_last else observations

    @property
    def num_bytes(self) -> int:
        """Size of the loaded observations in memory, in bytes."""
        return self.num_steps * math.prod(self.observation_shape) * self.observation_dtype.itemsize

    def close(self) -> None:
        """Close this process's handle; the next read opens it again."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle, self._arrays = None, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_arrays": {}, "_process": -1}

    def _open(self) -> Hdf5:
        """This process's handle. HDF5 handles must not cross a fork, because parent and child would share a file
        position."""
        if self._handle is None or self._process != os.getpid():
            self._handle, self._arrays = open_hdf5(self.path), {}
            self._process = os.getpid()
            state = self._handle.source.state
            if state != (self._state or state):  # what was checked is not what would be read
                self.close()
                raise UserError(
                    f"trajectory file '{self.path}' was changed or replaced since this command opened it: leave data "
                    "alone while it is in use, and start the command again."
                )
            self._state = state
            if any(uses_zstd(item) for item in self._handle.values()):
                hdf5plugin(f"'{self.path}' is compressed with zstd; reading it")  # also in a spawned worker
        return self._handle

    def _array(self, name: str) -> Hdf5:
        """An array of this process's handle."""
        file = self._open()
        if name not in self._arrays:
            self._arrays[name] = file[name]
        return self._arrays[name]

    def _read_checksums(self, file: Hdf5, attributes: dict[str, Any]) -> dict[str, Checksums] | None:
        """The file's checksums. Warns once if there are none, as damage could then go unnoticed."""
        try:
            checksums = read_checksums(file, attributes)
        except ValueError as error:
            raise self._error(f"is damaged: {error}") from None
        if checksums is None:
            _say(f"'{self.path}' has no checksums: damage to it may go unnoticed.")
        return checksums

    def _verified(self, name: str, steps: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Steps of an array, verified against the checksums."""
        array, checksums = self._array(name), None if self._checksums is None else self._checksums[name]
        if checksums is None or checksums.intact:
            return array[steps]
        source = self._handle.source
        try:
            if (values := checksums.read(array, steps)) is None:
                with checksums.watching(source, array):
                    values = array[steps]
            return values
        finally:  # even if the read failed: damage to compressed data can cause any error
            if damaged := checksums.damaged(source, array, steps):
                raise self._damage(name, range(damaged.start, min(damaged.stop, self.num_steps)))

    def _damage(self, name: str, steps: range) -> UserError:
        """The error for steps that do not match their checksum."""
        episodes = "" if name in ("terminals", "timeouts") else self._episodes_of(steps)
        return self._error(
            f"is damaged: '{name}' differs from its checksum within steps {steps[0]} to {steps[-1]}{episodes}"
        )

    def _episodes_of(self, steps: range) -> str:
        """The episodes of these steps, in words."""
        ends = np.flatnonzero(self._ends(self._open())[0])
        first, last = np.searchsorted(ends, [steps[0], steps[-1]]).tolist()
        return f" (episode {first})" if first == last else f" (episodes {first} to {last})"

    def _check_layout(self, file: Hdf5) -> None:
        """Check keys, equal lengths, at least one step, and a filter for every compression used."""
        needed = ("observations", "actions", "rewards", *(("terminals",) if self._own else ()))
        if missing := [name for name in needed if name not in file]:
            missing += [] if self._own or can_mark_every_end(file) else ["terminals"]
            held = ", ".join(sorted(file)) or "nothing"
            raise self._error(f"has no {', '.join(missing)} (available: {held}){layout_of(file)}")
        columns = {name: self._array(name) for name in (*needed, "terminals", "timeouts") if name in file}
        for name, column in columns.items():
            if not isinstance(column, h5py.Dataset) or column.ndim == 0:
                raise self._error(f"'{name}' is not an array of steps")
            flat = column.shape[1:] == () or (column.shape[1:] == (1,) and not self._own)
            if name not in ("observations", "actions") and not flat:
                raise self._error(f"'{name}' has shape {column.shape}; expected one number per step")
            if column.dtype.kind not in "biuf":
                raise self._error(f"'{name}' has type {column.dtype}; expected numbers")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self._error(f"has arrays of different lengths ({listed})")
        self.num_steps = lengths["rewards"]
        if self.num_steps == 0:
            raise self._error("has no episodes: its arrays have no steps")

    def _check_kinds(
        self,
        file: Hdf5,
        observation_shape: Sequence[int] | None,
        observation_dtype: Any,
        num_actions: int | None,
        action_size: int | None,
    ) -> None:
        """Check shapes and types of observations and actions."""
        observations, actions = self._array("observations"), self._array("actions")
        kinds = "uint8" if observations.dtype == np.uint8 else "float" if observations.dtype.kind == "f" else None
        wanted = observation_dtype and ("uint8" if np.dtype(observation_dtype) == np.uint8 else "float")
        if kinds is None or (wanted and kinds != wanted):
            raise self._error(f"'observations' have type {observations.dtype}; expected {wanted or 'uint8 or float'}")
        self.observation_dtype = np.dtype(np.uint8 if kinds == "uint8" else np.float32)
        self.observation_shape = observations.shape[1:]
        self._channels_last = bool(observations.attrs.get(CHANNELS_LAST, False))
        if self._channels_last:
            self.observation_shape = (*observations.shape[-1:], *observations.shape[1:-1])
        if observation_shape is not None and self.observation_shape != tuple(observation_shape):
            raise self._error(
                f"'observations' have shape {self.observation_shape}; expected {tuple(observation_shape)}"
            )
        self.action_shape = actions.shape[1:]
        if not self._own and actions.dtype.kind in "iu" and self.action_shape == (1,):
            self.action_shape = ()
        self.discrete = actions.dtype.kind in "iu" and self.action_shape == ()
        if num_actions is not None and not self.discrete:
            raise self._error(f"'actions' are {actions.dtype} {self.action_shape} per step; expected one integer")
        if action_size is not None and (self.action_shape != (action_size,) or actions.dtype.kind != "f"):
            raise self._error(
                f"'actions' are {actions.dtype} {self.action_shape} per step; expected {action_size} floats"
            )

    def _in_range(self, name: str, actions: np.ndarray) -> np.ndarray:
        """The actions as returned, discrete ones as int64; raises if one is out of range."""
        if not self.discrete:
            return actions
        actions, most = actions.astype(np.int64), self._num_actions
        bad = actions < 0 if most is None else (actions < 0) | (actions >= most)
        if bad.any():
            allowed = "0 or more" if most is None else f"0 to {most - 1}"
            step = int(np.argmax(bad))
            raise self._error(
                f"has action {actions[step]} in '{name}' at step {step} of {self.num_steps}; allowed is {allowed}"
            )
        return actions

    def _check_observations(self) -> None:
        """Check that floating-point observations are finite, block by block; a file with checksums was written so."""
        if self.observation_dtype == np.float32 and self._checksums is None:
            block = max(1, CHECK_BLOCK_BYTES // max(4, 4 * math.prod(self.observation_shape)))
            for start in range(0, self.num_steps, block):
                self._finite("observations", self.read(start, start + block)[0], start)

    def _finite(self, name: str, values: np.ndarray, start: int = 0) -> np.ndarray:
        """The values (n, ...), floats as float32; raises if one is NaN or infinite. ``start`` is their first step."""
        if values.dtype.kind == "f" or name == "rewards":
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                step = start + int(np.argmin(finite))
                raise self._error(f"has a NaN or infinite value in '{name}' (first at step {step} of {self.num_steps})")
        return values

    @contextlib.contextmanager
    def _reading(self, place: str = "") -> Iterator[None]:
        """Turn h5py's errors on damaged files into a `UserError` that names the file."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
            raise_if_machine_error(self.path, error)
            problem = f"cannot be read{place}; it is truncated, damaged or not an HDF5 file ({error_reason(error)})"
            raise self._error(problem) from error

    def _error(self, problem: str) -> UserError:
        return UserError(f"trajectory file '{self.path}' {problem}." + (f" {self._hint}" if self._hint else ""))


Trajectories = TrajectoryFile | TrajectoryArrays
"""On disk or in memory."""


@functools.cache
def _say(text: str) -> None:
    """Print a note once per process, however often a file is opened."""
    print(text, flush=True)
