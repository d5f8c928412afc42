"""From outcomes of episodes to what was proved about an agent's memory.

Definitions are those of Cherepanov et al. 2024 (arXiv 2412.06531). K is how many steps an agent sees at once. The
correlation horizon xi of an event and its recall is the number of steps from the one to the other, both included. With
the shortest and the longest horizon of a task,

    K < shortest               long-term only: nothing that is asked for lies within the context
    K >= longest               short-term only: all of it does
    otherwise                  mixed: success proves nothing about long-term memory

Long-term memory is proved by a task of the first kind that is solved better than by chance, and worse when memory is
knocked out. What survives the knock-out did not come from memory: the environment leaks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from RATE_model.protocol.statistics import CONFIDENCE, Interval, bootstrap, mean, wilson

Regime = Literal["long-term only", "mixed", "short-term only"]
Label = Literal["long-term", "short-term", "leak", "nothing", "unproved"]

MIN_SEEDS, MIN_EPISODES = 3, 100
# Conditions of a control experiment; `without(part)` are the others.
INTACT, KNOCKED_OUT, TWINS, MEMORY_FREE = "intact", "knocked out", "twins exchanged", "memory-free control"


def without(part: str) -> str:
    """The condition in which one part of memory is knocked out."""
    return f"without {part}"


@dataclass(frozen=True)
class Subject:
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
        horizons: the shortest and the longest correlation horizon, in steps.
        chance: the mean outcome without memory.
        outcomes: by condition (seeds, episodes), from 0, wrong, to 1, right; "intact" is among them.
    """

    name: str
    horizons: tuple[int, int]
    chance: float
    outcomes: Mapping[str, np.ndarray]

    def regime(self, context: int) -> Regime:
        """What success says of an agent that sees this many steps at once."""
        shortest, longest = self.horizons
        return "long-term only" if context < shortest else "short-term only" if context >= longest else "mixed"

    def interval(self, condition: str = INTACT, *, confidence: float = CONFIDENCE) -> Interval:
        """The mean outcome: a Wilson interval of rates, else a bootstrap of episodes within seeds.

        Either says how these agents would do in other episodes; how other seeds would do, only the seeds' own means
        show.
        """
        outcomes = self.outcomes[condition]
        if np.isin(outcomes, (0, 1)).all():
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


def judge(subject: Subject, cases: Sequence[Case]) -> Verdict:
    """The verdict on agents that were examined in one or more cases.

    "Better than chance" and "worse when knocked out" are tested at 95 % for all cases together (Bonferroni): with many
    cases a guesser is better than chance in one of them soon.
    """
    confidence = 1 - (1 - CONFIDENCE) / len(cases)
    better = [case for case in cases if case.interval(confidence=confidence).low > case.chance]
    missing = _missing(cases)
    if not better:
        best = max(cases, key=lambda case: float(case.interval().value))
        return Verdict(
            "nothing", None, f"not shown to remember: {_rate(best)} at best, chance {_two(best.chance)}", missing
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


def _longest(cases: Sequence[Case]) -> Case:
    return max(cases, key=lambda case: case.horizons)


def _missing(cases: Sequence[Case]) -> tuple[str, ...]:
    """What a claim about long-term memory lacks: seeds, episodes, a control without memory."""
    seeds, episodes = (min(case.outcomes[INTACT].shape[axis] for case in cases) for axis in (0, 1))
    missing = []
    if seeds < MIN_SEEDS or episodes < MIN_EPISODES:
        missing.append(f"{MIN_SEEDS} seeds of {MIN_EPISODES} episodes each (there are {seeds} of {episodes})")
    if not any(MEMORY_FREE in case.outcomes for case in cases):
        missing.append("the memory-free control (--control with a run of --model_mode MLP or BC-MLP)")
    return tuple(missing)


def _reachable(case: Case, subject: Subject) -> bool:
    return subject.reach is None or case.horizons[0] <= subject.reach


def _free(case: Case, confidence: float) -> bool:
    """Whether an agent without memory is right more often than by chance."""
    return MEMORY_FREE in case.outcomes and bool(case.interval(MEMORY_FREE, confidence=confidence).low > case.chance)


def _depends(case: Case, confidence: float, condition: str = KNOCKED_OUT) -> bool:
    """Whether knocking out memory, or a part of it, makes the agent worse."""
    if condition not in case.outcomes:
        return False
    hurt, intact = (case.interval(name, confidence=confidence) for name in (condition, INTACT))
    return bool(hurt.high < intact.low)


def _long_term(case: Case, subject: Subject, missing: tuple[str, ...]) -> Verdict:
    """The verdict where everything but the size of the sample is as it should be."""
    xi = case.horizons[0]
    sentence = f"remembers over xi = {xi} ({_bound(case)}){_share(case)}"
    if any(text.startswith(f"{MIN_SEEDS} seeds") for text in missing):
        sentence = f"{sentence}, but not enough to call it long-term{_dependence(case, CONFIDENCE, subject)}"
        return Verdict("unproved", xi, sentence, missing)
    return Verdict("long-term", xi, f"{sentence}, long-term{_dependence(case, CONFIDENCE, subject)}", missing)


def _not_dependent(case: Case, subject: Subject, confidence: float, missing: tuple[str, ...]) -> Verdict:
    """The verdict where success lies beyond the context, but knocking out memory was not shown to hurt."""
    if KNOCKED_OUT not in case.outcomes or case.horizons[0] <= subject.segment:
        why = f"memory cannot be knocked out within a segment of {subject.segment} steps"
        wanted = f"a case with xi > {subject.segment}"
    elif case.interval(KNOCKED_OUT, confidence=confidence).low > case.chance:
        return Verdict("leak", None, _leak(case, subject), missing)
    else:
        why = f"knocked out {_rate(case, KNOCKED_OUT)}, which may be chance and may be as good as intact"
        wanted = "more episodes"
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not shown to depend on memory: {why}"
    return Verdict("unproved", case.horizons[0], sentence, (*missing, wanted))


def _dependence(case: Case, confidence: float, subject: Subject | None = None) -> str:
    """In words, what happens without memory, and which parts of it do it; empty where that was not tried."""
    if KNOCKED_OUT not in case.outcomes:
        return ""
    rate = f"knocked out {_two(case.interval(KNOCKED_OUT).value)}"
    if not _depends(case, confidence):
        return f", does not depend on its memory ({rate})"
    parts = [part for part in (subject.parts if subject else ()) if _depends(case, confidence, without(part))]
    return f", depends on its {' and '.join(parts) or 'memory'} ({rate})"


def _leak(case: Case, subject: Subject) -> str:
    """In words, why success says nothing about memory."""
    sentence = f"right over xi = {case.horizons[0]} ({_bound(case)}), but not by its memory: "
    if not _reachable(case, subject):
        return f"{sentence}no more than the last {subject.reach} steps can matter to it, so the environment tells"
    condition = MEMORY_FREE if _free(case, CONFIDENCE) else KNOCKED_OUT
    return f"{sentence}{condition} {_two(case.interval(condition).value)}, so the environment tells"


def _share(case: Case) -> str:
    """In words, how much of what chance leaves open is right; empty where that is nearly all of it."""
    known = (float(case.interval().value) - case.chance) / (1 - case.chance)
    return "" if known > 0.9 else f", in {known:.0%} of episodes"


def _rate(case: Case, condition: str = INTACT) -> str:
    interval = case.interval(condition)
    return f"{_two(interval.value)} ({_two(interval.low)} to {_two(interval.high)})"


def _bound(case: Case) -> str:
    return f"lower bound {_two(case.interval().low)} > {_two(case.chance)}"


def _two(value: float | np.ndarray) -> str:
    """Two digits without the zero before the point."""
    return f"{float(value):.2f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{float(value):.2f}"
