"""A scripted player of ViZDoom-Two-Colors that is told the pillar's colour and where items lie.

With the view ``limited`` it knows of right items only those before its eyes, so that a model can imitate it from
pictures; with ``full`` it knows all. At every step it

1. picks the item to go to: the one of least walking and turning, with detours and dead ends counted;
2. turns its heading aside where wrong items or the pillar bar the way;
3. takes the first action, from the most to the least useful, that leads into nothing wrong by the game's kinematics.

`PerturbedExpert` plays with its skill but errs, and tells of every step what it would have done.

Lengths are in map units, angles in degrees (counter-clockwise) unless they say otherwise, times in tics.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Literal

import numpy as np

from VizDoom.VizDoom_src.engine import Surroundings
from VizDoom.VizDoom_src.env import FORWARD, LEFT, LEFT_FORWARD, NUM_ACTIONS, RIGHT, RIGHT_FORWARD
from VizDoom.VizDoom_src.scenario import PILLAR, ROOM, TICS_PER_STEP

View = Literal["limited", "full"]

# Measured of the game.
TOUCH_DISTANCE = 36.0  # the player touches an item when both coordinates differ by less
THRUST, KEPT = 0.78125, 0.90625  # speed gained by a tic of walking, share of it kept from tic to tic
SLOW_TURN, FAST_TURN, SLOW_TICS = 1.7578, 3.5156, 5  # degrees a tic, at first and after this many tics
TOP_SPEED = THRUST / (1 - KEPT)
FULL_HEALTH = 100.0
PERTURBATION_STEPS = 20  # mean steps of a spell in which a player is perturbed, or is not
HALF_VIEW = 46.0

# Chosen by trial on seeds 0 to 19.
_FELT = 60.0  # wrong items so near are known of even behind the back
_WASTE = 120.0  # right items so near are kept off at full health, when they would heal nothing
_HORIZON = 24  # tics that an action's consequences are followed: a step, then coasting
_NEAR = 120.0  # items so near may be run into within that time
_LOOK_AHEAD = 160.0
_HEADINGS = np.array([0, 5, 10, 16, 24, 34, 46, 60, 80, 110, 150, 180])
_HEADINGS = np.concatenate([_HEADINGS, -_HEADINGS[1:-1]]).astype(np.float64)
_MARGINS = (1.5, 0.4, 0.05)  # distances kept from what is avoided, the first that allows for a safe action
_BARRED, _KEEP, _BANNED = 25.0, 6.0, 60.0  # tics: of a barred way more, of the present target less, of a banned more
_BAN = 300  # tics
_PATIENCE = 240  # tics that one target may take
_STUCK, _STUCK_TICS, _ESCAPE_TICS = 24.0, 90, 50  # no further than this in so long: walk elsewhere for so long
_SEARCH = (LEFT, LEFT_FORWARD, RIGHT, RIGHT_FORWARD, FORWARD)

_TURN = np.array([1.0, -1.0, 0.0, 1.0, -1.0])  # of each action
_WALK = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
_MIRRORED = {LEFT: RIGHT, RIGHT: LEFT, FORWARD: FORWARD, LEFT_FORWARD: RIGHT_FORWARD, RIGHT_FORWARD: LEFT_FORWARD}


class Expert:
    """Plays one episode after another; `reset` between them.

    Args:
        view: what it knows of; see the module.
    """

    def __init__(self, view: View = "limited") -> None:
        self._view = view
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._turn, self._turned = 0.0, 0  # direction of the last action, and for how many tics it has been held
        self._target: np.ndarray | None = None
        self._target_tics = 0
        self._banned: list[tuple[np.ndarray, int]] = []  # targets, and until when
        self._tic = 0  # counted while there is something to go to
        self._trail: deque[np.ndarray] = deque(maxlen=_STUCK_TICS // TICS_PER_STEP)
        self._escape = 0  # steps left of walking elsewhere

    def act(self, around: Surroundings) -> int:
        """The action for what lies around, which is then taken."""
        action = self.choose(around)
        self.record_action(action)
        return action

    def choose(self, around: Surroundings) -> int:
        """The action for what lies around; once a step, and `record_action` must follow."""
        right, avoided = self._known(around)
        preferred = self._preferred(around, right, avoided) if len(right) else _SEARCH
        return self._safe(around, avoided, preferred)

    def record_action(self, action: int) -> None:
        """Take note of the action that was taken, whoever chose it."""
        turn = _TURN[action]
        self._turned = (self._turned if turn == self._turn else 0) + TICS_PER_STEP if turn else 0
        self._turn = turn

    def _known(self, around: Surroundings) -> tuple[np.ndarray, np.ndarray]:
        """Places of the items to go for, (R, 2), and of all that is to be avoided, (A, 2)."""
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
        """Actions from the best to the worst for getting on."""
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
        """Whether the player has hardly moved for long; takes note of where it is."""
        self._trail.append(position)
        full = len(self._trail) == self._trail.maxlen
        return self._escape == 0 and full and np.abs(self._trail[0] - position).max() < _STUCK

    def _pick_item(
        self,
        around: Surroundings,
        right: np.ndarray,
        avoided: np.ndarray,
        distances: np.ndarray,
        bearings: np.ndarray,
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
        """The first of the actions that runs into nothing avoided, or the one that does so last."""
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
        """Where each action leads when it is taken for a step and the player then coasts: (5, horizon, 2)."""
        held = np.where(_TURN == self._turn, self._turned, 0)
        tics = np.arange(1, TICS_PER_STEP + 1)
        speeds = np.where(held[:, None] + tics <= SLOW_TICS, SLOW_TURN, FAST_TURN)
        angles = np.radians(around.angle + _TURN[:, None] * np.cumsum(speeds, axis=1))  # (5, tics of a step)
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
    """Plays one episode with an expert's skill, but errs; tells of every step what the expert would have done.

    Args:
        generator: of the errors; without any nothing is drawn.
        view: what it knows of; see the module.
        noise: probability of a uniformly random action at each step.
        perturbation: probability of mistaking wrong items for right ones, redrawn every `PERTURBATION_STEPS` steps on
            average.
    """

    def __init__(
        self, generator: np.random.Generator, *, view: View = "limited", noise: float = 0.0, perturbation: float = 0.0
    ) -> None:
        self._generator, self._noise, self._perturbation = generator, noise, perturbation
        self._expert, self._misled = Expert(view), Expert(view)
        self._is_misled = bool(perturbation) and generator.random() < perturbation

    def act(self, around: Surroundings, driven: int | None = None) -> tuple[int, int]:
        """The action that is taken, and the one that the expert would have taken.

        With `driven`, the action that another player takes, it only watches.
        """
        best = action = self._expert.choose(around)
        if driven is not None:
            self._expert.record_action(driven)
            return driven, best
        if self._perturbation:
            if self._generator.random() < 1 / PERTURBATION_STEPS:
                self._is_misled = self._generator.random() < self._perturbation
            wrong = self._misled.choose(replace(around, right=around.wrong, wrong=around.right))
            action = wrong if self._is_misled else best
        if self._noise and self._generator.random() < self._noise:
            action = int(self._generator.integers(NUM_ACTIONS))
        self._expert.record_action(action)
        self._misled.record_action(action)
        return action, best


def _steering(heading: float, distance: float) -> tuple[int, ...]:
    """Actions from the best to the worst for going in a direction, relative to that faced."""
    aside = abs(heading)
    if aside < 4:
        order = (FORWARD, LEFT_FORWARD, LEFT, RIGHT_FORWARD, RIGHT)
    elif aside < 40:
        order = (LEFT_FORWARD, LEFT, FORWARD, RIGHT_FORWARD, RIGHT)
        if aside > 12 and distance < 110:  # walking would circle around it
            order = (LEFT, LEFT_FORWARD, *order[2:])
    else:
        order = (LEFT, LEFT_FORWARD, RIGHT, FORWARD, RIGHT_FORWARD)
    return order if heading > 0 else tuple(_MIRRORED[action] for action in order)


def _clear_heading(around: Surroundings, avoided: np.ndarray, heading: float, length: float) -> float:
    """The direction nearest to this one in which nothing bars the way; itself if there is none."""
    for other in _HEADINGS[np.argsort(np.abs(_wrapped(_HEADINGS - heading)), kind="stable")]:
        if _is_clear(around, avoided, other, length):
            return float(other) if abs(_wrapped(other - heading)) > 6 else heading
    return heading


def _most_open(around: Surroundings, avoided: np.ndarray) -> float:
    """The direction in which one can go furthest; turning counts against it."""
    if not len(avoided):
        return 0.0
    lengths = (200.0, 140.0, 90.0, 50.0, 20.0, 0.0)

    def openness(heading: float) -> float:
        free = next(length for length in lengths if not length or _is_clear(around, avoided, heading, length, 1.5))
        return free - 8 * abs(math.radians(heading))

    return float(max(_HEADINGS, key=openness))


def _is_clear(around: Surroundings, avoided: np.ndarray, heading: float, length: float, margin: float = 5.0) -> bool:
    """Whether a straight way in a direction relative to that faced leads past all that is avoided and into no wall."""
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
    """Which places (n, 2) lie in the field of view: (n,) bool."""
    offsets = places - around.position
    return np.abs(_wrapped(np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0])) - around.angle)) < HALF_VIEW


def _distance(position: np.ndarray, places: np.ndarray) -> np.ndarray:
    """As the game measures touches, the larger of the two coordinates' differences: (n,)."""
    return np.abs(places - position).max(axis=-1)


def _same(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.abs(places - place).max(axis=-1) < 1


def _wrapped(angles: np.ndarray) -> np.ndarray:
    """Degrees from -180 to 180."""
    return (angles + 180) % 360 - 180
