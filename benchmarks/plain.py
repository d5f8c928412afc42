"""The plain implementation to compare with: tests/reference.py with straightforward training and acting.

It computes what the published model computes, on the published layout (separate keys and values, a projected table of
distances, a shifted score matrix, whole masked matrices), with autograd, in float32.
"""

from contextlib import AbstractContextManager
from functools import lru_cache
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from RATE_model.agent import Agent
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.weights import convert_weights
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.trainer import window_steps
from tests import reference
from tests.small_models import rate_agent
from TMaze_new.TMaze_new_src.env import SPEC


def remembered_tables() -> AbstractContextManager:
    """A context in which the plain implementation caches its masks and distance tables.

    It fills them entry by entry in Python, in every layer; timing that would be unfair.
    """
    return mock.patch.multiple(
        reference,
        attention_mask=lru_cache(maxsize=None)(reference.attention_mask),
        distance_table=lru_cache(maxsize=None)(reference.distance_table),
    )


def make_meta(config: RATEConfig, *, batch_size: int, segments: int, env: str = "tmaze") -> dict:
    """The sizes under the plain implementation's names. `env`: see `reference.VARIANTS`."""
    return reference.make_meta(
        env=env,
        arch_mode=config.arch,
        segment_length=config.context_length,
        num_segments=segments,
        batch=batch_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        d_model=config.d_model,
        d_head=config.d_head,
        d_inner=config.d_inner,
        num_mem_tokens=config.num_mem_tokens,
        n_head_ca=config.n_head_ca,
        mem_len=config.mem_len,
        mrv_act=config.mrv_act,
        skip_dec_ffn=config.skip_dec_ffn,
    )


def make_model(config: RATEConfig, weights: reference.Weights, spec: EnvironmentSpec = SPEC) -> Agent:
    """Our model with the plain implementation's weights."""
    model = rate_agent(config, spec)
    convert_weights(weights, model)
    return model


def make_batch(meta: dict, *, seed: int = 0) -> Batch:
    """Random trajectories without padding."""
    observations, actions, rtg = reference.random_data(meta, seed)
    valid = torch.ones(rtg.shape[:2], dtype=torch.bool)
    return Batch(observations, actions[..., 0], rtg[..., 0], valid, valid.sum(1), torch.arange(len(rtg)))


class PlainTraining:
    """The published training loop, `bptt_segments` 0 or not, over the plain implementation; no dropout."""

    def __init__(self, weights: reference.Weights, meta: dict, options: TrainOptions) -> None:
        self.weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        self.meta, self.options = meta, options
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=options.learning_rate,
            betas=(options.beta_1, options.beta_2),
            weight_decay=options.weight_decay,
        )

    def train_batch(self, batch: Batch) -> float:
        """The optimizer steps of one batch; the mean loss of its windows."""
        steps = batch.rtg.shape[1]
        window = window_steps(self.options, self.meta["segment_length"]) or steps
        memory, cache, losses = first_memory(self.weights, self.meta, len(batch)), None, []
        for start in range(0, steps, window):
            if start and memory is not None:
                memory = memory.detach()
            loss, memory, cache = self._window(batch, start, min(start + window, steps), memory, cache)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.options.grad_norm_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _window(
        self, batch: Batch, start: int, stop: int, memory: Tensor | None, cache: list[Tensor] | None
    ) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Loss of the steps from `start` to `stop`, and the memory and cache after them."""
        length, logits = self.meta["segment_length"], []
        for first in range(start, stop, length):
            steps = slice(first, first + length)
            assert isinstance(batch.observations, Tensor)
            seen = batch.observations[:, steps]
            seen = seen / 255 if seen.dtype == torch.uint8 else seen  # images
            inputs = seen, batch.actions[:, steps, None], batch.rtg[:, steps, None]
            result = reference.segment(self.weights, self.meta, *inputs, memory, cache)
            memory, cache = result.memory, result.cache
            logits.append(result.logits)
        loss = F.cross_entropy(torch.cat(logits, dim=1).flatten(0, 1), batch.actions[:, start:stop].flatten())
        return loss, memory, cache


class PlainActor:
    """The published way to act: the current segment is recomputed at every step, and once more when it ends.

    Args:
        full: fill future steps with zeros. No step sees them, but a published read token sees the ones to its right at
            distances that depend on the segment's length (see RATE_model/memories/rate/attention.py), and ours always
            use those of a full segment. True gives our logits; False is the published way, which is shorter and faster
            at first.
    """

    def __init__(
        self, weights: reference.Weights, meta: dict, batch_size: int, target_return: float, *, full: bool = False
    ) -> None:
        self.weights, self.meta, self.full = weights, meta, full
        self.rtg = torch.full((batch_size, 1, 1), target_return)
        self.memory, self.cache = first_memory(weights, meta, batch_size), None
        self._observations: list[Tensor] = []
        self._actions: list[Tensor] = []

    @torch.no_grad()
    def observe(self, observations: Tensor) -> Tensor:
        """Action logits `(B, num_actions)` for the next observations `(B, ...)`; rewards are zero."""
        if len(self._observations) == self.meta["segment_length"]:
            result = self._segment(self._observations, self._actions)
            self.memory, self.cache = result.memory, result.cache
            self._observations, self._actions = [], []
        self._observations.append(observations)
        current = len(self._actions)
        steps = self.meta["segment_length"] if self.full else current + 1
        # The newest step has no action yet; no step sees its placeholder.
        no_action = torch.zeros(len(observations), dtype=torch.int64)
        later = [torch.zeros_like(observations)] * (steps - current - 1)
        result = self._segment([*self._observations, *later], [*self._actions, *[no_action] * (steps - current)])
        return result.logits[:, current]

    def take(self, actions: Tensor) -> None:
        """Record the actions taken, `(B,)` int64."""
        self._actions.append(actions)

    def _segment(self, observations: list[Tensor], actions: list[Tensor]) -> reference.Segment:
        return reference.segment(
            self.weights,
            self.meta,
            torch.stack(observations, dim=1),
            torch.stack(actions, dim=1)[..., None],
            self.rtg.expand(-1, len(actions), -1),
            self.memory,
            self.cache,
        )


def first_memory(weights: reference.Weights, meta: dict, batch_size: int) -> Tensor | None:
    """The initial memory tokens `(B, n, d)` of a trajectory."""
    if not meta["num_mem_tokens"]:
        return None
    return weights["mem_tokens"].transpose(0, 1).expand(batch_size, -1, -1)
