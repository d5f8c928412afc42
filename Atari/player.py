"""The base of scripted players of Atari games."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from Atari.console import Console
from Atari.env import AtariEnv


class ScriptedPlayer(ABC):
    """A player of one game at a time.

    Attributes:
        description: a few words on how it plays.

    Args:
        generator: for all its random choices.
        noise: probability of a random action at each step.
    """

    description: ClassVar[str]

    def __init__(self, generator: np.random.Generator, noise: float = 0.0) -> None:
        self._generator = generator
        self._noise = noise

    @abstractmethod
    def reset(self, env: AtariEnv) -> None:
        """Begin an episode in an environment that was just reset."""

    def act(self, env: AtariEnv) -> int:
        """The next action; leaves the environment's game unchanged."""
        random = self._generator.random() < self._noise
        action = int(self._generator.integers(env.game.actions)) if random else self._choose(env.console)
        self._took(action)
        return action

    @abstractmethod
    def _choose(self, console: Console) -> int:
        """The action without noise."""

    @abstractmethod
    def _took(self, action: int) -> None:
        """Record the action taken, chosen or random."""
