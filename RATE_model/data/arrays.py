"""Trajectories in memory, with everything that a `TrajectoryFile` has of a file on disk."""

from __future__ import annotations

from typing import Any

import numpy as np

from RATE_model.errors import UserError


def returns_to_go(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Undiscounted sum of the rewards from each step to the end of its episode.

    Args:
        rewards: (T,) of all episodes, one after the other.
        starts, lengths: (E,) first step and number of steps of each.

    Returns:
        (T,) float32.
    """
    before = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    return (np.repeat(before[starts + lengths], lengths) - before[:-1]).astype(np.float32)


class TrajectoryArrays:
    """All steps of all episodes in flat arrays; attributes and methods as of `TrajectoryFile`.

    Args:
        observations: (T, ...) uint8 images or float32 vectors.
        actions: (T,) int64, or (T, A) float32.
        rewards: (T,).
        lengths: (E,) steps of each episode; they sum to T.
        terminals: (E,) bool, whether an episode ended in a terminal state rather than by a time limit.
        name: what it is called in messages.
    """

    def __init__(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        lengths: np.ndarray,
        terminals: np.ndarray,
        *,
        name: str = "the dataset",
    ) -> None:
        self.path, self.attributes = name, dict[str, Any]()
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
        """Memory that the observations take, in bytes."""
        return self._observations.nbytes

    def returns_to_go(self) -> np.ndarray:
        """Undiscounted sum of the rewards from each step to the end of its episode: (T,) float32."""
        return returns_to_go(self.rewards, self.starts, self.lengths)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Observations and actions of the steps start to stop - 1."""
        return self._observations[start:stop], self.actions[start:stop]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps, as `read` returns them."""
        return self._observations, self.actions

    def frames(self, max_bytes: float = 0) -> None:
        """Nobody has looked which images are equal."""

    def expert_actions(self) -> np.ndarray:
        """Raises UserError: nothing tells what an expert would have done."""
        raise UserError(f"{self.path} does not tell what an expert would have done; learn the recorded actions")
