"""A player for any game: it tries random plans in the emulator and follows the best (random shooting).

A plan has the buttons for the next ``HORIZON`` decisions, each for a few decisions in a row, because single presses
achieve little. Its value is the points that it earns, minus ``LIFE`` for every lost life; later ones count less.
After ``FOLLOWED`` decisions, or after any other action, new plans are drawn; the rest of the old plan is one of them,
so a good plan is kept.
"""

from __future__ import annotations

import numpy as np

from Atari.console import Console
from Atari.env import AtariEnv
from Atari.player import ScriptedPlayer


class Planner(ScriptedPlayer):
    """Random shooting; see the module.

    Points count by their logarithm: a rare bonus of thousands is worth a detour, but not a life.
    """

    description = "random shooting with the emulator's states"
    PLANS = 16
    HORIZON = 30  # decisions
    HELD = (3, 9)  # decisions in a row for which a button is held, least and most
    FOLLOWED = 3
    DISCOUNT = 0.97  # per decision
    LIFE = 5.0  # in points

    def reset(self, env: AtariEnv) -> None:
        """Forget the plan."""
        self._actions = env.game.actions
        self._plan = np.zeros(0, dtype=np.int64)
        self._done = 0  # decisions of the plan

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
