"""Evaluations: settings of the actor, and episodes of several cases played side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor, Episodes, group_cases, rollout
from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform

Case = TypeVar("Case", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Acting:
    """The settings of `Actor` in an evaluation; see there."""

    target_return: float
    greedy: bool = True
    seed: int = 0
    slide: int = 1
    window: bool = False
    reset_target: bool = False
    rtg_floor: float | None = None
    transform_memory: MemoryTransform | None = None
    precision: str = "32"
    cuda_graphs: bool = False

    def actor(self, agent: Agent, rows: int, *, first: int = 0) -> Actor:
        """An actor for ``rows`` environments; `first` separates the random draws of an evaluation's actors."""
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        options["seed"] += first
        with torch.no_grad():
            return Actor(agent, rows, **options)

    def with_memory(self, transform: MemoryTransform | None) -> Acting:
        """A copy with a transform of the memory; None: unchanged."""
        return replace(self, transform_memory=transform)


def play_cases(
    agent: Agent,
    cases: Sequence[Case],
    make: Callable[[np.ndarray], VectorEnv],
    *,
    seeds: np.ndarray,
    acting: Acting,
    options: Mapping[str, np.ndarray] | None = None,
    max_environments: int | None = None,
    compact: bool = True,
    player: Callable[[BatchActor], BatchActor] = lambda actor: actor,
    description: str = "acting",
) -> dict[Case, Episodes]:
    """Play one episode for every case and seed, as many cases side by side as memory allows.

    The result of a case does not depend on the others. Since rows that act side by side share a random generator, cases
    with sampled actions are played one by one.

    Args:
        agent: in eval mode.
        cases: lengths, sizes, ...; `[None]` if there are none; duplicates count once.
        make: the cases of B rows, `(B,)` -> B environments, whose `max_steps`, `()` or `(B,)`, limits episodes. They
            are closed afterwards.
        seeds: `(E,)` for every case.
        acting: settings of the actor.
        options: for the environments' reset, E rows each.
        max_environments: environments at a time; None: no limit.
        compact: drop the rows of finished episodes; False if a `transform_memory` compares rows.
        player: wraps the actor, for example to change its rewards.
        description: of the progress bar.

    Returns:
        E episodes per case.
    """
    chosen, episodes = list(dict.fromkeys(cases)), len(seeds)
    numbers = range(len(chosen))
    groups = list(group_cases(agent, numbers, episodes)) if acting.greedy else [[number] for number in numbers]
    results: dict[Case, Episodes] = {}
    for group in groups:
        rows = np.repeat(np.array([chosen[number] for number in group]), episodes)
        all_seeds = np.tile(seeds, len(group))
        given = {name: np.tile(values, len(group)) for name, values in (options or {}).items()}
        parts, limit = [], max_environments or len(rows)
        if not compact:  # twins are in neighbouring rows, and stay together
            limit = max(2, limit // 2 * 2)
        for start in range(0, len(rows), limit):
            part = slice(start, start + limit)
            environments = make(rows[part])
            try:
                parts.append(
                    rollout(
                        player(acting.actor(agent, environments.num_envs, first=start)),
                        environments,
                        seeds=all_seeds[part],
                        max_steps=int(np.max(getattr(environments, "max_steps"))),  # noqa: B009  no VectorEnv has it
                        options={name: values[part] for name, values in given.items()} or None,
                        compact=compact,
                        description=description,
                    )
                )
            finally:
                environments.close()
        played = Episodes.joined(parts)
        for place, number in enumerate(group):
            results[chosen[number]] = played.part(slice(place * episodes, (place + 1) * episodes))
    return results
