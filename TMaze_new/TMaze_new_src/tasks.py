"""Tasks that distinguish memories: chains of T-junctions, for one agent or thousands side by side.

Walk right until the flag shows a junction, then turn up or down; a turn leads into the next corridor or, at the last
junction, to the end. The tasks differ in which turn is right and in the kind of memory that it takes:

    multi-cue   n bits, one at a time in the first n observations, queried at n junctions: by name (each bit comes with
                a name, and the names are queried in another order) or in order; tests capacity
    endless     a hint at the start of every corridor, for the junction at its end; tests overwriting
    distracted  one hint in its colour, and hints of another colour before and after it; tests selectivity
    recall      the agent turns freely at the first step and has to turn the same way at the junction; no observation
                shows it. Action associative retrieval, AAR (Cherepanov et al. 2023, arXiv 2306.09459)

The fifth task, passive, is `env.py`.

Observation, float32: ``[hint, flag, noise]``, then ``colour`` (1 the hint's, -1 a decoy's, 0 none) in distracted, and
the name, n numbers of which at most one is 1, in multi-cue by name. The flag is 1 while the agent is at a junction;
hint and noise are as in `env.py`.

Without memory, every decision is a fair coin toss. An episode and its twin (reset option ``flip``) differ only in the
sides of all hints, so over both any fixed choice is right half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from RATE_model.acting.arrays import ArrayVectorEnv
from RATE_model.acting.vector import register_once
from RATE_model.system.hashing import hashed, stream_keys
from TMaze_new.TMaze_new_src.env import (
    DEFAULT_CORRIDOR_LENGTH,
    DOWN,
    MOVE_X,
    MOVE_Y,
    NUM_ACTIONS,
    RIGHT,
    UP,
    CorridorEnv,
    observation_noise,
)

_HINT, _FLAG, _NOISE = range(3)
# An episode's streams of random bits, separate from its noise.
_BITS, _SHOWN, _ASKED, _DECOYS, _DECOY_SIDES = range(1, 6)


class ChainVectorEnv(ArrayVectorEnv):
    """The common part of all tasks; a task defines the hints and the right turns.

    ``info`` holds (N,) int64 arrays: ``junction``, the number of turns taken, ``right``, the number of right ones among
    those that count, and ``x``. The option ``flip`` of ``reset``, bool or (N,) bool, begins the seed's twin.

    Args:
        num_envs: N, the number of episodes.
        corridor_length: x of the junction in a corridor, one number or (N,) numbers.
        junctions: number of junctions, one number or, where the task allows it, (N,) numbers; None: the task's default.
        max_steps: actions until truncation, one number or (N,); None is one more than needed.
        render_mode: only None.

    Raises:
        UserError: a size is below its minimum.
    """

    name: ClassVar[str]
    default_junctions: ClassVar[int] = 1
    rewards: tuple[float, float] = (1.0, 0.0)  # of a right and of a wrong turn
    step_cost: ClassVar[float] = 0.0
    features: int = 3

    def __init__(
        self,
        num_envs: int = 1,
        corridor_length: int | Sequence[int] | np.ndarray = DEFAULT_CORRIDOR_LENGTH,
        *,
        junctions: int | Sequence[int] | np.ndarray | None = None,
        max_steps: int | Sequence[int] | np.ndarray | None = None,
        render_mode: None = None,
    ) -> None:
        self.num_envs, name = num_envs, f"T-Maze, {self.name}"
        self._count = self._column(self.default_junctions if junctions is None else junctions)
        self.require(name, junctions=self._count)
        self.junctions = int(self._count.max())
        self.corridor_length = self._column(corridor_length)
        self.require(name, self.shortest_corridor(self.junctions), corridor_length=self.corridor_length)
        self._lengths = self._corridors()
        self._there = np.arange(self.junctions) < self._count[:, None]  # (N, junctions), False after a row's last
        steps = self.steps_needed + 1 if max_steps is None else max_steps
        low = np.where(np.arange(self.features) == _FLAG, 0, -1)
        super().__init__(num_envs, low, NUM_ACTIONS, max_steps=steps, name=name, render_mode=render_mode)
        self._rows = np.arange(num_envs)
        self._x, self._junction, self._since = (np.zeros(num_envs, dtype=np.int64) for _ in range(3))
        self._keys = np.zeros(num_envs, dtype=np.uint64)
        self._answers = np.ones((num_envs, self.junctions), dtype=np.int8)
        self._turns = np.zeros((num_envs, self.junctions), dtype=np.int8)  # 0: not taken

    # Defined by each task.

    @classmethod
    def shortest_corridor(cls, junctions: int) -> int:
        """The shortest corridor that shows everything before it is queried."""
        return 1

    def _corridors(self) -> np.ndarray:
        """x of every junction in its corridor, (N, junctions) int64: the first as requested, the others at the end."""
        lengths = np.zeros((self.num_envs, self.junctions), dtype=np.int64)
        lengths[:, 0] = self.corridor_length
        return lengths

    def _draw(self, rows: np.ndarray, flip: np.ndarray) -> None:
        """Draw the hints of the rows (b,) that start; where flip (b,) is True, with all sides exchanged."""
        sides = 2 * self._bits(rows, _BITS, self.junctions).astype(np.int8) - 1
        self._answers[rows] = np.where(flip[:, None], -sides, sides)

    def _show(self, observations: np.ndarray) -> None:
        """Write the task's hints into the current observations (N, features)."""
        raise NotImplementedError

    @property
    def horizons(self) -> tuple[int, ...]:
        """The correlation horizons of the task (Cherepanov et al. 2024, arXiv 2412.06531), shortest first: steps from
        the hint to the decision that needs it, both included. For the first row."""
        raise NotImplementedError

    # Common to all tasks.

    def _begin(self, rows: np.ndarray, seeds: Sequence[int], options: dict[str, Any]) -> None:
        flip = np.broadcast_to(np.asarray(options.get("flip", False), dtype=bool), (self.num_envs,))[rows]
        self._keys[rows] = stream_keys(seeds)
        for state in (self._x, self._junction, self._since, self._turns):
            state[rows] = 0
        self._draw(rows, flip)

    def _move(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = self._here(self._lengths)
        turn = np.where(running & (self._x == length), MOVE_Y[actions], 0)
        turned = np.flatnonzero(turn)
        right = turn == self._here(self._answers)
        counts = self._junction >= self.junctions - self.counted
        rewards = np.where((turn != 0) & counts, np.where(right, *self.rewards), 0.0) - self.step_cost * running

        self._x = np.clip(self._x + np.where(running, MOVE_X[actions], 0), 0, length)
        self._since += running
        self._x[turned] = self._since[turned] = 0
        self._turns[turned, self._junction[turned]] = turn[turned]
        self._junction[turned] += 1
        return rewards, self._junction == self._count

    def expert_actions(self, wrong: np.ndarray | bool = False) -> np.ndarray:
        """The optimal policy's actions, (N,) int64; where ``wrong`` (N,) is True, every turn is wrong."""
        side = np.where(wrong, -1, 1) * self._here(self._answers)
        return np.where(self._at_junction(), np.where(side == 1, UP, DOWN), RIGHT)

    def play_expert(self, wrong: np.ndarray | bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Episodes of `expert_actions`, from a reset to the end.

        Returns:
            observations (N, T, features) float32, actions (N, T) uint8, rewards (N, T) float32, with T the
            steps of the longest, and terminals (N,) bool.
        """
        steps = int(self.steps_needed.max())
        observations = np.empty((self.num_envs, steps, self.features), dtype=np.float32)
        actions = np.empty((self.num_envs, steps), dtype=np.uint8)
        rewards = np.empty((self.num_envs, steps), dtype=np.float32)
        for step in range(steps):
            observations[:, step], actions[:, step] = self._observations, self.expert_actions(wrong)
            _, rewards[:, step], terminated, _, _ = self.step(actions[:, step])
        return observations, actions, rewards, terminated

    @property
    def steps_needed(self) -> np.ndarray:
        """(N,) int64, the steps of an episode without detours."""
        return ((self._lengths + 1) * self._there).sum(1)

    @property
    def counted(self) -> int:
        """The number of junctions that count, at the end of the chain."""
        return self.junctions

    @property
    def outcomes(self) -> np.ndarray:
        """(N, counted) bool: whether each turn was taken and right."""
        return (self._turns == self._answers)[:, self.junctions - self.counted :]

    def scene(self, row: int) -> dict[str, int]:
        """The contents of a picture of a row; see `render`. A short corridor is drawn as the end of the longest, so
        that all pictures of an episode have the same size."""
        longest = int(self._lengths[row].max())
        skipped = longest - self._here(self._lengths)[row]
        values = {"x": skipped + self._x[row], "goal": self._here(self._answers)[row]}
        values |= {"corridor_length": longest, "y": 0, "hint": self._observations[row, _HINT]}
        return {name: int(value) for name, value in values.items()}

    def _here(self, values: np.ndarray) -> np.ndarray:
        """The values (N,) at each row's current junction in an array (N, junctions)."""
        return values[self._rows, np.minimum(self._junction, self.junctions - 1)]

    def _at_junction(self) -> np.ndarray:
        return (self._x == self._here(self._lengths)) & (self._junction < self._count)

    def _observe(self) -> np.ndarray:
        """The current observation of every episode, (N, features) float32."""
        observations = np.zeros((self.num_envs, self.features), dtype=np.float32)
        observations[:, _FLAG] = self._at_junction()
        observations[:, _NOISE] = observation_noise(self._keys, self._steps)
        self._show(observations)
        return observations

    def _hash(self, rows: np.ndarray, stream: int, count: int) -> np.ndarray:
        """(b, count) uint64, the first numbers of a stream in the rows' episodes."""
        return hashed(hashed(self._keys[rows], stream)[:, None], np.arange(count))

    def _bits(self, rows: np.ndarray, stream: int, count: int) -> np.ndarray:
        """(b, count) fair bits, 0 or 1."""
        return self._hash(rows, stream, count) >> 63

    def _info(self) -> dict[str, np.ndarray]:
        return {"junction": self._junction.copy(), "right": self.outcomes.sum(1), "x": self._x.copy()}


class MultiCueVectorEnv(ChainVectorEnv):
    """Several bits at once; see the module. The junctions are adjacent, at the end of one corridor.

    Args:
        by_name: query the bits by name, in random order; False: in the order shown.
        others: see `ChainVectorEnv`; ``junctions`` is the number of bits, and a right turn earns 1 / ``junctions``.
    """

    name = "multi-cue"
    default_junctions = 4

    def __init__(
        self,
        num_envs: int = 1,
        corridor_length: int | Sequence[int] | np.ndarray = DEFAULT_CORRIDOR_LENGTH,
        *,
        junctions: int | None = None,
        by_name: bool = True,
        **others: Any,
    ) -> None:
        bits = self.default_junctions if junctions is None else junctions
        self.by_name, self.rewards = by_name, (1 / max(1, bits), 0.0)
        self.features = 3 + bits * by_name
        self._shown, self._asked = (np.tile(np.arange(bits), (num_envs, 1)) for _ in range(2))  # names, in order
        super().__init__(num_envs, corridor_length, junctions=bits, **others)

    @classmethod
    def shortest_corridor(cls, junctions: int) -> int:
        return junctions

    def _draw(self, rows: np.ndarray, flip: np.ndarray) -> None:
        super()._draw(rows, flip)
        if self.by_name:
            self._shown[rows], self._asked[rows] = (
                self._hash(rows, stream, self.junctions).argsort(1) for stream in (_SHOWN, _ASKED)
            )

    def _show(self, observations: np.ndarray) -> None:
        showing = np.flatnonzero(self._steps < self.junctions)
        name = self._shown[showing, self._steps[showing]]
        order = self._asked[showing].argsort(1)  # for each name, the junction that queries it
        observations[showing, _HINT] = self._answers[showing, order[np.arange(len(showing)), name]]
        if self.by_name:
            observations[showing, 3 + name] = 1
            asking = np.flatnonzero(self._at_junction())
            observations[asking, 3 + self._asked[asking, self._junction[asking]]] = 1

    @property
    def horizons(self) -> tuple[int, ...]:
        last, bits = int(self.corridor_length[0]) + 1, self.junctions
        return tuple(range(last - bits + 1, last + bits)) if self.by_name else (last,)


class EndlessVectorEnv(ChainVectorEnv):
    """A new hint for every junction; see the module. A right turn earns 1, a wrong one costs 1, a step 0.01."""

    name = "endless"
    default_junctions = 5
    rewards = (1.0, -1.0)
    step_cost = 0.01

    def _corridors(self) -> np.ndarray:
        return np.repeat(self.corridor_length[:, None], self.junctions, axis=1)

    def _show(self, observations: np.ndarray) -> None:
        shown = (self._since == 0) & (self._junction < self._count)
        observations[:, _HINT] = np.where(shown, self._here(self._answers), 0)

    @property
    def horizons(self) -> tuple[int, ...]:
        return (int(self.corridor_length[0]) + 1,)


class DistractedVectorEnv(ChainVectorEnv):
    """One real hint among many decoys, shown in half of all other observations; see the module."""

    name = "distracted"
    features = 4
    hint_step = 2

    @classmethod
    def shortest_corridor(cls, junctions: int) -> int:
        return cls.hint_step + 1

    def _show(self, observations: np.ndarray) -> None:
        shown, side = (hashed(hashed(self._keys, stream), self._steps) >> 63 for stream in (_DECOYS, _DECOY_SIDES))
        observations[:, _HINT] = np.where(shown == 1, 2 * side.astype(np.int8) - 1, 0)
        observations[:, 3] = -shown.astype(np.int8)
        hint = self._steps == self.hint_step
        observations[hint, _HINT] = self._answers[hint, 0]
        observations[hint, 3] = 1

    @property
    def horizons(self) -> tuple[int, ...]:
        return (int(self.corridor_length[0]) - self.hint_step + 1,)


class RecallVectorEnv(ChainVectorEnv):
    """The agent's own first turn determines the right turn at the end; see the module.

    An agent that always goes up succeeds without memory. So evaluations and experts use a fixed first turn
    (`first_turns`): up in an episode, down in its twin.
    """

    name = "recall"
    default_junctions = 2

    def _corridors(self) -> np.ndarray:
        return np.stack([np.zeros_like(self.corridor_length), self.corridor_length], axis=1)

    def _draw(self, rows: np.ndarray, flip: np.ndarray) -> None:
        self._answers[rows] = np.where(flip, -1, 1)[:, None]

    def _show(self, observations: np.ndarray) -> None:
        taken = self._turns[:, 0]
        self._answers[:, 1] = np.where(taken, taken, self._answers[:, 0])

    @property
    def counted(self) -> int:
        return 1

    @property
    def horizons(self) -> tuple[int, ...]:
        return (int(self.corridor_length[0]) + 2,)


def first_turns(rows: int) -> np.ndarray:
    """(rows,) int64, the first turns of recall in rows that are pairs of twins."""
    return np.where(np.arange(rows) % 2, DOWN, UP)


class ChainEnv(CorridorEnv):
    """A Gymnasium environment around a task's vector environment of one row.

    Args:
        task: name of the task.
        chains: its vector environment of one row; None: make one.
        render_mode: "ansi" (text), "rgb_array" or None.
        others: arguments of the task's vector environment, as single numbers.
    """

    def __init__(
        self,
        task: str = "endless",
        *,
        chains: ChainVectorEnv | None = None,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        chains = TASKS[task](1, **others) if chains is None else chains
        super().__init__(chains, name="T-Maze", render_mode=render_mode)

    @property
    def horizons(self) -> tuple[int, ...]:
        """See `ChainVectorEnv.horizons`."""
        return self.environments.horizons


TASKS: dict[str, type[ChainVectorEnv]] = {
    cls.name: cls for cls in (MultiCueVectorEnv, EndlessVectorEnv, DistractedVectorEnv, RecallVectorEnv)
}


def make_chains(num_envs: int = 1, *, task: str, **others: Any) -> ChainVectorEnv:
    """The vector environment of the named task."""
    return TASKS[task](num_envs, **others)


def environment_id(task: str) -> str:
    """Gymnasium's name of a task, e.g. TMazeMultiCue-v0."""
    return f"TMaze{task.title().replace('-', '')}-v0"


for _task in TASKS:
    register_once(environment_id(_task), f"{__name__}:ChainEnv", f"{__name__}:make_chains", task=_task)
