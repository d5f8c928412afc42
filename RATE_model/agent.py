"""An agent: token encoders, a memory, and a head for the actions.

observation, return-to-go, action  ->  TokenEncoder  ->  Memory  ->  ActionHead  ->  logits, or actions
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from RATE_model.data.frames import Frames, FrameStack
from RATE_model.encoders import ActionHead, TokenEncoder
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES
from RATE_model.memories.contract import MemoryConfig, State, Steps, put_rows
from RATE_model.spec import EnvironmentSpec

if TYPE_CHECKING:
    from RATE_model.acting.actor import Actor

Observations = Tensor | Frames | FrameStack


@dataclass(frozen=True)
class AgentConfig:
    """The memory and its sizes.

    Attributes:
        memory: a name in `RATE_model.memories.MEMORIES`.
        sizes: an instance of the memory's own configuration class.
    """

    memory: str
    sizes: MemoryConfig

    @property
    def context_length(self) -> int:
        """K: steps per segment."""
        return self.sizes.context_length

    def saved(self) -> dict[str, Any]:
        """The configuration as stored in a checkpoint."""
        return {"memory": self.memory, "config": asdict(self.sizes)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "AgentConfig":
        """The configuration in a checkpoint. Without a memory's name it is RATE, once the only memory.

        Raises:
            UserError: the memory is not in the table.
            KeyError, TypeError: there is no configuration, or it has other names.
        """
        name = state.get("memory", "RATE")
        if name not in MEMORIES:
            raise UserError(f"unknown memory {name!r}; known are {', '.join(MEMORIES)}")
        return cls(name, MEMORIES[name].config(**state["config"]))


@dataclass(frozen=True)
class AgentState(State):
    """What an agent carries from one window of steps to the next."""

    memory: State
    actions: Tensor | None = None  # (B,) int64 or (B, A) float32, the last actions; None: episodes start
    started: Tensor | None = None  # (b,) int64 on the CPU, ascending: the rows that have started; None: all
    acted: Tensor | None = None  # (B,) bool, False in rows of padding only so far; None: nowhere


# (step, state before it) -> the state that the step starts with.
AtBorder = Callable[[int, AgentState], AgentState]


class Agent(nn.Module):
    """The model, for every mode and environment.

    Args:
        config: the memory and its sizes.
        spec: the environment's observations and actions.

    Raises:
        UserError: invalid sizes.
    """

    def __init__(self, config: AgentConfig, spec: EnvironmentSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        memory = MEMORIES[config.memory].memory
        config.sizes.validate()
        d_model = config.sizes.d_model
        self.encoder = TokenEncoder(spec, d_model, rtg=config.sizes.conditioned, actions=memory.sees_actions)
        self.memory = memory(config.sizes)
        self.head = ActionHead(spec, d_model)
        self.memory.initialise()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.memory.device

    def actor(self, batch_size: int = 1, *, target_return: float | Tensor, **options: Any) -> "Actor":
        """An actor for your own loop: `actor.act(observations, rewards)`, one environment step at a time.

        Args:
            batch_size: number of environments.
            target_return: the initial return-to-go, in units of reward.
            options: of `Actor`.
        """
        from RATE_model.acting.actor import Actor  # not at the top: an actor imports agents

        return Actor(self, batch_size, target_return, **options)

    def initial(self, batch_size: int) -> AgentState:
        """The state before the first step of an episode."""
        return AgentState(self.memory.initial(batch_size))

    def forward(
        self,
        observations: Observations,
        actions: Tensor,
        rtg: Tensor,
        valid: Tensor,
        state: AgentState | None = None,
        *,
        borders: Sequence[int] = (),
        at_border: AtBorder | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        infos: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, AgentState]:
        """Process trajectories, or windows of consecutive steps of trajectories.

        Gradients flow through the memory inside the call, but not into `state`: the graph is cut there.

        Args:
            observations: `(B, T, *observation_shape)`, or `Frames` or a `FrameStack` of these.
            actions: `(B, T)` int64, or `(B, T, A)` float when continuous. A step does not see its own action.
            rtg: `(B, T)` float32 returns-to-go in units of reward; ignored without conditioning.
            valid: `(B, T)` bool, False for padding. Pass it on the CPU: it decides which rows run, and reading it from
                a device would stall the queue.
            state: the state after the previous window; None: trajectories start.
            borders: steps before which `at_border` is called with the current state, and may replace it; ascending,
                above 0 and below T; multiples of the memory's context.
            head: applied to hidden states `(b, t, d_model)` instead of the agent's own head.
            infos: for an oracle, the arrays `(B, T, n)` that it sees, by name.

        Returns:
            Logits `(B, T, num_actions)` (actions in [-1, 1] when continuous), meaningless in padding, and the state at
            the end.
        """
        state = self.initial(len(rtg)) if state is None else state.detach()
        state, acted = (state, state.acted) if state.started is None else self._with_all_rows(state, len(rtg))
        head = self.head if head is None else head
        shown, oracle = self.shown(observations), self.encoder.encode_infos(infos)
        steps = RawSteps(self.encoder, shown, actions, rtg, oracle=oracle, valid=valid, last=state.actions, acted=acted)
        if not borders:
            logits, memory = self.memory.decide(steps, valid, state.memory, head)
            return logits, AgentState(memory, actions[:, -1], acted=steps.acted_before(valid.shape[1]))
        decided = []
        for start, stop in pairwise((0, *borders, valid.shape[1])):
            piece = slice(start, stop)
            logits, memory = self.memory.decide(steps.cut(piece), valid[:, piece], state.memory, head)
            decided.append(logits)
            state = AgentState(memory, actions[:, stop - 1], acted=steps.acted_before(stop))
            if at_border is not None and stop in borders:
                state = at_border(stop, state)
        return torch.cat(decided, dim=1), state

    def _with_all_rows(self, state: AgentState, batch_size: int) -> tuple[AgentState, Tensor]:
        """Expand a state of the rows that have started to all rows; also returns which rows those are, `(B,)` bool."""
        rows, actions = state.started, state.actions
        assert rows is not None and actions is not None
        started = torch.zeros(batch_size, dtype=torch.bool).index_fill(0, rows, True).to(actions.device)
        nothing = actions.new_zeros(batch_size, *actions.shape[1:])
        memory = self.memory.initial(batch_size).put(rows, state.memory)
        return AgentState(memory, put_rows(nothing, rows, actions)), started

    def shown(self, observations: Observations) -> Tensor | Frames:
        """Observations as `Steps` stores them: distinct images encoded once, frame stacks as views."""
        if isinstance(observations, Frames):
            return self.encoder.encode_frames(observations)
        return observations.dense() if isinstance(observations, FrameStack) else observations

    def latents(self, observations: Observations) -> Tensor:
        """The encoders' output for observations `(B, T, ...)` alone: `(B, T, d_model)`."""
        return self.encoder.encode_observations(self.shown(observations))

    @torch.no_grad()
    def inspect(self, observations: Observations, actions: Tensor, rtg: Tensor) -> dict[str, Any]:
        """Everything that the memory can show about whole trajectories without padding, by name.

        Args as in `forward`. `Memory.inspect` lists the contents.
        """
        oracle = self.encoder.encode_infos(None)
        return self.memory.inspect(RawSteps(self.encoder, self.shown(observations), actions, rtg, oracle=oracle))

    def ordered_parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order in which saved optimizer states number them and gradient norms are summed.

        The order is that of the first release, where RATE was the whole agent: its own tensors, the encoders, the
        layers, the head, the valve.
        """
        places = {"encoder": 1, "head": 3}

        def place(name: str) -> int:
            module, _, rest = name.partition(".")
            if module in places:
                return places[module]
            return 0 if "." not in rest else 4 if rest.startswith("valve.") else 2

        return [parameter for _, parameter in sorted(self.named_parameters(), key=lambda item: place(item[0]))]


class RawSteps(Steps):
    """Steps that are embedded on access, so padding that a memory skips is never encoded."""

    def __init__(
        self,
        encoder: TokenEncoder,
        observations: Tensor | Frames,
        actions: Tensor,
        rtg: Tensor,
        *,
        oracle: Tensor | None = None,
        valid: Tensor | None = None,
        last: Tensor | None = None,
        acted: Tensor | None = None,
    ) -> None:
        # `oracle`: for an oracle, `(B, T, d)`, added to the embedded observations.
        # `last`: the actions before the first steps, `(B, ...)`; `acted`: `(B,)` bool, whether there were any.
        self._encoder, self._raw, self._oracle = encoder, (observations, actions, rtg), oracle
        self._valid, self._last, self._acted = valid, last, acted

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        return self._raw[2].shape[0], self._raw[2].shape[1]

    def cut(self, times: slice, rows: Tensor | None = None) -> "RawSteps":
        """See `Steps.cut`."""
        start, _, _ = times.indices(self.shape[1])
        last, acted = (self._raw[1][:, start - 1], self.acted_before(start)) if start else (self._last, self._acted)
        valid = None if self._valid is None else self._valid[:, times]

        on_device = None if rows is None else rows.to(self._raw[1].device, non_blocking=True)

        def part(values: Any) -> Any:
            return values[:, times] if on_device is None else values[:, times].index_select(0, on_device)

        if on_device is not None:
            last = None if last is None else last.index_select(0, on_device)
            acted = None if acted is None else acted.index_select(0, on_device)
            valid = None if valid is None else valid[rows]
        observations, actions, rtg = map(part, self._raw)
        oracle = None if self._oracle is None else part(self._oracle)
        return RawSteps(self._encoder, observations, actions, rtg, oracle=oracle, valid=valid, last=last, acted=acted)

    def acted_before(self, step: int) -> Tensor | None:
        """`(B,)` bool: whether an action was taken before a step above 0; None: everywhere. Padding takes none."""
        if self._valid is None or bool(self._valid[:, 0].all()) or (self._last is not None and self._acted is None):
            return None
        acted = self._valid[:, :step].any(dim=1).to(self._raw[1].device, non_blocking=True)
        return acted if self._acted is None else acted | self._acted

    @cached_property
    def rtg(self) -> Tensor | None:
        return self._encoder.encode_rtg(self._raw[2]) if self._encoder.rtg is not None else None

    @cached_property
    def observations(self) -> Tensor:
        seen = self._encoder.encode_observations(self._raw[0])
        return seen if self._oracle is None else seen + self._oracle

    @cached_property
    def actions(self) -> Tensor:
        return self._encoder.encode_actions(self._raw[1])

    @cached_property
    def previous_actions(self) -> Tensor:
        before = self._encoder.encode_actions(self._raw[1][:, :-1])
        if self._last is None:
            first = before.new_zeros(self.shape[0], 1, before.shape[-1])
        else:
            first = self._encoder.encode_actions(self._last[:, None])
            if self._acted is not None:
                first = torch.where(self._acted[:, None, None], first, first.new_zeros(()))
        if self._valid is not None and not bool(self._valid[:, 0].all()):  # padding on the left takes no action
            real = self._valid[:, :-1, None].to(before.device, non_blocking=True)
            before = torch.where(real, before, before.new_zeros(()))
        return torch.cat([first, before], dim=1)


def with_memory_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a checkpoint from when RATE was the whole agent to today's names."""
    kept = ("encoder.", "head.")
    return {name if name.startswith(kept) else f"memory.{name}": weight for name, weight in weights.items()}
