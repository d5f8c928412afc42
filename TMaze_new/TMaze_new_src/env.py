"""Passive T-Maze (Ni et al. 2023, arXiv 2307.03864; with the junction flag and the noise of the RATE paper).

The agent starts at the left end of a corridor, sees a hint in its first observation, walks to the junction and has to
turn to the hinted side. The hint is never repeated, so the length of the corridor is the length of the required
memory.

    y = +1                      G        actions: 0 right, 1 up, 2 left, 3 down; a move into a wall keeps the position
    y =  0    S . . . . . . . . J        S start (x = 0), J junction (x = corridor_length)
    y = -1                      G        G the two ends, one of them the goal

Observation, (4,) float32: ``[y, hint, flag, noise]``.
    hint   +1 (up) or -1 (down) in the first ``hint_steps`` observations, then 0
    flag   1 only in the observation that first reaches the junction, else 0
    noise  uniform in {-1, 0, 1}

An episode terminates at either end and is truncated after ``max_steps`` actions. The reward is ``goal_reward`` at the
goal; the wrong end and the timeout give 0, or -1 when ``goal_reward`` is not 1; every other step gives 0.

An episode is a function of its seed: the goal is the first ``choice([-1, 1])`` of NumPy's legacy generator (seed 0 is
down, seed 1 is up), the noise a hash of (seed, number of the observation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from RATE_model.acting.arrays import ArrayVectorEnv
from RATE_model.acting.single import FirstRow
from RATE_model.acting.vector import register_once
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.hashing import drawn, stream_keys
from TMaze_new.TMaze_new_src.render import render_rgb, render_text

ENV_ID = "TMaze-v0"
RIGHT, UP, LEFT, DOWN = range(4)
NUM_ACTIONS = 4
OBSERVATION_SIZE = 4
DEFAULT_CORRIDOR_LENGTH = 28  # one segment of 30 steps

# The published evaluation: 100 episodes, half up and half down. Seed 3 occurs twice.
_LEFT_OUT = {33, 89, 90, 93, 94, 99, 101, 103, 104}
EVALUATION_SEEDS: tuple[int, ...] = (*(seed for seed in range(108) if seed not in _LEFT_OUT), 3)

# How the model sees it. The published action table has a fifth row for padding.
SPEC = EnvironmentSpec(
    observation_shape=(OBSERVATION_SIZE,), num_actions=NUM_ACTIONS, action_embeddings=NUM_ACTIONS + 1, action_tanh=True
)

# What each action adds to x and y.
MOVE_X = np.array([1, 0, -1, 0])
MOVE_Y = np.array([0, 1, 0, -1])


def goals_of_seeds(seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Goal of the episode of each seed: (E,) int64, +1 up or -1 down. Seeds count modulo 2**32."""
    generator = np.random.RandomState(0)

    def goal(seed: int) -> int:
        generator.seed(int(seed) % 2**32)  # re-seeding one generator is 30 times faster than making one per seed
        return 2 * generator.randint(2) - 1

    return np.fromiter((goal(seed) for seed in seeds), dtype=np.int64, count=len(seeds))


def observation_noise(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Noise of observation number ``steps`` (0 for the first) of each stream: (E,) int64, uniform in {-1, 0, 1}."""
    return drawn(keys, steps, 3) - 1


def expert_actions(observations: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """The optimal policy: right until the flag shows, then to the hinted side. It needs only memory, no position.

    Args:
        observations: (..., 4) current observations.
        hints: (...) the hint in each episode's first observation (+1 or -1), broadcast against the observations.

    Returns:
        (...) int64 actions.
    """
    return np.where(observations[..., 2] == 1, np.where(np.asarray(hints) == 1, UP, DOWN), RIGHT)


class TMazeVectorEnv(ArrayVectorEnv):
    """Thousands of mazes stepped together; see `ArrayVectorEnv`. Rules and observations: see the module.

    ``info`` holds ``goal`` (+1 or -1) and ``x``, each (N,) int64. The option ``goal`` of ``reset``, +1 or -1,
    one or (N,), overrides the seeds' goals.

    Args:
        num_envs: N, the number of mazes.
        corridor_length: x of the junction, one number or (N,) numbers, each at least 1.
        hint_steps: observations that show the hint, at least 1.
        goal_reward: reward at the goal.
        max_steps: actions until truncation, one number or (N,); None is ``corridor_length + 2``, one more than
            needed.
        render_mode: only None.

    Raises:
        UserError: a size is below its minimum.
    """

    def __init__(
        self,
        num_envs: int = 1,
        corridor_length: int | Sequence[int] | np.ndarray = DEFAULT_CORRIDOR_LENGTH,
        *,
        hint_steps: int = 1,
        goal_reward: float = 1.0,
        max_steps: int | Sequence[int] | np.ndarray | None = None,
        render_mode: None = None,
    ) -> None:
        self.num_envs, self.hint_steps, self.goal_reward = num_envs, hint_steps, goal_reward
        self.corridor_length = self._column(corridor_length)
        self.require("T-Maze", corridor_length=self.corridor_length, hint_steps=hint_steps)
        steps = self.corridor_length + 2 if max_steps is None else max_steps
        low = [-1, -1, 0, -1]
        super().__init__(num_envs, low, NUM_ACTIONS, max_steps=steps, name="T-Maze", render_mode=render_mode)
        self._failure_reward = 0.0 if goal_reward == 1.0 else -1.0
        self._x, self._y, self._goal = (np.zeros(num_envs, dtype=np.int64) for _ in range(3))
        self._keys = np.zeros(num_envs, dtype=np.uint64)
        # Whether the junction is shown, and whether it was reached before.
        self._flag, self._visited = (np.zeros(num_envs, dtype=bool) for _ in range(2))

    def _begin(self, rows: np.ndarray, seeds: Sequence[int], options: dict[str, Any]) -> None:
        given = options.get("goal")
        goals = goals_of_seeds(seeds) if given is None else np.broadcast_to(given, (self.num_envs,))[rows]
        if not np.isin(goals, (-1, 1)).all():
            raise ValueError(f"goal must be +1 or -1, got {given}")
        for state in (self._x, self._y, self._flag, self._visited):
            state[rows] = 0
        self._goal[rows], self._keys[rows] = goals, stream_keys(seeds)

    def _move(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._y += np.where(running & (self._x == self.corridor_length), MOVE_Y[actions], 0)
        self._x += np.where(running, MOVE_X[actions], 0)
        np.clip(self._x, 0, self.corridor_length, out=self._x)
        at_junction, over = self._x == self.corridor_length, self._y != 0
        self._flag = at_junction & ~self._visited
        self._visited |= at_junction
        outcome = np.where(self._y == self._goal, self.goal_reward, self._failure_reward)
        return np.where(running & (over | (self._steps >= self.max_steps)), outcome, 0.0), over

    def scene(self, row: int) -> dict[str, int]:
        """The contents of a picture of a row; see `render`."""
        values = {"corridor_length": self.corridor_length, "x": self._x, "y": self._y, "goal": self._goal}
        return {name: int(value[row]) for name, value in values.items()} | {"hint": int(self._observations[row, 1])}

    def _observe(self) -> np.ndarray:
        hint = np.where(self._steps < self.hint_steps, self._goal, 0)
        return np.stack([self._y, hint, self._flag, observation_noise(self._keys, self._steps)], 1).astype(np.float32)

    def _info(self) -> dict[str, np.ndarray]:
        return {"goal": self._goal.copy(), "x": self._x.copy()}


class CorridorEnv(FirstRow):
    """One row of a vector environment with a `scene`."""

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def render(self) -> str | np.ndarray | None:
        """The agent's corridor, as text ("ansi") or as an (H, W, 3) uint8 image ("rgb_array")."""
        if self.render_mode is None:
            return None
        scene = self.environments.scene(0)
        steps = int(self.environments._steps[0])
        return render_text(**scene, step=steps) if self.render_mode == "ansi" else render_rgb(**scene)


class TMazeEnv(CorridorEnv):
    """One T-Maze, a `TMazeVectorEnv` of one row.

    It takes the same arguments as single numbers, and ``render_mode`` may be "ansi" (text) or "rgb_array". ``info``
    holds the ints ``goal`` and ``x``. ``reset(options={"goal": 1})`` sets the goal.
    """

    def __init__(
        self,
        corridor_length: int = DEFAULT_CORRIDOR_LENGTH,
        *,
        hint_steps: int = 1,
        goal_reward: float = 1.0,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        mazes = TMazeVectorEnv(1, corridor_length, hint_steps=hint_steps, goal_reward=goal_reward, max_steps=max_steps)
        super().__init__(mazes, name="T-Maze", render_mode=render_mode)
        self.corridor_length = corridor_length
        self.hint_steps = hint_steps

    @property
    def horizons(self) -> tuple[int]:
        """The correlation horizons of the task (Cherepanov et al. 2024, arXiv 2412.06531): steps from hint to recall,
        inclusive.

        One event, the hint, and one recall, the turn: ``corridor_length + 1`` for a hint of one step. An agent with a
        shorter context solves the task only with memory.
        """
        return (max(1, self.corridor_length - self.hint_steps + 2),)


register_once(ENV_ID, f"{__name__}:TMazeEnv", f"{__name__}:TMazeVectorEnv")
