"""Play the same episodes with memory intact, knocked out (whole or in parts), and exchanged between twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from RATE_model.acting.controls import exchange_twins, knock_out_memory, knock_out_part
from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation, Outcome
from RATE_model.memories.contract import MemoryTransform
from RATE_model.protocol.verdict import INTACT, KNOCKED_OUT, MEMORY_FREE, TWINS, AgentFacts, Case, without

# Makes the transform for one rollout of the player of this number; random draws differ between players.
Control = Callable[[int], MemoryTransform | None]


@dataclass(frozen=True)
class TaskCase:
    """One setting of a task, such as a length; see `Case` for the fields."""

    name: str
    horizons: tuple[int, ...]
    chance: float | None
    outcome: Outcome = "success"


class Player(Protocol):
    """An agent that plays in its environment."""

    def play(self, transform: MemoryTransform | None) -> Sequence[np.ndarray]:
        """Outcomes (episodes,) of every case, always of the same episodes.

        Args:
            transform: changes the memory, see `Actor`. With twins, finished rows are kept, so that rows 2 i and
                2 i + 1 can be exchanged.
        """
        ...


@dataclass(frozen=True)
class RunPlayer:
    """The agent of a run, in every case of an evaluation."""

    evaluation: Evaluation

    def play(self, transform: MemoryTransform | None) -> Sequence[np.ndarray]:
        """See `Player`."""
        evaluation, environment = self.evaluation, self.evaluation.environment
        (played,) = evaluation.play_with(transform, twins=environment.has_twins(evaluation.options)).values()
        return [environment.outcomes(case, played[case], evaluation) for case in environment.played_cases(evaluation)]


def task_cases_of(evaluation: Evaluation) -> list[TaskCase]:
    """Horizons and chance level of every case of an evaluation."""
    environment, task_cases = evaluation.environment, []
    for case in environment.played_cases(evaluation):
        horizons, chance = environment.horizons(case, evaluation.options), environment.chance(case, evaluation)
        name = environment.name if case is None else str(case)
        within = (min(horizons), max(horizons)) if horizons else ()
        task_cases.append(TaskCase(name, within, chance, environment.outcome))
    return task_cases


def facts_of(agent: Agent) -> AgentFacts:
    """The properties of an agent that the verdict depends on."""
    memory, state = agent.memory, agent.memory.largest_state()
    parts = [part for part, names in state.parts.items() if any(_has_content(getattr(state, name)) for name in names)]
    return AgentFacts(memory.context, memory.reach, memory.segment, tuple(parts))


def _has_content(value: Any) -> bool:
    """Whether a part of a state contains vectors, not only counters."""
    if isinstance(value, tuple):
        return any(map(_has_content, value))
    return value is not None and getattr(value, "ndim", 0) > 1 and value.numel() > 0


def controls(facts: AgentFacts, *, has_memory: bool, twins: bool) -> dict[str, Control]:
    """The control experiments, by condition."""
    wanted: dict[str, Control] = {INTACT: lambda _: None}
    if has_memory:
        wanted[KNOCKED_OUT] = lambda _: knock_out_memory
        if len(facts.parts) > 1:
            wanted |= {without(part): lambda _, part=part: knock_out_part(part) for part in facts.parts}
        if twins:
            wanted[TWINS] = exchange_twins
    return wanted


def examine(
    players: Sequence[Player],
    facts: AgentFacts,
    task_cases: Sequence[TaskCase],
    *,
    has_memory: bool = True,
    twins: bool = False,
    memory_free: Sequence[Player] = (),
    report: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """Play every case with every player under every condition.

    Args:
        players: agents that differ only in their seed.
        facts: properties of these agents.
        task_cases: the cases to play.
        has_memory: whether there is anything to knock out.
        twins: whether rows 2 i and 2 i + 1 of all episodes differ only in what has to be remembered.
        memory_free: agents without memory, trained on the same data.
        report: called with each condition before it is played.
    """
    outcomes: list[dict[str, np.ndarray]] = [{} for _ in task_cases]

    def ask(condition: str, asked: Sequence[Player], control: Control) -> None:
        report(condition)
        answers = [player.play(control(number)) for number, player in enumerate(asked)]
        for number, found in enumerate(outcomes):
            found[condition] = np.stack([answer[number] for answer in answers])

    for condition, control in controls(facts, has_memory=has_memory, twins=twins).items():
        ask(condition, players, control)
    if memory_free:
        ask(MEMORY_FREE, memory_free, lambda _: None)
    return [
        Case(task_case.name, task_case.horizons, task_case.chance, found, task_case.outcome)
        for task_case, found in zip(task_cases, outcomes, strict=True)
    ]


def document(facts: AgentFacts, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The cases as JSON: means by outcome, with intervals, and the means of every seed."""
    entries = []
    for case in cases:
        conditions: dict[str, Mapping[str, Any]] = {}
        for condition, outcomes in case.outcomes.items():
            interval = case.interval(condition)
            conditions[condition] = {
                case.outcome: float(interval.value),
                "interval": [float(interval.low), float(interval.high)],
                "seeds": outcomes.mean(1).tolist(),
                "episodes": outcomes.shape[1],
            }
        entries.append(
            {
                "case": case.name,
                "outcome": case.outcome,
                "horizons": list(case.horizons),
                "regime": case.regime(facts.context),
                "chance": case.chance,
                "conditions": conditions,
            }
        )
    return entries
