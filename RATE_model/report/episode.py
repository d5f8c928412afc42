"""Record an episode for the player: what the agent saw, did, stored in memory and attended to at every step."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from PIL import Image
from torch import Tensor

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import BatchActor, evaluating
from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform, State
from RATE_model.plots.attention import attention_by_step

# Draws the current state of a row of a vector environment: (H, W, 3) uint8.
Picture = Callable[[VectorEnv, int], np.ndarray | None]
# Limit on the total size of an episode's pictures; the player shows two episodes.
_PICTURE_BYTES = 3_500_000
# Units of a gate that are shown separately.
_UNITS = 8


@dataclass(frozen=True)
class Trace:
    """A recording of a vector environment until the episode of its first row ends.

    Attributes:
        observations: `(T, *observation_shape)` of the first row, like all others except `slots`.
        actions: `(T,)` int64 or `(T, A)`.
        rtg: `(T,)` float32.
        probabilities: `(T, num_actions)` if actions are discrete, else the actions.
        rewards: `(T,)`.
        pictures: one per step, before its action; empty if nothing can be drawn.
        handed_on: `(S,)` int64, the steps before which memory was passed on.
        slots: `(S, B, n, width)`, the memory at these steps; None if it has no slots.
    """

    observations: np.ndarray
    actions: np.ndarray
    rtg: np.ndarray
    probabilities: np.ndarray
    rewards: np.ndarray
    pictures: list[np.ndarray]
    handed_on: np.ndarray
    slots: np.ndarray | None


def record(
    agent: Agent,
    environments: VectorEnv,
    *,
    seeds: np.ndarray,
    target_return: float,
    max_steps: int,
    options: dict[str, Any] | None = None,
    transform: MemoryTransform | None = None,
    picture: Picture | None = None,
    player: Callable[[BatchActor], BatchActor] = lambda actor: actor,
) -> Trace:
    """Act greedily in all rows until the episode of the first row ends.

    Args:
        agent: any mode; acts in eval mode.
        environments: B rows; reset by this function.
        seeds, options: arguments of the reset.
        target_return: the target return.
        max_steps: step limit per episode.
        transform: changes the memory; see `Actor`.
        picture: draws a row; None: image observations are the pictures.
        player: makes the player from the actor.
    """
    observed, acted, asked, chances, earned, drawn = [], [], [], [], [], []
    handed_on: list[int] = []
    slots: list[np.ndarray] = []

    def watch(memory: State, initial: State) -> State:
        """Record the memory; called by the actor between two segments."""
        memory = memory if transform is None else transform(memory, initial)
        if memory.slots is not None:
            handed_on.append(len(acted))
            slots.append(memory.slots.float().cpu().numpy())
        return memory

    class Watched(Actor):
        """An actor that records its inputs and decisions."""

        def observe(self, observations: Any, rewards: Any = None, infos: Any = None) -> Tensor:
            logits = super().observe(observations, rewards, infos)
            chances.append((logits if agent.spec.continuous else logits.softmax(-1))[0].cpu().numpy())
            return logits

    observations, _ = environments.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]
    rewards, rtg = np.zeros(environments.num_envs), np.float32(target_return)
    with evaluating(agent):
        actor = player(Watched(agent, environments.num_envs, target_return, transform_memory=watch))
        for _ in range(max_steps):
            rtg = rtg - np.float32(rewards[0])
            actions = actor.act(observations, rewards)
            drawn += _drawn(agent, environments, observations[0], picture)
            observed.append(observations[0])
            asked.append(rtg)
            acted.append(actions)
            observations, rewards, terminated, truncated, _ = environments.step(actions)
            earned.append(float(rewards[0]))
            if terminated[0] or truncated[0]:
                break
    return Trace(
        np.stack(observed),
        np.stack(acted)[:, 0],
        np.array(asked, dtype=np.float32),
        np.stack(chances),
        np.array(earned),
        drawn,
        np.array(handed_on, dtype=np.int64),
        np.stack(slots) if slots else None,
    )


def _drawn(agent: Agent, environments: VectorEnv, observation: np.ndarray, picture: Picture | None) -> list[np.ndarray]:
    """A list with the picture of this step, or empty."""
    if picture is not None:
        drawn = picture(environments, 0)
        return [] if drawn is None else [drawn]
    if not agent.spec.is_image:
        return []
    image = np.clip(observation * agent.spec.observation_scale * 255, 0, 255).astype(np.uint8)
    return [np.moveaxis(image[-3:] if len(image) >= 3 else image[-1:].repeat(3, axis=0), 0, -1)]


def player_data(
    agent: Agent, intact: Trace, knocked_out: Trace | None, *, actions: Sequence[str] | None, title: str
) -> dict[str, Any]:
    """The data of the page's player, as JSON.

    Args:
        agent: the agent that acted.
        intact: row 0 and, if there are two, its twin.
        knocked_out: the same episode with memory knocked out at every segment; None without memory.
        actions: names of discrete actions; empty: their numbers.
        title: title of the player.
    """
    names = actions or [str(number) for number in range(agent.spec.num_actions)]
    data: dict[str, Any] = {"title": title, "actions": list(names), "continuous": agent.spec.continuous}
    data["intact"] = _side(intact)
    data["knocked_out"] = None if knocked_out is None else _side(knocked_out)
    data["memory"] = _memory(intact)
    data |= _inside(agent, intact)
    return data


def control(agent: Agent) -> MemoryTransform | None:
    """The transform of the knocked-out episode; None without memory."""
    return knock_out_memory if agent.memory.has_memory else None


def _side(trace: Trace) -> dict[str, Any]:
    """One of the two episodes."""
    pictures, numbers = _encoded(trace.pictures)
    actions = trace.actions if trace.actions.ndim == 1 else np.full(len(trace.actions), -1)
    return {
        "pictures": pictures,
        "picture_of": numbers,
        "actions": actions.tolist(),
        "probabilities": np.round(trace.probabilities, 4).tolist(),
        "rewards": np.round(trace.rewards, 4).tolist(),
        "rtg": np.round(trace.rtg.astype(float), 4).tolist(),
        "observations": np.round(trace.observations.astype(float), 3).tolist() if not pictures else None,
    }


def _memory(trace: Trace) -> dict[str, Any] | None:
    """Norms of the memory slots after every segment, and their distance to the twin's."""
    if trace.slots is None:
        return None
    norms = np.linalg.norm(trace.slots[:, 0], axis=-1)
    apart = np.linalg.norm(trace.slots[:, 0] - trace.slots[:, 1], axis=-1) if trace.slots.shape[1] > 1 else None
    return {
        "steps": trace.handed_on.tolist(),
        "norms": np.round(norms, 3).tolist(),
        "distances": None if apart is None else np.round(apart, 3).tolist(),
    }


def _inside(agent: Agent, trace: Trace) -> dict[str, Any]:
    """What `Agent.inspect` returns, by step.

    "attention": attention weights; None for memories without attention. "gates": all else, `(B, T, n)` by name; with
    many units, their mean and those that change most.
    """
    look = [torch.as_tensor(array)[None].to(agent.device) for array in (trace.observations, trace.actions, trace.rtg)]
    with evaluating(agent):
        seen = agent.inspect(*look)
    attention, gates = seen.get("attention"), []
    for name, found in seen.items():
        for called, values in found.items() if isinstance(found, Mapping) else [(name, found)]:
            if isinstance(values, Tensor) and values.ndim == 3:
                gates.append(_gate(called, values[0].float().cpu().numpy()))
    return {"attention": None if attention is None else attention_by_step(attention), "gates": gates}


def _gate(name: str, values: np.ndarray) -> dict[str, Any]:
    """Units of a gate, `(T, n)`, and their names."""
    units = np.arange(values.shape[1])
    if len(units) > _UNITS:
        units = np.sort(np.argsort(-np.nan_to_num(values.std(axis=0)), kind="stable")[:_UNITS])
    names, shown = [f"unit {unit + 1}" for unit in units], values[:, units]
    if values.shape[1] > _UNITS:
        names, shown = [f"mean of {values.shape[1]}", *names], np.column_stack([values.mean(axis=1), shown])
    return {"name": name, "units": names, "values": np.round(shown.astype(float), 3).tolist()}


def _encoded(pictures: Sequence[np.ndarray]) -> tuple[list[str], list[int]]:
    """The distinct pictures as data URIs, and each step's number among them.

    PNG; JPEG if those are too large; then only every second, fourth, ... picture.
    """
    if not pictures:
        return [], []
    kinds: list[dict[str, Any]] = [{"format": "PNG"}, *({"format": "JPEG", "quality": q} for q in (85, 60, 35, 15))]
    every = 1
    while True:
        shown = [pictures[step - step % every] for step in range(len(pictures))]
        distinct = {picture.tobytes(): picture for picture in shown}
        places = {key: number for number, key in enumerate(distinct)}
        for kind in kinds:
            encoded = [_uri(picture, **kind) for picture in distinct.values()]
            if sum(map(len, encoded)) <= _PICTURE_BYTES:
                return encoded, [places[picture.tobytes()] for picture in shown]
        kinds, every = kinds[-1:], 2 * every


def _uri(picture: np.ndarray, **kind: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **kind)
    return f"data:image/{kind['format'].lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
