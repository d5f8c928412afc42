"""One environment at a time: bases that keep a finished episode as it is, as `vector` does for many."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from RATE_model.errors import UserError


def check_render_mode(environment: gymnasium.Env, render_mode: str | None, name: str) -> None:
    """Raise a UserError for a render mode that the environment does not have."""
    modes = environment.metadata["render_modes"]
    if render_mode not in (None, *modes):
        allowed = ", ".join(map(repr, modes))
        raise UserError(f"{name}: render_mode is {render_mode!r}; it must be {allowed} or None.")


class SeededEnv(gymnasium.Env):
    """An environment of images and discrete actions whose episodes are functions of their seeds and of the actions.

    A finished episode stays as it is until the next reset: same observation, reward 0, the same flags. Nothing happens
    before the first reset. A subclass defines `_start` and `_advance`, and `_info` if there is something to tell.

    Attributes:
        max_steps: steps until truncation.

    Args:
        name: for messages.
        shape: of an observation, uint8.
        actions: their number.
        max_steps, render_mode: see the attributes; None, or one of the metadata's render modes.

    Raises:
        UserError: a value is out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}
    # Seeds are at least 0 and below the first; those of a reset without a seed are drawn below the second
    seeds_below: ClassVar[int] = 2**63
    drawn_below: ClassVar[int] = 2**31

    def __init__(
        self, name: str, shape: tuple[int, ...], actions: int, *, max_steps: int, render_mode: str | None = None
    ) -> None:
        if max_steps < 1:
            raise UserError(f"{name}: max_steps is {max_steps}; it must be at least 1.")
        check_render_mode(self, render_mode, name)
        self.max_steps, self.render_mode = int(max_steps), render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._actions = actions
        self._observation = np.zeros(shape, dtype=np.uint8)
        self._steps, self._terminated, self._truncated = 0, False, True

    @abstractmethod
    def _start(self, seed: int, options: dict[str, Any]) -> None:
        """Begin the episode of a seed and set `_observation`."""

    @abstractmethod
    def _advance(self, action: int) -> float:
        """Take an action in an unfinished episode: set `_observation`, `_terminated`; returns the reward.

        `_steps` counts this step already.
        """

    def _info(self) -> dict[str, Any]:
        return {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode of ``seed``, or a random one. Returns the observation and info.

        Args:
            seed: see the class. It also seeds `np_random`, as Gymnasium requires.
            options: see the class.

        Raises:
            ValueError: the seed is out of range.
        """
        if seed is not None and not 0 <= seed < self.seeds_below:
            highest = f"2**{self.seeds_below.bit_length() - 1} - 1"
            raise ValueError(f"a seed must lie between 0 and {highest}, got {seed}")
        super().reset(seed=seed)
        episode = int(self.np_random.integers(self.drawn_below)) if seed is None else int(seed)
        self._terminated, self._truncated = False, True  # until it has begun
        self._start(episode, options or {})
        self._steps, self._truncated = 0, False
        return self._observation.copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action. Returns observation, reward, terminated, truncated, info.

        Raises:
            ValueError: there is no such action.
        """
        if not 0 <= action < self._actions:
            raise ValueError(f"action must lie between 0 and {self._actions - 1}, got {action}")
        reward = 0.0
        if not (self._terminated or self._truncated):
            self._steps += 1
            reward = self._advance(int(action))
            self._truncated = not self._terminated and self._steps >= self.max_steps
        return self._observation.copy(), reward, self._terminated, self._truncated, self._info()


class FirstRow(gymnasium.Env):
    """A vector environment of one row as a single environment, so that its rules exist once.

    Args:
        environments: of one row, with the attribute `max_steps` (1,), and integers as infos.
        name: for messages.
        render_mode: None, or one of the metadata's.

    Raises:
        UserError: there is no such render mode.
    """

    def __init__(self, environments: VectorEnv, *, name: str, render_mode: str | None = None) -> None:
        check_render_mode(self, render_mode, name)
        self.environments: Any = environments
        self.render_mode = render_mode
        self.max_steps = int(self.environments.max_steps[0])
        self.observation_space = environments.single_observation_space
        self.action_space = environments.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Start the episode of ``seed``, or a random one. Returns the observation and info.

        ``options`` are those of the vector environment.
        """
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        observations, info = self.environments.reset(seed=[episode], options=options)
        return observations[0], _first(info)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, int]]:
        """Take one action. Returns observation, reward, terminated, truncated, info."""
        observations, rewards, terminated, truncated, info = self.environments.step(np.array([action]))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(info)


def _first(info: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int(values[0]) for name, values in info.items()}
