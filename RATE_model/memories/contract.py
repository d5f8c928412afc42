"""The contract of a memory: the backbone between the encoders of a step and the action head.

    observation, return-to-go,          hidden state at which
    previous action  ->  Memory  ->     the step's action is decided
                         |    ^
                         State, passed on from window to window

A memory sees steps, not tokens: `Steps` holds the embedded returns-to-go, observations and actions of B trajectories.
It returns one hidden state per step and its state after the last one. Agents, training, acting, checkpoints, control
experiments and figures use only this contract, for RATE too.

To write a memory, subclass `MemoryConfig`, `MemoryOptions`, `State` and `Memory`, and add it to the tables in
`RATE_model.memories`; see docs/adding_a_memory.md. tests/RATE_model/memories/test_contract.py checks that every memory
in the table keeps these promises:

*   Acting equals training: fed a recorded trajectory, the stepper gives the hidden states of `forward` at every step.
*   Causality: a step's hidden state depends neither on later steps nor on the step's own action.
*   Rows are independent, and padding changes nothing: `valid` is True on a row's first steps, or on its last. A
    memory that sees several steps at once (`context`) may see left padding that does not fill them.
*   Gradients flow through the whole call, from the last decision to the first observation, unless `gradient_reach` sets
    a limit.
*   State and time per step do not grow with the episode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

# Gathers a value from every training process, in order of rank.
Gather = Callable[[Any], list[Any]]


def single_process(value: Any) -> list[Any]:
    """`Gather` for a single process."""
    return [value]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The configuration common to all memories; each adds its own sizes."""

    # Width of the embedded steps and of the hidden states
    d_model: int
    # K: steps per segment, the unit of gradient windows, control experiments and reset targets
    context_length: int
    # Whether steps include the return-to-go
    conditioned: bool = True

    def validate(self) -> None:
        """Raise a `UserError` for invalid sizes."""


# The size that a flag leaves open: from d_model and the steps of a training trajectory.
Derived = Callable[[int, int], int]


def as_wide(d_model: int, steps: int) -> int:
    """`d_model`."""
    return d_model


def twice_as_wide(d_model: int, steps: int) -> int:
    """2 `d_model`."""
    return 2 * d_model


def a_trajectory(d_model: int, steps: int) -> int:
    """The steps of a training trajectory."""
    return steps


@dataclass(frozen=True)
class MemoryOptions:
    """The flags of a memory, one field each; the comment above a field is its help text, the docstring the group's.

    Attributes:
        makes: the class of the configuration.
        prefix: of the flags' names; the rest is the name of the configuration's field.
        renamed: flags for fields with other names.
        derived: fields whose flags may be none, and what they are then.
    """

    makes: ClassVar[type[MemoryConfig]]
    prefix: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    derived: ClassVar[Mapping[str, Derived]] = {}

    def check_mode(self, mode: str, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed flag that does not apply to the mode; nothing by default.

        Args:
            mode: a name in the table of modes.
            typed: the names of all flags on the command line.
        """

    def config(
        self, *, mode: str, d_model: int, dropout: float, context_length: int, segments: int, conditioned: bool
    ) -> MemoryConfig:
        """The configuration from these flags and the shared ones; not yet validated.

        Args:
            mode: a name in the table of modes.
            d_model, dropout: flags that all memories share.
            context_length: K, steps per segment.
            segments: N, segments per training trajectory.
            conditioned: whether the agent sees returns-to-go.
        """
        sizes: dict[str, Any] = {"d_model": d_model, "context_length": context_length, "conditioned": conditioned}
        if "dropout" in {field.name for field in fields(self.makes)}:
            sizes["dropout"] = dropout
        for flag, value in vars(self).items():
            name = self.renamed.get(flag, flag.removeprefix(self.prefix))
            left_open = value is None and name in self.derived
            sizes[name] = self.derived[name](d_model, context_length * segments) if left_open else value
        return self.makes(**sizes)


class Steps:
    """T steps of B trajectories, embedded to d numbers each.

    Attributes:
        rtg: `(B, T, d)` returns-to-go, or None without conditioning.
        observations: `(B, T, d)`.
        previous_actions: `(B, T, d)`, the actions of the steps before; zero at the start of an episode.
        actions: `(B, T, d)`, the actions of the steps themselves. Only for memories that shift actions on their own, as
            RATE does: a step's hidden state must not depend on its own action.
    """

    def __init__(
        self,
        *,
        observations: Tensor,
        previous_actions: Tensor,
        rtg: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> None:
        self.observations, self.previous_actions, self.rtg, self.actions = observations, previous_actions, rtg, actions

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        return self.observations.shape[0], self.observations.shape[1]

    def cut(self, times: slice, rows: Tensor | None = None) -> Steps:
        """A slice of consecutive steps, of some rows (indices on the CPU; None: all)."""
        on_device = None if rows is None else rows.to(self.observations.device, non_blocking=True)

        def part(tensor: Tensor) -> Tensor:
            return tensor[:, times] if on_device is None else tensor[:, times].index_select(0, on_device)

        return Steps(
            observations=part(self.observations),
            previous_actions=part(self.previous_actions),
            rtg=None if self.rtg is None else part(self.rtg),
            actions=None if self.actions is None else part(self.actions),
        )

    def inputs(self, *, previous_actions: bool = True) -> list[Tensor]:
        """The parts of every step in order: previous action, return-to-go, observation."""
        parts = [self.previous_actions if previous_actions else None, self.rtg, self.observations]
        dtype = self.observations.dtype  # under autocast a table look-up stays float32 while linear layers do not
        return [part.to(dtype) for part in parts if part is not None]


@dataclass(frozen=True)
class State:
    """What a memory carries from step to step for B trajectories: tensors with one row per trajectory, tuples of these,
    or other states.

    A memory declares its own fields; the methods here work on any fields. `parts` names what a control experiment can
    knock out separately, and the fields that belong to it.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {}

    def map(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """`function` applied to every tensor, together with the corresponding tensors of the other states."""

        def apply(value: Any, *same: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value, *same)
            if isinstance(value, tuple):
                return tuple(apply(*items) for items in zip(value, *same, strict=True))
            return value.map(function, *same) if isinstance(value, State) else value

        names = [field.name for field in fields(self)]
        return replace(self, **{n: apply(getattr(self, n), *(getattr(o, n) for o in others)) for n in names})

    def detach(self) -> Self:
        """The same state, detached from the gradient."""
        return self.map(Tensor.detach)

    def rows(self, index: Tensor) -> Self:
        """A subset of rows, `(b,)` int64 on the CPU, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device, non_blocking=True)))

    def put(self, index: Tensor, other: Self) -> Self:
        """This state with the rows `(b,)` int64 (on the CPU) replaced by those of `other`."""
        return self.map(lambda tensor, new: put_rows(tensor, index, new), other)

    def with_part(self, part: str, other: Self) -> Self:
        """This state with one of its `parts` taken from another state."""
        return replace(self, **{name: getattr(other, name) for name in self.parts[part]})

    def fitted(self, room: Self) -> Self:
        """Pad every tensor to the size of its counterpart in `room`, keeping this state's rows; for states that
        grow."""
        return self

    def trimmed(self) -> Self:
        """Remove the padding that `fitted` added in all rows."""
        return self

    @property
    def slots(self) -> Tensor | None:
        """The vectors to draw as the memory's content: `(B, n, width)`, n per trajectory; None if there are none."""
        return None

    def tensors(self) -> list[Tensor]:
        """All tensors in the state."""
        found: list[Tensor] = []

        def look(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(look)
        return found

    @property
    def batch_size(self) -> int:
        """B; 0 for an empty state."""
        return next((len(tensor) for tensor in self.tensors()), 0)

    def numbers_per_row(self) -> int:
        """Numbers in the state of one trajectory."""
        return sum(tensor[:1].numel() for tensor in self.tensors())


def put_rows(old: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`old` `(B, ...)` with the rows `index` `(b,)` replaced by `new` `(b, ...)`."""
    return old.index_copy(0, index.to(old.device, non_blocking=True), new.to(old.dtype))


# (memory passed on, initial memory with as many rows) -> memory that the next segment starts with.
MemoryTransform = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class StepOptions:
    """How a memory acts.

    Attributes:
        window: attend to the last K steps at every step, across segment borders; for memories that see K steps at once.
        slide: how many of the oldest steps leave a full window at once.
        transform: applied to the memory whenever a segment of K steps is full, before the next one starts.
        cuda_graphs: on a GPU, capture steps as CUDA graphs; for memories that can. See `RATE_model.system.graphs`.
    """

    window: bool = False
    slide: int = 1
    transform: MemoryTransform | None = None
    cuda_graphs: bool = False


class Stepper(ABC):
    """A memory while acting: one step after another, in B environments at once. Made by `Memory.stepper`.

    Every step calls `pass_on`, `append` and `record`, in this order.
    """

    @abstractmethod
    def pass_on(self) -> np.ndarray:
        """Make room for a step. `(B,)` bool: the rows whose memory was passed on because K steps have passed."""

    @abstractmethod
    def append(self, rtg: Tensor | None, observations: Tensor) -> Tensor:
        """Map embedded returns-to-go and observations of the next step, `(B, 1, d)` each, to hidden states `(B, d)`."""

    @abstractmethod
    def record(self, actions: Tensor) -> None:
        """Record the embedded actions taken, `(B, 1, d)`."""

    @abstractmethod
    def reset(self, rows: np.ndarray) -> None:
        """Start new episodes in the rows `(b,)` int64."""

    @abstractmethod
    def keep(self, rows: np.ndarray) -> None:
        """Continue with a subset of rows, `(b,)` int64 in the new order."""


class Memory(nn.Module, ABC):
    """A backbone; see the module's docstring.

    Class attributes:
        sees_actions: False for a memory without action input; actions are then not embedded.
        can_slide: whether `StepOptions.window` and `StepOptions.slide` have an effect.
        has_forms: whether `attention` has an effect.
        trains_encoders: False for a memory without gradients; encoders keep their initial weights.
        keeps_data: True for a memory that stores training data; call its `store_shown` after every window.
        capturable: True if `decide` on valid steps neither reads from a GPU nor copies to it (for CUDA graphs).
    """

    sees_actions: ClassVar[bool] = True
    can_slide: ClassVar[bool] = False
    has_forms: ClassVar[bool] = False
    trains_encoders: ClassVar[bool] = True
    keeps_data: ClassVar[bool] = False
    capturable: ClassVar[bool] = False

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        # Form of the attention, for memories that have several; "auto" lets the memory choose.
        self.attention = "auto"

    @property
    def segment(self) -> int:
        """K: the memory is passed on after this many steps, in training and in control experiments."""
        return self.config.context_length

    @property
    def context(self) -> int:
        """Number of steps it sees at once, apart from its state."""
        return 1

    @property
    def slides(self) -> bool:
        """Whether it acts in a window of the last K steps instead of closing segments."""
        return False

    @property
    def reach(self) -> int | None:
        """How many of the last steps can matter, including the current one; None: no limit."""
        return None

    @property
    def gradient_reach(self) -> int | None:
        """How many of the last steps of a call receive a gradient from a decision; None: all."""
        return self.reach

    @property
    def has_memory(self) -> bool:
        """Whether it passes anything on from segment to segment."""
        return True

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """The state before the first step."""

    def largest_state(self) -> State:
        """A state of one row with arbitrary values, as large as states get."""
        return self.initial(1)

    @abstractmethod
    def forward(self, steps: Steps, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """Consecutive steps of B trajectories.

        Args:
            steps: T steps; a memory that works in segments may get several, the last one shorter.
            valid: `(B, T)` bool on the CPU, False for padding.
            state: from `initial`, or from the steps before.

        Returns:
            `(B, T, d_model)` hidden states, arbitrary where `valid` is False, and the state after the last step, with
            gradients: that of the last valid step in rows padded on the left, the given state in rows of padding only,
            and an arbitrary one in rows that end within these steps.
        """

    def decide(
        self, steps: Steps, valid: Tensor, state: State, head: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, State]:
        """`forward`, followed by `head` on the hidden states: `(B, T, num_actions)`."""
        hidden, state = self(steps, valid, state)
        return head(hidden), state

    def initialise(self) -> None:
        """Draw the random initial values that come after the action head; nothing by default.

        The order of draws is part of a seed's meaning: RATE draws its valve and tokens here.
        """

    def initialise_as_published(self) -> None:
        """Match fresh parameters outside layers to the initialisation of the memory's source; nothing by default."""

    def stepper(self, batch_size: int, options: StepOptions, dtype: torch.dtype) -> Stepper:
        """A stepper for acting, in eval mode and inference mode, with numbers of `dtype`.

        Parameters are read now: make a new stepper after a training step. The default calls `forward` with one step.
        """
        return ForwardStepper(self, batch_size, options, dtype)

    def store_shown(self, gather: Gather = single_process) -> None:
        """Store the training data shown since the last call, for a memory that `keeps_data`.

        All training processes call it at the same time and store the same: the data shown to any of them.
        """

    def bytes_per_row(self) -> int:
        """The approximate memory that acting takes per environment."""
        return 4 * (self.initial(1).numbers_per_row() + 16 * self.config.d_model)

    def inspect(self, steps: Steps) -> dict[str, Any]:
        """What can be drawn about some trajectories without padding, by name.

        "states": the state before every segment and after the last, if there is one. A memory may add "gates": its
        decisions at every step, `(B, T, n)` each, by name.
        """
        batch, length = steps.shape
        states = [self.initial(batch)]
        for start in range(0, length, self.segment):
            part = steps.cut(slice(start, start + self.segment))
            states.append(self(part, torch.ones(part.shape, dtype=torch.bool), states[-1])[1])
        return {"states": states}

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile the parts that take most time; nothing by default."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device


class CountingStepper(Stepper):
    """The common part of steppers whose memory is up to date after every step: previous actions and segment counters.

    A subclass stores the rows' states.
    """

    def __init__(self, memory: Memory, batch_size: int, options: StepOptions, dtype: torch.dtype) -> None:
        self.memory, self.options = memory, options
        self._actions = torch.zeros(batch_size, 1, memory.config.d_model, dtype=dtype, device=memory.device)
        self._passed = np.zeros(batch_size, dtype=np.int64)  # steps since the memory was passed on

    @abstractmethod
    def _next(self, steps: Steps) -> Tensor:
        """One step of every row to hidden states `(B, d)`."""

    @abstractmethod
    def _read(self, rows: Tensor) -> State:
        """The state of some rows, `(b,)` int64 on the CPU."""

    @abstractmethod
    def _put(self, rows: Tensor, state: State) -> None:
        """Replace the state of some rows."""

    @abstractmethod
    def _keep(self, rows: Tensor) -> None:
        """Continue with some rows only."""

    def pass_on(self) -> np.ndarray:
        full = self._passed == self.memory.segment
        self._passed[full] = 0
        if self.options.transform is not None and full.any():
            rows = torch.from_numpy(np.flatnonzero(full))
            self._put(rows, self.options.transform(self._read(rows), self.memory.initial(len(rows))))
        return full

    def append(self, rtg: Tensor | None, observations: Tensor) -> Tensor:
        hidden = self._next(Steps(observations=observations, previous_actions=self._actions, rtg=rtg))
        self._passed += 1
        return hidden

    def record(self, actions: Tensor) -> None:
        self._actions = actions.to(self._actions.dtype)

    def reset(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        self._put(index, self.memory.initial(len(rows)))
        self._actions = put_rows(self._actions, index, torch.zeros_like(self._actions[: len(rows)]))
        self._passed[rows] = 0

    def keep(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        self._keep(index)
        self._actions = self._actions.index_select(0, index.to(self._actions.device))
        self._passed = self._passed[rows]


class ForwardStepper(CountingStepper):
    """Acts by calling `forward` with one step; for memories whose step is cheap."""

    def __init__(self, memory: Memory, batch_size: int, options: StepOptions, dtype: torch.dtype) -> None:
        super().__init__(memory, batch_size, options, dtype)
        self._state = memory.initial(batch_size)

    def _next(self, steps: Steps) -> Tensor:
        hidden, self._state = self.memory(steps, torch.ones(steps.shape, dtype=torch.bool), self._state)
        return hidden[:, -1]

    def _read(self, rows: Tensor) -> State:
        return self._state.rows(rows)

    def _put(self, rows: Tensor, state: State) -> None:
        self._state = self._state.put(rows, state)

    def _keep(self, rows: Tensor) -> None:
        self._state = self._state.rows(rows)
