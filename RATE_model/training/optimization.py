"""Optimizer and learning-rate schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from RATE_model.agent import Agent


def make_optimizer(
    model: Agent,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    decay_all: bool = False,
    auxiliary: nn.Module | None = None,
) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices of linear layers and convolutions only.

    Biases, norms, embeddings, memory tokens and relative-position biases are not decayed, except with `decay_all`, as
    in the published training. Heads of `auxiliary` objectives are not decayed.
    """
    heads = [] if auxiliary is None else [{"params": list(auxiliary.parameters()), "weight_decay": 0.0}]
    if decay_all:
        groups = [{"params": model.ordered_parameters(), "weight_decay": weight_decay}, *heads]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    linear = (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d))
    decayed = {id(module.weight) for module in linear}
    matrices = [parameter for parameter in model.ordered_parameters() if id(parameter) in decayed]
    rest = [parameter for parameter in model.ordered_parameters() if id(parameter) not in decayed]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}, *heads]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def not_finite(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """Names of the model's and optimizer's tensors that are NaN or infinite, in words; None if all are finite."""
    state = [] if optimizer is None else [value for held in optimizer.state.values() for value in held.values()]
    for what, values in (("weights", model.state_dict().values()), ("state of the optimizer", state)):
        finite = [value.isfinite().all() for value in values if torch.is_tensor(value)]
        if not all(torch.stack([flag.to(finite[0].device) for flag in finite]).tolist() if finite else []):
            return what
    return None


@dataclass
class Schedule:
    """The learning rate as a fraction of its peak: linear warm-up, a plateau, decay to an end value, then constant.

    If `decay_start` is None, the plateau lasts until `start_decay` is called. The rate never rises afterwards: an
    unfinished warm-up stops at its current value.
    """

    warmup_steps: int
    decay_start: int | None
    decay_steps: int
    end_factor: float
    shape: str = "linear"  # or cosine
    tokens = 0  # environment steps shown; only other schedules count them

    def count(self, tokens: int) -> None:
        """Called after every window, with its environment steps; does nothing here."""

    def factor(self, step: int) -> float:
        """The fraction of the peak at optimizer step `step`, counted from 0."""
        warming = step if self.decay_start is None else min(step, self.decay_start)
        reached = min(1.0, (warming + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay_start is None or step < self.decay_start:
            return reached
        progress = min(1.0, (step - self.decay_start) / max(1, self.decay_steps))
        if self.shape == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return min(reached, 1 + (self.end_factor - 1) * progress)

    def start_decay(self, step: int) -> None:
        """Start the decay at this step; further calls do nothing."""
        if self.decay_start is None:
            self.decay_start = step


@dataclass
class RisingCosine:
    """The published cosine, a function of the environment steps trained on.

    It is not clipped beyond `final_tokens`, so the rate rises again, and falls again. The published code sets it after
    each step, so the very first step uses the peak rate.
    """

    warmup_tokens: int
    final_tokens: int
    end_factor: float
    tokens: int = 0
    decay_start: int | None = None  # used by other schedules

    def count(self, tokens: int) -> None:
        """Add the environment steps of a window, burn-in included."""
        self.tokens += tokens

    def factor(self, step: int) -> float:
        """The learning rate of the next optimizer step, as a fraction of the peak."""
        if step == 0:
            return 1.0
        if self.tokens < self.warmup_tokens:
            return self.tokens / self.warmup_tokens
        progress = (self.tokens - self.warmup_tokens) / max(1, self.final_tokens - self.warmup_tokens)
        return max(self.end_factor, 0.5 * (1 + math.cos(math.pi * progress)))

    def start_decay(self, step: int) -> None:
        """Does nothing: the decay is a function of environment steps."""


def late_linear(
    batches: Sequence[int],
    epochs: Sequence[int],
    *,
    steps_per_batch: int,
    segments: int,
    warmup_steps: int,
    end_factor: float,
) -> Schedule:
    """The published linear decay.

    It starts with the epoch after the one in which `warmup_steps` batches are done, and assumes batches times segments
    optimizer steps per epoch, whatever their actual number.

    Args:
        batches, epochs: batches per epoch, and epochs, of every stage.
        steps_per_batch: optimizer steps per batch in the first stage.
        segments: segments per trajectory.
        warmup_steps: length of the linear warm-up, in optimizer steps.
        end_factor: value at the end of the assumed decay, as a fraction of the peak.
    """
    warmup_epochs = -(-max(1, warmup_steps) // batches[0])
    total = sum(count * times for count, times in zip(batches, epochs, strict=True)) * segments
    return Schedule(warmup_steps, warmup_epochs * batches[0] * steps_per_batch, total, end_factor)


@torch.no_grad()
def initialise_as_published(model: Agent) -> None:
    """Initialise a model's weights as in the published code: PyTorch's defaults for all layers, and the memory's own
    rule for its other parameters."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    model.memory.initialise_as_published()


def decay_over(total_steps: int, *, warmup_steps: int, end_factor: float, shape: str) -> Schedule:
    """Warm-up, then decay to `end_factor` at the last of `total_steps`; the shape `constant` keeps the plateau."""
    if shape == "constant":
        return Schedule(warmup_steps, None, 0, 1.0)
    warmup_steps = min(warmup_steps, total_steps)
    return Schedule(warmup_steps, warmup_steps, total_steps - 1 - warmup_steps, end_factor, shape)
