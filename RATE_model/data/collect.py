"""Whole episodes of a policy that acts in many environments at once, written to a file of trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from RATE_model.data.writer import TrajectoryWriter

if TYPE_CHECKING:
    import gymnasium


class ActingPolicy(Protocol):
    """A policy that draws actions."""

    def act(self, observations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Actions (B, ...) for observations (B, ...)."""
        ...


def collect(
    environments: Sequence[gymnasium.Env],
    policy: ActingPolicy,
    steps: int,
    *,
    generator: np.random.Generator,
    writer: TrajectoryWriter,
    note: Callable[[gymnasium.Env], Mapping[str, np.ndarray]] = lambda environment: {},
    report: Callable[[int], Any] = lambda steps: None,
) -> np.ndarray:
    """Let a policy act for at least ``steps`` steps and write its episodes; returns their returns (E,) float64.

    All episodes are whole. No new one starts after this many steps, and unfinished ones are played to their end and
    kept, so neither long nor short episodes are preferred.

    Args:
        environments, policy: what acts where.
        steps: in total.
        generator: draws the episodes' seeds and the policy's actions.
        writer: of the file.
        note: arrays to record before each action, as ``infos``.
        report: called with the number of further steps taken.
    """
    idle, acting, returns, taken = list(environments), [], [], 0
    while True:
        while idle and taken < steps:
            acting.append(_Episode(idle.pop(), int(generator.integers(2**31)), note))
        if not acting:
            return np.array(returns)
        actions = policy.act(np.stack([episode.observation for episode in acting]), generator)
        ended = [episode for episode, action in zip(acting, actions, strict=True) if episode.step(action)]
        taken += len(acting)
        report(len(acting))
        for episode in ended:
            returns.append(episode.write(writer))
            acting.remove(episode)
            idle.append(episode.environment)


class _Episode:
    """An unfinished episode."""

    def __init__(
        self, environment: gymnasium.Env, seed: int, note: Callable[[gymnasium.Env], Mapping[str, np.ndarray]]
    ) -> None:
        self.environment, self._note = environment, note
        self.observation, _ = environment.reset(seed=seed)
        self._steps: list[tuple[Any, Any, float]] = []
        self._infos: list[Mapping[str, np.ndarray]] = []

    def step(self, action: np.ndarray) -> bool:
        """Take an action; returns whether the episode ended."""
        seen = self.observation
        self._infos.append(self._note(self.environment))
        self.observation, reward, self.terminated, truncated, _ = self.environment.step(action)
        self._steps.append((seen, action, float(reward)))
        return self.terminated or truncated

    def write(self, writer: TrajectoryWriter) -> float:
        """Append the episode to a file; returns its return."""
        observations, actions, rewards = (np.stack(column) for column in zip(*self._steps, strict=True))
        infos = {name: np.stack([noted[name] for noted in self._infos]) for name in self._infos[0]}
        writer.add_episode(observations, actions, rewards, terminal=self.terminated, infos=infos)
        return float(rewards.sum())
