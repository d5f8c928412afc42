"""kNN without a trained model: repeats the actions taken in the data after the most similar histories.

    phi_t: a frozen key of the history (`neighbours.History`), of random encoders that are never trained
    w = softmax(-d / temperature) over the distances d of the k nearest keys in the index
    h_t = sum_i w_i embedding(action of neighbour i)

Like model-free episodic control (Blundell et al. 2016, arXiv 1606.04460), with actions instead of returns. Only the
agent's head, from embedded actions to actions, is trained. A task that it solves needs no model.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import (
    Gather,
    Memory,
    MemoryConfig,
    MemoryOptions,
    State,
    StepOptions,
    Stepper,
    Steps,
    single_process,
)
from RATE_model.memories.neighbours import History, Index
from RATE_model.memories.stack import rolled


@dataclass(frozen=True, kw_only=True)
class KNNConfig(MemoryConfig):
    """Sizes."""

    # Stored steps, and neighbours per step
    entries: int = 16384
    neighbours: int = 8
    # Distance, in standard deviations, at which a neighbour's weight falls to 1 / e
    temperature: float = 0.1
    # Averages of the history in a key, over 2, 8, 32, ... steps; numbers of each
    horizons: int = 5
    projected: int = 16

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        sizes = {"knn_entries": self.entries, "knn_neighbours": self.neighbours, "knn_projected": self.projected}
        at_least(1, **sizes, knn_horizons=self.horizons, d_model=self.d_model, context_length=self.context_length)
        at_most(MAX_STEPS, **sizes, context_length=self.context_length)
        at_most(12, knn_horizons=self.horizons)
        if self.neighbours > self.entries:
            raise UserError(
                f"--knn_neighbours {self.neighbours}: must be at most --knn_entries, which is {self.entries}"
            )
        if not self.temperature > 0:
            raise UserError(f"--knn_temperature {self.temperature}: must be above 0")


@dataclass(frozen=True)
class KNNState(State):
    """The averages of the history."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"history": ("averages",)}

    averages: Tensor  # (B, horizons, projected)

    @property
    def slots(self) -> Tensor:
        """The averages."""
        return self.averages


class KNN(Memory):
    """Nearest neighbours."""

    config: KNNConfig
    trains_encoders, keeps_data = False, True

    def __init__(self, config: KNNConfig) -> None:
        super().__init__(config)
        self.history = History(config.d_model * (3 if config.conditioned else 2), config.projected, config.horizons)
        self.index = Index(config.entries, self.history.key_size, (config.d_model,))

    @property
    def gradient_reach(self) -> int | None:
        """Nothing is learned."""
        return 0

    @property
    def device(self) -> torch.device:
        """The device of the index."""
        return self.index.keys.device

    def initial(self, batch_size: int) -> KNNState:
        """An empty history."""
        return KNNState(self.history.initial(batch_size, self.device))

    def forward(self, steps: Steps, valid: Tensor, state: KNNState) -> tuple[Tensor, KNNState]:
        """See `Memory.forward`. In training mode the steps are offered to the index."""
        hidden, state, _, keys = self._run(steps, valid, state)
        if self.training and steps.actions is not None:
            here = valid.to(keys.device)
            self.index.offer(keys[here], steps.actions[here])
        return hidden, state

    def store_shown(self, gather: Gather = single_process) -> None:
        """See `Memory.store_shown`: an even sample of all steps."""
        self.index.store_offered(gather, newest=False)

    def _run(self, steps: Steps, valid: Tensor, state: KNNState) -> tuple[Tensor, KNNState, Tensor, Tensor]:
        """`forward`; distances of the neighbours, `(B, T, k)`; and keys, `(B, T, n)`."""
        x = torch.cat([part.detach() for part in steps.inputs()], dim=-1)
        lead = within = None
        if not bool(valid[:, 0].all()):
            lead = valid.int().argmax(dim=1)
            within = (torch.arange(x.shape[1]) < valid.sum(dim=1, keepdim=True)).to(x.device, non_blocking=True)
            x = rolled(x, -lead)
        keys, averages = self.history(x, state.averages, within)
        keys = keys if lead is None else rolled(keys, lead)
        if not self.index.count:
            empty = keys.new_zeros(*keys.shape[:2], 0)
            return keys.new_zeros(*keys.shape[:2], self.config.d_model), KNNState(averages), empty, keys
        places, distances = self.index.nearest(keys.flatten(0, 1), self.config.neighbours)
        weights = torch.softmax(-distances / self.config.temperature, dim=-1)
        hidden = (weights[..., None] * self.index.values[places]).sum(dim=1)
        shape = keys.shape[:2]
        return hidden.unflatten(0, shape), KNNState(averages), distances.unflatten(0, shape), keys

    def stepper(self, batch_size: int, options: StepOptions, dtype: torch.dtype) -> Stepper:
        """See `Memory.stepper`; an empty index is a `UserError`."""
        self.index.check_not_empty("kNN")
        return super().stepper(batch_size, options, dtype)

    def inspect(self, steps: Steps) -> dict[str, Any]:
        """As for every memory, plus "neighbours": their distances at every step, `(B, T, k)`, nearest first."""
        everywhere = torch.ones(steps.shape, dtype=torch.bool)
        _, _, distances, _ = self._run(steps, everywhere, self.initial(steps.shape[0]))
        return super().inspect(steps) | {"neighbours": distances}


@dataclass(frozen=True)
class KNNOptions(MemoryOptions):
    """Nearest neighbours in the data, without a trained model."""

    makes, prefix = KNNConfig, "knn_"

    # Steps of the data to store: an even sample of everything that training shows
    knn_entries: int = 16384
    # Neighbours per step
    knn_neighbours: int = 8
    # Distance, in standard deviations, at which a neighbour's weight falls to 1 / e
    knn_temperature: float = 0.1
    # Averages of the history in a key, over 2, 8, 32, ... steps
    knn_horizons: int = 5
    # Width of the random projection of a step
    knn_projected: int = 16
