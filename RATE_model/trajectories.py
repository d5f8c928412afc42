"""Trajectories on disk: one HDF5 layout for every environment, that of D4RL (Fu et al. 2020, arXiv 2004.07219).

All steps of all episodes lie one after the other in flat arrays:

    observations  (steps, ...)   uint8 images or floating-point vectors
    actions       (steps,) integers, or (steps, A) floating point
    rewards       (steps,)
    terminals     (steps,)       1 on the last step of an episode that ended in a terminal state
    timeouts      (steps,)       1 on the last step of an episode that was cut off; may be absent
    infos/...     (steps, ...)   anything else; not read here, but for
    infos/first_seen  (steps,)   the first step with the same observation; may be absent

Images are handed out with their channels first. A file may hold them with the channels last, and says so in an
attribute of ``observations``, ``channels_last``: pictures with few hues compress better so.

Step t holds the observation, the action taken on it and the reward that followed. An episode ends where ``terminals``
or ``timeouts`` says so; steps after the last such end (a file cut short by its maker) are the last episode.

`TrajectoryWriter` makes such files atomically and describes them in attributes; `TrajectoryFile` opens them, D4RL's own
included, checks them once and reads slices.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from RATE_model.atomic import sync_directory
from RATE_model.attributes import decoded, encoded, version
from RATE_model.compression import ZSTD_LEVEL, hdf5plugin, uses_zstd, zstd
from RATE_model.errors import UserError

FORMAT_VERSION = 1
IMAGE_CHUNK = 30  # frames per chunk: a window of one segment touches at most two
VECTOR_CHUNK = 4096  # steps per chunk
CHECK_BLOCK_BYTES = 64 * 2**20  # data is checked in blocks of about this size
FIRST_SEEN = "infos/first_seen"
CHANNELS_LAST = "channels_last"


class TrajectoryWriter:
    """Writes one trajectory file; a context manager.

        with TrajectoryWriter(path, observation_shape=(4,), observation_dtype="float32", attributes={...}) as writer:
            writer.add_episodes(observations, actions, rewards, lengths)

    Everything goes to a temporary file beside ``path``. A clean exit adds the attributes, flushes to disk and renames
    it into place; an exception removes it and leaves what was at ``path`` untouched.

    Attributes added to the caller's: ``format_version, num_steps, num_episodes, versions`` and, of whole episodes if
    there are any, ``return_{mean,std,min,max}, length_{mean,min,max}``. Lists and dicts are stored as JSON.

    Args:
        path: the file to make; parent directories are made too.
        observation_shape, observation_dtype: of one observation.
        action_shape, action_dtype: of one action; the default is one small discrete action.
        compress: zstd (lossless, through hdf5plugin). None: images are compressed, vectors are not.
        level: of the compression, 1 to 22; a higher one takes longer to write, not to read.
        index_frames: also store `infos/first_seen`: where few observations differ, a reader then keeps each one once.
        channels_last: store images (C, H, W) as (H, W, C).
        attributes: how the data was made: environment, generator, parameters, seeds.

    Raises:
        UserError: the file cannot be written, or no episode was added.
        ValueError: data handed to it has the wrong shape or is not finite.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_shape: Sequence[int],
        observation_dtype: Any,
        action_shape: Sequence[int] = (),
        action_dtype: Any = "uint8",
        compress: bool | None = None,
        level: int = ZSTD_LEVEL,
        index_frames: bool = False,
        channels_last: bool = False,
        attributes: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        image = np.dtype(observation_dtype) == np.uint8 and len(observation_shape) > 1
        self._compress = image if compress is None else compress
        self._chunk = IMAGE_CHUNK if image else VECTOR_CHUNK
        self._channels_last, self._level = channels_last, level
        self._shapes = {"observations": tuple(observation_shape), "actions": tuple(action_shape), "rewards": ()}
        self._dtypes = {"observations": observation_dtype, "actions": action_dtype, "rewards": "float32"}
        self._attributes = dict(attributes)
        self._pending: dict[str, list[np.ndarray]] = {}  # whole chunks are written, the rest waits here
        self._pending_steps = self._num_steps = 0
        self._unfinished = False
        self._first_seen: dict[bytes, int] | None = {} if index_frames else None  # digest of a frame -> step
        self._returns: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> TrajectoryWriter:
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._temporary, "w")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            with contextlib.suppress(Exception):  # a full disk can make closing fail as well
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add_episodes(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        lengths: np.ndarray,
        terminals: np.ndarray | None = None,
        infos: Mapping[str, np.ndarray] | None = None,
        *,
        unfinished: bool = False,
    ) -> None:
        """Append E episodes given as a padded batch.

        Args:
            observations: (E, T, ...).
            actions: (E, T) or (E, T, A).
            rewards: (E, T).
            lengths: (E,) steps of each episode, 1 to T; what lies beyond is dropped.
            terminals: (E,) bool, whether an episode ended in a terminal state rather than by a time limit; None: all
                did.
            infos: further arrays (E, T, ...), stored under ``infos/``; the same names in every call.
            unfinished: the last of them gets no end: it was cut off in the middle, and nothing can follow it.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        steps = np.asarray(rewards).shape[1]
        if len(lengths) == 0 or lengths.min() < 1 or lengths.max() > steps:
            raise ValueError(f"lengths must be 1 to {steps} and not empty")
        if self._unfinished:
            raise ValueError("nothing can follow an unfinished episode")
        self._unfinished = unfinished
        last = np.arange(steps) == lengths[:, None] - 1
        last[-1] &= not unfinished
        terminal = np.ones(len(lengths), dtype=bool) if terminals is None else np.asarray(terminals, dtype=bool)
        columns = {"observations": observations, "actions": actions, "rewards": rewards}
        columns |= {"terminals": last & terminal[:, None], "timeouts": last & ~terminal[:, None]}
        columns |= {f"infos/{name}": values for name, values in (infos or {}).items()}
        valid = np.arange(steps) < lengths[:, None]
        flat = {name: np.asarray(values)[valid] for name, values in columns.items()}
        for name, shape in self._shapes.items():
            if flat[name].shape[1:] != shape:
                raise ValueError(f"{name} of one step have shape {flat[name].shape[1:]}, expected {shape}")
            if not np.isfinite(flat[name]).all():
                raise ValueError(f"{name} are not finite")
        if self._first_seen is not None:
            flat[FIRST_SEEN] = self._first_steps(flat["observations"])
        if self._channels_last:
            flat["observations"] = np.moveaxis(flat["observations"], 1, -1)
        self._num_steps += int(lengths.sum())
        returns = np.add.reduceat(flat["rewards"].astype(np.float64), np.cumsum(lengths) - lengths)
        self._returns.append(returns[: len(lengths) - unfinished])
        self._lengths.append(lengths[: len(lengths) - unfinished])
        for name, values in flat.items():
            self._pending.setdefault(name, []).append(values.astype(self._dtypes.get(name, values.dtype), copy=False))
        self._pending_steps += int(lengths.sum())
        if self._pending_steps >= self._chunk:
            self._flush(self._pending_steps // self._chunk * self._chunk)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Add to the attributes, at any time before the file is complete."""
        self._attributes |= attributes

    def add_episode(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        *,
        terminal: bool,
        infos: Mapping[str, np.ndarray] | None = None,
        unfinished: bool = False,
    ) -> None:
        """Append one episode: observations (T, ...), actions (T) or (T, A), rewards (T), infos (T, ...)."""
        arrays = (np.asarray(values)[None] for values in (observations, actions, rewards))
        batch = {name: np.asarray(values)[None] for name, values in (infos or {}).items()}
        self.add_episodes(*arrays, np.array([len(rewards)]), np.array([terminal]), batch, unfinished=unfinished)

    def _first_steps(self, observations: np.ndarray) -> np.ndarray:
        """For each of the next steps' observations (n, ...) the first step that showed the same: (n,) int64."""
        first = np.empty(len(observations), dtype=np.int64)
        for row, observation in enumerate(np.ascontiguousarray(observations)):
            digest = hashlib.blake2b(observation, digest_size=16).digest()
            first[row] = self._first_seen.setdefault(digest, self._num_steps + row)
        return first

    def _flush(self, steps: int) -> None:
        """Write the first ``steps`` pending steps: whole chunks, so that none is compressed twice."""
        with self._writing():
            for name, parts in self._pending.items():
                values = np.concatenate(parts)
                dataset = self._file[name] if name in self._file else self._create(name, values)
                dataset.resize(dataset.shape[0] + steps, axis=0)
                dataset[-steps:] = values[:steps]
                self._pending[name] = [values[steps:]]
        self._pending_steps -= steps

    def _create(self, name: str, values: np.ndarray) -> h5py.Dataset:
        """An empty, growing dataset for values like these (steps, ...)."""
        shape, options = values.shape[1:], {}
        if self._compress:
            options = zstd(f"'{self.path}' is compressed with zstd; writing it", self._level)
        chunk = self._chunk if name == "observations" else VECTOR_CHUNK
        dataset = self._file.create_dataset(
            name, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(chunk, *shape), **options
        )
        if self._channels_last and name == "observations":
            dataset.attrs[CHANNELS_LAST] = True
        return dataset

    def _finish(self) -> None:
        """Write the rest and the attributes, then move the file to its place."""
        if not self._num_steps:
            raise UserError(f"no episode to write to '{self.path}'; nothing was created.")
        if self._pending_steps:
            self._flush(self._pending_steps)
        returns, lengths = np.concatenate(self._returns), np.concatenate(self._lengths)
        made: dict[str, Any] = {"num_steps": self._num_steps, "num_episodes": len(lengths) + self._unfinished}
        if len(lengths):
            made |= {f"return_{name}": float(getattr(returns, name)()) for name in ("mean", "std", "min", "max")}
            made |= {f"length_{name}": float(getattr(lengths, name)()) for name in ("mean", "min", "max")}
        versions = {name: version(name) for name in ("rate-memory", "numpy", "h5py")}
        made |= {"format_version": FORMAT_VERSION, "versions": versions}
        with self._writing():
            for name, value in (self._attributes | made).items():
                self._file.attrs[name] = encoded(value)
            self._file.close()
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
            sync_directory(self.path.parent)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failure of the disk into a `UserError` that names the file."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write '{self.path}': {error}.") from error


class TrajectoryFile:
    """A trajectory file, opened and checked; see the module for the layout and for where episodes end.

    All checks are made here, once, block by block; reading later is a plain slice. Image content is not decoded for the
    check. The handle is opened by each process on its own first read and is left out when pickled, so that the object
    can go to loader workers, forked or spawned.

    Attributes:
        path: the file.
        num_steps, num_episodes: int.
        starts, lengths: (E,) int64, first step and number of steps of every episode.
        whole: (E,) bool, whether an episode has an end; False for an unfinished tail.
        rewards: (num_steps,) float32.
        actions: (num_steps,) int64, or (num_steps, A) float32.
        observation_shape, observation_dtype: of one observation as it is read, uint8 or float32.
        discrete: whether actions are integers.
        action_shape: ``()`` or ``(A,)``.
        attributes: what the maker noted; empty for files of other makers.

    Args:
        observation_shape, observation_dtype: what they must be; any floating-point type serves for a floating-point
            type.
        num_actions: actions are discrete and lie between 0 and num_actions - 1.
        action_size: actions are vectors of this size.
        hint: what to do when the file is missing or bad, a sentence such as the command that makes it.

    Raises:
        UserError: the file is missing, empty, not HDF5 or truncated; a key is missing; lengths disagree; a shape or
            type is not the expected; a value is not finite; an action is out of range; there is no episode.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_shape: Sequence[int] | None = None,
        observation_dtype: Any = None,
        num_actions: int | None = None,
        action_size: int | None = None,
        hint: str = "",
    ) -> None:
        self.path = Path(path)
        self._hint = hint
        self._handle: h5py.File | None = None
        self._process = -1
        if self.path.is_dir():
            raise self._error("is a directory, not a file")
        if not self.path.is_file():
            raise self._error("does not exist")
        if self.path.stat().st_size == 0:
            raise self._error("is an empty file")
        with self._reading():
            file = self._open()
            self._check_layout(file)
            self.attributes = {name: decoded(value) for name, value in file.attrs.items()}
            self._check_kinds(file, observation_shape, observation_dtype, num_actions, action_size)
            self.rewards = self._finite("rewards", file["rewards"][:])
            self.actions = self._finite("actions", file["actions"][:])
            ends = self._ends(file)
        stops = np.flatnonzero(np.concatenate([ends[:-1], [True]])) + 1  # an unfinished tail is an episode
        self.whole = ends[stops - 1]
        self.starts = np.concatenate([[0], stops[:-1]])
        self.lengths = stops - self.starts
        self.num_episodes = len(stops)
        stated = self.attributes.get("num_episodes", self.num_episodes)
        if "format_version" in self.attributes and stated != self.num_episodes:
            raise self._error(
                f"is damaged: written with {stated} episodes, its terminals and timeouts tell {self.num_episodes}"
            )
        self._check_actions(num_actions)
        self._check_observations()

    def _ends(self, file: h5py.File) -> np.ndarray:
        """Whether an episode ends with each step: (num_steps,) bool. To be overridden where a file does not tell."""
        ends = file["terminals"][:] != 0
        return ends | (file["timeouts"][:] != 0) if "timeouts" in file else ends

    def returns_to_go(self) -> np.ndarray:
        """Undiscounted sum of the rewards from each step to the end of its episode: (num_steps,) float32."""
        before = np.concatenate([[0.0], np.cumsum(self.rewards, dtype=np.float64)])
        return (np.repeat(before[self.starts + self.lengths], self.lengths) - before[:-1]).astype(np.float32)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps start to stop - 1: observations (n, ...) uint8 or float32, actions (n,) int64 or (n, A) float32."""
        with self._reading():
            observations = self._channels_first(self._open()["observations"][start:stop])
        with np.errstate(over="ignore"):  # beyond float32 becomes inf, which the check on opening reports
            return observations.astype(self.observation_dtype, copy=False), self.actions[start:stop]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps, as `read` returns them."""
        return self.read(0, self.num_steps)

    def frames(self, max_bytes: float = math.inf) -> tuple[np.ndarray, np.ndarray] | None:
        """The distinct observations (U, ...) and which of them each step shows, (num_steps,) int64.

        None without `infos/first_seen`, or if they take more than `max_bytes`. UserError: that array is damaged.
        """
        with self._reading():
            if FIRST_SEEN not in (file := self._open()):
                return None
            first = file[FIRST_SEEN][:]
            steps = np.arange(self.num_steps)
            good = first.shape == steps.shape and first.dtype.kind in "iu" and np.all((first >= 0) & (first <= steps))
            if not good or np.any(first[first] != first):
                raise self._error(f"is damaged: '{FIRST_SEEN}' does not name earlier steps")
            distinct, index = np.unique(first, return_inverse=True)
            if self.num_bytes // self.num_steps * len(distinct) > max_bytes:
                return None
            frames = self._channels_first(file["observations"][distinct])
            return frames.astype(self.observation_dtype, copy=False), index

    def _channels_first(self, observations: np.ndarray) -> np.ndarray:
        """Observations (n, ...) of the file as they are handed out."""
        return np.ascontiguousarray(np.moveaxis(observations, -1, 1)) if self._channels_last else observations

    @property
    def num_bytes(self) -> int:
        """Memory that the observations take when loaded, in bytes."""
        return self.num_steps * math.prod(self.observation_shape) * self.observation_dtype.itemsize

    def close(self) -> None:
        """Close this process's handle; the next read opens it again."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle = None

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1}

    def _open(self) -> h5py.File:
        """This process's handle. HDF5 handles must not cross a fork: parent and child would share one file position."""
        if self._handle is None or self._process != os.getpid():
            self._handle = h5py.File(self.path, "r")
            if any(uses_zstd(item) for item in self._handle.values()):
                hdf5plugin(f"'{self.path}' is compressed with zstd; reading it")  # in a spawned worker too
            self._process = os.getpid()
        return self._handle

    def _check_layout(self, file: h5py.File) -> None:
        """Keys, equal lengths, at least one step, and a filter for every compression used."""
        needed = ("observations", "actions", "rewards", "terminals")
        if missing := [name for name in needed if name not in file]:
            raise self._error(f"has no {', '.join(missing)} (it has: {', '.join(sorted(file)) or 'nothing'})")
        columns = {name: file[name] for name in (*needed, "timeouts") if name in file}
        for name, column in columns.items():
            if not isinstance(column, h5py.Dataset) or column.ndim == 0:
                raise self._error(f"'{name}' is not an array of steps")
            if name not in ("observations", "actions") and column.ndim != 1:
                raise self._error(f"'{name}' has shape {column.shape}; expected one number per step")
            if column.dtype.kind not in "biuf":
                raise self._error(f"'{name}' has type {column.dtype}; expected numbers")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self._error(f"has arrays of different lengths ({listed})")
        self.num_steps = lengths["rewards"]
        if self.num_steps == 0:
            raise self._error("holds no episode: its arrays have no steps")

    def _check_kinds(
        self,
        file: h5py.File,
        observation_shape: Sequence[int] | None,
        observation_dtype: Any,
        num_actions: int | None,
        action_size: int | None,
    ) -> None:
        """Shapes and types of observations and actions."""
        observations, actions = file["observations"], file["actions"]
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
        self.discrete = actions.dtype.kind in "iu" and self.action_shape == ()
        if num_actions is not None and not self.discrete:
            raise self._error(f"'actions' are {actions.dtype} {self.action_shape} a step; expected one integer")
        if action_size is not None and (self.action_shape != (action_size,) or actions.dtype.kind != "f"):
            raise self._error(
                f"'actions' are {actions.dtype} {self.action_shape} a step; expected {action_size} floats"
            )

    def _check_actions(self, num_actions: int | None) -> None:
        """Discrete actions in range."""
        if not self.discrete:
            return
        self.actions = self.actions.astype(np.int64)
        bad = self.actions < 0 if num_actions is None else (self.actions < 0) | (self.actions >= num_actions)
        if bad.any():
            allowed = "0 or more" if num_actions is None else f"0 to {num_actions - 1}"
            step = int(np.argmax(bad))
            raise self._error(
                f"has action {self.actions[step]} at step {step} of {self.num_steps}; allowed is {allowed}"
            )

    def _check_observations(self) -> None:
        """Finite floating-point observations, block by block."""
        if self.observation_dtype == np.float32:
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
    def _reading(self) -> Iterator[None]:
        """Turn what h5py raises on damaged files into a `UserError` that names the file."""
        try:
            yield
        except (OSError, RuntimeError, KeyError) as error:
            raise self._error(f"cannot be read; it is truncated, damaged or not an HDF5 file ({error})") from error

    def _error(self, problem: str) -> UserError:
        return UserError(f"trajectory file '{self.path}' {problem}." + (f" {self._hint}" if self._hint else ""))
