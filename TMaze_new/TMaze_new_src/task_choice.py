"""T-Maze's tasks: the flags, and what they mean for an episode length T.

An episode of length T without wasted steps ends after T - 1 steps, as in the passive T-Maze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from RATE_model.cli.limits import Ranged, Steps
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from TMaze_new.TMaze_new_src.env import SPEC
from TMaze_new.TMaze_new_src.tasks import TASKS, ChainVectorEnv

MULTI_CUE, ENDLESS, RECALL = "multi-cue", "endless", "recall"


@dataclass(frozen=True)
class TaskChoice(Ranged):
    """What the agent has to remember."""

    # passive (published): one hint; multi-cue: --bits hints at once; endless: a new hint before every junction of a
    # chain; distracted: one hint among decoys; recall: the agent's own first turn
    task: Literal["passive", "multi-cue", "endless", "distracted", "recall"] = "passive"
    # multi-cue: number of hints
    bits: Steps = 4
    # multi-cue: ask for the hints by name in random order, or in the order shown
    ask: Literal["name", "order"] = "name"
    # endless: cells from one junction to the next
    corridor: Steps = 28

    def validate(self) -> None:
        """Raise a UserError for a value out of range, or a flag of another task."""
        super().validate()
        usual = TaskChoice()
        for name, task in {"bits": MULTI_CUE, "ask": MULTI_CUE, "corridor": ENDLESS}.items():
            value = getattr(self, name)
            if self.task != task and value != getattr(usual, name):
                raise UserError(f"--{name} {value}: only applies to --task {task}, not {self.task}; leave it out")

    @property
    def is_chain(self) -> bool:
        """Whether the task is in `tasks.py`: all except the passive T-Maze."""
        return self.task != "passive"

    @property
    def name_parts(self) -> tuple[object, ...]:
        """The parts of file and run names that describe the task; none for the passive T-Maze."""
        if not self.is_chain:
            return ()
        own: dict[str, tuple[object, ...]] = {
            MULTI_CUE: (f"bits{self.bits}", *["order"] * (self.ask == "order")),
            ENDLESS: (f"corridor{self.corridor}",),
        }
        return (self.task, *own.get(self.task, ()))

    @property
    def spec(self) -> EnvironmentSpec:
        """The environment's spec."""
        if not self.is_chain:
            return SPEC
        return replace(SPEC, observation_shape=(self.chains([self.shortest]).features,))

    @property
    def shortest(self) -> int:
        """The shortest episode length."""
        if self.task == ENDLESS:
            return self.corridor + 2
        return 3 if not self.is_chain else TASKS[self.task].shortest_corridor(self._junctions) + self._junctions + 1

    def check_lengths(self, flag: str, lengths: Sequence[int]) -> None:
        """Raise a UserError for an episode length that is too short."""
        if self.is_chain and lengths and min(lengths) < self.shortest:
            raise UserError(f"--{flag} {min(lengths)}: --task {self.task} takes at least {self.shortest} steps")

    def chains(self, lengths: Sequence[int] | np.ndarray) -> ChainVectorEnv:
        """Environments of a task of `tasks.py`, one per episode length (B,)."""
        given: dict[str, Any] = {"corridor_length": self.corridor_lengths(lengths), "junctions": self._junctions}
        if self.task == MULTI_CUE:
            given["by_name"] = self.ask == "name"
        if self.task == ENDLESS:
            given["junctions"] = (np.asarray(lengths) - 1) // (self.corridor + 1)
        return TASKS[self.task](len(lengths), **given)

    def corridor_lengths(self, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) int64, lengths of the first corridors of episodes of these lengths (B,)."""
        if self.task == ENDLESS:
            return np.full(len(lengths), self.corridor)
        return np.asarray(lengths) - 1 - self._junctions

    def outcomes(self, length: int, returns: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Shares of right turns (E,), from returns and steps (E,) of episodes of a task of `tasks.py`.

        For a truncated endless episode, only the turns that its return proves right count.
        """
        if self.task != ENDLESS:
            return returns.round(9)
        junctions = (length - 1) // (self.corridor + 1)
        surplus = (returns + TASKS[ENDLESS].step_cost * steps) / junctions  # right turns minus wrong ones
        limit = junctions * (self.corridor + 1) + 1
        return np.where(steps < limit, (1 + surplus) / 2, np.maximum(surplus, 0)).round(9)

    @property
    def _junctions(self) -> int:
        """Junctions per episode; for the endless task, as many as fit."""
        return self.bits if self.task == MULTI_CUE else TASKS[self.task].default_junctions
