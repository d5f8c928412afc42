"""Vector environments computed by array operations: thousands of episodes at the price of a few."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from RATE_model.acting.vector import discrete_actions, episode_seeds, reset_mask
from RATE_model.errors import UserError

Transition = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]


class ArrayVectorEnv(VectorEnv):
    """N episodes of vectors and discrete actions, stepped together.

    Finished episodes stay frozen until they are reset (``AutoresetMode.DISABLED``): same observation, reward 0, and
    terminated or truncated still True. Nothing moves before the first reset. A subclass defines `_begin`, `_move`,
    `_observe` and `_info`, on arrays with N rows.

    Args:
        num_envs: N.
        low: (features,) the least value of each number of an observation; the greatest is 1.
        actions: their number.
        max_steps: actions until truncation, one number or (N,).
        name: for messages.
        render_mode: only None.

    Raises:
        UserError: ``max_steps`` is below 1.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int,
        low: Sequence[float] | np.ndarray,
        actions: int,
        *,
        max_steps: int | Sequence[int] | np.ndarray,
        name: str,
        render_mode: None = None,
    ) -> None:
        self.num_envs, self.render_mode = num_envs, render_mode
        self.max_steps = self._column(max_steps)
        self.require(name, max_steps=self.max_steps)
        least = np.asarray(low, dtype=np.float32)
        self.single_observation_space = Box(least, np.ones_like(least), dtype=np.float32)
        self.single_action_space = Discrete(actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.ones(num_envs, dtype=bool)
        self._observations = np.zeros((num_envs, len(least)), dtype=np.float32)

    @staticmethod
    def require(name: str, least: int = 1, **values: int | np.ndarray) -> None:
        """Raise a `UserError` for the first size below its minimum."""
        for what, value in values.items():
            if np.any(np.asarray(value) < least):
                raise UserError(f"{name}: {what} is {np.min(value)}; it must be at least {least}.")

    def _column(self, values: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """(N,) int64 of one number or N."""
        return np.broadcast_to(np.asarray(values, dtype=np.int64), (self.num_envs,)).copy()

    @abstractmethod
    def _begin(self, rows: np.ndarray, seeds: Sequence[int], options: dict[str, Any]) -> None:
        """Start the episodes of seeds (b,) in rows (b,); `options` are those of `reset`, with N entries each or one.

        Raises:
            ValueError: an option is invalid.
        """

    @abstractmethod
    def _move(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take actions (N,) where ``running`` (N,); rewards (N,) float64, and whether each episode has reached its end.

        `_steps` counts this step already.
        """

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """The current observations, (N, features) float32."""

    @abstractmethod
    def _info(self) -> dict[str, np.ndarray]:
        """What `reset` and `step` tell besides, (N,) each."""

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start new episodes.

        Args:
            seed: one per episode, or an int s for s, s + 1, ..., or None to draw them from `np_random`.
            options: ``reset_mask`` (N,) bool: those to reset, the others keep their state; others: see the class.

        Returns:
            observations (N, features) float32 and info.

        Raises:
            ValueError: there are not N seeds, or an option has an invalid shape or value.
        """
        options = options or {}
        seeds, mask = episode_seeds(self, seed), reset_mask(self, options)
        rows = np.flatnonzero(mask)
        self._begin(rows, [seeds[row] for row in rows.tolist()], options)
        for state in (self._steps, self._terminated, self._truncated):
            state[rows] = 0
        self._observations = np.where(mask[:, None], self._observe(), self._observations)
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> Transition:
        """One action per episode, (N,) integers. Actions in finished episodes are ignored.

        Returns:
            observations (N, features) float32, rewards (N,) float64, terminated (N,) bool, truncated (N,) bool, info.

        Raises:
            ValueError: the actions are not N integers in range.
        """
        actions = discrete_actions(self, actions)
        running = ~(self._terminated | self._truncated)
        self._steps += running
        rewards, over = self._move(actions, running)
        self._terminated |= running & over
        self._truncated |= running & ~self._terminated & (self._steps >= self.max_steps)
        self._observations = np.where(running[:, None], self._observe(), self._observations)
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()
