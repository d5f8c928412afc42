"""The common part of memories made of layers: each layer is a cell with its own state.

x_t = relu(W [previous action; return-to-go; observation])        step_input "joined"; or one part after the other
x_t <- x_t + cell(norm(x_t))                                      layer by layer; without a norm: x_t <- cell(x_t)
h_t = norm(x_t)
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError
from RATE_model.memories.contract import (
    CountingStepper,
    Memory,
    MemoryConfig,
    State,
    StepOptions,
    Stepper,
    Steps,
    put_rows,
)
from RATE_model.memories.scan import last
from RATE_model.system.products import Linear

StepInput = Literal["joined", "sequence"]

# The state of a layer, `(B, ...)` each.
CellState = tuple[Tensor, ...]
# Signals of a layer at every step, for figures, by name: `(B, T, n)` each.
StepSignals = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StackConfig(MemoryConfig):
    """Sizes of a stack of layers; a memory adds its own and the names of their flags."""

    # Layers
    layers: int = 2
    # Dropout of inputs and of what a layer adds
    dropout: float = 0.0
    # Parts of a step enter as one input, or one after another
    step_input: StepInput = "joined"

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        raise NotImplementedError

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        at_least(1, **self.sizes(), d_model=self.d_model, context_length=self.context_length)
        at_most(MAX_SIZE, **self.sizes(), d_model=self.d_model)
        at_most(MAX_STEPS, context_length=self.context_length)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: must be at least 0 and below 1")


class Cell(nn.Module, ABC):
    """A layer with a state."""

    @abstractmethod
    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """The state before the first step."""

    @abstractmethod
    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """Process consecutive steps.

        Args:
            x: `(B, T, d_model)`.
            state: before the first of them.
            valid: `(B, T)` bool on the device of `x`, True on a row's first steps; None: everywhere.

        Returns:
            `(B, T, d_model)`, arbitrary where `valid` is False; the state after the last valid step; and signals for
            figures.
        """

    def stepper(self, state: CellState, dtype: torch.dtype) -> "CellStepper":
        """A stepper for this layer, from a state on; uses `dtype` where precision matters little."""
        return CellStepper(self, state, dtype)


class CellStepper:
    """A layer in acting, one step at a time, in eval and inference mode.

    A subclass may store the layer's state in its own layout and change it in place. Parameters are read at
    construction. This default keeps the state unchanged and calls the layer's `forward`.

    Attributes:
        buffers: tensors with one row per trajectory.
    """

    def __init__(self, cell: Any, state: CellState, dtype: torch.dtype) -> None:
        self.cell, self.dtype = cell, dtype
        self.buffers = self._owned(state)

    def pack(self, state: CellState) -> list[Tensor]:
        """The buffers for a state."""
        return list(state)

    def unpack(self, buffers: list[Tensor]) -> CellState:
        """The state in tensors like `buffers`."""
        return tuple(buffers)

    def step(self, x: Tensor) -> Tensor:
        """Map the next step, `(B, d_model)`, to the layer's output, `(B, d_model)`."""
        y, state, _ = self.cell(x[:, None], tuple(self.buffers), None)
        self.buffers = list(state)
        return y[:, 0]

    def read(self, rows: Tensor | None = None) -> CellState:
        """The state of some rows, `(b,)` int64 on the CPU; None: all rows, valid until the next step."""
        return self.unpack(self.buffers if rows is None else self._of(rows))

    def put(self, state: CellState, rows: Tensor | None = None) -> None:
        """Replace the state of some rows; None: of all."""
        if rows is None:
            self.buffers = self._owned(state)
        else:
            self.buffers = [put_rows(old, rows, new) for old, new in zip(self.buffers, self.pack(state), strict=True)]

    def keep(self, rows: Tensor) -> None:
        """Continue with some rows only."""
        self.buffers = self._of(rows)

    def _of(self, rows: Tensor) -> list[Tensor]:
        return [tensor.index_select(0, rows.to(tensor.device)) for tensor in self.buffers]

    def _owned(self, state: CellState) -> list[Tensor]:
        return [tensor.clone(memory_format=torch.contiguous_format) for tensor in self.pack(state)]


class Stack(Memory):
    """Stacked layers.

    Class attributes:
        cell: makes a layer's cell from the configuration.
        state: its fields are tuples with one tensor per layer, in the order of a cell's state.
        norm: of a layer's inputs, `LayerNorm` or `RMSNorm`; None: neither norms nor residual connections.
    """

    config: StackConfig
    cells: Sequence[Cell]
    cell: ClassVar[type[Cell]]
    state: ClassVar[type[State]]
    norm: ClassVar[type[nn.LayerNorm] | type[nn.RMSNorm] | None] = nn.LayerNorm

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        d, parts = config.d_model, 3 if config.conditioned else 2
        self.join = Linear(parts * d, d) if config.step_input == "joined" else None
        self.cells = cast(Sequence[Cell], nn.ModuleList(self.cell(config) for _ in range(config.layers)))
        norm, count = self.norm, config.layers + 1
        self.norms = nn.ModuleList() if norm is None else nn.ModuleList(norm(d, eps=1e-5) for _ in range(count))
        self.dropout = nn.Dropout(config.dropout)

    def initial(self, batch_size: int) -> State:
        """The initial state of every layer."""
        return self.state(*zip(*(cell.initial(batch_size, self.device) for cell in self.cells), strict=True))

    def forward(self, steps: Steps, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Memory.forward`."""
        hidden, state, _ = self._run(steps, valid, state)
        return hidden, state

    def stepper(self, batch_size: int, options: StepOptions, dtype: torch.dtype) -> Stepper:
        """See `Memory.stepper`: layer by layer."""
        return StackStepper(self, batch_size, options, dtype)

    def inspect(self, steps: Steps) -> dict[str, Any]:
        """As for every memory, and "gates": the layers' signals, `(B, T, n)` each, by name."""
        batch, length = steps.shape
        states, seen = [self.initial(batch)], []
        for start in range(0, length, self.segment):
            part = steps.cut(slice(start, start + self.segment))
            _, state, gates = self._run(part, torch.ones(part.shape, dtype=torch.bool), states[-1])
            states.append(state)
            seen.append(gates)
        return {
            "states": states,
            "gates": {name: torch.cat([gates[name] for gates in seen], dim=1) for name in seen[0]},
        }

    def _run(self, steps: Steps, valid: Tensor, state: State) -> tuple[Tensor, State, StepSignals]:
        """`forward`, and the layers' signals by layer and name."""
        x = self._inputs(steps)
        per_step = x.shape[1] // valid.shape[1]
        lead = within = None
        # Rows that start with these steps need no mask: steps after their end change nothing before it. But a memory
        # that stores data must not store those.
        if not bool((valid if self.keeps_data else valid[:, 0]).all()):
            lead = valid.int().argmax(dim=1) * per_step
            ends = valid.sum(dim=1, keepdim=True) * per_step
            within = (torch.arange(x.shape[1]) < ends).to(x.device, non_blocking=True)
            x = rolled(x, -lead)
        states, seen = [], {}
        for index, (cell, of_cell) in enumerate(zip(self.cells, by_layer(state), strict=True)):
            inputs = self.norms[index](x) if self.norms else x
            y, after, gates = cell(inputs, of_cell, within)
            x = x + self.dropout(y) if self.norms else self.dropout(y)
            states.append(after)
            seen |= {f"layer {index + 1}: {name}": gate[:, per_step - 1 :: per_step] for name, gate in gates.items()}
        x = self.norms[-1](x) if self.norms else x
        x = x if lead is None else rolled(x, lead)
        return x[:, per_step - 1 :: per_step], self.state(*zip(*states, strict=True)), seen

    def _inputs(self, steps: Steps) -> Tensor:
        """`(B, T, d)` float32, or `(B, parts T, d)` if parts of a step enter one after another."""
        parts = steps.inputs()
        if self.join is not None:
            return self.dropout(torch.relu(self.join(torch.cat(parts, dim=-1)))).float()
        return self.dropout(torch.stack(parts, dim=2).flatten(1, 2)).float()


class StackStepper(CountingStepper):
    """A stack in acting: every layer has its own stepper."""

    memory: Stack

    def __init__(self, memory: Stack, batch_size: int, options: StepOptions, dtype: torch.dtype) -> None:
        super().__init__(memory, batch_size, options, dtype)
        states = by_layer(memory.initial(batch_size))
        self._layers = [cell.stepper(state, dtype) for cell, state in zip(memory.cells, states, strict=True)]

    def _next(self, steps: Steps) -> Tensor:
        x, norms = steps.observations, self.memory.norms
        for x in self.memory._inputs(steps).unbind(1):
            for index, layer in enumerate(self._layers):
                x = x + layer.step(norms[index](x)) if norms else layer.step(x)
        return norms[-1](x) if norms else x

    def _read(self, rows: Tensor) -> State:
        return self.memory.state(*zip(*(layer.read(rows) for layer in self._layers), strict=True))

    def _put(self, rows: Tensor, state: State) -> None:
        everywhere = bool(len(rows) == len(self._passed) and (rows == torch.arange(len(rows))).all())
        for layer, own in zip(self._layers, by_layer(state), strict=True):
            layer.put(own, None if everywhere else rows)

    def _keep(self, rows: Tensor) -> None:
        for layer in self._layers:
            layer.keep(rows)


def by_layer(state: State) -> list[CellState]:
    """A stack's state as one state per layer."""
    return list(zip(*(getattr(state, field.name) for field in fields(state)), strict=True))


def rolled(x: Tensor, shift: Tensor) -> Tensor:
    """`(B, T, d)` with row b rotated to the right by `shift[b]` steps."""
    index = (torch.arange(x.shape[1]) - shift[:, None]) % x.shape[1]
    return x.gather(1, index.to(x.device, non_blocking=True)[..., None].expand_as(x))


def last_valid(states: Tensor, initial: Tensor, valid: Tensor | None) -> Tensor:
    """The state after the last valid step, `(B, ...)`, from states `(B, T, ...)`; `initial` in rows without one."""
    if valid is None:
        return last(states)
    with_initial = torch.cat([initial[:, None], states], dim=1)
    return with_initial[torch.arange(len(states), device=states.device), valid.sum(dim=1)]


class _Filter(torch.autograd.Function):
    """Inputs `(B, T + taps - 1, d)`, weights `(taps, d)` and a bias `(d,)` to weighted sums, `(B, T, d)`.

    Autograd would store and add one tensor of this size per tap.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        length = inputs.shape[1] - len(weight) + 1
        filtered = torch.addcmul(bias, inputs[:, :length], weight[0])
        for tap, factor in enumerate(weight[1:], start=1):
            filtered.addcmul_(inputs[:, tap : tap + length], factor)
        return filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        to_inputs, scratch = torch.zeros_like(inputs), torch.empty_like(gradient)
        to_weight = []
        for tap, factor in enumerate(weight):
            place = slice(tap, tap + gradient.shape[1])
            to_inputs[:, place].addcmul_(gradient, factor)
            to_weight.append(torch.mul(gradient, inputs[:, place], out=scratch).sum(dim=(0, 1)))
        return to_inputs, torch.stack(to_weight), gradient.sum(dim=(0, 1))


class CausalConvolution(nn.Module):
    """A depthwise causal filter in float32; the previous inputs are its state, `(B, taps - 1, d)`."""

    def __init__(self, channels: int, taps: int = 4) -> None:
        super().__init__()
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))  # the last is the present's
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, before: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Filter `(B, T, d)`; also returns the last inputs. `valid` as for a cell."""
        length, taps = x.shape[1], len(self.weight)
        inputs = torch.cat([before, x.float()], dim=1)
        filtered = _Filter.apply(inputs, self.weight, self.bias)
        if valid is None:
            return filtered, inputs[:, length:].clone()  # without holding on to the others
        places = valid.sum(dim=1)[:, None] + torch.arange(taps - 1, device=x.device)
        return filtered, inputs.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))

    def state_of_inputs(self, before: list[Tensor]) -> Tensor:
        """The state for the inputs before a step, `(B, d)` each."""
        return torch.stack(before, dim=1)

    def step(self, x: Tensor, before: list[Tensor]) -> Tensor:
        """Filter one step `(B, d)`, and add it to `before`, the `taps - 1` inputs before it, oldest first."""
        filtered = self.bias
        for weight, inputs in zip(self.weight, [*before, x], strict=True):
            filtered = torch.addcmul(filtered, inputs, weight)
        if before:
            oldest = before.pop(0)
            before.append(oldest.copy_(x))
        return filtered
