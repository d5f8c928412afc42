"""From outcomes of episodes to a verdict on an agent's memory.

Definitions follow Cherepanov et al. 2024 (arXiv 2412.06531). The context K is the number of steps that an agent sees at
once. The correlation horizon xi is the number of steps from an event to its recall, both included. With the shortest
and the longest horizon of a task,

    K < shortest               long-term only: every event is outside the context
    K >= longest               short-term only: every event is inside the context
    otherwise                  mixed: success proves nothing about long-term memory

Long-term memory is proved if the agent is better than chance in a long-term-only task, and worse when memory is knocked
out. What survives the knock-out does not come from memory: the environment leaks it.

If outcomes are returns, there is no chance level, because an agent without memory earns something too. Then the proof
is a costly knock-out and a worse control without memory. If a task declares no horizons, the verdict does not say for
how long an agent remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from RATE_model.protocol.statistics import CONFIDENCE, Interval, bootstrap, mean, wilson

Regime = Literal["long-term only", "mixed", "short-term only", "undeclared"]
Label = Literal["long-term", "short-term", "leak", "nothing", "unproved"]

MIN_SEEDS, MIN_EPISODES = 3, 100
# Conditions of control experiments, besides `without(part)`.
INTACT, KNOCKED_OUT, TWINS, MEMORY_FREE = "intact", "knocked out", "twins exchanged", "memory-free control"


def without(part: str) -> str:
    """The condition in which one part of memory is knocked out."""
    return f"without {part}"


@dataclass(frozen=True)
class AgentFacts:
    """Properties of agents that differ only in their seed.

    Attributes:
        context: K, the number of steps seen at once.
        reach: the effective context, the number of past steps that can influence a decision; None: unlimited.
        segment: steps between two knock-outs of memory.
        parts: parts of memory that can be knocked out separately.
    """

    context: int
    reach: int | None
    segment: int
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One setting of a task, and the outcomes of agents.

    Attributes:
        name: the environment's name for it.
        horizons: shortest and longest correlation horizon, in steps; empty if the task declares none.
        chance: mean outcome without memory or, for returns, of a random player; None if unknown.
        outcomes: condition -> (seeds, episodes), successes from 0 to 1, or returns; includes "intact".
        outcome: "success" or "return".
    """

    name: str
    horizons: tuple[int, ...]
    chance: float | None
    outcomes: Mapping[str, np.ndarray]
    outcome: str = "success"

    def regime(self, context: int) -> Regime:
        """The regime of an agent with this context; see the module."""
        if not self.horizons:
            return "undeclared"
        shortest, longest = self.horizons
        return "long-term only" if context < shortest else "short-term only" if context >= longest else "mixed"

    @property
    def level(self) -> float:
        """`chance`, which must be known."""
        assert self.chance is not None, "the caller checks that chance is known"
        return self.chance

    def shown(self, value: float | np.ndarray) -> str:
        """A value as text: rates with two digits and without a leading zero."""
        number = float(value)
        if self.outcome == "success":
            return f"{number:.2f}".replace("0.", ".", 1) if 0 <= number < 1 else f"{number:.2f}"
        return f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 1000 else 0}f}"

    def interval(self, condition: str = INTACT, *, confidence: float = CONFIDENCE) -> Interval:
        """The mean outcome: a Wilson interval of rates, else a bootstrap of episodes within seeds.

        Either describes these agents in other episodes. For other seeds, compare the means of the seeds.
        """
        outcomes = self.outcomes[condition]
        if self.outcome == "success" and np.isin(outcomes, (0, 1)).all():
            return wilson(int(outcomes.sum()), outcomes.size, confidence=confidence)
        return bootstrap(list(outcomes), mean, confidence=confidence)


@dataclass(frozen=True)
class Verdict:
    """The result of `judge`.

    Attributes:
        label: "long-term", "short-term" (remembers only within the context), "leak" (correct without memory), "nothing"
            (no better than chance) or "unproved".
        horizon: the longest xi of the verdict; None if there is none.
        sentence: the verdict in words.
        missing: what a stronger claim would need.
    """

    label: Label
    horizon: int | None
    sentence: str
    missing: tuple[str, ...] = ()


def judge(facts: AgentFacts, cases: Sequence[Case]) -> Verdict:
    """The verdict on agents that played one or more cases.

    "Better than chance" and "worse when knocked out" are tested at 95 % for all cases together (Bonferroni): with many
    cases a guesser is soon better than chance in one of them.
    """
    declared = [case for case in cases if case.horizons and case.chance is not None]
    if not declared or cases[0].outcome != "success":
        return _judge_returns(facts, cases)
    cases = declared
    confidence = 1 - (1 - CONFIDENCE) / len(cases)
    better = [case for case in cases if case.interval(confidence=confidence).low > case.level]
    missing = _missing(cases)
    if not better:
        best = max(cases, key=lambda case: float(case.interval().value))
        return Verdict(
            "nothing", None, f"not shown to remember: {_rate(best)} at best, chance {best.shown(best.level)}", missing
        )

    by_regime = {regime: [case for case in better if case.regime(facts.context) == regime] for regime in _REGIMES}
    beyond = by_regime["long-term only"]
    leaks = [case for case in beyond if not _reachable(case, facts) or _free(case, confidence)]
    proved = [case for case in beyond if case not in leaks and _depends(case, confidence)]
    if proved and not leaks:
        return _long_term(_longest(proved), facts, missing)
    if leaks:
        return Verdict("leak", None, _leak(_longest(leaks), facts), missing)
    if beyond:  # above chance, but the knock-out does not hurt, and the horizon is within reach
        return _not_dependent(_longest(beyond), facts, confidence, missing)
    if by_regime["mixed"]:
        case = _longest(by_regime["mixed"])
        shortest, longest = case.horizons
        missing = (*missing, f"a context K of at most {shortest - 1} (now {facts.context})")
        sentence = (
            f"right in {_rate(case)} of episodes, in the mixed regime (K = {facts.context}, xi = {shortest} to "
            f"{longest}): no claim about long-term memory is possible{_dependence(case, confidence)}"
        )
        return Verdict("unproved", None, sentence, missing)
    case = _longest(by_regime["short-term only"])
    sentence = f"remembers over xi = {case.horizons[1]} ({_bound(case)}), short-term: within its context K = "
    return Verdict("short-term", case.horizons[1], f"{sentence}{facts.context}", missing)


_REGIMES: tuple[Regime, ...] = ("long-term only", "mixed", "short-term only")


def _judge_returns(facts: AgentFacts, cases: Sequence[Case]) -> Verdict:
    """The verdict if outcomes are returns, or no horizons are declared: what memory is worth, in one case.

    The case with the longest horizons among those where memory matters, or among all.
    """
    confidence, missing = 1 - (1 - CONFIDENCE) / len(cases), _missing(cases)
    case = _longest([case for case in cases if _depends(case, confidence)] or cases)
    intact = case.interval(confidence=confidence)
    sentence = f"{case.outcome} {_rate(case)}"
    if case.chance is not None:
        sentence += f", {'chance' if case.outcome == 'success' else 'a random player'} {case.shown(case.chance)}"
    if case.chance is not None and intact.low <= case.chance:
        return Verdict("nothing", None, f"not shown to be better than random: {sentence}", missing)
    sentence += _dependence(case, confidence, facts)
    free = MEMORY_FREE in case.outcomes and case.interval(MEMORY_FREE, confidence=confidence)
    if free:
        sentence += f"; {MEMORY_FREE} {case.shown(free.value)}"
    regime = case.regime(facts.context)
    if not case.horizons:
        sentence += "; the task declares no correlation horizon, so this says nothing about how long it remembers"
        return Verdict("unproved", None, sentence, (*missing, "correlation horizons (the task declares none)"))
    shortest, longest = case.horizons
    if regime == "mixed":
        missing = (*missing, f"a context K of at most {shortest - 1} (now {facts.context})")
        sentence += f"; in the mixed regime (K = {facts.context}, xi = {shortest} to {longest}) no claim about "
        return Verdict("unproved", None, f"{sentence}long-term memory is possible", missing)
    if regime == "short-term only":
        sentence += f"; all events (xi = {shortest} to {longest}) lie within its context K = "
        return Verdict("unproved", None, f"{sentence}{facts.context}", missing)
    better = not free or bool(free.high < intact.low)
    proved = better and _depends(case, confidence) and _reachable(case, facts)
    if not proved or _too_few(missing):
        return Verdict("unproved", shortest, f"{sentence}; long-term memory (xi from {shortest} on) not shown", missing)
    return Verdict("long-term", shortest, f"remembers over xi = {shortest} or more, long-term: {sentence}", missing)


def _longest(cases: Sequence[Case]) -> Case:
    return max(cases, key=lambda case: case.horizons)


def _too_few(missing: Sequence[str]) -> bool:
    return any(text.startswith(f"{MIN_SEEDS} seeds") for text in missing)


def _missing(cases: Sequence[Case]) -> tuple[str, ...]:
    """What a claim about long-term memory needs: seeds, episodes, a control without memory."""
    seeds, episodes = (min(case.outcomes[INTACT].shape[axis] for case in cases) for axis in (0, 1))
    missing = []
    if seeds < MIN_SEEDS or episodes < MIN_EPISODES:
        missing.append(f"{MIN_SEEDS} seeds of {MIN_EPISODES} episodes each (got {seeds} of {episodes})")
    if not any(MEMORY_FREE in case.outcomes for case in cases):
        missing.append("the memory-free control (--control with a run of --model_mode MLP or BC-MLP)")
    return tuple(missing)


def _reachable(case: Case, facts: AgentFacts) -> bool:
    return facts.reach is None or case.horizons[0] <= facts.reach


def _free(case: Case, confidence: float) -> bool:
    """Whether an agent without memory is better than chance."""
    return MEMORY_FREE in case.outcomes and bool(case.interval(MEMORY_FREE, confidence=confidence).low > case.level)


def _depends(case: Case, confidence: float, condition: str = KNOCKED_OUT) -> bool:
    """Whether knocking out memory, or a part of it, makes the agent worse."""
    if condition not in case.outcomes:
        return False
    hurt, intact = (case.interval(name, confidence=confidence) for name in (condition, INTACT))
    return bool(hurt.high < intact.low)


def _long_term(case: Case, facts: AgentFacts, missing: tuple[str, ...]) -> Verdict:
    """The verdict if only the sample may be too small."""
    xi = case.horizons[0]
    sentence = f"remembers over xi = {xi} ({_bound(case)}){_share(case)}"
    if _too_few(missing):
        sentence = f"{sentence}, but not enough to call it long-term{_dependence(case, CONFIDENCE, facts)}"
        return Verdict("unproved", xi, sentence, missing)
    return Verdict("long-term", xi, f"{sentence}, long-term{_dependence(case, CONFIDENCE, facts)}", missing)


def _not_dependent(case: Case, facts: AgentFacts, confidence: float, missing: tuple[str, ...]) -> Verdict:
    """The verdict if the agent succeeds beyond its context, but knocking out memory was not shown to hurt."""
    if KNOCKED_OUT not in case.outcomes or case.horizons[0] <= facts.segment:
        why = f"memory cannot be knocked out within a segment of {facts.segment} steps"
        wanted = f"a case with xi > {facts.segment}"
    elif case.interval(KNOCKED_OUT, confidence=confidence).low > case.level:
        return Verdict("leak", None, _leak(case, facts), missing)
    else:
        why = f"knocked out {_rate(case, KNOCKED_OUT)}, neither clearly above chance nor clearly worse than intact"
        wanted = "more episodes"
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not shown to depend on memory: {why}"
    return Verdict("unproved", case.horizons[0], sentence, (*missing, wanted))


def _dependence(case: Case, confidence: float, facts: AgentFacts | None = None) -> str:
    """In words, the effect of knocking out memory and its parts; empty if this was not tried."""
    if KNOCKED_OUT not in case.outcomes:
        return ""
    rate = f"knocked out {case.shown(case.interval(KNOCKED_OUT).value)}"
    if not _depends(case, confidence):
        return f", not shown to depend on its memory ({rate})"
    parts = [part for part in (facts.parts if facts else ()) if _depends(case, confidence, without(part))]
    return f", depends on its {' and '.join(parts) or 'memory'} ({rate})"


def _leak(case: Case, facts: AgentFacts) -> str:
    """In words, why success proves nothing about memory."""
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not because of its memory: "
    if not _reachable(case, facts):
        return f"{sentence}only the last {facts.reach} steps can influence it, so the environment leaks the answer"
    condition = MEMORY_FREE if _free(case, CONFIDENCE) else KNOCKED_OUT
    return f"{sentence}{condition} {case.shown(case.interval(condition).value)}, so the environment leaks the answer"


def _share(case: Case) -> str:
    """In words, the share of episodes solved beyond chance; empty above 90 %."""
    known = (float(case.interval().value) - case.level) / (1 - case.level)
    return "" if known > 0.9 else f", in {known:.0%} of episodes"


def _rate(case: Case, condition: str = INTACT) -> str:
    interval = case.interval(condition)
    return f"{case.shown(interval.value)} ({case.shown(interval.low)} to {case.shown(interval.high)})"


def _bound(case: Case) -> str:
    return f"lower bound {case.shown(case.interval().low)} > {case.shown(case.level)}"
