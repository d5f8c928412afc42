"""Recurrent networks: LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014), the main baselines.

    x_t = W [previous action; return-to-go; observation]          (step_input "joined")
    h_t, state_t = cell(x_t, state_{t-1})                         several layers, torch's own cells

With step_input "sequence" the parts of a step enter the cell one after the other, as in the Decision LSTM (Siebenborn
et al. 2022, arXiv 2211.14655), and the hidden state after the observation is the step's.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import Memory, MemoryConfig, MemoryOptions, State, Steps, as_wide
from RATE_model.memories.stack import StepInput, rolled
from RATE_model.system.products import Linear

MAX_FORGET_BIAS = 20  # a gate of 1 - 2e-9: nothing is ever forgotten


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(MemoryConfig):
    """Sizes of a recurrent network."""

    # Layers, and numbers of the hidden state of each
    layers: int = 1
    hidden: int = 64
    # Parts of a step enter joined, or one after the other
    step_input: StepInput = "joined"
    # Dropout of inputs, between layers, and of the output
    dropout: float = 0.0
    # Added at the start to the bias of the gate that keeps the state
    forget_bias: float = 0.0

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {"recurrent_layers": self.layers, "hidden_size": self.hidden}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        sizes = self.sizes() | {"d_model": self.d_model}
        at_least(1, **sizes, context_length=self.context_length)
        at_most(MAX_SIZE, **sizes)
        at_most(MAX_STEPS, context_length=self.context_length)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: must be at least 0 and below 1")
        if not abs(self.forget_bias) <= MAX_FORGET_BIAS:
            raise UserError(f"--forget_bias {self.forget_bias}: must be from -{MAX_FORGET_BIAS} to {MAX_FORGET_BIAS}")


@dataclass(frozen=True)
class RecurrentState(State):
    """The state of every layer; only the LSTM has a `cell`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"hidden": ("hidden",), "cell": ("cell",)}

    hidden: Tensor  # (B, layers, hidden)
    cell: Tensor | None = None  # the same

    @property
    def slots(self) -> Tensor:
        """The layers' hidden states, and cells."""
        return self.hidden if self.cell is None else torch.cat([self.hidden, self.cell], dim=1)


class _Recurrent(Memory):
    """Common part of LSTM and GRU."""

    config: RecurrentConfig
    network: type[nn.LSTM] | type[nn.GRU]

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.parts = 3 if config.conditioned else 2  # of a step
        joined = config.step_input == "joined"
        self.join = Linear(self.parts * config.d_model, config.d_model) if joined else None
        between = config.dropout if config.layers > 1 else 0.0
        self.cells = self.network(config.d_model, config.hidden, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.output = Linear(config.hidden, config.d_model)

    @torch.no_grad()
    def initialise(self) -> None:
        """Open the gate that keeps the state: LSTM's forget gate and GRU's update gate, both torch's second."""
        gate = slice(self.config.hidden, 2 * self.config.hidden)
        for name, parameter in self.cells.named_parameters():
            if name.startswith("bias_ih"):
                parameter[gate] += self.config.forget_bias

    def forward(self, steps: Steps, valid: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """See `Memory.forward`."""
        hidden, state = self._outputs(steps, valid, state)
        return self.dropout(self.output(hidden)), state

    def _outputs(self, steps: Steps, valid: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The network's outputs at every step, `(B, T, hidden)` float32, and its state."""
        parts = steps.inputs()
        if self.join is not None:
            x = torch.relu(self.join(torch.cat(parts, dim=-1)))
        else:
            x = torch.stack(parts, dim=2).flatten(1, 2)  # (B, parts T, d)
        per_step = x.shape[1] // valid.shape[1]
        # In float32 even under autocast: a state rounded at every step drifts, and these products are small.
        with torch.autocast(x.device.type, enabled=False), self._without_cudnn_if_examined():
            x = self.dropout(x).float()
            if bool(valid[:, 0].all()):
                hidden, state = self._run(x, state)
            else:
                hidden, state = self._run_padded(x, valid.repeat_interleave(per_step, dim=1), state)
        return hidden[:, per_step - 1 :: per_step], state

    def _without_cudnn_if_examined(self) -> AbstractContextManager[Any]:
        """cuDNN has no backward pass in evaluation mode: leave it out where gradients are wanted there."""
        examined = torch.is_grad_enabled() and not self.training
        return torch.backends.cudnn.flags(enabled=False) if examined else nullcontext()

    def _run_padded(self, x: Tensor, valid: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """`_run` for inputs `(B, T, d)` with padding, which must not change the state. `valid` is `(B, T)`."""
        rows = valid.any(dim=1).nonzero().squeeze(1)
        hidden = x.new_zeros(*valid.shape, self.config.hidden)
        if not len(rows):
            return hidden, state
        on_device = rows.to(x.device, non_blocking=True)
        lead, lengths = valid[rows].int().argmax(dim=1), valid[rows].sum(dim=1)
        begun = rolled(x.index_select(0, on_device), -lead)
        packed = pack_padded_sequence(begun, lengths, batch_first=True, enforce_sorted=False)
        output, of_rows = self._run(packed, state.rows(rows))
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=valid.shape[1])
        return hidden.index_copy(0, on_device, rolled(output, lead)), state.put(rows, of_rows)

    def _run(self, x: Tensor | PackedSequence, state: RecurrentState) -> tuple[Any, RecurrentState]:
        raise NotImplementedError


class LSTM(_Recurrent):
    """Long short-term memory."""

    network = nn.LSTM

    def initial(self, batch_size: int) -> RecurrentState:
        """Zeros."""
        zeros = torch.zeros(batch_size, self.config.layers, self.config.hidden, device=self.device)
        return RecurrentState(zeros, zeros)

    def _run(self, x: Tensor | PackedSequence, state: RecurrentState) -> tuple[Any, RecurrentState]:
        assert state.cell is not None
        output, (hidden, cell) = self.cells(x, (_layers_first(state.hidden), _layers_first(state.cell)))
        return output, RecurrentState(hidden.transpose(0, 1), cell.transpose(0, 1))


class GRU(_Recurrent):
    """Gated recurrent unit."""

    network = nn.GRU

    def initial(self, batch_size: int) -> RecurrentState:
        """Zeros."""
        return RecurrentState(torch.zeros(batch_size, self.config.layers, self.config.hidden, device=self.device))

    def _run(self, x: Tensor | PackedSequence, state: RecurrentState) -> tuple[Any, RecurrentState]:
        output, hidden = self.cells(x, _layers_first(state.hidden))
        return output, RecurrentState(hidden.transpose(0, 1))


def _layers_first(state: Tensor) -> Tensor:
    """`(B, layers, hidden)` as torch's cells take it."""
    return state.transpose(0, 1).contiguous()


@dataclass(frozen=True)
class RecurrentOptions(MemoryOptions):
    """A recurrent network."""

    makes, prefix = RecurrentConfig, "recurrent_"
    renamed = {"hidden_size": "hidden"}
    derived = {"hidden": as_wide}

    # Layers of the recurrent network
    recurrent_layers: int = 1
    # Size of its hidden state; none = d_model
    hidden_size: int | None = None
    # joined: a step is one input; sequence: its parts enter one by one, as in DLSTM and DGRU
    step_input: StepInput = "joined"
    # Initial bias of the gate that keeps the state (LSTM: forget gate, GRU: update gate)
    forget_bias: float = 0.0
