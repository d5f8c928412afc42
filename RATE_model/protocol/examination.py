"""Examining agents: the same episodes with memory as it is, knocked out, in parts, and exchanged between twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from RATE_model.acting.controls import exchange_twins, knock_out_memory, knock_out_part
from RATE_model.memories.contract import MemoryTransform
from RATE_model.protocol.verdict import INTACT, KNOCKED_OUT, MEMORY_FREE, TWINS, Case, Subject, without

# Makes the transform of one rollout; it may hold the state of a generator.
Control = Callable[[], MemoryTransform | None]


@dataclass(frozen=True)
class Question:
    """One setting of a task in which agents are examined; see `Case` for its fields.

    Attributes:
        twins: whether rows 2 i and 2 i + 1 of its episodes differ in what is to be remembered alone.
    """

    name: str
    horizons: tuple[int, int]
    chance: float
    twins: bool = False


class Player(Protocol):
    """An agent in its environment."""

    def play(self, question: Question, transform: MemoryTransform | None) -> np.ndarray:
        """Outcomes (episodes,) of one question, from 0 to 1; always of the same episodes.

        Args:
            question: one of those that the environment asks.
            transform: of memory, see `Actor`. No row is dropped while others act, so that rows can be exchanged.
        """
        ...


def controls(subject: Subject, *, has_memory: bool, twins: bool) -> dict[str, Control]:
    """What to compare, by condition."""
    wanted: dict[str, Control] = {INTACT: lambda: None}
    if has_memory:
        wanted[KNOCKED_OUT] = lambda: knock_out_memory
        if len(subject.parts) > 1:
            wanted |= {without(part): lambda part=part: knock_out_part(part) for part in subject.parts}
        if twins:
            wanted[TWINS] = exchange_twins
    return wanted


def examine(
    players: Sequence[Player],
    subject: Subject,
    questions: Sequence[Question],
    *,
    has_memory: bool = True,
    memory_free: Sequence[Player] = (),
    report: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """Every question to every player, under every condition.

    Args:
        players: agents that differ in their seeds alone.
        subject: what they have in common.
        questions: what to ask.
        has_memory: whether there is anything to knock out.
        memory_free: agents without memory, trained on the same data.
        report: is told before each condition.
    """
    cases = []
    for question in questions:
        outcomes: dict[str, np.ndarray] = {}
        for condition, control in controls(subject, has_memory=has_memory, twins=question.twins).items():
            report(f"{question.name}: {condition}")
            outcomes[condition] = _outcomes(players, question, control)
        if memory_free:
            report(f"{question.name}: {MEMORY_FREE}")
            outcomes[MEMORY_FREE] = _outcomes(memory_free, question, lambda: None)
        cases.append(Case(question.name, question.horizons, question.chance, outcomes))
    return cases


def _outcomes(players: Sequence[Player], question: Question, control: Control) -> np.ndarray:
    return np.stack([player.play(question, control()) for player in players])


def document(subject: Subject, cases: Sequence[Case]) -> list[Mapping[str, object]]:
    """The cases as JSON: every rate with its interval, and each seed's own."""
    entries = []
    for case in cases:
        conditions = {}
        for condition, outcomes in case.outcomes.items():
            interval = case.interval(condition)
            conditions[condition] = {
                "success": float(interval.value),
                "interval": [float(interval.low), float(interval.high)],
                "seeds": outcomes.mean(1).tolist(),
                "episodes": outcomes.shape[1],
            }
        entries.append(
            {
                "case": case.name,
                "horizons": list(case.horizons),
                "regime": case.regime(subject.context),
                "chance": case.chance,
                "conditions": conditions,
            }
        )
    return entries
