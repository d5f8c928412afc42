"""Select windows of trajectory files: whole episodes or pieces of them.

A window is a row ``[file, start step, length]`` within one episode.
"""

from collections.abc import Sequence

import numpy as np

from RATE_model.data.trajectories import Trajectories
from RATE_model.errors import UserError


def whole_episodes(
    file_index: int, file: Trajectories, max_steps: int | None = None, *, min_steps: int = 1
) -> np.ndarray:
    """One window per episode of ``min_steps`` to ``max_steps`` steps: (W, 3) int64 rows [file, start, length].

    An episode without an end is dropped: its returns-to-go would be too small.

    Raises:
        UserError: no episode has such a length.
    """
    short = file.lengths < min_steps
    long = file.lengths > (np.inf if max_steps is None else max_steps)
    keep = ~(short | long) & file.whole
    if not keep.any():
        wanted = f"at least {min_steps}" if max_steps is None else f"{min_steps} to {max_steps}"
        raise UserError(
            f"'{file.path}' has no episode of {wanted} steps: of {file.num_episodes} episodes, "
            f"{short.sum()} are shorter and {long.sum()} longer (lengths {file.lengths.min()} to {file.lengths.max()})."
            f"{_tail(file)}"
        )
    return _windows(file_index, file.starts[keep], file.lengths[keep])


def strided_windows(file_index: int, file: Trajectories, length: int, stride: int) -> np.ndarray:
    """Windows of exactly ``length`` steps starting every ``stride`` steps of each episode: (W, 3) int64.

    An episode without an end is dropped: its returns-to-go would be too small.

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
    number = _numbers(counts)  # within its episode
    return _windows(file_index, np.repeat(file.starts, counts) + number * stride, np.full(total, length))


def strided_or_whole(file_index: int, file: Trajectories, length: int, stride: int) -> np.ndarray:
    """Like `strided_windows`, but keeps shorter episodes whole; (W, 3) int64, empty if all episodes are unfinished."""
    short = file.whole & (file.lengths < length)
    whole = _windows(file_index, file.starts[short], file.lengths[short])
    if not (file.whole & ~short).any():
        return whole
    return np.concatenate([strided_windows(file_index, file, length, stride), whole])


def windows_at_every_step(file_index: int, file: Trajectories, length: int) -> np.ndarray:
    """The windows of at most ``length`` steps that end at each step of each finished episode: (W, 3) int64."""
    starts, lengths = file.starts[file.whole], file.lengths[file.whole]
    step = _numbers(lengths)  # within its episode
    begin = np.repeat(starts, lengths) + np.maximum(0, step - length + 1)
    return _windows(file_index, begin, np.minimum(step + 1, length))


def tiling_windows(file_index: int, file: Trajectories, length: int) -> np.ndarray:
    """Windows that tile each episode with an end; an episode's last window may be shorter: (W, 3) int64."""
    starts, lengths = file.starts[file.whole], file.lengths[file.whole]
    counts = -(-lengths // length)
    offset = _numbers(counts) * length
    return _windows(
        file_index, np.repeat(starts, counts) + offset, np.minimum(length, np.repeat(lengths, counts) - offset)
    )


def _numbers(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1, ...: int64."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _tail(file: Trajectories) -> str:
    """A note about an episode without an end."""
    return "" if file.whole.all() else f" The last one, of {file.lengths[-1]} steps, has no end and is dropped."


def _windows(file_index: int, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(starts), file_index), starts, lengths], axis=1).astype(np.int64)


def split_episodes(
    windows: np.ndarray, files: Sequence[Trajectories], *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split windows into training and validation sets with disjoint episodes.

    In every file, ``fraction`` of all episodes are for training. The choice depends only on the seed, the file's index
    and its number of episodes, so adding files or dropping windows moves no episode to the other set.

    Args:
        windows: (W, 3) rows [file, start, length].
        files: the files that the rows refer to.
        fraction: share of episodes for training, above 0 and below 1.
        seed: seed of the split; not of a run, so that all runs validate on the same episodes.

    Returns:
        training windows and validation windows, (W', 3) each, in their original order.

    Raises:
        UserError: one of them would be empty.
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
            f"too little data for a {fraction:.0%} : {1 - fraction:.0%} split by episode: none of {len(windows)} "
            f"windows is left for {side}; provide more episodes."
        )
    return windows[training], windows[~training]
