"""Many Atari games side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from Atari.console import SIZE
from Atari.env import FRAME_STACK, PUBLISHED_CAP, PUBLISHED_NOOPS, SEED_LIMIT, AtariEnv, Opening
from RATE_model.acting.vector import discrete_actions, episode_seeds, reset_mask


class AtariVectorEnv(VectorEnv):
    """B games, each of them an `AtariEnv`, played one after the other.

    ale-py's emulator does not leave Python to other threads, so that threads would not make this faster. Finished games
    keep their last observation, get reward 0, ignore actions and cost nothing, until they are reset. ``info`` holds
    ``lives`` (B,) int64.

    Args:
        num_envs: B.
        game, sticky, noops, max_steps, frame_stack, opening, render_mode: of every game, see `AtariEnv`.

    Raises:
        UserError: as for `AtariEnv`.
    """

    metadata = {**AtariEnv.metadata, "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1,
        game: str = "Breakout",
        *,
        sticky: float = 0.0,
        noops: int = PUBLISHED_NOOPS,
        max_steps: int = PUBLISHED_CAP,
        frame_stack: int = FRAME_STACK,
        opening: Opening = "black",
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.games = [
            AtariEnv(
                game,
                sticky=sticky,
                noops=noops,
                max_steps=max_steps,
                frame_stack=frame_stack,
                opening=opening,
                render_mode=render_mode,
            )
            for _ in range(num_envs)
        ]
        self.game = self.games[0].game
        self.single_observation_space: gymnasium.Space = self.games[0].observation_space
        self.single_action_space: gymnasium.Space = self.games[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations = np.zeros((num_envs, frame_stack, SIZE, SIZE), dtype=np.uint8)
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start new episodes.

        Args:
            seed: one per game, or an int s for s, s + 1, ..., or None to draw them from `np_random`.
            options: ``reset_mask`` (B,) bool: the games to reset, the others keep their state.

        Returns:
            observations (B, 4, 84, 84) uint8 and info.

        Raises:
            ValueError: there are not B seeds, one is out of range, or the mask has another shape or type.
        """
        seeds, mask = episode_seeds(self, seed), reset_mask(self, options)
        if not all(0 <= int(seed) < SEED_LIMIT for seed in seeds):
            raise ValueError(f"seeds must lie between 0 and 2**63 - 1, got {list(seeds)}")
        for row in np.flatnonzero(mask).tolist():
            self.games[row]._start(int(seeds[row]))
            self._note(row)
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One action per game, (B,) integers. Actions of finished games are ignored.

        Returns:
            observations (B, 4, 84, 84) uint8, rewards (B,) float64, terminated (B,) bool, truncated (B,) bool, info.

        Raises:
            ValueError: the actions are not B integers, or there is no such action.
        """
        actions = discrete_actions(self, actions)
        rewards = np.zeros(self.num_envs)
        for row in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            rewards[row] = self.games[row]._advance(int(actions[row]))
            self._note(row)
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Each game's screen in colour, (210, 160, 3) uint8; None without a render mode."""
        screens = [game.render() for game in self.games]
        return None if self.render_mode is None else tuple(screen for screen in screens if screen is not None)

    def _note(self, row: int) -> None:
        """Take over how a game stands."""
        game = self.games[row]
        self._observations[row] = game._observation
        self._terminated[row], self._truncated[row] = game._terminated, game._truncated

    def _info(self) -> dict[str, np.ndarray]:
        return {"lives": np.array([game._lives for game in self.games], dtype=np.int64)}
