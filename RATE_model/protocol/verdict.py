"""From outcomes of episodes to what was proved about an agent's memory.

Definitions are those of Cherepanov et al. 2024 (arXiv 2412.06531). K is how many steps an agent sees at once. The
correlation horizon xi of an event and its recall is the number of steps from the one to the other, both included. With
the shortest and the longest horizon of a task,

    K < shortest               long-term only: nothing that is asked for lies within the context
    K >= longest               short-term only: all of it does
    otherwise                  mixed: success proves nothing about long-term memory

Long-term memory is proved by a task of the first kind that is solved better than by chance, and worse when memory is
knocked out. What survives the knock-out did not come from memory: the environment leaks it.

Where an outcome is not a success but a return, no level of chance is that of an agent without memory: who remembers
nothing earns something, too. Then memory is proved by what its knock-out costs, and by a control without memory. Where
a task declares no horizons, nothing can be said about how long an agent remembers.
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
# Conditions of a control experiment; `without(part)` are the others.
INTACT, KNOCKED_OUT, TWINS, MEMORY_FREE = "intact", "knocked out", "twins exchanged", "memory-free control"


def without(part: str) -> str:
    """The condition in which one part of memory is knocked out."""
    return f"without {part}"


@dataclass(frozen=True)
class AgentFacts:
    """What has to be known of the agents, which differ in their seeds alone.

    Attributes:
        context: K, the most steps seen at once.
        reach: the effective context: how many of the last steps can matter at all; None: no limit.
        segment: memory is knocked out whenever this many steps have passed.
        parts: what memory is made of, where it can be knocked out part by part.
    """

    context: int
    reach: int | None
    segment: int
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One setting of a task, and how agents did in it.

    Attributes:
        name: what the environment calls it.
        horizons: the shortest and the longest correlation horizon, in steps; empty: the task declares none.
        chance: the mean outcome without memory, or, of returns, a random player's; None: it is not known.
        outcomes: by condition (seeds, episodes), from 0, wrong, to 1, right, or returns; "intact" is among them.
        outcome: what they are, "success" or "return".
    """

    name: str
    horizons: tuple[int, ...]
    chance: float | None
    outcomes: Mapping[str, np.ndarray]
    outcome: str = "success"

    def regime(self, context: int) -> Regime:
        """What success says of an agent that sees this many steps at once."""
        if not self.horizons:
            return "undeclared"
        shortest, longest = self.horizons
        return "long-term only" if context < shortest else "short-term only" if context >= longest else "mixed"

    @property
    def level(self) -> float:
        """`chance`, where it is known."""
        assert self.chance is not None, "asked only where it is"
        return self.chance

    def shown(self, value: float | np.ndarray) -> str:
        """A value as people read it: rates with two digits and no zero before the point."""
        number = float(value)
        if self.outcome == "success":
            return f"{number:.2f}".replace("0.", ".", 1) if 0 <= number < 1 else f"{number:.2f}"
        return f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 1000 else 0}f}"

    def interval(self, condition: str = INTACT, *, confidence: float = CONFIDENCE) -> Interval:
        """The mean outcome: a Wilson interval of rates, else a bootstrap of episodes within seeds.

        Either says how these agents would do in other episodes; how other seeds would do, only the seeds' own means
        show.
        """
        outcomes = self.outcomes[condition]
        if self.outcome == "success" and np.isin(outcomes, (0, 1)).all():
            return wilson(int(outcomes.sum()), outcomes.size, confidence=confidence)
        return bootstrap(list(outcomes), mean, confidence=confidence)


@dataclass(frozen=True)
class Verdict:
    """What was proved.

    Attributes:
        label: "long-term", "short-term" (all that is remembered lies within the context), "leak" (right without
            memory), "nothing" (no better than chance) or "unproved".
        horizon: xi, the longest that the sentence speaks of; None: none.
        sentence: the same in words.
        missing: what stands in the way of more.
    """

    label: Label
    horizon: int | None
    sentence: str
    missing: tuple[str, ...] = ()


def judge(subject: AgentFacts, cases: Sequence[Case]) -> Verdict:
    """The verdict on agents that were examined in one or more cases.

    "Better than chance" and "worse when knocked out" are tested at 95 % for all cases together (Bonferroni): with many
    cases a guesser is better than chance in one of them soon.
    """
    declared = [case for case in cases if case.horizons and case.chance is not None]
    if not declared or cases[0].outcome != "success":
        return _judge_returns(subject, cases)
    cases = declared
    confidence = 1 - (1 - CONFIDENCE) / len(cases)
    better = [case for case in cases if case.interval(confidence=confidence).low > case.level]
    missing = _missing(cases)
    if not better:
        best = max(cases, key=lambda case: float(case.interval().value))
        return Verdict(
            "nothing", None, f"not shown to remember: {_rate(best)} at best, chance {best.shown(best.level)}", missing
        )

    by_regime = {regime: [case for case in better if case.regime(subject.context) == regime] for regime in _REGIMES}
    beyond = by_regime["long-term only"]
    leaks = [case for case in beyond if not _reachable(case, subject) or _free(case, confidence)]
    proved = [case for case in beyond if case not in leaks and _depends(case, confidence)]
    if proved and not leaks:
        return _long_term(_longest(proved), subject, missing)
    if leaks:
        return Verdict("leak", None, _leak(_longest(leaks), subject), missing)
    if beyond:  # above chance, but neither does the knock-out hurt nor is it out of reach
        return _not_dependent(_longest(beyond), subject, confidence, missing)
    if by_regime["mixed"]:
        case = _longest(by_regime["mixed"])
        shortest, longest = case.horizons
        missing = (*missing, f"a context K of at most {shortest - 1} (now {subject.context})")
        sentence = (
            f"right in {_rate(case)} of episodes, in the mixed regime (K = {subject.context}, xi = {shortest} to "
            f"{longest}): no claim about long-term memory is possible{_dependence(case, confidence)}"
        )
        return Verdict("unproved", None, sentence, missing)
    case = _longest(by_regime["short-term only"])
    sentence = f"remembers over xi = {case.horizons[1]} ({_bound(case)}), short-term: within its context K = "
    return Verdict("short-term", case.horizons[1], f"{sentence}{subject.context}", missing)


_REGIMES: tuple[Regime, ...] = ("long-term only", "mixed", "short-term only")


def _judge_returns(subject: AgentFacts, cases: Sequence[Case]) -> Verdict:
    """The verdict where outcomes are returns, or no horizons are declared: on what memory is worth, in one case.

    That case is the one with the longest horizons of those in which memory was shown to matter, else of all.
    """
    confidence, missing = 1 - (1 - CONFIDENCE) / len(cases), _missing(cases)
    case = _longest([case for case in cases if _depends(case, confidence)] or cases)
    intact = case.interval(confidence=confidence)
    sentence = f"{case.outcome} {_rate(case)}"
    if case.chance is not None:
        sentence += f", {'chance' if case.outcome == 'success' else 'a random player'} {case.shown(case.chance)}"
    if case.chance is not None and intact.low <= case.chance:
        return Verdict("nothing", None, f"not shown to do better than at random: {sentence}", missing)
    sentence += _dependence(case, confidence, subject)
    free = MEMORY_FREE in case.outcomes and case.interval(MEMORY_FREE, confidence=confidence)
    if free:
        sentence += f"; {MEMORY_FREE} {case.shown(free.value)}"
    regime = case.regime(subject.context)
    if not case.horizons:
        sentence += "; the task declares no correlation horizon, so nothing is said about how long it remembers"
        return Verdict("unproved", None, sentence, (*missing, "correlation horizons, which the task does not declare"))
    shortest, longest = case.horizons
    if regime == "mixed":
        missing = (*missing, f"a context K of at most {shortest - 1} (now {subject.context})")
        sentence += f"; in the mixed regime (K = {subject.context}, xi = {shortest} to {longest}) no claim about "
        return Verdict("unproved", None, f"{sentence}long-term memory is possible", missing)
    if regime == "short-term only":
        sentence += f"; all that there is to remember (xi = {shortest} to {longest}) lies within its context K = "
        return Verdict("unproved", None, f"{sentence}{subject.context}", missing)
    better = not free or bool(free.high < intact.low)
    proved = better and _depends(case, confidence) and _reachable(case, subject)
    if not proved or _too_few(missing):
        return Verdict("unproved", shortest, f"{sentence}; long-term memory (xi from {shortest} on) not shown", missing)
    return Verdict("long-term", shortest, f"remembers over xi = {shortest} or more, long-term: {sentence}", missing)


def _longest(cases: Sequence[Case]) -> Case:
    return max(cases, key=lambda case: case.horizons)


def _too_few(missing: Sequence[str]) -> bool:
    return any(text.startswith(f"{MIN_SEEDS} seeds") for text in missing)


def _missing(cases: Sequence[Case]) -> tuple[str, ...]:
    """What a claim about long-term memory lacks: seeds, episodes, a control without memory."""
    seeds, episodes = (min(case.outcomes[INTACT].shape[axis] for case in cases) for axis in (0, 1))
    missing = []
    if seeds < MIN_SEEDS or episodes < MIN_EPISODES:
        missing.append(f"{MIN_SEEDS} seeds of {MIN_EPISODES} episodes each (there are {seeds} of {episodes})")
    if not any(MEMORY_FREE in case.outcomes for case in cases):
        missing.append("the memory-free control (--control with a run of --model_mode MLP or BC-MLP)")
    return tuple(missing)


def _reachable(case: Case, subject: AgentFacts) -> bool:
    return subject.reach is None or case.horizons[0] <= subject.reach


def _free(case: Case, confidence: float) -> bool:
    """Whether an agent without memory is right more often than by chance."""
    return MEMORY_FREE in case.outcomes and bool(case.interval(MEMORY_FREE, confidence=confidence).low > case.level)


def _depends(case: Case, confidence: float, condition: str = KNOCKED_OUT) -> bool:
    """Whether knocking out memory, or a part of it, makes the agent worse."""
    if condition not in case.outcomes:
        return False
    hurt, intact = (case.interval(name, confidence=confidence) for name in (condition, INTACT))
    return bool(hurt.high < intact.low)


def _long_term(case: Case, subject: AgentFacts, missing: tuple[str, ...]) -> Verdict:
    """The verdict where everything but the size of the sample is as it should be."""
    xi = case.horizons[0]
    sentence = f"remembers over xi = {xi} ({_bound(case)}){_share(case)}"
    if _too_few(missing):
        sentence = f"{sentence}, but not enough to call it long-term{_dependence(case, CONFIDENCE, subject)}"
        return Verdict("unproved", xi, sentence, missing)
    return Verdict("long-term", xi, f"{sentence}, long-term{_dependence(case, CONFIDENCE, subject)}", missing)


def _not_dependent(case: Case, subject: AgentFacts, confidence: float, missing: tuple[str, ...]) -> Verdict:
    """The verdict where success lies beyond the context, but knocking out memory was not shown to hurt."""
    if KNOCKED_OUT not in case.outcomes or case.horizons[0] <= subject.segment:
        why = f"memory cannot be knocked out within a segment of {subject.segment} steps"
        wanted = f"a case with xi > {subject.segment}"
    elif case.interval(KNOCKED_OUT, confidence=confidence).low > case.level:
        return Verdict("leak", None, _leak(case, subject), missing)
    else:
        why = f"knocked out {_rate(case, KNOCKED_OUT)}, which may be chance and may be as good as intact"
        wanted = "more episodes"
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not shown to depend on memory: {why}"
    return Verdict("unproved", case.horizons[0], sentence, (*missing, wanted))


def _dependence(case: Case, confidence: float, subject: AgentFacts | None = None) -> str:
    """In words, what happens without memory, and which parts of it do it; empty where that was not tried."""
    if KNOCKED_OUT not in case.outcomes:
        return ""
    rate = f"knocked out {case.shown(case.interval(KNOCKED_OUT).value)}"
    if not _depends(case, confidence):
        return f", not shown to depend on its memory ({rate})"
    parts = [part for part in (subject.parts if subject else ()) if _depends(case, confidence, without(part))]
    return f", depends on its {' and '.join(parts) or 'memory'} ({rate})"


def _leak(case: Case, subject: AgentFacts) -> str:
    """In words, why success says nothing about memory."""
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not by its memory: "
    if not _reachable(case, subject):
        return f"{sentence}no more than the last {subject.reach} steps can matter to it, so the environment tells"
    condition = MEMORY_FREE if _free(case, CONFIDENCE) else KNOCKED_OUT
    return f"{sentence}{condition} {case.shown(case.interval(condition).value)}, so the environment tells"


def _share(case: Case) -> str:
    """In words, how much of what chance leaves open is right; empty where that is nearly all of it."""
    known = (float(case.interval().value) - case.level) / (1 - case.level)
    return "" if known > 0.9 else f", in {known:.0%} of episodes"


def _rate(case: Case, condition: str = INTACT) -> str:
    interval = case.interval(condition)
    return f"{case.shown(interval.value)} ({case.shown(interval.low)} to {case.shown(interval.high)})"


def _bound(case: Case) -> str:
    return f"lower bound {case.shown(case.interval().low)} > {case.shown(case.level)}"
