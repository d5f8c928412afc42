"""The evaluation protocol of MuJoCo: episodes side by side, asked for a return, scored as D4RL does.

The published protocol plays every model twice. What a step sees:

    prompt 1    the steps of its segment so far; a segment begins with one step and what memory holds
    prompt K    the last K steps, whatever segment they belong to; memory is handed on every K steps all the same

A Decision Transformer slides its own window of N K steps, and is played once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from MuJoCo.tasks import MAX_EPISODE_STEPS, Robot, make_environment
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes, mean_and_error, rollout
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform

Version = Literal["v4", "v5"]
VERSIONS: tuple[str, ...] = get_args(Version)
# Data is collected with seeds below this one.
FIRST_SEED = 2**31
MAX_EPISODES = 10_000


class RobotVectorEnv(VectorEnv):
    """Robots side by side.

    Finished episodes stay as they are until they are reset (``AutoresetMode.DISABLED``) and cost nothing: same
    observation, reward 0, terminated or truncated still True.

    Args:
        robot: which robot.
        num_envs: B, the number of episodes.
        version: of the Gymnasium environments.

    Raises:
        UserError: MuJoCo is not installed.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, robot: Robot, num_envs: int, *, version: Version = "v4") -> None:
        self.num_envs, self.render_mode = num_envs, None
        self._environments = [make_environment(robot, version) for _ in range(num_envs)]
        shape = (robot.observation_size,)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (robot.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._states = np.zeros((num_envs, *shape))  # as the simulator gives them
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes with these B seeds; observations (B, obs) float32 and an empty info."""
        seeds = [None] * self.num_envs if seed is None else [int(number) for number in seed]
        for row, (environment, number) in enumerate(zip(self._environments, seeds, strict=True)):
            self._states[row], _ = environment.reset(seed=number)
        self._terminated[:] = self._truncated[:] = False
        return self._states.astype(np.float32), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One action per robot, (B, act) floats; those of finished episodes are ignored.

        Returns:
            observations (B, obs) float32, rewards (B,) float64, terminated (B,) bool, truncated (B,) bool, info.
        """
        rewards = np.zeros(self.num_envs)
        for row in np.flatnonzero(~(self._terminated | self._truncated)):
            self._states[row], rewards[row], self._terminated[row], self._truncated[row], _ = self._environments[
                row
            ].step(actions[row])
        return self._states.astype(np.float32), rewards, self._terminated.copy(), self._truncated.copy(), {}

    def close_extras(self, **arguments: Any) -> None:
        """Close the simulators."""
        for environment in self._environments:
            environment.close()


def check_episodes(**episodes: int) -> None:
    """Raise `UserError` if a flag asks for no episode, or for more than anybody waits for."""
    for name, count in episodes.items():
        if not 1 <= count <= MAX_EPISODES:
            raise UserError(f"--{name} {count}: must be at least 1 and at most {MAX_EPISODES}")


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of so many episodes, (E,) int64; never those of data."""
    return np.arange(FIRST_SEED, FIRST_SEED + episodes)


def play(
    model: Agent,
    robot: Robot,
    *,
    target_return: float,
    episodes: int = 10,
    version: Version = "v4",
    window: bool = False,
    reset_target: bool = False,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
) -> Episodes:
    """Episodes of at most 1000 steps, all at once.

    Args:
        model: in eval mode.
        robot, version: which environment.
        target_return: the return to ask for, in units of reward.
        episodes: with the seeds of `evaluation_seeds`.
        window: prompt K, else prompt 1.
        reset_target: ask for it again whenever memory is handed on.
        slide, transform_memory, precision: see `Actor`.

    Raises:
        UserError: MuJoCo is not installed.
    """
    environments = RobotVectorEnv(robot, episodes, version=version)
    with torch.no_grad():
        actor = Actor(
            model,
            episodes,
            target_return,
            window=window,
            slide=slide,
            reset_target=reset_target,
            transform_memory=transform_memory,
            precision=precision,
        )
    try:
        return rollout(
            actor,
            environments,
            seeds=evaluation_seeds(episodes),
            max_steps=MAX_EPISODE_STEPS,
            description=robot.environment_id(version),
        )
    finally:
        environments.close()


def play_prompts(model: Agent, robot: Robot, *, long_prompt: bool = True, **acting: Any) -> dict[str, Episodes]:
    """`play` with prompt 1 and, if wanted, with prompt K.

    Returns:
        The episodes by how the names of their results begin: "" and "{K}_". The second is left out for a model that
        slides its own window.
    """
    played = {"": play(model, robot, **acting)}
    if long_prompt and model.memory.can_slide and not model.memory.slides:
        played[f"{model.memory.segment}_"] = play(model, robot, window=True, **acting)
    return played


def metrics(played: Mapping[str, Episodes], robot: Robot) -> dict[str, float]:
    """Results by name: mean, standard deviation and standard error of normalised scores, returns and lengths.

    `episode_MEAN` and `episode_STD` are the published names, of normalised scores as there, with the prefix "{K}_"
    those of prompt K. Returns are `return_...`.
    """
    result = {}
    for prefix, episodes in played.items():
        for name, values in (
            ("episode", robot.normalised_score(episodes.returns)),
            ("return", episodes.returns),
            ("length", episodes.lengths),
        ):
            mean, error = mean_and_error(values)
            figures = {"MEAN": mean, "STD": float(np.std(values))} | ({"SEM": error} if len(values) > 1 else {})
            result |= {f"{prefix}{name}_{kind}": value for kind, value in figures.items()}
    return result
