"""Windows of trajectory files, padded to one size and assembled into batches.

Shapes: B windows, T steps per padded window. ``valid`` is True on real steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from RATE_model.data.batch import Batch
from RATE_model.data.frames import Frames, FrameStack
from RATE_model.data.trajectories import Learn, Trajectories
from RATE_model.errors import UserError

_FINGERPRINT_STEPS = 64
IN_MEMORY_BYTES = 2**30  # data up to this size is loaded, larger data is read window by window


class WindowDataset(Dataset):
    """Windows of trajectory files, assembled into whole batches.

    With observations in memory a batch is a single gather over flat arrays; from disk it is one slice per window, which
    works in loader workers (see `TrajectoryFile`). Files that index duplicate images are kept as their distinct images
    and give batches of `Frames`. Actions, labels and returns-to-go are always in memory.

    Padding (``pad="right"``) repeats the last observation; ``pad="left"`` puts ``blank`` before the first. Padded
    actions, labels and returns-to-go are 0.

    With ``stack`` an observation is the last few frames of its episode, with zeros before the first. Frames are stored
    once, as a `FrameStack`, including those just before a window.

    Args:
        files: the trajectory files, all with the same kind of observations and actions.
        windows: (W, 3) integer rows [file, start step, length].
        size: T, steps per padded window.
        pad: the side that is padded.
        blank: the observation, or a single number, that pads on the left; must be 0 for indexed images.
        in_memory: load all observations, or read them from disk; None loads up to 1 GiB, as distinct images if
            possible.
        stack: frames (C, H, W) per observation.
        learn: the targets: the ``recorded`` actions or the ``expert``'s.

    Raises:
        UserError: the files differ in shape or dtype, a window is longer than ``size``, or a file has no expert actions
            or damaged ones.
        ValueError: the windows are empty, misshapen or outside their file; or frames are stacked and padded on the
            left.
    """

    def __init__(
        self,
        files: Sequence[Trajectories],
        windows: np.ndarray,
        *,
        size: int,
        pad: str = "right",
        blank: np.ndarray | float = 0,
        in_memory: bool | None = None,
        stack: int = 1,
        learn: Learn = "recorded",
    ) -> None:
        if stack > 1 and pad == "left":
            raise ValueError("stacked frames need windows that are padded on the right")
        self.files, self._stack, self._blank = list(files), stack, blank
        for file in self.files[1:]:
            kinds = [
                (f.observation_shape, f.observation_dtype, f.action_shape, f.discrete) for f in (self.files[0], file)
            ]
            if kinds[0] != kinds[1]:
                raise UserError(f"'{self.files[0].path}' and '{file.path}' contain different kinds of data: {kinds}.")
        sizes = np.array([file.num_steps for file in self.files])
        self._offsets = np.cumsum(sizes) - sizes  # start of each file in the flat arrays
        self._returns = np.concatenate([file.returns_to_go() for file in self.files])
        self._actions = np.concatenate([file.actions for file in self.files])
        self._labels: np.ndarray | None = None
        if learn == "expert":
            self._labels = np.concatenate([file.expert_actions() for file in self.files])
        self._infos: dict[str, np.ndarray] = {}
        self._observations: np.ndarray | None = None
        # The distinct images, and the index of each step's image.
        self._frames: tuple[np.ndarray, np.ndarray] | None = None
        if in_memory is None and stack == 1:
            self._frames = _all_frames(self.files)
        if self._frames is None and in_memory is None:
            in_memory = sum(file.num_bytes for file in self.files) <= IN_MEMORY_BYTES
        if in_memory:
            loaded = [file.load()[0] for file in self.files]
            self._observations = loaded[0] if len(loaded) == 1 else np.concatenate(loaded)  # no copy of one file
        self._set_windows(windows, size, pad)

    def with_windows(self, windows: np.ndarray, *, size: int | None = None, pad: str | None = None) -> WindowDataset:
        """A dataset of other windows, possibly with other padding, that shares files and memory with this one."""
        other = object.__new__(WindowDataset)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "fingerprint"}
        other._set_windows(windows, self.size if size is None else size, self.pad if pad is None else pad)
        return other

    def with_infos(self, names: Sequence[str]) -> WindowDataset:
        """The same windows with these infos in every batch; shares memory with this one.

        Raises:
            UserError: a file lacks one of them, or has it in a different shape or dtype.
        """
        other = self.with_windows(self.windows)
        other._infos = self._infos | {name: self._info(name) for name in names}
        return other

    def _info(self, name: str) -> np.ndarray:
        """(steps of all files, n)."""
        if name not in self._infos:
            parts = [file.info(name) for file in self.files]
            for file, part in zip(self.files, parts, strict=True):
                kinds = [(each.shape[1:], each.dtype.name) for each in (parts[0], part)]
                if kinds[0] != kinds[1]:
                    raise UserError(
                        f"'{self.files[0].path}' and '{file.path}' contain different kinds of 'infos/{name}': {kinds}."
                    )
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._infos[name]

    @property
    def infos(self) -> tuple[str, ...]:
        """Names of the infos in batches."""
        return tuple(self._infos)

    def info(self, name: str) -> np.ndarray:
        """An info array of `with_infos` over all steps in windows, (steps, n); every step counts once."""
        return self._infos[name][self._shown_steps()]

    @property
    def return_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the returns-to-go in the windows; every step counts once."""
        returns = self._returns[self._shown_steps()].astype(np.float64)
        return float(returns.mean()), float(returns.std())

    def _shown_steps(self) -> np.ndarray:
        """Whether each step is in any window, over all files: (steps,) bool."""
        change = np.zeros(len(self._returns) + 1, dtype=np.int64)
        np.add.at(change, self.positions, 1)
        np.add.at(change, self.positions + self.windows[:, 2], -1)
        return np.cumsum(change[:-1]) > 0

    def up_to(self, size: int) -> WindowDataset:
        """The windows of at most ``size`` steps, padded to it; shares memory. Raises ValueError if there are none."""
        return self.with_windows(self.windows[self.windows[:, 2] <= size], size=size)

    def cut_to(self, steps: int) -> WindowDataset:
        """Every window cut to its first ``steps`` steps; shares memory with this one."""
        windows = self.windows.copy()
        windows[:, 2] = np.minimum(windows[:, 2], steps)
        return self.with_windows(windows, size=steps)

    def _set_windows(self, windows: np.ndarray, size: int, pad: str) -> None:
        """Validate and store the windows."""
        windows = np.asarray(windows, dtype=np.int64)
        if windows.ndim != 2 or windows.shape[1] != 3 or len(windows) == 0:
            raise ValueError(f"windows must be a non-empty (W, 3) array, got shape {windows.shape}")
        if pad not in ("left", "right"):
            raise ValueError(f"pad must be 'left' or 'right', got {pad!r}")
        index, start, length = windows.T
        if index.min() < 0 or index.max() >= len(self.files):
            raise ValueError(f"windows refer to file {index.max()}; there are {len(self.files)} files")
        steps = np.array([file.num_steps for file in self.files])[index]
        if start.min() < 0 or length.min() < 1 or np.any(start + length > steps):
            raise ValueError("windows lie outside their file")
        if length.max() > size:
            path = self.files[index[length.argmax()]].path
            raise UserError(f"'{path}' has a window of {length.max()} steps; at most {size} fit.")
        self.windows, self.size, self.pad = windows, size, pad
        self._begins = self.episode_starts(index, start) == start

    def episode_starts(self, index: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(n,) int64, the first step of the episode that contains step ``start`` (n,) of file ``index`` (n,)."""
        begun = np.empty_like(start)
        for number, file in enumerate(self.files):
            rows = index == number
            begun[rows] = file.starts[np.searchsorted(file.starts, start[rows], side="right") - 1]
        return begun

    @property
    def begins(self) -> np.ndarray:
        """(W,) bool, whether each window starts its episode."""
        return self._begins

    @property
    def positions(self) -> np.ndarray:
        """(W,) int64, the first step of each window, counted across all files."""
        return self._offsets[self.windows[:, 0]] + self.windows[:, 1]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the training data that does not depend on where it is stored.

        Two parts, joined by a colon: everything except the observations, and the observations of some steps. The
        checksums in the files would not do for the second part, because they depend on how data is stored.
        """
        digest = hashlib.blake2b(digest_size=16)
        labels = () if self._labels is None else (self._labels,)
        for array in (self.windows, self._actions, self._returns, *labels, *self._infos.values()):
            digest.update(np.ascontiguousarray(array).data)
        some = hashlib.blake2b(digest_size=16)
        for number in np.unique(np.linspace(0, len(self) - 1, _FINGERPRINT_STEPS).astype(int)):
            index, start, length = self.windows[number].tolist()
            step = start + number % length
            some.update(np.ascontiguousarray(self.files[index].read(step, step + 1)[0]).data)
        return f"{digest.hexdigest()}:{some.hexdigest()}"

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        """One window, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The windows with these numbers as one batch, in this order; an empty list gives one row of padding."""
        if not len(indices):
            return self.__getitems__([0]).as_padding()
        index, start, length = self.windows[np.asarray(indices, dtype=np.int64)].T
        step = np.arange(self.size) - (self.size - length[:, None] if self.pad == "left" else 0)  # within the window
        valid = (step >= 0) & (step < length[:, None])
        step = np.clip(step, 0, length[:, None] - 1)
        position = (self._offsets[index] + start)[:, None] + step
        actions = self._actions.take(position, axis=0)  # two to three times as fast as indexing
        actions[~valid] = 0
        rtg = np.where(valid, self._returns[position], np.float32(0))
        numbers = np.array(indices, dtype=np.int64)
        arrays = {"actions": actions, "rtg": rtg, "valid": valid, "lengths": length, "indices": numbers}
        arrays["begins"] = self._begins[numbers]
        if self._labels is not None:
            arrays["labels"] = self._labels.take(position, axis=0)
            arrays["labels"][~valid] = 0
        if self._frames is not None:
            observations = self._shown(*self._frames, position, valid)
        elif self._stack > 1:
            observations = self._stacked(index, start, length)
        else:
            loaded = self._observations
            dense = self._read(index, start, length, step) if loaded is None else loaded.take(position, axis=0)
            if self.pad == "left":
                dense[~valid] = self._blank
            observations = torch.from_numpy(dense)
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._infos:
            tensors["infos"] = {name: self._info_at(values, position, valid) for name, values in self._infos.items()}
        return Batch(observations, **tensors)

    def _info_at(self, values: np.ndarray, position: np.ndarray, valid: np.ndarray) -> torch.Tensor:
        """Rows of an info array for the steps at `position` (B, T): (B, T, n)."""
        rows = values.take(position, axis=0)
        rows[~valid] = 0
        return torch.from_numpy(rows)

    def _shown(self, images: np.ndarray, numbers: np.ndarray, position: np.ndarray, valid: np.ndarray) -> Frames:
        """The distinct images for the steps at `position` (B, T)."""
        numbers = numbers[position]
        if self.pad == "left":
            numbers[~valid] = len(images) - 1  # the zero image after the files' own
        shown, index = np.unique(numbers, return_inverse=True)
        return Frames(torch.from_numpy(images[shown]), torch.from_numpy(index.reshape(numbers.shape)))

    def _stacked(self, index: np.ndarray, start: np.ndarray, length: np.ndarray) -> FrameStack:
        """The frames of windows, and the frames before each that its first observations include."""
        before = self._stack - 1
        known = np.minimum(start - self.episode_starts(index, start), before)
        picture = np.minimum(np.arange(-before, self.size), length[:, None] - 1)  # within the window
        missing = picture < -known[:, None]
        picture = np.maximum(picture, -known[:, None])
        if self._observations is not None:
            frames = self._observations.take((self._offsets[index] + start)[:, None] + picture, axis=0)
        else:
            frames = self._read(index, start - known, length + known, picture + known[:, None])
        frames[missing] = 0
        return FrameStack(torch.from_numpy(frames), self._stack)

    def _read(self, index: np.ndarray, start: np.ndarray, length: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Observations (B, T, ...) of windows from disk, one slice each, padded according to ``step`` (B, T)."""
        file = self.files[0]
        observations = np.empty((*step.shape, *file.observation_shape), dtype=file.observation_dtype)
        for row in range(len(step)):
            frames, _ = self.files[index[row]].read(int(start[row]), int(start[row] + length[row]))
            observations[row] = frames[step[row]]
        return observations


def _all_frames(files: Sequence[Trajectories]) -> tuple[np.ndarray, np.ndarray] | None:
    """All files' distinct images (U + 1, ...), the last one all zeros, and each step's index into them.

    None if a file has no index of them, or if they take too much memory.
    """
    images, numbers, count, room = [], [], 0, IN_MEMORY_BYTES
    for file in files:
        frames = file.frames(room)
        if frames is None:
            return None
        room -= frames[0].nbytes
        images.append(frames[0])
        numbers.append(frames[1] + count)
        count += len(frames[0])
    return np.concatenate([*images, np.zeros_like(images[0][:1])]), np.concatenate(numbers)
