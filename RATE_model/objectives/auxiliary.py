"""Auxiliary objectives: what else hidden states learn to predict, in training only.

    hidden state of a step  --head-->  the next observation's latent | the return-to-go | privileged infos/NAME

Heads are linear, except that of the next latent. They are not part of the agent: acting does not use them, and
checkpoints store them with the training state. As in behaviour cloning, a loss is the mean over the valid steps of a
window; a step without a target counts as 0.

MERLIN (Wayne et al. 2018, arXiv 1803.10760) trains memory by predicting observations, rewards and returns; Pasukonis et
al. 2022, "Evaluating long-term memory in 3D mazes" (arXiv 2210.13383), probe memories for positions and maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.agent import Agent
from RATE_model.data.batch import Batch, BatchTransform
from RATE_model.data.dataset import WindowDataset
from RATE_model.errors import UserError
from RATE_model.objectives.cloning import mean_over
from RATE_model.objectives.privileged import PREFIX, Privileged, infos_of
from RATE_model.system.products import Linear

NEXT_LATENT, RETURN = "next_latent", "return"
WEIGHTS = (0.5,)  # default
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def check_objectives(names: Sequence[str], weights: Sequence[float]) -> None:
    """Raise `UserError` for an unknown objective, or weights that do not match."""
    for name in names:
        if name not in (NEXT_LATENT, RETURN) and not (name.startswith(PREFIX) and name != PREFIX):
            raise UserError(
                f"--aux {name or repr(name)}: must be {NEXT_LATENT}, {RETURN}, or {PREFIX}NAME, an array of the data"
            )
    if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UserError(f"--aux: names {repeated[0]} twice; give it once")
    if names and len(weights) not in (1, len(names)):
        raise UserError(f"--aux_weight: {len(weights)} weights for {len(names)} objectives; give one, or one for each")
    if not names and tuple(weights) != WEIGHTS:
        raise UserError("--aux_weight: has no effect without --aux; give objectives, or leave it out")
    for weight in weights:
        if not _SMALLEST <= weight <= _LARGEST:
            raise UserError(f"--aux_weight {weight}: must be a float32, from {_SMALLEST:.2g} to {_LARGEST:.2g}")


@dataclass(frozen=True)
class ObjectiveInput:
    """The hidden states of some rows and steps of a batch.

    Attributes:
        agent: the agent.
        hidden: `(b, t, d_model)`, its hidden states.
        batch: the whole batch, on the agent's device.
        valid: `(B, T)` bool on the CPU, False for padding.
        rows, steps: the rows and steps of `hidden` within the batch.
    """

    agent: Agent
    hidden: Tensor
    batch: Batch
    valid: Tensor
    rows: slice
    steps: slice


class Objective(nn.Module, ABC):
    """A head, and the loss of its predictions."""

    @abstractmethod
    def forward(self, inputs: ObjectiveInput) -> Tensor:
        """The loss of every step, `(b, t)` float32; 0 at steps without a target."""


class NextLatent(Objective):
    """Predicts the encoder's output for the next observation, from the hidden state and the action taken.

    The target is normalised to mean 0 and variance 1 over its numbers, and detached.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.head = nn.Sequential(Linear(2 * d_model, d_model), nn.GELU(), _zero_initialised(d_model, d_model))

    def forward(self, inputs: ObjectiveInput) -> Tensor:
        """See `Objective.forward`."""
        batch, rows, steps = inputs.batch, inputs.rows, inputs.steps
        after = slice(steps.start + 1, steps.stop + 1)
        there = inputs.valid[rows, after]
        known = there.shape[1]
        if not known:
            return inputs.hidden.new_zeros(inputs.hidden.shape[:2], dtype=torch.float32)
        with torch.no_grad():
            latent = inputs.agent.latents(batch.observations[rows, after]).float()
            target = F.layer_norm(latent, latent.shape[-1:])
        action = inputs.agent.encoder.encode_actions(batch.actions[rows, steps][:, :known])
        predicted = self.head(torch.cat([inputs.hidden[:, :known], action], dim=-1)).float()
        errors = (predicted - target).square().mean(-1)
        errors = torch.where(there.to(errors.device, non_blocking=True), errors, errors.new_zeros(()))
        return F.pad(errors, (0, inputs.hidden.shape[1] - known))


class Return(Objective):
    """Predicts the return-to-go, normalised by the training data."""

    mean: Tensor
    std: Tensor

    def __init__(self, d_model: int, data: WindowDataset) -> None:
        super().__init__()
        mean, std = data.return_statistics
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std or 1.0))
        self.head = _zero_initialised(d_model, 1)

    def forward(self, inputs: ObjectiveInput) -> Tensor:
        """See `Objective.forward`."""
        predicted = self.head(inputs.hidden).float().squeeze(-1)
        return (predicted - (inputs.batch.rtg[inputs.rows, inputs.steps] - self.mean) / self.std).square()


class Info(Objective):
    """Predicts a privileged array of the data. The loss is the mean over its numbers."""

    def __init__(self, d_model: int, name: str, data: WindowDataset) -> None:
        super().__init__()
        self.name = name
        self.privileged = Privileged.of(name, data.info(name), flag="aux")
        self.head = _zero_initialised(d_model, self.privileged.kind.numbers)

    def forward(self, inputs: ObjectiveInput) -> Tensor:
        """See `Objective.forward`."""
        assert inputs.batch.infos is not None, "the windows contain the arrays of the objectives"
        rows = inputs.batch.infos[self.name][inputs.rows, inputs.steps]
        return self.privileged.scores(self.head(inputs.hidden), rows).errors.mean(-1)


class Auxiliary(nn.Module):
    """Several objectives with weights.

    Attributes:
        names: as typed by users.
        weights: `(A,)`.
    """

    weights: Tensor

    def __init__(self, names: Sequence[str], weights: Sequence[float], objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.objectives = nn.ModuleList(objectives)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    @classmethod
    def of(cls, names: Sequence[str], weights: Sequence[float], agent: Agent, data: WindowDataset) -> Self:
        """New objectives for an agent, on its device. Leaves torch's global generator unchanged.

        Args:
            names, weights: the objectives; a single weight applies to all.
            agent: provides the hidden states.
            data: training windows with the named arrays.
        """
        d_model = agent.config.sizes.d_model

        def make(name: str) -> Objective:
            if name == NEXT_LATENT:
                return NextLatent(d_model)
            return Return(d_model, data) if name == RETURN else Info(d_model, name.removeprefix(PREFIX), data)

        with torch.random.fork_rng(devices=[]):
            objectives = [make(name) for name in names]
        weights = [*weights] * len(names) if len(weights) == 1 else weights
        return cls(names, weights, objectives).to(agent.device)

    def forward(self, inputs: ObjectiveInput) -> Tensor:
        """The mean loss of every objective over valid steps: `(A,)` float32."""
        learned = inputs.batch.valid[inputs.rows, inputs.steps]
        return torch.stack([mean_over(objective(inputs), learned) for objective in self.objectives])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the losses, such as `train_aux_agent_pos`."""
        return tuple(f"train_aux_{name.removeprefix(PREFIX)}" for name in self.names)


def check_transform(names: Sequence[str], transform: BatchTransform | None, *, flag: str) -> None:
    """Raise `UserError` for an array of the data that a batch transform makes wrong."""
    if transform is None:
        return
    for name in infos_of(names):
        if name not in transform.keeps:
            kept = ", ".join(PREFIX + other for other in transform.keeps) or "none"
            raise UserError(
                f"--{flag} {PREFIX}{name}: is wrong in mirrored windows (correct in both: {kept}); "
                "use --mirror false, or leave it out"
            )


def _zero_initialised(inputs: int, outputs: int) -> nn.Linear:
    """A linear map initialised to zero, so it first predicts the mean of the data."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
