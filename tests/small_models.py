"""Small models and trajectories that several test files use."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentConfig, AgentState
from RATE_model.memories.rate.config import RATEConfig, apply_mode
from RATE_model.memories.rate.state import SegmentState
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import save_checkpoint

K, N = 4, 3

VECTOR = EnvironmentSpec(observation_shape=(4,), num_actions=4, action_embeddings=5, action_tanh=True)
CONTINUOUS = EnvironmentSpec(observation_shape=(5,), num_actions=2, continuous=True)

# Inputs of `Agent.forward` before `valid`: observations (B, T, ...), actions (B, T, ...), rtg (B, T).
Inputs = tuple[Tensor, Tensor, Tensor]


def small_config(mode: str = "RATE", **changes) -> RATEConfig:
    """A mode with two layers, K = 4, N = 3, three memory tokens, a cache of eight and an MRV of two heads."""
    sizes = dict(
        n_layer=2, n_head=2, d_model=16, d_head=8, d_inner=24, context_length=K, num_mem_tokens=3, n_head_ca=2,
        mem_len=8,
    )  # fmt: skip
    return apply_mode(RATEConfig(**(sizes | changes)), mode=mode, segments=N)


def rate_agent(config: RATEConfig, spec: EnvironmentSpec) -> Agent:
    """An agent of the RATE family."""
    return Agent(AgentConfig("RATE", config), spec)


def small_model(mode: str = "RATE", *, spec: EnvironmentSpec = VECTOR, seed: int = 0, **changes) -> Agent:
    """A random model in eval mode, with gates and valve opened, because new ones let little through."""
    torch.manual_seed(seed)
    model = rate_agent(small_config(mode, **changes), spec).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("gate1.bias", "gate2.bias")):
            torch.nn.init.zeros_(parameter)
        elif name.startswith("memory.valve.") and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def save_small_model(model: Agent, directory: Path) -> Path:
    """The model as the only checkpoint of a run's directory; the checkpoint's path."""
    state = {**model.config.saved(), "spec": asdict(model.spec)}
    return save_checkpoint(directory / "checkpoints", 1, model_state=model.state_dict(), training_state=state)


def random_inputs(batch: int = 2, steps: int = K * N, *, spec: EnvironmentSpec = VECTOR, seed: int = 0) -> Inputs:
    """Random trajectories."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(batch, steps, *spec.observation_shape, generator=generator)
    if spec.continuous:
        actions = torch.rand(batch, steps, spec.num_actions, generator=generator) * 2 - 1
    else:
        actions = torch.randint(0, spec.num_actions, (batch, steps), generator=generator)
    return observations, actions, torch.randn(batch, steps, generator=generator)


def everywhere(inputs: Inputs) -> Tensor:
    """A `valid` without padding."""
    return torch.ones(inputs[2].shape, dtype=torch.bool)


def logits_of(model: Agent, inputs: Inputs) -> Tensor:
    """Logits of whole trajectories in one call."""
    return model(*inputs, everywhere(inputs))[0]


def cut(inputs: Inputs, segment: int) -> Inputs:
    """One segment of K steps."""
    return tuple(tensor[:, segment * K : (segment + 1) * K] for tensor in inputs)


def by_segments(
    model: Agent, inputs: Inputs, *, forget_tokens: bool = False, forget_cache: bool = False
) -> list[Tensor]:
    """Logits of every segment, one call per segment; memory may be reset in between."""
    initial = model.initial(len(inputs[2])).memory
    memory, logits = initial, []
    for segment in range(inputs[2].shape[1] // K):
        for part, forgotten in (("tokens", forget_tokens), ("cache", forget_cache)):
            memory = memory.with_part(part, initial) if forgotten else memory
        segment_logits, memory = one_segment(model, cut(inputs, segment), memory)
        logits.append(segment_logits)
    return logits


def one_segment(model: Agent, inputs: Inputs, memory: SegmentState) -> tuple[Tensor, SegmentState]:
    """Logits of a segment, and the memory after it."""
    logits, state = model(*inputs, everywhere(inputs), AgentState(memory))
    return logits, state.memory


def changed(
    inputs: Inputs, *, observation: int | None = None, action: int | None = None, rtg: int | None = None
) -> Inputs:
    """A copy with other values at the given steps."""
    observations, actions, returns = (tensor.clone() for tensor in inputs)
    if observation is not None:
        observations[:, observation] += 1.0
    if action is not None:
        other = actions[:, action]
        actions[:, action] = -other if actions.is_floating_point() else (other + 1) % 4
    if rtg is not None:
        returns[:, rtg] += 1.0
    return observations, actions, returns


def flip_hint(inputs: Inputs) -> Inputs:
    """The same trajectories with the first feature of the first observation negated, as T-Maze's hint would be."""
    observations = inputs[0].clone()
    observations[:, 0, 0] *= -1
    return observations, *inputs[1:]


def without_dropout(model: Agent) -> Agent:
    """The model in training mode; its dropout must be 0 already."""
    config = model.memory.config
    assert config == replace(config, dropout=0.0, dropatt=0.0)
    return model.train()
