"""Scripted players of Memory Maze.

`Planner` ("planner") knows the map, the balls and its own position from the start. Its actions cannot be inferred from
pictures: it walks straight to balls that it never saw.

`Explorer` ("explorer") acts only on what it has seen since the episode began: cells and balls in its field of view,
along free lines of sight. It goes to the target ball if it has seen it, over ground that it has seen, and otherwise
to the nearest unseen place. So an agent that remembers its pictures could act the same way.

Both know their position and their past actions. Both can be given errors: random actions in a share of their steps, or
walks over the true map to a random ball (perturbation). They continue from wherever that takes them, and report at
every step what they would have done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MemoryMaze.MemoryMaze_src.env import NUM_ACTIONS
from MemoryMaze.MemoryMaze_src.navigation import Field, Pilot, field

# The camera sees 40 degrees to each side, and the border covers two of 32 columns.
HALF_VIEW = float(np.arctan(np.tan(np.radians(40)) * 30 / 32))
RAYS = 61  # as many as there are columns
BALL_SIGHT = 8.0  # cells; a ball is four columns wide there
BALL_RADIUS = 0.3
PERTURBATION_STEPS = 20  # mean length in steps of a perturbed or unperturbed spell
TOUCH_RADIUS = 0.4  # cells; closer than this to the middle of a cell, the agent has touched the ball there

_RAY_STEP = 0.04


@dataclass(frozen=True)
class Sight:
    """What is seen, from one position or from several.

    Attributes:
        free, walls: (size, size) bool, cells that are seen to be free, or to be walls.
        searched: (size, size) bool, cells in whose middle a ball would be seen, or touched.
        balls: (n,) bool, which balls are seen.
    """

    free: np.ndarray
    walls: np.ndarray
    searched: np.ndarray
    balls: np.ndarray

    def __or__(self, other: Sight) -> Sight:
        """What is seen in either."""
        return Sight(*map(np.logical_or, vars(self).values(), vars(other).values()))


def look(layout: np.ndarray, position: np.ndarray, direction: np.ndarray, balls: np.ndarray) -> Sight:
    """What an agent sees: what rays from its position, one per picture column, meet before the first wall.

    Args:
        layout: (size, size) bool, True = free.
        position, direction: (2,) of the agent, in cells.
        balls: (n, 2) in cells.
    """
    middle = np.arctan2(direction[1], direction[0])
    # Columns of a picture are equally wide on a plane before the camera, not in angle.
    columns = np.linspace(-1, 1, RAYS) * np.tan(HALF_VIEW)
    seen_free, seen_walls = _cast(layout, position, middle + np.arctan(columns))
    seen_free[tuple(_cell(position, len(layout)))] = True
    rows, columns = np.nonzero(seen_free)
    searched = np.zeros_like(seen_free)
    middles = np.stack([columns, rows], axis=1) + 0.5
    stood_in = np.hypot(*(middles - position).T) < TOUCH_RADIUS
    searched[rows, columns] = in_sight(layout, position, middle, middles) | stood_in
    return Sight(seen_free, seen_walls, searched, in_sight(layout, position, middle, balls))


def _cell(position: np.ndarray, size: int) -> np.ndarray:
    """(..., 2) row and column of positions (..., 2)."""
    return np.clip(np.floor(position).astype(int), 0, size - 1)[..., ::-1]


def _cast(layout: np.ndarray, position: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells that rays pass, and the walls where they end: two (size, size) bool."""
    size = len(layout)
    along = np.arange(_RAY_STEP, 1.5 * size, _RAY_STEP)
    points = position + along[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]
    columns, rows = np.floor(points).astype(int).transpose(2, 0, 1)  # (rays, points)
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    rows, columns = np.clip(rows, 0, size - 1), np.clip(columns, 0, size - 1)
    passable = inside & layout[rows, columns]
    before = np.cumsum(~passable, axis=1)
    free, walls = np.zeros((size, size), dtype=bool), np.zeros((size, size), dtype=bool)
    passed, met = before == 0, inside & ~passable & (before == 1)
    free[rows[passed], columns[passed]] = True
    walls[rows[met], columns[met]] = True
    return free, walls


def in_sight(layout: np.ndarray, position: np.ndarray, angle: float, balls: np.ndarray) -> np.ndarray:
    """Which of the balls (n, 2) are near, in view and not behind a wall; (n,) bool."""
    away = balls - position
    distance = np.hypot(away[:, 0], away[:, 1])
    off = np.abs((np.arctan2(away[:, 1], away[:, 0]) - angle + np.pi) % (2 * np.pi) - np.pi)
    seen = (off < HALF_VIEW) & (distance < BALL_SIGHT)
    if seen.any():
        away, distance = away[seen, None], distance[seen, None]
        along = np.minimum(np.arange(0.0, BALL_SIGHT, _RAY_STEP), distance - BALL_RADIUS)
        share = np.maximum(along, 0.0) / np.maximum(distance, _RAY_STEP)
        cells = _cell(position + share[..., None] * away, len(layout))
        seen[seen] = layout[cells[..., 0], cells[..., 1]].all(axis=1)
    return seen


class Planner:
    """Takes the shortest path to the target ball.

    Attributes:
        random: whether the last action was a random one.
        best: the action it would have taken without random actions and perturbation.

    Args:
        generator: for its errors.
        noise: the share of actions that are random, 0 to 1.
        perturbation: the share of time in which it walks to a random ball, maybe the target; redrawn every
            `PERTURBATION_STEPS` steps on average.
    """

    def __init__(self, generator: np.random.Generator, *, noise: float = 0.0, perturbation: float = 0.0) -> None:
        self._generator, self._noise, self._perturbation = generator, noise, perturbation
        self._pilot = Pilot()
        self.random, self.best = False, 0
        self._lure: int | None = None  # the ball a perturbation leads it to
        self._spell = 0  # steps left until the perturbation is redrawn
        self._ways_to_balls: dict[int, Field] = {}

    def act(self, info: dict[str, Any], driven: int | None = None) -> int:
        """The action in one maze, given `MemoryMazeEnv`'s privileged info of every step in turn.

        With `driven`, another player's action, it only watches, and returns that action.
        """
        action = self.best = self._choose(self._ways(info), info)
        if driven is not None:
            self._pilot.note(driven)
            return driven
        if self._perturbation and (lured := self._perturbed_field(info)) is not None:
            action = self._choose(lured, info)
        self.random = bool(self._generator.random() < self._noise)
        if self.random:
            action = int(self._generator.integers(NUM_ACTIONS))
        self._pilot.note(action)
        return action

    def _choose(self, ways: Field, info: dict[str, Any]) -> int:
        return self._pilot.choose(ways, info["agent_pos"], info["agent_dir"])

    def _perturbed_field(self, info: dict[str, Any]) -> Field | None:
        """Paths to the ball that a perturbation leads it to at this step; None: not perturbed."""
        if self._spell == 0:
            self._spell = int(self._generator.geometric(1 / PERTURBATION_STEPS))
            led = self._generator.random() < self._perturbation
            self._lure = int(self._generator.integers(len(info["targets_pos"]))) if led else None
        self._spell -= 1
        return None if self._lure is None else self._ways_to(self._lure, info)

    def _ways(self, info: dict[str, Any]) -> Field:
        return self._ways_to(info["target_index"], info)

    def _ways_to(self, ball: int, info: dict[str, Any]) -> Field:
        """Paths to a ball over the true map, which never changes."""
        if ball not in self._ways_to_balls:
            self._ways_to_balls[ball] = field(info["maze_layout"], info["targets_pos"][[ball]])
        return self._ways_to_balls[ball]


class Explorer(Planner):
    """Goes to the target ball if it has seen it, and otherwise to places it has not looked at.

    Attributes:
        known: what it has seen so far; None at first.
    """

    def __init__(self, generator: np.random.Generator, *, noise: float = 0.0, perturbation: float = 0.0) -> None:
        super().__init__(generator, noise=noise, perturbation=perturbation)
        self.known: Sight | None = None
        self._fields: dict[Any, Field] = {}
        self._search: Field | None = None
        self._places = np.zeros((0, 2), dtype=int)  # rows and columns of the goals of that field

    def _ways(self, info: dict[str, Any]) -> Field:
        known = self._see(look(info["maze_layout"], info["agent_pos"], info["agent_dir"], info["targets_pos"]))
        target, place = info["target_index"], info["agent_pos"]
        if known.balls[target]:
            goal = info["targets_pos"][[target]]
            ways = self._remembered((target, True), lambda: field(known.free, goal))
            if ways.reachable(place):
                return ways
            return self._remembered((target, False), lambda: field(~known.walls, goal))
        return self._ways_to_search(known, place)

    def _see(self, sight: Sight) -> Sight:
        """The known cells and balls after another look. Drops paths over changed ground."""
        before = self.known or sight
        new_walls = (sight.walls & ~before.walls).any()
        if new_walls:
            self._search = None
        if new_walls or (sight.free & ~before.free).any():
            self._fields.clear()
        self.known = before | sight
        return self.known

    def _remembered(self, key: Any, make: Callable[[], Field]) -> Field:
        """A field over the known ground, cached."""
        if key not in self._fields:
            self._fields[key] = make()
        return self._fields[key]

    def _ways_to_search(self, known: Sight, place: np.ndarray) -> Field:
        """Paths to places that may hold a ball: unsearched ground, and unseen cells next to seen ground.

        They stay valid until the place they lead to has been searched, or a wall shows up.
        """
        free, walls = known.free, known.walls
        padded = np.pad(free, 1)
        beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        places = (free & ~known.searched) | (~free & ~walls & beside)
        if not places.any():  # the ball was overlooked
            self.known, places = replace(known, searched=np.zeros_like(free)), free
        if self._search is None or not places[tuple(self._places[self._search.nearest(place)])]:
            self._places = np.argwhere(places)
            self._search = field(~walls, self._places[:, ::-1] + 0.5)
        return self._search


# The players by their names in a mix.
EXPERTS = {"explorer": Explorer, "planner": Planner}
