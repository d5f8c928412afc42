"""Scripted players: they read the console's memory or try actions in the emulator; nothing is learned.

    Breakout   predicts where the ball comes down and moves the paddle there, considering its inertia
    Pong       the same; whenever the ball turns towards it, it tries which part of the paddle should hit it
    any other  tries random plans and follows the best

The addresses in memory, and how far a held button moves a paddle, were measured in the emulator; Anand et al. 2019
(arXiv 1906.08226) list annotated memory cells of Atari games.

Each player takes a random action with a probability ``noise`` at every step; with 1 it is the random player. Its
actions are a function of its generator and the game. Trying actions assumes that they are not sticky.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from Atari.console import Console
from Atari.env import AtariEnv
from Atari.games import Game

EXPERT_VERSION = 1  # raise it if a seed gives different actions: data of other versions is not reused


class ScriptedPlayer(ABC):
    """A player of one episode.

    Attributes:
        description: a few words on how it plays.

    Args:
        game: what it plays.
        generator: for all its random choices.
        noise: probability of a random action at each step.
    """

    description: ClassVar[str]

    def __init__(self, game: Game, generator: np.random.Generator, noise: float = 0.0) -> None:
        self._actions, self._generator, self._noise = game.actions, generator, noise

    def act(self, env: AtariEnv) -> int:
        """The next action; leaves the environment's game unchanged."""
        random = self._generator.random() < self._noise
        action = int(self._generator.integers(self._actions)) if random else self._choose(env.console)
        self._took(action)
        return action

    @abstractmethod
    def _choose(self, console: Console) -> int:
        """The action without noise."""

    @abstractmethod
    def _took(self, action: int) -> None:
        """Record the action taken, chosen or random."""


class BreakoutPlayer(ScriptedPlayer):
    """Moves the paddle to where the ball will come down.

    The memory holds the ball's column and row and the paddle's column, in units of about a pixel. A button held for one
    decision moves the paddle 12 units in it and 11 in the next, so the paddle can rest only at every 23rd place; in
    between, it has to hit the ball in passing. A hit needs the ball 1 to 18 units right of the paddle's left end. The
    player aims at the middle plus a random offset, which grows if no brick was hit for long: a ball that is always hit
    the same way may never meet another brick.
    """

    description = "prediction of the ball from the console's memory"
    BALL_COLUMN, BALL_ROW, PADDLE, BRICKS_HIT = 99, 101, 72, 77
    FIRE, RIGHT, LEFT = 1, 2, 3
    CARRIED, GLIDE = 12, 11
    MIDDLE, ASIDE, FAR_ASIDE = 9.5, 3, 8  # of the paddle
    LONG = 60  # decisions
    WALLS = (56, 200)
    PADDLE_ROW, LOWEST_ROW = 179, 190

    # As an episode begins. Players rebind these, so they must be immutable.
    _ball = (0, 0)
    _moving = _aside = 0
    _bricks = _in_vain = 0

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
        """How far a press moves the paddle in this many decisions, including the one with the press."""
        return self.CARRIED * min(max(steps, 0.0), 1.0) + self.GLIDE * min(max(steps - 1, 0.0), 1.0)

    def _took(self, action: int) -> None:
        self._moving = {self.RIGHT: 1, self.LEFT: -1}.get(action, 0)


class PongPlayer(ScriptedPlayer):
    """Hits the ball so as to win the point.

    The memory holds the ball's column and row and the row of our paddle, at the right, in units of about a pixel. A
    button held for one decision moves the paddle 5 units in it and 17 more in the next three, so decisions consider
    where the paddle would come to rest, at every 22nd row. A ball that always meets a resting paddle keeps coming back.
    So whenever it turns towards us, the rest of the rally is played in the emulator: waiting for the ball, and with a
    last move up or down shortly before it arrives. What wins is then played, unless a random action intervenes.
    """

    description = "prediction of the ball from the console's memory, the last stroke found by trying"
    BALL_COLUMN, BALL_ROW, PADDLE = 49, 54, 51
    STAY, UP, DOWN = 0, 2, 3
    UPWARD, DOWNWARD = (2, 4), (3, 5)  # without and with fire, which does nothing here
    GLIDE = (17, 4, 1)  # units that each of the last three decisions will still move it
    TOLERANCE = 11
    STROKES = ((0, STAY), (1, UP), (1, DOWN), (2, UP), (2, DOWN), (3, UP), (3, DOWN))  # decisions before the ball
    MIDDLE, HOME = 7, 125
    WALLS = (44, 207)
    PADDLE_COLUMN = 189
    FORESIGHT = 120  # decisions

    # As an episode begins. Players rebind these, so they must be immutable.
    _ball, _coming = (0, 0), False
    _moved, _stroke = (0, 0, 0), STROKES[0]
    _plan: Sequence[int] = ()

    def _choose(self, console: Console) -> int:
        memory = console.memory()
        before, self._ball = self._ball, self._position(memory)
        came, self._coming = self._coming, 0 < before[0] < self._ball[0]
        if self._coming and not came and not self._plan:
            self._stroke, self._plan = self._best_stroke(console, before)
        return self._plan[0] if self._plan else self._towards(memory, before, self._moved, self._stroke)

    def _took(self, action: int) -> None:
        self._moved = self._after(action, self._moved)
        self._plan = self._plan[1:] if self._plan and action == self._plan[0] else ()

    def _best_stroke(self, console: Console, before: tuple[int, int]) -> tuple[tuple[int, int], list[int]]:
        """How to hit the ball and, if that wins, the actions up to the point."""
        state, best, best_value = console.save(), self.STROKES[0], (-np.inf, 0)
        for number in self._generator.permutation(len(self.STROKES)).tolist():
            stroke = self.STROKES[number]
            points, played = self._rally(console, before, stroke)
            console.restore(state)
            if points > 0:
                return stroke, played
            if (points, len(played)) > best_value:
                best, best_value = stroke, (points, len(played))
        return best, []

    def _rally(self, console: Console, before: tuple[int, int], stroke: tuple[int, int]) -> tuple[float, list[int]]:
        """Play on to the next point: who wins it, 1 or -1, and the actions; 0 if it takes too long."""
        moved, played = self._moved, []
        for _ in range(self.FORESIGHT):
            memory = console.memory()
            action = self._towards(memory, before, moved, stroke)
            before, moved = self._position(memory), self._after(action, moved)
            played.append(action)
            points = console.simulate(action)
            if points:
                return points, played
        return 0.0, played

    def _towards(
        self, memory: np.ndarray, before: tuple[int, int], moved: tuple[int, ...], stroke: tuple[int, int]
    ) -> int:
        """The button that moves the paddle to where the ball will be, or the last move when it is due."""
        (column, row), target = self._position(memory), float(self.HOME)
        if row and 0 < before[0] < column:
            steps, (lead, button) = max(0.0, (self.PADDLE_COLUMN - column) / (column - before[0])), stroke
            if steps <= lead:
                return button if steps > lead - 1 else self.STAY
            target = reflected(row + (row - before[1]) * steps, *self.WALLS) - self.MIDDLE
        missing = target - int(memory[self.PADDLE]) - sum(map(operator.mul, self.GLIDE, moved))
        if abs(missing) <= self.TOLERANCE:
            return self.STAY
        return self.DOWN if missing > 0 else self.UP

    def _after(self, action: int, moved: tuple[int, ...]) -> tuple[int, ...]:
        """The directions of the last three decisions, the latest first: 1 down, -1 up."""
        return ((action in self.DOWNWARD) - (action in self.UPWARD), *moved[:-1])

    def _position(self, memory: np.ndarray) -> tuple[int, int]:
        """The ball's column and row; column 0: no ball."""
        return int(memory[self.BALL_COLUMN]), int(memory[self.BALL_ROW])


class Planner(ScriptedPlayer):
    """Tries random plans in the emulator and follows the best (random shooting), in any game.

    A plan has the buttons for the next ``HORIZON`` decisions, each for a few decisions in a row, because single presses
    achieve little. Its value is the points that it earns, minus ``LIFE`` for every lost life; later ones count less.
    Points count by their logarithm: a rare bonus of thousands is worth a detour, but not a life. After ``FOLLOWED``
    decisions, or after any other action, new plans are drawn; the rest of the old plan is one of them, so a good plan
    is kept.
    """

    description = "random shooting with the emulator's states"
    PLANS = 16
    HORIZON = 30  # decisions
    HELD = (3, 9)  # decisions in a row for which a button is held, least and most
    FOLLOWED = 3
    DISCOUNT = 0.97  # per decision
    LIFE = 5.0  # in points

    # As an episode begins. Players rebind these.
    _plan = np.zeros(0, dtype=np.int64)
    _done = 0  # decisions of the plan

    def _choose(self, console: Console) -> int:
        if self._done % self.FOLLOWED == 0:
            self._plan = self._best(console)
        return int(self._plan[0])

    def _took(self, action: int) -> None:
        if len(self._plan) and action == self._plan[0]:
            self._plan, self._done = self._plan[1:], self._done + 1
        else:
            self._plan, self._done = self._plan[:0], 0

    def _best(self, console: Console) -> np.ndarray:
        """The best of new plans and the rest of the old one, (HORIZON,) int64."""
        plans = self._drawn(self.PLANS)
        if len(self._plan):
            plans[0, : len(self._plan)] = self._plan
        state = console.save()
        values = []
        for plan in plans.tolist():
            values.append(self._value(console, plan))
            console.restore(state)
        return plans[int(np.argmax(values))]

    def _drawn(self, count: int) -> np.ndarray:
        """Random plans, (count, HORIZON) int64."""
        least, most = self.HELD
        most_parts = -(-self.HORIZON // least)
        lengths = self._generator.integers(least, most + 1, (count, most_parts))
        starts = np.cumsum(lengths, axis=1)
        part = (np.arange(self.HORIZON)[:, None] >= starts[:, None]).sum(axis=2)
        return np.take_along_axis(self._generator.integers(self._actions, size=(count, most_parts)), part, axis=1)

    def _value(self, console: Console, plan: list[int]) -> float:
        """The value of a plan; changes the console's state."""
        value, weight, lives = 0.0, 1.0, console.lives
        for action in plan:
            points = console.simulate(action)
            if points:
                value += weight * float(np.sign(points) * (1 + np.log1p(abs(points)) / 4))
            left = console.lives
            if console.over:
                return value - weight * self.LIFE
            value -= weight * self.LIFE * max(0, lives - left)
            lives, weight = left, weight * self.DISCOUNT
        return value


def reflected(position: float, low: float, high: float) -> float:
    """Where a ball between two walls is that would be at ``position`` without them."""
    beyond = (position - low) % (2 * (high - low))
    return low + min(beyond, 2 * (high - low) - beyond)


_PLAYERS: dict[str, type[ScriptedPlayer]] = {"Breakout": BreakoutPlayer, "Pong": PongPlayer}


def plans(game: Game) -> bool:
    """Whether this game's player tries whole plans, which is slow."""
    return game.name not in _PLAYERS


def player_class(game: Game) -> type[ScriptedPlayer]:
    """The class of this game's player."""
    return _PLAYERS.get(game.name, Planner)


def expert(game: Game, generator: np.random.Generator, *, noise: float = 0.0) -> ScriptedPlayer:
    """The scripted player of a game.

    Args:
        game: which.
        generator: for all its random choices.
        noise: probability of a random action at each step; 1: the random player.
    """
    return player_class(game)(game, generator, noise)
