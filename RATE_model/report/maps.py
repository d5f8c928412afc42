"""Maps of an episode: attention, gates, and memory tokens compared with a twin's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import evaluating
from RATE_model.agent import Agent
from RATE_model.plots import plot_attention, plot_gates, plot_memory

# Observations (B, t, ...), actions (B, t, ...) and returns-to-go (B, t) float32, the arguments of `Agent.inspect`.
Recorded = tuple[Tensor, Tensor, Tensor]


def record_rows(
    agent: Agent,
    environments: VectorEnv,
    *,
    seed: int,
    target_return: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Recorded:
    """Act greedily in all rows, with one seed, until the first episode ends, so there is no padding.

    Args:
        agent: any mode; the result is on its device.
        environments: B rows; reset by this function.
        seed, options: arguments of the reset.
        target_return: the target return.
    """
    rows = environments.num_envs
    seeds, options = [seed] * rows, dict(options or {})
    observation, _ = environments.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]
    reward, rtg, done = np.zeros(rows), np.full(rows, target_return), np.zeros(rows, dtype=bool)
    recorded: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with evaluating(agent):
        actor = Actor(agent, rows, target_return)
        while not done.any():
            rtg = rtg - reward
            action = actor.act(observation, reward)
            recorded.append((observation, action, rtg))
            observation, reward, terminated, truncated, _ = environments.step(action)
            done = terminated | truncated
    observations, actions, returns = (
        torch.as_tensor(np.stack(columns, axis=1)).to(agent.device) for columns in zip(*recorded, strict=True)
    )
    return observations, actions, returns.float()


def draw_maps(
    agent: Agent,
    directory: Path,
    record: Callable[[int], Recorded],
    steps: int,
    *,
    labels: Sequence[str],
    name: str,
) -> list[Path]:
    """Draw attention and gates of one episode, and its memory tokens compared with its twin's.

    Writes attention_map.png (mean over layers and heads), attention_layers.png (mean over heads), gates_map.png and
    memory_map.png, if the memory has them.

    Args:
        agent: any mode. Agents that act on a sliding window (DT, DTXL) show their window.
        directory: folder of the PNGs.
        record: records twins of at most this many steps, in two rows.
        steps: length of the episode whose attention is drawn; its memory is drawn over ten segments, if that is longer.
        labels: names of the twins.
        name: the environment's name.

    Returns:
        The PNGs' paths.
    """
    context, (one, other) = agent.memory.segment, labels
    if agent.memory.slides:
        steps = min(steps, context)
    episode = record(steps)
    with evaluating(agent):
        seen = agent.inspect(*episode)
    segments, gates = seen.get("attention"), seen.get("gates")
    episode_text, paths = f"in a {name} episode of {episode[2].shape[1]} steps", []
    if segments is not None:
        title = f"attention {episode_text}, {one}"
        both, heads = f"{title} (mean over layers and heads)", f"{title} (mean over heads)"
        paths.append(plot_attention(segments, directory / "attention_map.png", title=both))
        paths.append(plot_attention(segments, directory / "attention_layers.png", layer="each", title=heads))
    if gates:
        title = f"gates of the memory {episode_text}"
        paths.append(plot_gates(gates, directory / "gates_map.png", rows={one: 0, other: 1}, title=title))
    if agent.memory.initial(1).slots is not None:
        longest = max(steps, 10 * context)
        with evaluating(agent):
            states = agent.inspect(*record(longest))["states"]
        title = f"memory in two {name} episodes of {longest} steps, {one} and {other}"
        path = directory / "memory_map.png"
        paths.append(plot_memory(states, path, other=states, other_row=1, labels=(one, other), title=title))
    return paths
