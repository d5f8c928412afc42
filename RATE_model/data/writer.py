"""Write trajectory files; see `RATE_model.data.trajectories` for their layout."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from RATE_model.data.attributes import encoded, version
from RATE_model.data.checksums import ChunkSums, make_groups
from RATE_model.data.compression import ZSTD_LEVEL, zstd
from RATE_model.data.hdf5 import Hdf5
from RATE_model.data.trajectories import CHANNELS_LAST, FIRST_SEEN, FORMAT_VERSION
from RATE_model.errors import UserError, error_reason
from RATE_model.system.atomic import sync_directory
from RATE_model.system.locks import temporary

IMAGE_CHUNK = 30  # frames per chunk: a window of one segment touches at most two
VECTOR_CHUNK = 4096  # steps per chunk


class _Sink(io.FileIO):
    """A new file for HDF5 that keeps its first error and discards everything afterwards.

    HDF5 cannot close a file after a failed write: it prints thousands of errors, keeps the file open, and crashes at
    exit. So writes always appear to succeed, and the writer checks for errors here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the data, or keep the error."""
        rest = memoryview(data).cast("B")
        try:
            while self.error is None and rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """See `write`."""
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0


class TrajectoryWriter:
    """Writes one trajectory file; use as a context manager.

        with TrajectoryWriter(path, observation_shape=(4,), observation_dtype="float32", attributes={...}) as writer:
            writer.add_episodes(observations, actions, rewards, lengths)

    Everything goes to a temporary file beside ``path``. A clean exit adds the attributes, flushes to disk and renames
    the file into place; an exception removes it and leaves ``path`` untouched.

    Adds to the caller's attributes: ``format_version, num_steps, num_episodes, versions`` and, over whole episodes,
    ``return_{mean,std,min,max}, length_{mean,min,max}``. Lists and dicts are stored as JSON.

    Args:
        path: the file to make; parent directories are created.
        observation_shape, observation_dtype: of one observation.
        action_shape, action_dtype: of one action; by default a small discrete action.
        compress: zstd (lossless, through hdf5plugin). None: compress images, not vectors.
        level: compression level, 1 to 22; higher levels are slower to write, not to read.
        index_frames: also store `infos/first_seen`, which lets a reader keep each distinct observation once.
        channels_last: store images (C, H, W) as (H, W, C).
        attributes: how the data was made: environment, generator, parameters, seeds.

    Raises:
        UserError: the file cannot be written, or no episode was added.
        ValueError: data has the wrong shape or is not finite.
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
        self._pending: dict[str, list[np.ndarray]] = {}  # until a whole chunk is full
        self._pending_steps = self._num_steps = 0
        self._unfinished = False
        self._first_seen: dict[bytes, int] | None = {} if index_frames else None  # digest of a frame -> step
        self._checksums = ChunkSums()
        self._file: Hdf5 = None
        self._sink: _Sink | None = None
        self._returns: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> TrajectoryWriter:
        with contextlib.ExitStack() as stack:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._temporary = stack.enter_context(temporary(self.path))
                self._sink = _Sink(self._temporary)
                # Since version 1.10 HDF5 has checksums of its metadata. The file is private, so it needs no lock.
                self._file = h5py.File(self._sink, "w", libver=("v110", "v110"))
            self._making = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()
            self._making.close()

    def _discard(self) -> None:
        """Close and remove the temporary file, whatever its state."""
        with contextlib.suppress(Exception):  # the content was not written, so the error does not matter
            self._file.close()
        if self._sink is not None:
            self._sink.close()
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
            lengths: (E,) steps of each episode, 1 to T; anything beyond is dropped.
            terminals: (E,) bool, whether an episode ended in a terminal state rather than by a time limit; None: all
                did.
            infos: further arrays (E, T, ...), stored under ``infos/``; the same names in every call.
            unfinished: the last episode has no end: it was cut off, and nothing can follow it.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        steps = np.asarray(rewards).shape[1]
        if len(lengths) == 0 or lengths.min() < 1 or lengths.max() > steps:
            raise ValueError(f"lengths must be non-empty and between 1 and {steps}")
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
                raise ValueError(f"{name} have shape {flat[name].shape[1:]} per step, expected {shape}")
            with np.errstate(over="ignore"):  # values too large for the type become infinite
                flat[name] = flat[name].astype(self._dtypes[name], copy=False)
            if not np.isfinite(flat[name]).all():
                raise ValueError(f"{name} are not finite")
        if self._first_seen is not None:
            flat[FIRST_SEEN] = self._first_steps(flat["observations"], self._first_seen)
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
        """Add attributes; allowed until the file is complete."""
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
        self.add_episodes(
            np.asarray(observations)[None],
            np.asarray(actions)[None],
            np.asarray(rewards)[None],
            np.array([len(rewards)]),
            np.array([terminal]),
            {name: np.asarray(values)[None] for name, values in (infos or {}).items()},
            unfinished=unfinished,
        )

    def _first_steps(self, observations: np.ndarray, seen: dict[bytes, int]) -> np.ndarray:
        """For each observation (n, ...) of the next steps, the first step with an equal one: (n,) int64."""
        first = np.empty(len(observations), dtype=np.int64)
        for row, observation in enumerate(np.ascontiguousarray(observations)):
            digest = hashlib.blake2b(observation, digest_size=16).digest()
            first[row] = seen.setdefault(digest, self._num_steps + row)
        return first

    def _flush(self, steps: int) -> None:
        """Write the first ``steps`` pending steps as whole chunks, so that none is compressed twice."""
        with self._writing():
            for name, parts in self._pending.items():
                values = np.concatenate(parts)
                dataset = self._file[name] if name in self._file else self._create(name, values)
                dataset.resize(dataset.shape[0] + steps, axis=0)
                dataset[-steps:] = values[:steps]
                self._checksums.update(dataset)
                self._pending[name] = [values[steps:]]
        self._pending_steps -= steps

    def _create(self, name: str, values: np.ndarray) -> Hdf5:
        """An empty, resizable dataset for values like these (steps, ...)."""
        shape, options = values.shape[1:], {}
        if self._compress:
            options = zstd(f"'{self.path}' is compressed with zstd; writing it", self._level)
        chunk = self._chunk if name == "observations" else VECTOR_CHUNK
        make_groups(self._file, name)
        dataset = self._file.create_dataset(
            name, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(chunk, *shape), **options
        )
        if self._channels_last and name == "observations":
            dataset.attrs[CHANNELS_LAST] = True
        return dataset

    def _finish(self) -> None:
        """Write the rest and the attributes, then move the file into place."""
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
            for name in self._pending:
                self._checksums.update(self._file[name], last=True)
            self._checksums.write(self._file)
            self._file.close()
            self._check_sink()
            assert self._sink is not None
            os.fsync(self._sink.fileno())
            self._sink.close()
            os.replace(self._temporary, self.path)
            sync_directory(self.path.parent)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a disk failure into a `UserError` that names the file."""
        try:
            yield
            self._check_sink()
        except (OSError, RuntimeError) as error:
            failed = (None if self._sink is None else self._sink.error) or error
            self._discard()
            raise UserError(f"cannot write '{self.path}': {error_reason(failed)}.") from failed

    def _check_sink(self) -> None:
        if self._sink is not None and self._sink.error is not None:
            raise self._sink.error
