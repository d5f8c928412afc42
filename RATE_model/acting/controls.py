"""Control experiments that manipulate an agent's memory.

Each is a `transform(memory, initial_memory)` that an `Actor` applies at every segment border.
"""

import torch

from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform, State


def knock_out_memory(memory: State, initial: State) -> State:
    """Start every segment from the initial memory."""
    return initial


def knock_out_part(part: str) -> MemoryTransform:
    """Pass on all of the memory except `part` (a name in `State.parts`), which is reset."""

    def transform(memory: State, initial: State) -> State:
        return memory.with_part(part, initial)

    return transform


def exchange_twins(seed: int = 0) -> MemoryTransform:
    """Swap the memories of twins: episodes that differ only in what has to be remembered.

    Rows 2i and 2i + 1 are twins, and no row has been dropped (`rollout` with `compact=False`). Before every segment the
    memories of a pair are swapped with probability 1/2, even if a twin's episode is over. Everything else in memory
    (the agent's position, its plans) is unaffected, so an agent that decides by its memory is right half of the time.
    """
    generator = torch.Generator().manual_seed(seed)

    def transform(memory: State, initial: State) -> State:
        rows = torch.arange(memory.batch_size).view(-1, 2)
        exchanged = torch.rand(len(rows), generator=generator) < 0.5
        rows[exchanged] = rows[exchanged].flip(1)
        return memory.rows(rows.flatten())

    return transform


def memory_conditions(agent: Agent) -> dict[str, MemoryTransform | None]:
    """The conditions of a control experiment, a transform for each label.

    Memory is what passes between segments. A model without memory (DT, MLP) has nothing to knock out, and so only one
    condition.
    """
    if not agent.memory.has_memory:
        return {"no memory": None}
    return {"memory intact": None, "memory knocked out": knock_out_memory}
