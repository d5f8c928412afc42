"""What every memory is to the rest of the system: the backbone between the encoders of a step and the action head.

    observation, return-to-go,          hidden state at which
    previous action  ->  Memory  ->     the step's action is decided
                         |    ^
                         State, handed on from window to window

A memory sees steps, not tokens: `Steps` gives it the embedded returns-to-go, observations and actions of B
trajectories. It returns one hidden state per step, and its state after the last one. That is all that agents, training,
acting, checkpoints, control experiments and pictures know of it, RATE included.

To write one, subclass `MemoryConfig`, `MemoryOptions`, `State` and `Memory`, and add it to the tables in
`RATE_model.memories`; docs/adding_a_memory.md does it step by step. tests/RATE_model/memories/test_contract.py holds
every memory in the table to what is promised here:

*   Acting equals training: fed a recorded trajectory, the stepper gives the hidden states of `forward` at every step.
*   Causality: a step's hidden state depends on no later step, and not on the step's own action.
*   Rows do not see one another, and padding changes nothing: `valid` is True on a row's first steps, or on its last. A
    memory that sees several steps at once (`context`) may see padding at the left that does not fill them.
*   Gradients flow through the whole call, from the last decision to the first observation, unless `gradient_reach` says
    less.
*   State and time per step do not grow with the episode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What the configuration of every memory holds; a memory adds sizes of its own."""

    # Width of the embedded steps and of the hidden states
    d_model: int
    # K: steps of a segment, in which gradient windows, control experiments and reset targets count
    context_length: int
    # Whether the return-to-go is part of a step
    conditioned: bool = True

    def validate(self) -> None:
        """Raise a `UserError` for sizes that cannot be built."""


@dataclass(frozen=True)
class MemoryOptions:
    """The flags of a memory: a field each, whose comment is the help text. The docstring stands under the heading."""

    def check_mode(self, mode: str, typed: Set[str]) -> None:
        """Raise a `UserError` for a flag on the command line that goes with other modes of the memory; by default none.

        Args:
            mode: a name in the table of modes.
            typed: the names of all flags on the command line.
        """

    def config(
        self, *, mode: str, d_model: int, dropout: float, context_length: int, segments: int, conditioned: bool
    ) -> MemoryConfig:
        """The configuration that they and the shared flags ask for; not yet validated.

        Args:
            mode: a name in the table of modes.
            d_model, dropout: flags that all memories share.
            context_length: K, the steps of a segment.
            segments: N, of a training trajectory.
            conditioned: whether returns are shown.
        """
        raise NotImplementedError


class Steps:
    """T steps of B trajectories, embedded to d numbers each.

    Attributes:
        rtg: `(B, T, d)` returns-to-go, or None without conditioning.
        observations: `(B, T, d)`.
        previous_actions: `(B, T, d)`, of the step before; zero where an episode begins.
        actions: `(B, T, d)`, of the step itself. Only for memories that shift them on their own, as RATE does: a step's
            hidden state must not depend on it.
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
        """Some consecutive steps, of some rows (indices on the device of the tensors; None: all)."""

        def part(tensor: Tensor) -> Tensor:
            return tensor[:, times] if rows is None else tensor[:, times].index_select(0, rows)

        return Steps(
            observations=part(self.observations),
            previous_actions=part(self.previous_actions),
            rtg=None if self.rtg is None else part(self.rtg),
            actions=None if self.actions is None else part(self.actions),
        )

    def inputs(self, *, previous_actions: bool = True) -> list[Tensor]:
        """The parts of every step, in the order: previous action, return-to-go, observation."""
        parts = [self.previous_actions if previous_actions else None, self.rtg, self.observations]
        dtype = self.observations.dtype  # under autocast a table look-up stays float32 while linear maps do not
        return [part.to(dtype) for part in parts if part is not None]


@dataclass(frozen=True)
class State:
    """What a memory hands on, of B trajectories: tensors whose rows are trajectories, tuples of these, other states.

    A memory declares its own fields; everything here acts on whatever they are. `parts` names what can be knocked out
    alone in a control experiment, and the fields that it is made of.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {}

    def map(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """`function` applied to every tensor, and to those that stand in its place in the other states."""

        def apply(value: Any, *same: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value, *same)
            if isinstance(value, tuple):
                return tuple(apply(*items) for items in zip(value, *same, strict=True))
            return value.map(function, *same) if isinstance(value, State) else value

        names = [field.name for field in fields(self)]
        return replace(self, **{n: apply(getattr(self, n), *(getattr(o, n) for o in others)) for n in names})

    def detach(self) -> Self:
        """The same state, through which no gradient flows."""
        return self.map(Tensor.detach)

    def rows(self, index: Tensor) -> Self:
        """Some rows, `(b,)` int64 on the CPU, in the order given."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device, non_blocking=True)))

    def put(self, index: Tensor, other: Self) -> Self:
        """This state with the rows `(b,)` int64 (on the CPU) replaced by those of `other`."""
        return self.map(lambda tensor, new: put_rows(tensor, index, new), other)

    def with_part(self, part: str, other: Self) -> Self:
        """This state with one of its `parts` taken from another state."""
        return replace(self, **{name: getattr(other, name) for name in self.parts[part]})

    def fitted(self, room: Self) -> Self:
        """The same, with tensors of the sizes of `room`'s, of as many rows as this has; for states that grow."""
        return self

    def trimmed(self) -> Self:
        """The same without what `fitted` added in all rows."""
        return self

    @property
    def slots(self) -> Tensor | None:
        """What a picture of the memory shows: `(B, n, width)`, n vectors of a trajectory; None if there are none."""
        return None

    def tensors(self) -> list[Tensor]:
        """All tensors that it holds."""
        held: list[Tensor] = []

        def look(tensor: Tensor) -> Tensor:
            held.append(tensor)
            return tensor

        self.map(look)
        return held

    @property
    def batch_size(self) -> int:
        """B; 0 for a state that holds nothing."""
        return next((len(tensor) for tensor in self.tensors()), 0)

    def numbers_per_row(self) -> int:
        """How many numbers one trajectory's state holds."""
        return sum(tensor[:1].numel() for tensor in self.tensors())


def put_rows(old: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`old` `(B, ...)` with the rows `index` `(b,)` replaced by `new` `(b, ...)`."""
    return old.index_copy(0, index.to(old.device, non_blocking=True), new.to(old.dtype))


# (memory handed on, initial memory of as many rows) -> the memory that the next segment begins with.
MemoryTransform = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class StepOptions:
    """How a memory acts.

    Attributes:
        window: see the last K steps at every step, across the borders of segments; for memories that see K steps.
        slide: how many of the oldest steps leave a full window at once.
        transform: applied to the memory whenever a segment of K steps is full, before the next one begins.
    """

    window: bool = False
    slide: int = 1
    transform: MemoryTransform | None = None


class Stepper(ABC):
    """A memory that acts: one step after another, for B environments at once. Made by `Memory.stepper`.

    Every step is `hand_on`, `append`, `record`, in this order.
    """

    @abstractmethod
    def hand_on(self) -> np.ndarray:
        """Make room for a step. `(B,)` bool: the rows whose memory was handed on, as K steps have passed."""

    @abstractmethod
    def append(self, rtg: Tensor | None, observations: Tensor) -> Tensor:
        """Embedded returns-to-go and observations of the next step, `(B, 1, d)` each, to hidden states `(B, d)`."""

    @abstractmethod
    def record(self, actions: Tensor) -> None:
        """The embedded actions that were taken, `(B, 1, d)`."""

    @abstractmethod
    def reset(self, rows: np.ndarray) -> None:
        """Begin new episodes in the rows `(b,)` int64."""

    @abstractmethod
    def keep(self, rows: np.ndarray) -> None:
        """Go on with some rows only, `(b,)` int64 in the order wanted."""


class Memory(nn.Module, ABC):
    """A backbone; see the module's docstring.

    Class attributes:
        sees_actions: False for a memory that uses no action: none is then embedded.
        can_slide: whether `StepOptions.window` and `StepOptions.slide` make a difference.
        trains_encoders: False for a memory through which no gradient flows: encoders stay as they begin.
        keeps_data: True for a memory that stores what it is shown in training mode, and acts by it afterwards.
    """

    sees_actions: ClassVar[bool] = True
    can_slide: ClassVar[bool] = False
    trains_encoders: ClassVar[bool] = True
    keeps_data: ClassVar[bool] = False

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config

    @property
    def segment(self) -> int:
        """K: after this many steps memory is handed on, in training and in control experiments."""
        return self.config.context_length

    @property
    def context(self) -> int:
        """How many steps it sees at once, without anything that is handed on."""
        return 1

    @property
    def slides(self) -> bool:
        """Whether it acts in a window of the last K steps instead of closing segments."""
        return False

    @property
    def reach(self) -> int | None:
        """How many of the last steps can matter at most, the step itself among them; None: there is no limit."""
        return None

    @property
    def gradient_reach(self) -> int | None:
        """How many of the last steps of a call a decision has a gradient of, at most; None: of all."""
        return self.reach

    @property
    def has_memory(self) -> bool:
        """Whether anything is handed on from segment to segment."""
        return True

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """The state before the first step."""

    def largest_state(self) -> State:
        """A state of one row, of any values, as large as states get."""
        return self.initial(1)

    @abstractmethod
    def forward(self, steps: Steps, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """Consecutive steps of B trajectories.

        Args:
            steps: T of them; a memory that is cut into segments may be given several, the last one shorter.
            valid: `(B, T)` bool on the CPU, False for padding.
            state: from `initial`, or of the steps before.

        Returns:
            `(B, T, d_model)` hidden states, of any value where `valid` is False, and the state after the last step,
            through which gradients flow: that of the last valid step in rows that are padded at the left, the one given
            in rows of nothing but padding, and of any value in rows that end within these steps.
        """

    def decide(
        self, steps: Steps, valid: Tensor, state: State, head: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, State]:
        """`forward`, and what `head` makes of the hidden states: `(B, T, num_actions)`."""
        hidden, state = self(steps, valid, state)
        return head(hidden), state

    def initialise(self) -> None:
        """Draw what begins at random after the action head; nothing by default.

        The order of draws decides what a seed means: RATE draws its valve and tokens here, as it always has.
        """

    def initialise_as_published(self) -> None:
        """Change fresh parameters that are not of layers to how the source of the memory begins; nothing by default."""

    def stepper(self, batch_size: int, options: StepOptions, dtype: torch.dtype) -> Stepper:
        """For acting, in eval mode and inference mode, in numbers of `dtype`.

        The parameters are read now: make a new one after a training step. The default calls `forward` with one step.
        """
        return ForwardStepper(self, batch_size, options, dtype)

    def bytes_per_row(self) -> int:
        """About how much memory acting takes for one environment."""
        return 4 * (self.initial(1).numbers_per_row() + 16 * self.config.d_model)

    def inspect(self, steps: Steps) -> dict[str, Any]:
        """What there is to look at in some trajectories without padding, by name.

        "states": the state before every segment and after the last, where there is one. A memory may add "gates": what
        it decided at every step, `(B, T, n)` each, by name.
        """
        batch, length = steps.shape
        states = [self.initial(batch)]
        for start in range(0, length, self.segment):
            part = steps.cut(slice(start, start + self.segment))
            states.append(self(part, torch.ones(part.shape, dtype=torch.bool), states[-1])[1])
        return {"states": states}

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile what most time goes into; nothing by default."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


class ForwardStepper(Stepper):
    """Acts by calling `forward` with one step; for memories whose step is cheap."""

    def __init__(self, memory: Memory, batch_size: int, options: StepOptions, dtype: torch.dtype) -> None:
        self.memory, self.options = memory, options
        self._state = memory.initial(batch_size)
        self._actions = torch.zeros(batch_size, 1, memory.config.d_model, dtype=dtype, device=memory.device)
        self._passed = np.zeros(batch_size, dtype=np.int64)  # steps since memory was handed on

    def hand_on(self) -> np.ndarray:
        full = self._passed == self.memory.segment
        self._passed[full] = 0
        if self.options.transform is not None and full.any():
            rows = torch.from_numpy(np.flatnonzero(full))
            memory = self.options.transform(self._state.rows(rows), self.memory.initial(len(rows)))
            self._state = self._state.put(rows, memory)
        return full

    def append(self, rtg: Tensor | None, observations: Tensor) -> Tensor:
        steps = Steps(observations=observations, previous_actions=self._actions, rtg=rtg)
        valid = torch.ones(observations.shape[:2], dtype=torch.bool)
        hidden, self._state = self.memory(steps, valid, self._state)
        self._passed += 1
        return hidden[:, -1]

    def record(self, actions: Tensor) -> None:
        self._actions = actions.to(self._actions.dtype)

    def reset(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        self._state = self._state.put(index, self.memory.initial(len(rows)))
        self._actions = put_rows(self._actions, index, torch.zeros_like(self._actions[: len(rows)]))
        self._passed[rows] = 0

    def keep(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        self._state = self._state.rows(index)
        self._actions = self._actions.index_select(0, index.to(self._actions.device))
        self._passed = self._passed[rows]
