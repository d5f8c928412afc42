"""A scripted player of ViZDoom-Two-Colors that knows the pillar's colour and where items are.

With the view ``limited`` it only knows the right items in its field of view, so that a model can imitate it from
pictures; with ``full`` it knows all. At every step it

1. picks the item that costs the least walking and turning, including detours and dead ends;
2. steers around wrong items and the pillar;
3. takes the first action, from the most to the least useful, that by the game's kinematics touches nothing wrong.

`PerturbedExpert` plays with the same skill but makes errors, and reports what the expert would have done at each step.

Lengths are in map units, angles in degrees (counter-clockwise) unless stated otherwise, times in tics.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Literal

import numpy as np

from VizDoom.VizDoom_src.engine import Surroundings
from VizDoom.VizDoom_src.env import FORWARD, LEFT, LEFT_FORWARD, MIRRORED, NUM_ACTIONS, RIGHT, RIGHT_FORWARD
from VizDoom.VizDoom_src.scenario import PILLAR, ROOM, TICS_PER_STEP

View = Literal["limited", "full"]

# Measured in the game.
TOUCH_DISTANCE = 36.0  # the player touches an item when both coordinates differ by less
THRUST, KEPT = 0.78125, 0.90625  # speed gained per tic of walking, share kept from tic to tic
SLOW_TURN, FAST_TURN, SLOW_TICS = 1.7578, 3.5156, 5  # degrees per tic, at first and after this many tics
TOP_SPEED = THRUST / (1 - KEPT)
FULL_HEALTH = 100.0
PERTURBATION_STEPS = 20  # mean length in steps of a perturbed or unperturbed spell, unless told otherwise
HALF_VIEW = 46.0

# Tuned by hand on seeds 0 to 19.
_FELT = 60.0  # wrong items this near are known even behind the player
_WASTE = 120.0  # right items this near are avoided at full health, when they would heal nothing
_HORIZON = 24  # tics of lookahead per action: one step, then coasting
_NEAR = 120.0  # items this near can be touched within that time
_LOOK_AHEAD = 160.0
_HEADINGS = np.array([0, 5, 10, 16, 24, 34, 46, 60, 80, 110, 150, 180])
_HEADINGS = np.concatenate([_HEADINGS, -_HEADINGS[1:-1]]).astype(np.float64)
_MARGINS = (1.5, 0.4, 0.05)  # clearances, tried in order until an action is safe
_BARRED, _KEEP, _BANNED = 25.0, 6.0, 60.0  # cost in tics: blocked way, present target (less), banned target
_BAN = 300  # tics
_PATIENCE = 240  # tics before a target is given up
_STUCK, _STUCK_TICS, _ESCAPE_TICS = 24.0, 90, 50  # moved less in this many tics: walk elsewhere, this many tics
_SEARCH = (LEFT, LEFT_FORWARD, RIGHT, RIGHT_FORWARD, FORWARD)

_TURN = np.array([1.0, -1.0, 0.0, 1.0, -1.0])  # per action
_WALK = np.array([0.0, 0.0, 1.0, 1.0, 1.0])


class Expert:
    """Plays one episode.

    Args:
        view: what it knows; see the module.
    """

    def __init__(self, view: View = "limited") -> None:
        self._view = view
        self._turn, self._turned = 0.0, 0  # direction of the last turn, and tics held
        self._target: np.ndarray | None = None
        self._target_tics = 0
        self._banned: list[tuple[np.ndarray, int]] = []  # targets, and the tic the ban ends
        self._tic = 0  # only counts while there is a target
        self._trail: deque[np.ndarray] = deque(maxlen=_STUCK_TICS // TICS_PER_STEP)
        self._escape = 0  # steps left to walk elsewhere

    def act(self, around: Surroundings) -> int:
        """Choose an action and record it as taken."""
        action = self.choose(around)
        self.record_action(action)
        return action

    def choose(self, around: Surroundings) -> int:
        """Choose an action. Call once per step, followed by `record_action`."""
        right, avoided = self._known(around)
        preferred = self._preferred(around, right, avoided) if len(right) else _SEARCH
        return self._safe(around, avoided, preferred)

    def record_action(self, action: int) -> None:
        """Record the action that was taken, whoever chose it."""
        turn = _TURN[action]
        self._turned = (self._turned if turn == self._turn else 0) + TICS_PER_STEP if turn else 0
        self._turn = turn

    def _known(self, around: Surroundings) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the items to collect, (R, 2), and of everything to avoid, (A, 2)."""
        right, wrong = around.right, around.wrong
        if self._view == "limited":
            right = right[_seen(around, right)]
            wrong = wrong[_seen(around, wrong) | (_distance(around.position, wrong) < _FELT)]
        avoided = [wrong]
        if around.health >= FULL_HEALTH:
            avoided.append(around.right[_distance(around.position, around.right) < _WASTE])
        if around.pillar:
            avoided.append(np.array([PILLAR]))
        return right, np.concatenate(avoided)

    def _preferred(self, around: Surroundings, right: np.ndarray, avoided: np.ndarray) -> tuple[int, ...]:
        """Actions from best to worst for making progress."""
        if self._is_stuck(around.position):
            self._escape = _ESCAPE_TICS // TICS_PER_STEP
            self._trail.clear()
            if self._target is not None:
                self._ban(self._target)
        if self._escape:
            self._escape -= 1
            return _steering(_most_open(around, avoided), math.inf)
        self._tic += 1
        offsets = right - around.position
        distances = np.hypot(*offsets.T)
        bearings = _wrapped(np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0])) - around.angle)
        chosen = self._pick_item(around, right, avoided, distances, bearings)
        heading, distance = bearings[chosen], distances[chosen]
        if len(avoided):
            heading = _clear_heading(around, avoided, heading, min(distance, _LOOK_AHEAD))
        return _steering(heading, distance)

    def _is_stuck(self, position: np.ndarray) -> bool:
        """Whether the player has hardly moved for a while; records its position."""
        self._trail.append(position)
        full = len(self._trail) == self._trail.maxlen
        return self._escape == 0 and full and np.abs(self._trail[0] - position).max() < _STUCK

    def _pick_item(
        self, around: Surroundings, right: np.ndarray, avoided: np.ndarray, distances: np.ndarray, bearings: np.ndarray
    ) -> int:
        """Which of the right items to go to."""
        cost = np.maximum(distances - TOUCH_DISTANCE, 0) / TOP_SPEED + np.abs(bearings) / FAST_TURN
        if len(avoided):
            for item in np.argsort(cost)[:6]:
                length = max(float(distances[item]) - TOUCH_DISTANCE, 1.0)
                cost[item] += 0 if _is_clear(around, avoided, float(bearings[item]), length) else _BARRED
        if self._target is not None:
            cost[_same(right, self._target)] -= _KEEP
        self._banned = [(place, until) for place, until in self._banned if until > self._tic]
        for place, _ in self._banned:
            cost[_same(right, place)] += _BANNED
        chosen = int(np.argmin(cost))
        if self._target is not None and _same(right[chosen], self._target):
            self._target_tics += TICS_PER_STEP
            if self._target_tics > _PATIENCE:
                self._ban(self._target)
                self._target_tics = 0
        else:
            self._target_tics = 0
        self._target = right[chosen]
        return chosen

    def _ban(self, place: np.ndarray) -> None:
        self._banned.append((place, self._tic + _BAN // TICS_PER_STEP))

    def _safe(self, around: Surroundings, avoided: np.ndarray, preferred: tuple[int, ...]) -> int:
        """The first action that touches nothing avoided, else the one that does so latest."""
        before = _distance(around.position, avoided)
        near = before < _NEAR
        if not near.any():
            return preferred[0]
        before = before[near]
        path = self._paths(around)
        between = np.abs(path[:, :, None] - avoided[near]).max(axis=-1)  # (5, horizon, A)
        approaching = between < before - 0.02
        for margin in _MARGINS:
            hits = ((between < TOUCH_DISTANCE + margin) & approaching).any(axis=2)
            for action in preferred:
                if not hits[action].any():
                    return action
        first = np.where(hits.any(axis=1), hits.argmax(axis=1), _HORIZON)
        clearance = between.min(axis=(1, 2))
        return max(preferred, key=lambda action: (first[action], clearance[action]))

    def _paths(self, around: Surroundings) -> np.ndarray:
        """The path of each action taken for one step, then coasting: (5, horizon, 2)."""
        held = np.where(_TURN == self._turn, self._turned, 0)
        tics = np.arange(1, TICS_PER_STEP + 1)
        speeds = np.where(held[:, None] + tics <= SLOW_TICS, SLOW_TURN, FAST_TURN)
        angles = np.radians(around.angle + _TURN[:, None] * np.cumsum(speeds, axis=1))  # (5, tics per step)
        thrusts = THRUST * _WALK[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        velocity, moves = np.broadcast_to(around.velocity, (NUM_ACTIONS, 2)), []
        for tic in range(TICS_PER_STEP):
            velocity = velocity + thrusts[:, tic]
            moves.append(velocity)
            velocity = velocity * KEPT
        coasting = KEPT ** np.arange(_HORIZON - TICS_PER_STEP)
        moves = np.concatenate([np.stack(moves, axis=1), velocity[:, None] * coasting[:, None]], axis=1)
        return around.position + np.cumsum(moves, axis=1)


class PerturbedExpert:
    """Plays one episode with an expert's skill and random errors; reports what the expert would have done at each step.

    Args:
        generator: for the errors; unused if there are none.
        view: what it knows; see the module.
        noise: probability of a uniformly random action at each step.
        perturbation: probability of mistaking wrong items for right ones.
        perturbation_steps: mean number of steps after which this is redrawn, at least 1.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        *,
        view: View = "limited",
        noise: float = 0.0,
        perturbation: float = 0.0,
        perturbation_steps: int = PERTURBATION_STEPS,
    ) -> None:
        self._generator, self._noise = generator, noise
        self._perturbation, self._perturbation_steps = perturbation, perturbation_steps
        self._expert, self._misled = Expert(view), Expert(view)
        self._is_misled = bool(perturbation) and generator.random() < perturbation

    def act(self, around: Surroundings, driven: int | None = None) -> tuple[int, int]:
        """The action taken, and the one the expert would have taken.

        With `driven`, another player's action, it only watches.
        """
        best = action = self._expert.choose(around)
        if driven is not None:
            self._expert.record_action(driven)
            return driven, best
        if self._perturbation:
            if self._generator.random() < 1 / self._perturbation_steps:
                self._is_misled = self._generator.random() < self._perturbation
            wrong = self._misled.choose(replace(around, right=around.wrong, wrong=around.right))
            action = wrong if self._is_misled else best
        if self._noise and self._generator.random() < self._noise:
            action = int(self._generator.integers(NUM_ACTIONS))
        self._expert.record_action(action)
        self._misled.record_action(action)
        return action, best


def _steering(heading: float, distance: float) -> tuple[int, ...]:
    """Actions from best to worst for a heading relative to the one faced."""
    aside = abs(heading)
    if aside < 4:
        order = (FORWARD, LEFT_FORWARD, LEFT, RIGHT_FORWARD, RIGHT)
    elif aside < 40:
        order = (LEFT_FORWARD, LEFT, FORWARD, RIGHT_FORWARD, RIGHT)
        if aside > 12 and distance < 110:  # walking would circle around it
            order = (LEFT, LEFT_FORWARD, *order[2:])
    else:
        order = (LEFT, LEFT_FORWARD, RIGHT, FORWARD, RIGHT_FORWARD)
    return order if heading > 0 else tuple(MIRRORED[action] for action in order)


def _clear_heading(around: Surroundings, avoided: np.ndarray, heading: float, length: float) -> float:
    """The unblocked heading nearest to this one; this one if there is none."""
    for other in _HEADINGS[np.argsort(np.abs(_wrapped(_HEADINGS - heading)), kind="stable")]:
        if _is_clear(around, avoided, other, length):
            return float(other) if abs(_wrapped(other - heading)) > 6 else heading
    return heading


def _most_open(around: Surroundings, avoided: np.ndarray) -> float:
    """The heading with the longest free way; turning counts against it."""
    if not len(avoided):
        return 0.0
    lengths = (200.0, 140.0, 90.0, 50.0, 20.0, 0.0)

    def openness(heading: float) -> float:
        free = next(length for length in lengths if not length or _is_clear(around, avoided, heading, length, 1.5))
        return free - 8 * abs(math.radians(heading))

    return float(max(_HEADINGS, key=openness))


def _is_clear(around: Surroundings, avoided: np.ndarray, heading: float, length: float, margin: float = 5.0) -> bool:
    """Whether a straight way, at a heading relative to the one faced, avoids everything in `avoided` and all walls."""
    direction = math.radians(around.angle + heading)
    steps = np.arange(8.0, length + 8.0, 12.0)[:, None]
    places = around.position + steps * np.array([math.cos(direction), math.sin(direction)])
    if length > 60:
        x, y = places[min(len(places) - 1, 4)]
        west, south, east, north = ROOM
        if not (west + 18 <= x <= east - 18 and south + 18 <= y <= north - 18):
            return False
    between = np.abs(places[:, None] - avoided).max(axis=-1)
    return not ((between < TOUCH_DISTANCE + margin) & (between < _distance(around.position, avoided) - 0.5)).any()


def _seen(around: Surroundings, places: np.ndarray) -> np.ndarray:
    """Which places (n, 2) are in the field of view: (n,) bool."""
    offsets = places - around.position
    return np.abs(_wrapped(np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0])) - around.angle)) < HALF_VIEW


def _distance(position: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The Chebyshev distance, by which the game detects touches: (n,)."""
    return np.abs(places - position).max(axis=-1)


def _same(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.abs(places - place).max(axis=-1) < 1


def _wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles wrapped to -180 to 180 degrees."""
    return (angles + 180) % 360 - 180
