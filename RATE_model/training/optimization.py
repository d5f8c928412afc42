"""The optimizer and the learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices of linear maps and convolutions, and on nothing else.

    Biases, norms, embeddings, memory tokens and relative-position biases are not decayed.
    """
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d)]
    decayed = {id(weight) for weight in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def not_finite(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """What of a model, and of its optimizer's state, is infinite or NaN, in words; None where everything is finite."""
    state = [] if optimizer is None else [value for held in optimizer.state.values() for value in held.values()]
    for what, values in (("weights", model.state_dict().values()), ("state of the optimizer", state)):
        finite = [value.isfinite().all() for value in values if torch.is_tensor(value)]
        if not all(torch.stack([flag.to(finite[0].device) for flag in finite]).tolist() if finite else []):
            return what
    return None


@dataclass
class Schedule:
    """The learning rate as a fraction of its peak: linear warm-up, a plateau, decay to an end value, then constant.

    With `decay_start` None the plateau lasts until `start_decay` is called. It never rises again after that: a warm-up
    that is not over by then ends where it is.
    """

    warmup_steps: int
    decay_start: int | None
    decay_steps: int
    end_factor: float
    shape: str = "linear"  # or cosine

    def factor(self, step: int) -> float:
        """The fraction at optimizer step `step`, counted from 0."""
        warming = step if self.decay_start is None else min(step, self.decay_start)
        reached = min(1.0, (warming + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay_start is None or step < self.decay_start:
            return reached
        progress = min(1.0, (step - self.decay_start) / max(1, self.decay_steps))
        if self.shape == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return min(reached, 1 + (self.end_factor - 1) * progress)

    def start_decay(self, step: int) -> None:
        """Begin the decay at this step, once."""
        if self.decay_start is None:
            self.decay_start = step


def decay_over(total_steps: int, *, warmup_steps: int, end_factor: float, shape: str) -> Schedule:
    """Warm-up, then decay to the end factor at the last of `total_steps`; `constant` keeps the plateau."""
    if shape == "constant":
        return Schedule(warmup_steps, None, 0, 1.0)
    warmup_steps = min(warmup_steps, total_steps)
    return Schedule(warmup_steps, warmup_steps, total_steps - 1 - warmup_steps, end_factor, shape)
