"""Record an agent on whole episodes of the data: hidden states, memory and predictions at every step.

Memory is passed on through whole episodes, as in acting, even if training windows were shorter. Memories that slide
(DT, DTXL) are shown one step after another, because they recompute their window when acting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentState, RawSteps
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.memories.contract import State, StepOptions
from RATE_model.objectives.cloning import action_errors

CHUNK = 256  # approximate number of steps per forward pass
_BATCH_BYTES = 2**28

# Called before every segment but the first with the number of steps so far and the memory, which it may replace.
AtBorder = Callable[[int, State], State]


@dataclass(frozen=True)
class Recording:
    """S steps of E episodes, concatenated, and the memory at B segment borders.

    Attributes:
        episode, step: (S,) int64, the episode, and the step within it, from 0.
        hidden, knocked_out, observation: (S, d) float32, hidden states; the same with the memory knocked out before
            every segment (None without memory); and the encoded observation of the step, with what an oracle is told.
        infos: (S, n) float32 or int64 by name.
        targets: (S,) int64 or (S, A) float32, target actions; `actions`: actions taken.
        predictions: (S, num_actions) float32, logits or actions; `exchanged`: the same with past actions replaced by
            others of the data; `forgetful`: with the memory knocked out (None without memory).
        errors: (S,) float32, the loss of each prediction; `exchanged_errors` and `forgetful_errors` likewise.
        state: (B, n) float32, the memory passed on; None if it is empty or varies in size.
        before: (B,) int64, index of the last step before each border.
    """

    episode: np.ndarray
    step: np.ndarray
    hidden: np.ndarray
    observation: np.ndarray
    infos: dict[str, np.ndarray]
    targets: np.ndarray
    actions: np.ndarray
    predictions: np.ndarray
    exchanged: np.ndarray
    errors: np.ndarray
    exchanged_errors: np.ndarray
    before: np.ndarray
    knocked_out: np.ndarray | None = None
    forgetful: np.ndarray | None = None
    forgetful_errors: np.ndarray | None = None
    state: np.ndarray | None = None

    @property
    def episodes(self) -> int:
        """E."""
        return int(self.episode.max()) + 1


def whole_episodes_of(data: WindowDataset, *, episodes: int, steps: int | None = None) -> WindowDataset:
    """The episodes of a dataset's windows, from their beginnings, padded on the right.

    Args:
        data: training or validation windows.
        episodes: maximum number, evenly spaced.
        steps: maximum steps of each; None: all.
    """
    index, start, _ = data.windows.T
    found = np.unique(np.stack([index, data.episode_starts(index, start)], axis=1), axis=0)
    found = found[np.linspace(0, len(found) - 1, min(episodes, len(found))).astype(int)]
    lengths = [_length(data, file, start) for file, start in found]
    lengths = np.minimum(lengths, min(steps or max(lengths), max(lengths)))
    return data.with_windows(np.column_stack([found, lengths]), size=int(lengths.max()), pad="right")


def _length(data: WindowDataset, file: int, start: int) -> int:
    """Steps of the episode that begins there."""
    trajectories = data.files[file]
    return int(trajectories.lengths[np.searchsorted(trajectories.starts, start)])


@torch.inference_mode()
def record(agent: Agent, data: WindowDataset, *, slide: int = 1, seed: int = 0) -> Recording:
    """Run an agent, in eval mode, on episodes of `whole_episodes_of`.

    Args:
        agent: the agent to record.
        data: episodes with the infos to record, and those that an oracle needs.
        slide: for a memory that slides, steps by which a full window slides.
        seed: of the exchange of past actions.
    """
    parts: dict[str, list[np.ndarray]] = {}
    generator, episodes = torch.Generator().manual_seed(seed), 0
    numbers = int(np.prod(data.files[0].observation_shape)) * data.size
    rows = max(1, _BATCH_BYTES // (4 * numbers))
    steps_before = 0
    for first in range(0, len(data), rows):
        batch = data.__getitems__(range(first, min(first + rows, len(data))))
        found = _of_batch(agent, batch, generator, slide)
        valid = batch.valid.numpy()
        row, step = np.nonzero(valid)
        found |= {"episode": row + episodes, "step": step}
        position = np.cumsum(valid.ravel()).reshape(valid.shape) - 1 + steps_before  # indices of valid steps
        found["before"] = position[found.pop("border_rows"), found.pop("border_steps") - 1]
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        episodes, steps_before = episodes + len(batch), steps_before + len(row)
    whole: dict[str, Any] = {name: np.concatenate(values) for name, values in parts.items()}
    infos = {name: whole.pop(f"infos/{name}") for name in data.infos}
    return Recording(infos=infos, **whole)


def _of_batch(agent: Agent, batch: Batch, generator: torch.Generator, slide: int) -> dict[str, np.ndarray]:
    """Arrays of a batch's valid steps, by name, and the memory at borders, with rows and steps."""
    valid = batch.valid.numpy()
    on_device = batch.to(agent.device)
    states: list[tuple[int, State]] = []

    def keep(step: int, memory: State) -> State:
        states.append((step, memory))
        return memory

    def knock_out(step: int, memory: State) -> State:
        return agent.memory.initial(len(batch))

    def through(shown: Batch, at_border: AtBorder | None) -> Tensor:
        if agent.memory.slides:
            return _step_by_step(agent, shown, at_border, slide)
        return _by_segments(agent, shown, batch.valid, at_border)

    def flat(values: Tensor) -> np.ndarray:
        return values.cpu().numpy()[valid]

    hidden = through(on_device, keep)
    others = batch.actions[batch.valid]
    others = others[torch.randint(len(others), (batch.valid.numel(),), generator=generator)]
    changed = replace(on_device, actions=others.view(batch.actions.shape).to(agent.device))
    predictions, exchanged = (agent.head(states).float() for states in (hidden, through(changed, None)))
    targets = on_device.targets
    found = {
        "hidden": flat(hidden.float()),
        "observation": flat(torch.cat([_shown(agent, piece) for piece in _pieces(on_device)], 1)),
        "targets": flat(targets),
        "actions": flat(batch.actions),
        "predictions": flat(predictions),
        "exchanged": flat(exchanged),
        "errors": flat(action_errors(agent.spec, predictions, targets)),
        "exchanged_errors": flat(action_errors(agent.spec, exchanged, targets)),
        **{f"infos/{name}": flat(values) for name, values in (batch.infos or {}).items()},
    }
    if agent.memory.has_memory:
        knocked_out = through(on_device, knock_out)
        forgetful = agent.head(knocked_out).float()
        found["knocked_out"], found["forgetful"] = flat(knocked_out.float()), flat(forgetful)
        found["forgetful_errors"] = flat(action_errors(agent.spec, forgetful, targets))
    return found | _at_borders(agent, batch.lengths, states)


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Observations and infos of a batch, split in time."""
    for start in range(0, batch.valid.shape[1], CHUNK):
        piece = slice(start, start + CHUNK)
        infos = None if batch.infos is None else {name: values[:, piece] for name, values in batch.infos.items()}
        yield replace(batch, observations=batch.observations[slice(None), piece], infos=infos)


def _shown(agent: Agent, batch: Batch) -> Tensor:
    """The encoded observations (B, T, d), with what an oracle is told."""
    seen, told = agent.latents(batch.observations), agent.encoder.encode_infos(batch.infos)
    return (seen if told is None else seen + told).float()


def _by_segments(agent: Agent, batch: Batch, valid: Tensor, at_border: AtBorder | None) -> Tensor:
    """Hidden states (B, T, d) of whole episodes; `valid` is on the CPU."""
    segment, length = agent.memory.segment, valid.shape[1]
    size = segment * max(1, CHUNK // segment)
    state, found = agent.initial(len(batch)), []

    def changed(step: int, state: AgentState) -> AgentState:
        return state if at_border is None else replace(state, memory=at_border(step, state.memory))

    for start, stop in pairwise([*range(0, length, size), length]):
        piece = slice(start, stop)
        inputs = (batch.observations[slice(None), piece], batch.actions[:, piece], batch.rtg[:, piece], valid[:, piece])
        hidden, state = agent(
            *inputs,
            state,
            borders=range(segment, stop - start, segment),
            at_border=lambda step, state, start=start: changed(start + step, state),
            head=lambda hidden: hidden,
            infos=None if batch.infos is None else {name: values[:, piece] for name, values in batch.infos.items()},
        )
        if stop < length:
            state = changed(stop, state)
        found.append(hidden)
    return torch.cat(found, dim=1)


def _step_by_step(agent: Agent, batch: Batch, at_border: AtBorder | None, slide: int) -> Tensor:
    """The same, as an `Actor` computes them. Padding on the right comes after an episode and changes nothing."""
    memory, found = agent.memory, []

    def transform(state: State, initial: State) -> State:
        return state if at_border is None else at_border(len(found), state)

    stepper = memory.stepper(len(batch), StepOptions(slide=slide, transform=transform), agent.encoder.parameter_dtype)
    oracle = agent.encoder.encode_infos(batch.infos)
    steps = RawSteps(agent.encoder, agent.shown(batch.observations), batch.actions, batch.rtg, oracle=oracle)
    for start in range(0, steps.shape[1], CHUNK):
        piece = steps.cut(slice(start, start + CHUNK))
        for step in range(piece.shape[1]):
            stepper.pass_on()
            rtg = None if piece.rtg is None else piece.rtg[:, step, None]
            found.append(stepper.append(rtg, piece.observations[:, step, None]))
            stepper.record(piece.actions[:, step, None])
    return torch.stack(found, dim=1)


def _at_borders(agent: Agent, lengths: Tensor, states: Sequence[tuple[int, State]]) -> dict[str, np.ndarray]:
    """The memory at the borders that episodes reach, as vectors, with rows and steps of these borders."""
    rows, steps, vectors = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], []
    for step, state in states if agent.memory.has_memory else ():
        reached = torch.nonzero(lengths > step).squeeze(1)
        vector = vector_of(state.rows(reached).fitted(agent.memory.largest_state()))
        if vector is None or not len(reached):
            continue
        rows.append(reached.numpy())
        steps.append(np.full(len(reached), step))
        vectors.append(vector)
    found = {"border_rows": np.concatenate(rows), "border_steps": np.concatenate(steps)}
    return found | ({"state": np.concatenate(vectors)} if vectors else {})


def vector_of(state: State) -> np.ndarray | None:
    """All real numbers of a state, (B, n); None if there are none."""
    tensors = [torch.view_as_real(each) if each.is_complex() else each for each in state.tensors()]
    numbers = [each.flatten(1).float() for each in tensors if each.is_floating_point() and each.ndim > 1]
    return torch.cat(numbers, dim=1).cpu().numpy() if numbers else None
