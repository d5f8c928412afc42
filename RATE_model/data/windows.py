"""Windows of trajectories, and the batches a training loop draws from them.

    files -> a selector (`whole_episodes`, `strided_windows`) -> `split_episodes` -> `WindowDataset` -> `make_loader`

A window is a row ``[file, start step, length]`` that lies within one episode; a dataset pads windows to one size.
Shapes: B windows, T steps of the padded size. ``valid`` is True on real steps.

The order of batches is a function of (seed, key, epoch) and of nothing else, not even of the number of workers, so that
training can be resumed at any batch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from RATE_model.data.frames import Frames, FrameStack
from RATE_model.data.trajectories import Learn, TrajectoryFile
from RATE_model.data.workers import InWorker, NoRoom, begin_worker, served
from RATE_model.errors import UserError

_FINGERPRINT_STEPS = 64
IN_MEMORY_BYTES = 2**30  # data up to this size is loaded, larger data is read window by window


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows padded to T steps.

    Attributes:
        observations: (B, T, ...) uint8 images or float32 vectors, or images as `Frames` or `FrameStack`.
        actions: (B, T) int64, or (B, T, A) float32; 0 in padding.
        rtg: (B, T) float32 scaled returns-to-go; 0 in padding.
        valid: (B, T) bool, True on real steps.
        lengths: (B,) int64, real steps per window; stays on the CPU, so that asking for it never waits for a GPU.
        indices: (B,) int64, the windows' numbers in the dataset; stays on the CPU.
        labels: as the actions, but what is to be predicted in their place; None: the actions.
    """

    observations: torch.Tensor | Frames | FrameStack
    actions: torch.Tensor
    rtg: torch.Tensor
    valid: torch.Tensor
    lengths: torch.Tensor
    indices: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def targets(self) -> torch.Tensor:
        """What the model is to predict, shaped as the actions."""
        return self.actions if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; ``lengths`` and ``indices`` stay on the CPU."""
        kept = ("lengths", "indices")
        moved = {name: value for name, value in self._arrays().items() if name not in kept}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in moved.items()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU. Torch's loader calls this by name."""
        return Batch(**{name: value.pin_memory() for name, value in self._arrays().items()})

    def share_memory_(self) -> Batch:
        """Move all of it to memory that other processes can read. Raises as torch does where there is too little."""
        for value in self._arrays().values():
            value.share_memory_()
        return self

    def _arrays(self) -> dict[str, torch.Tensor | Frames | FrameStack]:
        """All that it holds, by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if value is not None}


def whole_episodes(
    file_index: int, file: TrajectoryFile, max_steps: int | None = None, *, min_steps: int = 1
) -> np.ndarray:
    """One window per episode of ``min_steps`` to ``max_steps`` steps: (W, 3) int64 rows [file, start, length].

    An episode without an end is left out: its returns-to-go would be too small.

    Raises:
        UserError: no episode has such a length.
    """
    short = file.lengths < min_steps
    long = file.lengths > (np.inf if max_steps is None else max_steps)
    keep = ~(short | long) & file.whole
    if not keep.any():
        raise UserError(
            f"'{file.path}' has no episode of {min_steps} to {max_steps} steps: of {file.num_episodes} episodes "
            f"{short.sum()} are shorter and {long.sum()} longer (lengths {file.lengths.min()} to {file.lengths.max()})."
            f"{_tail(file)}"
        )
    return _windows(file_index, file.starts[keep], file.lengths[keep])


def strided_windows(file_index: int, file: TrajectoryFile, length: int, stride: int) -> np.ndarray:
    """Windows of exactly ``length`` steps starting every ``stride`` steps of each episode: (W, 3) int64.

    An episode without an end is left out: its returns-to-go would be too small.

    Raises:
        UserError: every episode is shorter than a window.
    """
    counts = np.maximum(0, (file.lengths - length) // stride + 1) * file.whole
    total = int(counts.sum())
    if total == 0:
        raise UserError(
            f"'{file.path}' has no window of {length} steps: all {file.num_episodes} episodes are shorter "
            f"(longest: {file.lengths.max()} steps).{_tail(file)}"
        )
    number = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)  # within its episode
    return _windows(file_index, np.repeat(file.starts, counts) + number * stride, np.full(total, length))


def _tail(file: TrajectoryFile) -> str:
    """What to say of an episode without an end."""
    return "" if file.whole.all() else f" The last one, of {file.lengths[-1]} steps, has no end and is left out."


def _windows(file_index: int, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(starts), file_index), starts, lengths], axis=1).astype(np.int64)


def split_episodes(
    windows: np.ndarray, files: Sequence[TrajectoryFile], *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide windows into training and validation so that no episode is in both.

    Of every file, ``fraction`` of all its episodes are for training. Which ones is a function of the seed, the file's
    index and its number of episodes: adding files or dropping windows moves no episode to the other side.

    Args:
        windows: (W, 3) rows [file, start, length].
        files: the files that the rows refer to.
        fraction: share of episodes for training, above 0 and below 1.
        seed: of the split; not of a run, so that all runs validate on the same episodes.

    Returns:
        training windows and validation windows, (W', 3) each, in the order given.

    Raises:
        UserError: one side would be empty.
    """
    training = np.zeros(len(windows), dtype=bool)
    for index, file in enumerate(files):
        order = np.random.default_rng([seed, index]).permutation(file.num_episodes)
        chosen = np.zeros(file.num_episodes, dtype=bool)
        chosen[order[: round(fraction * file.num_episodes)]] = True
        rows = windows[:, 0] == index
        training[rows] = chosen[np.searchsorted(file.starts, windows[rows, 1], side="right") - 1]
    if training.all() or not training.any():
        side = "validation" if training.all() else "training"
        raise UserError(
            f"too little data to split {fraction:.0%} : {1 - fraction:.0%} by episode: none of {len(windows)} windows "
            f"is left for {side}; provide more episodes."
        )
    return windows[training], windows[~training]


class WindowDataset(Dataset):
    """Windows of trajectory files, assembled into whole batches.

    With observations in memory a batch is one gather over flat arrays; from disk it is one slice read per window, which
    works in loader workers (see `TrajectoryFile`). Files that know which of their images are equal are kept as their
    distinct images, and give batches of `Frames`. Actions, labels and returns-to-go are always in memory.

    Padding (``pad="right"``) repeats the last observation; ``pad="left"`` puts ``blank`` before the first. Padded
    actions, labels and returns-to-go are 0.

    With ``stack`` an observation is the last so many pictures of its episode, zeros where it had not begun. Pictures
    are kept and given once, as a `FrameStack`, also where they lie before a window.

    Args:
        files: the trajectory files, all of one observation and action kind.
        windows: (W, 3) integer rows [file, start step, length].
        size: T, steps of a padded window.
        return_scale: returns-to-go are divided by it.
        pad: which side is padded.
        blank: an observation, or one number for all of it, that pads at the left; images that repeat: 0.
        in_memory: load all observations, or read them from disk; None loads up to 1 GiB, distinct images first.
        stack: pictures (C, H, W) of one observation.
        learn: what batches have as targets: the ``recorded`` actions, or what an ``expert`` would have done.

    Raises:
        UserError: the files differ in shape or type, a window is longer than ``size``, or a file does not tell what an
            expert would have done, or is damaged there.
        ValueError: the windows are empty, misshapen or outside their file; pictures are stacked and padded at the left.
    """

    def __init__(
        self,
        files: Sequence[TrajectoryFile],
        windows: np.ndarray,
        *,
        size: int,
        return_scale: float = 1.0,
        pad: str = "right",
        blank: np.ndarray | float = 0,
        in_memory: bool | None = None,
        stack: int = 1,
        learn: Learn = "recorded",
    ) -> None:
        if stack > 1 and pad == "left":
            raise ValueError("pictures are stacked in windows that are padded at the right")
        self.files, self._stack, self._blank = list(files), stack, blank
        for file in self.files[1:]:
            kinds = [
                (f.observation_shape, f.observation_dtype, f.action_shape, f.discrete) for f in (self.files[0], file)
            ]
            if kinds[0] != kinds[1]:
                raise UserError(f"'{self.files[0].path}' and '{file.path}' hold different kinds of data: {kinds}.")
        sizes = np.array([file.num_steps for file in self.files])
        self._offsets = np.cumsum(sizes) - sizes  # of each file in the flat arrays
        self._returns = np.concatenate([file.returns_to_go() for file in self.files]) / np.float32(return_scale)
        self._actions = np.concatenate([file.actions for file in self.files])
        self._labels: np.ndarray | None = None
        if learn == "expert":
            self._labels = np.concatenate([file.expert_actions() for file in self.files])
        self._observations: np.ndarray | None = None
        self._images: np.ndarray | None = None  # the distinct ones, and each step's number among them
        self._numbers: np.ndarray | None = None
        if in_memory is None and stack == 1 and (frames := _all_frames(self.files)) is not None:
            self._images, self._numbers = frames
        elif in_memory is None:
            in_memory = sum(file.num_bytes for file in self.files) <= IN_MEMORY_BYTES
        if in_memory:
            loaded = [file.load()[0] for file in self.files]
            self._observations = loaded[0] if len(loaded) == 1 else np.concatenate(loaded)  # not one file twice
        self._set_windows(windows, size, pad)

    def with_windows(self, windows: np.ndarray, *, size: int | None = None) -> WindowDataset:
        """A dataset of other windows, and maybe another padded size, that shares this one's files and memory."""
        other = object.__new__(WindowDataset)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "fingerprint"}
        other._set_windows(windows, self.size if size is None else size, self.pad)
        return other

    def up_to(self, size: int) -> WindowDataset:
        """The windows of at most ``size`` steps, padded to it; shares this one's memory. ValueError: there is none."""
        return self.with_windows(self.windows[self.windows[:, 2] <= size], size=size)

    def beginnings(self, steps: int) -> WindowDataset:
        """The first steps of every window, at most so many; shares this one's memory."""
        windows = self.windows.copy()
        windows[:, 2] = np.minimum(windows[:, 2], steps)
        return self.with_windows(windows, size=steps)

    def _set_windows(self, windows: np.ndarray, size: int, pad: str) -> None:
        """Check and keep the windows."""
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

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what is learned from: the same for the same data at another place.

        Two parts, joined by a colon: of everything but the observations, and of some steps' observations. A file's own
        checksums would not do for the second: they tell apart what was only stored in another way.
        """
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.windows, self._actions, self._returns, *(() if self._labels is None else (self._labels,))):
            digest.update(np.ascontiguousarray(array))
        some = hashlib.blake2b(digest_size=16)
        for number in np.unique(np.linspace(0, len(self) - 1, _FINGERPRINT_STEPS).astype(int)):
            index, start, length = self.windows[number].tolist()
            step = start + number % length
            some.update(np.ascontiguousarray(self.files[index].read(step, step + 1)[0]))
        return f"{digest.hexdigest()}:{some.hexdigest()}"

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        """One window, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The windows of these numbers as one batch, in this order."""
        index, start, length = self.windows[np.asarray(indices, dtype=np.int64)].T
        step = np.arange(self.size) - (self.size - length[:, None] if self.pad == "left" else 0)  # within the window
        valid = (step >= 0) & (step < length[:, None])
        step = np.clip(step, 0, length[:, None] - 1)
        position = (self._offsets[index] + start)[:, None] + step
        actions = self._actions.take(position, axis=0)  # two to three times as fast as indexing
        actions[~valid] = 0
        rtg = np.where(valid, self._returns[position], np.float32(0))
        arrays = [actions, rtg, valid, length, np.array(indices, dtype=np.int64)]
        if self._labels is not None:
            labels = self._labels.take(position, axis=0)
            labels[~valid] = 0
            arrays.append(labels)
        if self._images is not None:
            observations = self._frames(position, valid)
        elif self._stack > 1:
            observations = self._stacked(index, start, length)
        else:
            on_disk = self._observations is None
            dense = self._read(index, start, length, step) if on_disk else self._observations.take(position, axis=0)
            if self.pad == "left":
                dense[~valid] = self._blank
            observations = torch.from_numpy(dense)
        return Batch(observations, *(torch.from_numpy(array) for array in arrays))

    def _frames(self, position: np.ndarray, valid: np.ndarray) -> Frames:
        """The distinct images of the steps at `position` (B, T)."""
        numbers = self._numbers[position]
        if self.pad == "left":
            numbers[~valid] = len(self._images) - 1  # the image of zeros behind the files' own
        shown, index = np.unique(numbers, return_inverse=True)
        return Frames(torch.from_numpy(self._images[shown]), torch.from_numpy(index.reshape(numbers.shape)))

    def _stacked(self, index: np.ndarray, start: np.ndarray, length: np.ndarray) -> FrameStack:
        """The pictures of windows, and those before each that its first observations show too."""
        before = self._stack - 1
        begun = np.empty_like(start)  # first step of each window's episode
        for number, file in enumerate(self.files):
            rows = index == number
            begun[rows] = file.starts[np.searchsorted(file.starts, start[rows], side="right") - 1]
        known = np.minimum(start - begun, before)
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
        """Observations (B, T, ...) of windows from disk, one slice each, padded as ``step`` (B, T) says."""
        file = self.files[0]
        observations = np.empty((*step.shape, *file.observation_shape), dtype=file.observation_dtype)
        for row in range(len(step)):
            frames, _ = self.files[index[row]].read(int(start[row]), int(start[row] + length[row]))
            observations[row] = frames[step[row]]
        return observations


def _all_frames(files: Sequence[TrajectoryFile]) -> tuple[np.ndarray, np.ndarray] | None:
    """All files' distinct images (U + 1, ...), the last one all zeros, and every step's number among them.

    None if a file does not know them, or if they are too many to be kept.
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


class EpochSampler:
    """Which windows form which batch. Epoch e is a permutation drawn from (seed, key, e); nothing else has an
    influence.

    Args:
        num_items: windows in the dataset.
        batch_size: windows per batch; the last batch of an epoch may be smaller.
        seed: of the run.
        key: tells apart samplers of one run, such as the stages of a curriculum.
        shuffle: False keeps the order of the dataset.
        max_batches: an epoch ends after so many; the next one draws from all windows again.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        *,
        key: int = 0,
        shuffle: bool = True,
        max_batches: int | None = None,
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"num_items and batch_size must be positive, got {num_items} and {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.key = key
        self.shuffle = shuffle
        self.max_batches = max_batches

    def __len__(self) -> int:
        """Batches per epoch."""
        batches = -(-self.num_items // self.batch_size)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, lists of window numbers."""
        order = np.arange(self.num_items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.key, epoch]).permutation(order)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size].tolist() for start in starts]

    def iterate_from(self, epoch: int, batch: int) -> Iterator[tuple[int, int, list[int]]]:
        """(epoch, batch, window numbers) from there on, endless. A batch past an epoch's last is in the next epoch."""
        epoch, batch = epoch + batch // len(self), batch % len(self)
        for current in itertools.count(epoch):
            for number, indices in enumerate(self.batches(current)):
                if current > epoch or number >= batch:
                    yield current, number, indices


def make_loader(
    dataset: WindowDataset,
    sampler: EpochSampler,
    *,
    epoch: int = 0,
    batch: int = 0,
    end_epoch: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Iterator[tuple[int, int, Batch]]:
    """Yield (epoch, batch number, batch) starting exactly at the given position.

    The batches are the same for any number of workers, and torch's global random state is not touched. Close the
    iterator (``.close()``, or drop it) to stop the workers. Where shared memory, file handles or processes are too few,
    it is said, and this process goes on without; the death of one is for `workers.worker_failures`.

    Args:
        epoch, batch: the first batch to yield.
        end_epoch: stop before this epoch; None never stops.
        num_workers: loader processes, which live until the iterator ends; 0 assembles batches in this process.
        pin_memory: put batches into page-locked memory; only useful, and only possible, with a GPU.
        prefetch: batches that each worker prepares ahead.
    """

    def positions() -> Iterator[tuple[int, int, list[int]]]:
        return itertools.takewhile(lambda p: end_epoch is None or p[0] < end_epoch, sampler.iterate_from(epoch, batch))

    done = 0
    if num_workers > 0:
        loader = DataLoader(
            InWorker(dataset),
            batch_sampler=_BatchIndices(positions),
            num_workers=num_workers,
            collate_fn=_whole_batch,
            pin_memory=pin_memory,
            prefetch_factor=prefetch,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # else the loader would draw its base seed from the global one
        )
        # The loader asks its sampler for batches ahead of time; the second, slower pass over the positions labels what
        # arrives.
        try:
            for (current, number, _), item in zip(positions(), served(loader), strict=False):
                done += 1
                yield current, number, item
            return
        except NoRoom as error:
            print(f"--num_workers {num_workers}: {error}; batches are assembled in the training process.", flush=True)
    for current, number, indices in itertools.islice(positions(), done, None):
        item = dataset.__getitems__(indices)
        yield current, number, item.pin_memory() if pin_memory else item


class _BatchIndices:
    """The window numbers of a stream of positions, as the batch sampler of a torch loader."""

    def __init__(self, positions) -> None:
        self._positions = positions

    def __iter__(self) -> Iterator[list[int]]:
        return (indices for _, _, indices in self._positions())


def _whole_batch(batch: Batch) -> Batch:
    """The dataset returns whole batches; there is nothing to collate."""
    return batch
