"""Finding paths in a maze: distances over its free ground, and the action that follows them best.

Positions and lengths are in cells. The ground is a grid of ``PER_CELL`` points per cell and side; distances are
lengths of shortest paths along 16 directions. A shortest path cuts corners too closely for an agent with a width, so
points near a wall count four times.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

PER_CELL = 8
REACH = 0.3  # an agent nearer than this to a goal has reached it

_CLEARANCE = 0.35  # from walls, beyond which points have no extra cost
_NEAR_WALL = 4.0  # cost factor near a wall
_FAR = 99.0  # distance of unreachable points
_DEPTH = 4  # actions looked ahead
_TURN_COST = 0.3  # cost of a radian between the heading and the path, in cells
_REVERSAL_COST = 0.1  # cost of turning straight back, in cells; without it the agent may turn left and right forever

# Measured: in one step the agent advances by these parts of its last three forward commands, and turns by these of its
# last two; at most 0.25 cells and 0.32 rad.
_ADVANCE = (0.10, 0.095, 0.055)
_TURN = (0.255, 0.065)
_FORWARD = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])  # of each action
_LEFT = np.array([0.0, 0.0, 1.0, -1.0, 1.0, -1.0])


@dataclass(frozen=True)
class Field:
    """Paths to a goal; N = size * PER_CELL.

    Attributes:
        free: (N, N) bool, ground that can be stood on.
        distance: (N, N) float64, of the shortest path; 0 within reach of a goal.
        heading: (N, N) float64, radians, the direction of that path.
        goal: (N, N) int64, the number of the goal that it leads to; arbitrary if there is no path.
    """

    free: np.ndarray
    distance: np.ndarray
    heading: np.ndarray
    goal: np.ndarray

    def nearest(self, position: np.ndarray) -> int:
        """The number of the goal that is nearest to a position (2,)."""
        x, y = fine_point(position, len(self.free))
        return int(self.goal[y, x])

    def reachable(self, position: np.ndarray) -> bool:
        """Whether a path leads to a goal from a position (2,)."""
        x, y = fine_point(position, len(self.free))
        return bool(self.distance[y, x] < _FAR - REACH)


def fine_point(position: np.ndarray, count: int) -> tuple[int, int]:
    """The point of the ground, (x, y), at a position (2,) in cells."""
    x, y = np.clip((np.asarray(position) * PER_CELL).astype(int), 0, count - 1)
    return int(x), int(y)


def field(layout: np.ndarray, goals: np.ndarray) -> Field:
    """Paths to the nearest of some goals.

    Args:
        layout: (size, size) bool, True = free.
        goals: (G, 2) x and y, at least one.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    free = np.kron(layout, np.ones((PER_CELL, PER_CELL), dtype=bool))
    to_wall: Any = distance_transform_edt(np.pad(free, 1))
    safe = (to_wall[1:-1, 1:-1] > _CLEARANCE * PER_CELL).ravel()
    passed, lengths = _edges(len(free))
    possible = free.ravel()[passed].all(axis=0)
    ends = passed[:2, possible]
    lengths = np.where(safe[ends].all(axis=0), 1.0, _NEAR_WALL) * lengths[possible]
    graph = csr_array((lengths, (ends[0], ends[1])), shape=(free.size, free.size))
    points = [fine_point(goal, len(free)) for goal in goals]
    sources, numbers = np.unique([y * len(free) + x for x, y in points], return_index=True)
    distance, _, origin = dijkstra(graph, directed=False, indices=sources, min_only=True, return_predecessors=True)
    goal = numbers[np.minimum(np.searchsorted(sources, origin), len(sources) - 1)].reshape(free.shape)
    distance = distance.reshape(free.shape)
    # Walls are as far as the ground beside them, so headings along a wall are right close to it.
    beside: Any = distance_transform_edt(~np.isfinite(distance), return_distances=False, return_indices=True)
    slope_y, slope_x = np.gradient(distance[tuple(beside)])
    heading = np.arctan2(-slope_y, -slope_x)
    return Field(free, np.maximum(np.where(np.isfinite(distance), distance, _FAR) - REACH, 0.0), heading, goal)


class Pilot:
    """Chooses actions that follow a field, given the agent's previous motion.

    It tries all action sequences of the next four steps and takes the first action of the best.
    """

    def __init__(self) -> None:
        self._forward = (0.0, 0.0)  # of the last two actions, the last one first
        self._left = 0.0  # of the last action

    def choose(self, ways: Field, position: np.ndarray, direction: np.ndarray) -> int:
        """The best action at a position (2,) for an agent that faces in a direction (2,)."""
        plans = _plans()
        count = len(plans)
        x, y = np.full(count, position[0]), np.full(count, position[1])
        angle = np.full(count, np.arctan2(direction[1], direction[0]))
        forward, left = (np.full(count, value) for value in self._forward), np.full(count, self._left)
        before, earlier = forward
        arrived, cost, size = np.zeros(count, dtype=bool), np.zeros(count), len(ways.free)

        def points(values: np.ndarray) -> np.ndarray:
            return np.clip((values * PER_CELL).astype(np.int64), 0, size - 1)

        for step in range(_DEPTH):
            ahead, turn = _FORWARD[plans[:, step]], _LEFT[plans[:, step]]
            way = _ADVANCE[0] * ahead + _ADVANCE[1] * before + _ADVANCE[2] * earlier
            turned = _TURN[0] * turn + _TURN[1] * left
            cost += _REVERSAL_COST * (turn * left < 0)
            new_x, new_y = x + way * np.cos(angle + turned / 2), y + way * np.sin(angle + turned / 2)
            inside = (new_x > 0) & (new_y > 0) & (new_x * PER_CELL < size) & (new_y * PER_CELL < size) & ~arrived
            x_free = inside & ways.free[points(y), points(new_x)]
            y_free = inside & ways.free[points(new_y), points(x)]
            x, y, angle = np.where(x_free, new_x, x), np.where(y_free, new_y, y), angle + turned
            earlier, before, left = before, ahead, turn
            distance = ways.distance[points(y), points(x)]
            arrived |= distance <= 0
            cost += np.where(arrived, 0.0, distance / _DEPTH)
        off = np.abs((ways.heading[points(y), points(x)] - angle + np.pi) % (2 * np.pi) - np.pi)
        cost += np.where(arrived, 0.0, distance + _TURN_COST * off)
        return int(plans[np.argmin(cost), 0])

    def note(self, action: int) -> None:
        """Record the action taken, whether chosen here or not."""
        self._forward = (float(_FORWARD[action]), self._forward[0])
        self._left = float(_LEFT[action])


@functools.cache
def _edges(count: int) -> tuple[np.ndarray, np.ndarray]:
    """All edges between neighbours on a completely free ground of count x count points.

    Returns the points passed (4, E), both ends first, and the edges' lengths (E,) in cells.
    """
    numbers = np.arange(count * count).reshape(count, count)
    passed, lengths = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1)):
        rows, columns = slice(0, count - down), slice(max(0, -right), count - max(0, right))
        y, x = (part.ravel() for part in np.mgrid[rows, columns])
        low = numbers[y + down // 2, x + int(np.floor(right / 2))]
        high = numbers[y + -(-down // 2), x + int(np.ceil(right / 2))]
        passed.append(np.stack([numbers[y, x], numbers[y + down, x + right], low, high]))
        lengths.append(np.full(len(y), np.hypot(down, right) / PER_CELL))
    return np.concatenate(passed, axis=1), np.concatenate(lengths)


@functools.cache
def _plans() -> np.ndarray:
    """(625, 4) all action sequences without a pause."""
    return np.array(list(itertools.product(range(1, len(_FORWARD)), repeat=_DEPTH)))
