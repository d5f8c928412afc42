"""Trajectories in memory, with the interface of `TrajectoryFile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from RATE_model.errors import UserError


def returns_to_go(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray, owner: str) -> np.ndarray:
    """Undiscounted sum of the rewards from each step to the end of its episode.

    Args:
        rewards: (T,), all episodes concatenated.
        starts, lengths: (E,) first step and number of steps of each episode.
        owner: the data's name in messages.

    Returns:
        (T,) float32.

    Raises:
        UserError: a sum is beyond float32.
    """
    before = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    sums = np.repeat(before[starts + lengths], lengths) - before[:-1]
    beyond = np.abs(sums) > np.finfo(np.float32).max
    if beyond.any():
        step = int(np.argmax(beyond))
        episode = int(np.searchsorted(starts, step, side="right")) - 1
        raise UserError(
            f"{owner}: the rewards of episode {episode} sum to {sums[step]:g} from its step {step - starts[episode]} "
            "on; at most 3.4e+38 (float32) is allowed: divide all rewards by a constant"
        )
    return sums.astype(np.float32)


def info_rows(values: np.ndarray, name: str, steps: int, owner: str) -> np.ndarray:
    """A privileged array as rows of numbers: (steps, n) float32 (NaN if unknown) or int64.

    Raises:
        UserError: it is not numeric, does not cover every step, has no numbers, or has a number beyond float32.
    """
    if values.dtype.kind not in "biuf" or len(values) != steps:
        raise UserError(
            f"{owner}: 'infos/{name}' has type {values.dtype} and {len(values)} rows; expected {steps} rows of numbers"
        )
    if not values.size:
        raise UserError(f"{owner}: 'infos/{name}' has shape {values.shape}: give at least one number per step")
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise UserError(f"{owner}: 'infos/{name}' has {values.max()}; whole numbers must be int64, at most 2^63 - 1")
    with np.errstate(over="ignore"):
        rows = values.reshape(steps, -1).astype(np.float32 if values.dtype.kind == "f" else np.int64)
    beyond = np.isinf(rows) & np.isfinite(values.reshape(steps, -1))
    if beyond.any():
        raise UserError(
            f"{owner}: 'infos/{name}' has {values.reshape(steps, -1)[beyond][0]:g} at step "
            f"{int(np.argmax(beyond.any(axis=1)))}; at most 3.4e+38 (float32) is allowed: divide the array by a "
            "constant"
        )
    return rows


def missing_info_error(owner: str, name: str, offered: Sequence[str]) -> UserError:
    """The error to raise if the data has no ``infos/NAME``."""
    held = ", ".join(f"infos/{other}" for other in sorted(offered)) or "none"
    return UserError(f"{owner} has no 'infos/{name}' (available infos: {held})")


class TrajectoryArrays:
    """All steps of all episodes in flat arrays; attributes and methods are those of `TrajectoryFile`.

    Args:
        observations: (T, ...) uint8 images or float32 vectors.
        actions: (T,) int64, or (T, A) float32.
        rewards: (T,).
        lengths: (E,) steps per episode; they sum to T.
        terminals: (E,) bool, whether an episode ended in a terminal state rather than by a time limit.
        infos: privileged arrays (T, ...) by name.
        name: used in messages.
    """

    def __init__(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        lengths: np.ndarray,
        terminals: np.ndarray,
        *,
        infos: Mapping[str, np.ndarray] | None = None,
        name: str = "the dataset",
    ) -> None:
        self.path, self.attributes = name.strip("'"), dict[str, Any]()  # messages quote the path
        self._infos = dict(infos or {})
        self._observations, self.actions = observations, actions
        self.rewards = np.asarray(rewards, dtype=np.float32)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.terminals = np.asarray(terminals, dtype=bool)
        self.whole = np.ones(len(self.lengths), dtype=bool)
        self.num_steps, self.num_episodes = len(self.rewards), len(self.lengths)
        self.observation_shape, self.observation_dtype = observations.shape[1:], observations.dtype
        self.action_shape, self.discrete = actions.shape[1:], actions.dtype.kind in "iu"

    @property
    def num_bytes(self) -> int:
        """Size of the observations in bytes."""
        return self._observations.nbytes

    def returns_to_go(self) -> np.ndarray:
        """The undiscounted return-to-go of every step: (T,) float32."""
        return returns_to_go(self.rewards, self.starts, self.lengths, self.path)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Observations and actions of steps start to stop - 1."""
        return self._observations[start:stop], self.actions[start:stop]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps, like `read`."""
        return self._observations, self.actions

    def frames(self, max_bytes: float = 0) -> None:
        """None: duplicate images are unknown."""

    def info_names(self) -> list[str]:
        """Names of the privileged arrays."""
        return list(self._infos)

    def info(self, name: str) -> np.ndarray:
        """A privileged array; see `TrajectoryFile.info`."""
        if name not in self._infos:
            raise missing_info_error(self.path, name, self.info_names())
        return info_rows(self._infos[name], name, self.num_steps, self.path)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Steps start to stop - 1 of the privileged array `infos/NAME`, unconverted."""
        return self._infos[name.removeprefix("infos/")][start:stop]

    def expert_actions(self) -> np.ndarray:
        """Raises UserError: there are no expert actions."""
        raise UserError(f"{self.path} has no expert actions; train with --learn recorded")
