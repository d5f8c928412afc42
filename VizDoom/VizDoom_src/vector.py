"""Many ViZDoom-Two-Colors games side by side."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from RATE_model.acting.vector import discrete_actions, episode_seeds, reset_mask
from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores
from VizDoom.VizDoom_src.env import NUM_ACTIONS, OBSERVATION_SHAPE, PUBLISHED_CAP, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.scenario import Scenario


class VizDoomTwoColorsVectorEnv(VectorEnv):
    """B games, each of them a `VizDoomTwoColorsEnv`.

    The engines are processes of their own; threads here wait for them and scale their pictures, both of which leave
    Python to the others. Finished games keep their last observation, get reward 0, ignore actions and cost nothing,
    until they are reset. ``info`` holds ``is_red`` (B,) bool and ``health`` (B,) float64.

    Args:
        num_envs: B.
        scenario: what all of them play; None: the published scenario.
        max_steps: steps until truncation.
        threads: how many games take their step at once; None: one more than there are cores.
        privileged: see `VizDoomTwoColorsEnv`.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: a value is out of range, or (by the first reset) the package vizdoom is missing.
        ClosedEnvironmentError: by `reset` and `step` after `close`.
    """

    metadata = {
        "render_modes": ["rgb_array"],
        "render_fps": VizDoomTwoColorsEnv.metadata["render_fps"],
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | None = None,
        *,
        max_steps: int = PUBLISHED_CAP,
        threads: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"ViZDoom-Two-Colors: num_envs is {num_envs}; it must be at least 1.")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.games = [
            VizDoomTwoColorsEnv(scenario, max_steps=max_steps, privileged=privileged, render_mode=render_mode)
            for _ in range(num_envs)
        ]
        self.single_observation_space = gymnasium.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._threads = ThreadPoolExecutor(min(num_envs, threads or available_cores() + 1), "vizdoom")
        self._observations = np.zeros((num_envs, *OBSERVATION_SHAPE), dtype=np.uint8)
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start new episodes.

        Args:
            seed: one per game, or an int s for s, s + 1, ..., or None to draw them from `np_random`.
            options: ``reset_mask`` (B,) bool: the games to reset, the others keep their state. ``is_red`` (B,) bool:
                the colours, whatever the seeds say; only in the variant ``clear``.

        Returns:
            observations (B, 3, 64, 112) uint8 and info.

        Raises:
            ValueError: there are not B seeds, one is out of range, the mask has another shape or type, or the
                scenario's colour cannot be chosen.
            UserError: as for `VizDoomTwoColorsEnv.reset`.
        """
        self._check_open()
        seeds, mask = episode_seeds(self, seed, below=2**32), reset_mask(self, options)
        chosen: Any = (options or {}).get("is_red")
        colours = np.broadcast_to(chosen, (self.num_envs,))

        def start(row: int) -> None:
            self.games[row]._start(int(seeds[row]), colours[row])
            self._note(row)

        list(self._threads.map(start, np.flatnonzero(mask)))
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One action per game, (B,) integers. Actions of finished games are ignored.

        Returns:
            observations (B, 3, 64, 112) uint8, rewards (B,) float64, terminated (B,) bool, truncated (B,) bool, info.

        Raises:
            ValueError: the actions are not B integers between 0 and 4.
            UserError: an engine died twice in one episode.
        """
        self._check_open()
        actions = discrete_actions(self, actions)
        rewards = np.zeros(self.num_envs)

        def advance(row: int) -> None:
            rewards[row] = self.games[row]._advance(int(actions[row]))
            self._note(row)

        list(self._threads.map(advance, np.flatnonzero(~(self._terminated | self._truncated))))
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each engine drew, (180, 320, 3) uint8, black after death; None without a render mode."""
        screens = [game.render() for game in self.games]
        return None if self.render_mode is None else tuple(screen for screen in screens if screen is not None)

    def close_extras(self, **_: Any) -> None:
        """End all engines."""
        self._threads.shutdown(cancel_futures=True)
        for game in self.games:
            game.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("ViZDoom-Two-Colors: these games are closed; make new ones.")

    def _note(self, row: int) -> None:
        """Take over how a game stands."""
        game = self.games[row]
        self._observations[row] = game._observation
        self._terminated[row], self._truncated[row] = game._terminated, game._truncated

    def _info(self) -> dict[str, np.ndarray]:
        return {
            "is_red": np.array([game._is_red for game in self.games], dtype=bool),
            "health": np.array([game._health for game in self.games], dtype=np.float64),
        }
