"""Scripted players: they read the console's memory or try things out in the emulator, and learn nothing.

    Breakout   predicts where the ball comes down and steers the paddle, whose inertia it knows
    Pong       the same, and tries out, whenever the ball turns towards it, with which part of the paddle to hit it
    any other  tries out random plans and follows the best (`planner.py`)

Where things are in the memory, and how far a held button carries a paddle, was measured in the emulator; memory cells
that annotate Atari games are listed by Anand et al. 2019 (arXiv 1906.08226).

Each player takes a random action with a probability ``noise`` at every step; with 1 it is the random player. It is a
function of its generator and of the game. Trying things out supposes that actions do not stick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from Atari.console import Console
from Atari.env import AtariEnv
from Atari.games import Game

EXPERT_VERSION = 1  # raise it when the same seed gives other actions: data of another version is not gone on with


class Expert(ABC):
    """A player of one game at a time.

    Attributes:
        description: a few words on how it plays.

    Args:
        generator: of all that it draws.
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
        """The next action, chosen while the environment waits for it; its game stands as before."""
        random = self._generator.random() < self._noise
        action = int(self._generator.integers(env.game.actions)) if random else self._choose(env.console)
        self._took(action, random)
        return action

    @abstractmethod
    def _choose(self, console: Console) -> int:
        """What to do without noise."""

    @abstractmethod
    def _took(self, action: int, random: bool) -> None:
        """Note what is done; ``random``: instead of what `_choose` would."""


class BreakoutPlayer(Expert):
    """Moves the paddle to where the ball will come down.

    The memory holds the ball's column and row and the paddle's column, in units of about a pixel. A button held for one
    decision carries the paddle 12 units in it and 11 in the next; so the paddle comes to rest at every 23rd place only,
    and between them the ball has to be hit in passing. A hit needs the ball 1 to 18 units right of the paddle's left
    end: it is aimed at the middle, and a little beside it by chance; the more so when no brick was hit for long, as a
    ball that is always hit alike may never meet one again.
    """

    description = "prediction of the ball from the console's memory"
    BALL_COLUMN, BALL_ROW, PADDLE, BRICKS_HIT = 99, 101, 72, 77
    FIRE, RIGHT, LEFT = 1, 2, 3
    CARRIED, GLIDE = 12, 11
    MIDDLE, ASIDE, FAR_ASIDE = 9.5, 3, 8  # of the paddle
    LONG = 60  # decisions
    WALLS = (56, 200)
    PADDLE_ROW, LOWEST_ROW = 179, 190

    def reset(self, env: AtariEnv) -> None:
        """Forget where ball and paddle were."""
        self._ball = (0, 0)
        self._moving, self._aside = 0, 0
        self._bricks, self._in_vain = 0, 0

    def _choose(self, console: Console) -> int:
        memory = console.memory()
        (column, row), paddle = (int(memory[self.BALL_COLUMN]), int(memory[self.BALL_ROW])), int(memory[self.PADDLE])
        (old_column, old_row), self._ball = self._ball, (column, row)
        self._in_vain = self._in_vain + 1 if memory[self.BRICKS_HIT] == self._bricks else 0
        self._bricks = memory[self.BRICKS_HIT]
        if not (0 < row < self.LOWEST_ROW and 0 < old_row < self.LOWEST_ROW):
            return self.FIRE
        target, steps, down = column, 99.0, row - old_row
        if down > 0:
            steps = max(0.0, (self.PADDLE_ROW - row) / down)
            target = reflected(column + (column - old_column) * steps, *self.WALLS)
        elif self._generator.random() < 0.2:
            most = self.ASIDE if self._in_vain < self.LONG else self.FAR_ASIDE
            self._aside = int(self._generator.integers(-most, most + 1))
        missing = target - self.MIDDLE + self._aside - (paddle + self.GLIDE * self._moving)
        pressed_now, pressed_later = (abs(self._way(left) - abs(missing)) for left in (steps, steps - 1))
        if pressed_now > pressed_later or pressed_now >= abs(missing):
            return 0
        return self.RIGHT if missing > 0 else self.LEFT

    def _way(self, steps: float) -> float:
        """How far a press carries the paddle in so many decisions, the one with the press included."""
        return self.CARRIED * min(max(steps, 0.0), 1.0) + self.GLIDE * min(max(steps - 1, 0.0), 1.0)

    def _took(self, action: int, random: bool) -> None:
        self._moving = {self.RIGHT: 1, self.LEFT: -1}.get(action, 0)


def reflected(position: float, low: float, high: float) -> float:
    """Where a ball is between two walls that would have flown on to ``position`` without them."""
    beyond = (position - low) % (2 * (high - low))
    return low + min(beyond, 2 * (high - low) - beyond)


PLAYERS: dict[str, type[Expert]] = {"Breakout": BreakoutPlayer}


def expert(game: Game, generator: np.random.Generator, *, noise: float = 0.0) -> Expert:
    """The scripted player of a game."""
    return PLAYERS[game.name](generator, noise)


def expert_name(game: Game) -> str:
    """A few words on how it plays."""
    return PLAYERS[game.name].description


def plans(game: Game) -> bool:
    """Whether the player tries out whole plans, which takes long."""
    return game.name not in PLAYERS
