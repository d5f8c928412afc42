"""An expert for Minigrid-Memory that sees what the agent sees, the 3x3 cells in front of it, and remembers.

It walks west until it sees the object of the room, turns round, walks east to the fork, looks into one arm and enters
the one that matches. It does not know its position or the correct arm. It knows the shape of these mazes and its
position relative to its start: it counts its own turns and steps, including random ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MinigridMemory.MinigridMemory_src.env import (
    FORWARD,
    LEFT,
    NAME,
    NUM_ACTIONS,
    RIGHT,
    VIEW,
    Layouts,
    MinigridMemoryEnv,
    expert_cap,
)
from RATE_model.errors import UserError

if TYPE_CHECKING:
    from RATE_model.acting.driver import DriverChoice
    from RATE_model.acting.rollout import Episodes

EXPERT_STREAM = 1  # the episode's stream for the expert; the layout uses the seed itself

EMPTY, WALL, KEY, BALL = 1, 2, 5, 6  # cell types in an encoded view
_OTHER = {KEY: BALL, BALL: KEY}
EAST, SOUTH, WEST, NORTH = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x grows to the east, y to the south


@dataclass(frozen=True)
class Flaws:
    """What keeps an expert from being perfect."""

    # Probability of a uniformly random action at a step; the expert finds its way back.
    noise: float = 0.0
    # Probability that an episode ends in the wrong arm, on purpose.
    wrong_arm: float = 0.0
    # Probability that the object of the room is not looked at, and guessed.
    guess: float = 0.0


class Expert:
    """Acts in one episode, which starts facing east somewhere in the corridor.

    Attributes:
        best: its own choice at the last step, whatever action was taken.

    Args:
        generator: for its random choices; episodes of a flawless expert do not depend on it.
        flaws: see `Flaws`.
    """

    def __init__(self, generator: np.random.Generator, flaws: Flaws | None = None) -> None:
        self._generator = generator
        self._flaws = flaws or Flaws()
        wrong, guess, coin = self._generator.random(3)
        self._wrong = wrong < self._flaws.wrong_arm
        self._cue = (KEY if coin < 0.5 else BALL) if guess < self._flaws.guess else None
        self._x, self._y, self._heading = 0, 0, EAST  # relative to the start; the corridor is row 0
        self.best = FORWARD
        self._fork: int | None = None  # x of the two arms
        self._north: int | None = None  # object in the northern arm

    def act(self, view: np.ndarray, driven: int | None = None) -> int:
        """The action for an encoded view, (3, 3, 3) uint8 as in `MinigridMemoryEnv.view`.

        If `driven`, another player's action, is given, the expert only watches and returns that action.
        """
        cells = view[:, :, 0].tolist()
        self._look(cells)
        action = self.best = self._plan()
        if driven is not None:
            action = driven
        elif self._flaws.noise and self._generator.random() < self._flaws.noise:
            action = int(self._generator.integers(NUM_ACTIONS))
        if action != FORWARD:
            self._heading = (self._heading + (1 if action == RIGHT else -1)) % 4
        elif cells[VIEW // 2][VIEW - 2] == EMPTY:
            self._x, self._y = self._ahead(1, 0)
        return action

    def _look(self, cells: list[list[int]]) -> None:
        """Remember the objects in view (one row off: the room's, two rows off: the fork's) and the corridor's end."""
        for across, column in enumerate(cells):
            for far, kind in enumerate(column):
                if kind not in _OTHER:
                    continue
                x, y = self._ahead(VIEW - 1 - far, across - VIEW // 2)
                if y == -1:
                    self._cue = self._cue or kind
                else:
                    self._fork, self._north = x, kind if y < 0 else _OTHER[kind]
        if self._heading == EAST and self._y == 0:
            near, farther = cells[VIEW // 2][VIEW - 2], cells[VIEW // 2][VIEW - 3]
            if near == WALL or farther == WALL:
                self._fork = self._x + (near != WALL)

    def _plan(self) -> int:
        """The best action given what it knows."""
        if self._y != 0:  # strayed in the room: back to the corridor's row
            return self._towards(NORTH if self._y > 0 else SOUTH)
        if self._cue is None:
            return self._towards(WEST)
        if self._x != self._fork:
            return self._towards(EAST)
        if self._north is None:
            return self._towards(NORTH)
        return self._towards(NORTH if (self._north == self._cue) != self._wrong else SOUTH)

    def _towards(self, heading: int) -> int:
        """Forward when facing that way, else the turn towards it."""
        return (FORWARD, RIGHT, LEFT, LEFT)[(heading - self._heading) % 4]

    def _ahead(self, steps: int, right: int) -> tuple[int, int]:
        """The cell this many steps ahead and to the right."""
        (ax, ay), (rx, ry) = _STEPS[self._heading], _STEPS[(self._heading + 1) % 4]
        return self._x + ax * steps + rx * right, self._y + ay * steps + ry * right


@dataclass(frozen=True)
class Played:
    """One episode of T steps, small enough to send between processes: `frames_of_views` makes the observations."""

    seed: int
    cue: str
    arm: str
    views: np.ndarray  # (T, 3, 3, 3) uint8
    actions: np.ndarray  # (T,) uint8
    best: np.ndarray  # (T,) uint8, what the expert would have done
    places: np.ndarray  # (T, 2) float32, x and y of the agent in cells
    headings: np.ndarray  # (T,) uint8, direction it faces: east, south, west, north
    reward: float  # of the last step; all others are 0
    terminated: bool
    success: bool

    @property
    def steps(self) -> int:
        """T."""
        return len(self.actions)


def play(
    size: int,
    seeds: Iterable[int],
    *,
    random_length: bool = True,
    max_steps: int,
    flaws: Flaws | None = None,
    layouts: Layouts = "own",
    driver: DriverChoice | None = None,
) -> list[Played]:
    """One episode per seed, a function of the seed and these arguments; a `driver` moves instead of the expert."""
    env = MinigridMemoryEnv(size, random_length=random_length, max_steps=max_steps, layouts=layouts)
    return [_play_one(env, int(seed), flaws, driver) for seed in seeds]


def _play_one(env: MinigridMemoryEnv, seed: int, flaws: Flaws | None, choice: DriverChoice | None = None) -> Played:
    expert = Expert(np.random.default_rng([seed, EXPERT_STREAM]), flaws)
    driver = None if choice is None else choice.driver(NAME, seed)
    observation, _ = env.reset(seed=seed)
    steps, reward, over = [], 0.0, False
    while not over:
        view, (x, y, heading) = env.view, env.pose
        action = expert.act(view, None if driver is None else driver.act(observation, reward))
        steps.append((view, action, expert.best, (x, y), heading))
        observation, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    kinds = (np.uint8, np.uint8, np.uint8, np.float32, np.uint8)
    views, actions, best, places, headings = (
        np.array(values, dtype=kind) for values, kind in zip(zip(*steps, strict=True), kinds, strict=True)
    )
    return Played(seed, env.cue, env.arm, views, actions, best, places, headings, reward, terminated, env.success)


def expert_episodes(
    size: int,
    seeds: Iterable[int],
    *,
    random_length: bool = True,
    max_steps: int | None = None,
    layouts: Layouts = "own",
) -> Episodes:
    """A flawless expert's results in the mazes of these seeds, one episode each, to print with a model's.

    The arguments are those of `MinigridMemoryEnv`; without ``max_steps``, the limit is `expert_cap`, which always
    suffices. A last reward above 0 is a success.

    Raises:
        UserError: the size or the limit is out of range, or there is no seed.
    """
    from RATE_model.acting.rollout import Episodes  # late, as it imports torch; see `generate`

    limit = expert_cap(size) if max_steps is None else max_steps
    played = play(size, seeds, random_length=random_length, max_steps=limit, layouts=layouts)
    if not played:
        raise UserError("the expert was given no seed: at least one episode is needed")
    rewards = np.array([episode.reward for episode in played], dtype=np.float64)
    return Episodes(rewards, np.array([episode.steps for episode in played], dtype=np.int64), rewards)
