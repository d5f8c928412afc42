"""No memory: the control that every claim about memory needs. h_t = f(return-to-go_t, observation_t).

It does not see the previous action either, because an action repeats what was seen when it was chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import Memory, MemoryConfig, MemoryOptions, State, Steps
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class MLPConfig(MemoryConfig):
    """Sizes of a multilayer perceptron."""

    # Hidden layers of d_model numbers
    layers: int = 2
    # Dropout after each
    dropout: float = 0.0

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        at_least(1, mlp_layers=self.layers, d_model=self.d_model, context_length=self.context_length)
        at_most(MAX_SIZE, mlp_layers=self.layers, d_model=self.d_model)
        at_most(MAX_STEPS, context_length=self.context_length)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: must be at least 0 and below 1")


@dataclass(frozen=True)
class Nothing(State):
    """The empty state of a model without memory."""


class MLP(Memory):
    """A multilayer perceptron over single steps."""

    config: MLPConfig
    sees_actions = False

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        width = config.d_model * (2 if config.conditioned else 1)
        for _ in range(config.layers):
            layers += [Linear(width, config.d_model), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.d_model
        self.layers = nn.Sequential(*layers)

    @property
    def reach(self) -> int | None:
        """Only the current step."""
        return 1

    @property
    def has_memory(self) -> bool:
        """False: there is no memory."""
        return False

    def initial(self, batch_size: int) -> Nothing:
        """Nothing."""
        return Nothing()

    def forward(self, steps: Steps, valid: Tensor, state: Nothing) -> tuple[Tensor, Nothing]:
        """See `Memory.forward`."""
        return self.layers(torch.cat(steps.inputs(previous_actions=False), dim=-1)), state


@dataclass(frozen=True)
class MLPOptions(MemoryOptions):
    """A multilayer perceptron over single steps: no memory."""

    makes, prefix = MLPConfig, "mlp_"

    # Hidden layers
    mlp_layers: int = 2
