"""Optimizer steps: takes a batch of trajectories, updates the parameters and returns metrics."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from RATE_model.agent import Agent, AgentState
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch, BatchTransform, DeviceCopies, Share
from RATE_model.data.dataset import WindowDataset
from RATE_model.errors import RunError
from RATE_model.objectives.auxiliary import Auxiliary, ObjectiveInput
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.system import distributed
from RATE_model.system.freed_memory import keep_freed_memory
from RATE_model.system.graphs import graphs_on
from RATE_model.system.precision import autocast
from RATE_model.training.captured import CapturedPasses
from RATE_model.training.optimization import RisingCosine, Schedule, make_optimizer
from RATE_model.training.stored_states import StoredStates

# Steps of a window of trajectories, counted from its start, with the states before them.
_BorderStates = list[tuple[int, AgentState]]

# (logits (B, T, A), batch) -> batch metrics on the device: means over its trajectories, or `Share`.
BatchMetrics = Callable[[Tensor, Batch], Mapping[str, Tensor | Share]]

# Validation results other than metrics.
_LOSS, _ROWS = "loss", "rows"


@dataclass(frozen=True)
class _Inputs:
    """A batch as the model sees it.

    Attributes:
        batch: on the device, with the transform applied; its valid steps are those to learn.
        actions: the past actions, some replaced by random ones; on the device.
        valid, learned: (B, T) bool on the CPU, real steps, and those that have a loss. They decide which rows run.
        parts: rows that are computed together.
    """

    batch: Batch
    actions: Tensor
    valid: Tensor
    learned: Tensor
    parts: list[slice]


class TrainingDiverged(RunError):
    """The loss or the gradient is not finite."""


def accuracy(logits: Tensor, batch: Batch) -> dict[str, Tensor | Share]:
    """Share of valid steps whose most probable action is the target (discrete actions)."""
    right = (logits.argmax(-1) == batch.targets) & batch.valid
    return {"train_accuracy": Share(right.sum(), batch.valid.sum())}


def last_steps_right(logits: Tensor, batch: Batch, count: int) -> Tensor:
    """Share of trajectories whose most probable actions are the targets at all of the last `count` steps.

    For trajectories padded on the right; shorter ones count with all their steps.
    """
    right = logits.argmax(-1) == batch.targets
    ends = batch.lengths.to(logits.device, non_blocking=True)[:, None]
    steps = torch.arange(right.shape[1], device=logits.device)
    return (right | (steps < ends - count) | (steps >= ends)).all(1).float().mean()


def window_steps(options: TrainOptions, context_length: int) -> int | None:
    """Environment steps per gradient window of `bptt_segments + 1` segments; None: a whole trajectory."""
    return None if options.bptt_segments < 0 else context_length * (options.bptt_segments + 1)


def optimizer_steps(options: TrainOptions, context_length: int, steps: int) -> int:
    """Optimizer steps per batch of trajectories of `steps` environment steps."""
    window = window_steps(options, context_length)
    return 1 if window is None else -(-steps // window)


def without_burn_in(batch: Batch, steps: int) -> Batch:
    """The batch with the first `steps` of every window masked in `valid`, except in windows that start an episode.

    R2D2 burns in every window. A window at the start of an episode does not need it: its state is exact, and without a
    loss there, the first steps of episodes would never be learned.
    """
    if not steps or batch.begins is None:
        return batch
    first = batch.valid.int().argmax(dim=1)  # padding on the left has no loss anyway
    late = torch.arange(batch.valid.shape[1]) - first[:, None] >= steps
    return replace(batch, valid=batch.valid & (batch.begins[:, None] | late))


def variants_of(transform: BatchTransform | None) -> int:
    """Number of variants of a window made by a batch transform; 1 without a transform."""
    return 1 if transform is None else transform.variants


class LateFlag:
    """A boolean `()` that is read later, without waiting for work queued on the GPU in the meantime.

    `Tensor.item` would wait for all of it: its copy is queued last.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag, self._copied = flag, None
        if flag.device.type == "cuda":
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)


class Trainer:
    """Trains a model with its optimizer and schedule, batch by batch.

    A trajectory is cut into windows of `bptt_segments + 1` segments. Each window makes one optimizer step, with
    gradients through the memory inside the window, so for a fixed `bptt_segments` peak memory does not grow with the
    trajectory. A gradient window that consists of burn-in makes no step.

    Several processes (see `system.distributed`) have the same model and get their rows of every batch. Before an
    optimizer step, gradients, loss and everything that affects decisions are summed over all of them in one message.

    Args:
        model: the model, on its device.
        options: see `TrainOptions`.
        schedule: learning rate per optimizer step.
        metrics: computed from every batch, besides loss, gradient norm and learning rate.
        transform: applied to every batch first, on the model's device; uses torch's global generator.
        auxiliary: objectives besides behaviour cloning, on the model's device; their losses are metrics.
        crash_directory: where to record a batch whose loss is not finite.
    """

    def __init__(
        self,
        model: Agent,
        options: TrainOptions,
        schedule: Schedule | RisingCosine,
        *,
        metrics: BatchMetrics | None = None,
        transform: BatchTransform | None = None,
        auxiliary: Auxiliary | None = None,
        crash_directory: Path | None = None,
    ) -> None:
        keep_freed_memory()
        self.model, self.options, self.schedule = model, options, schedule
        self.optimizer = make_optimizer(
            model,
            learning_rate=options.learning_rate,
            betas=(options.beta_1, options.beta_2),
            weight_decay=options.weight_decay,
            decay_all=options.weight_decay_on == "all",
            auxiliary=auxiliary,
        )
        self.auxiliary = auxiliary
        self._parameters = model.ordered_parameters()  # in a fixed order, in which gradient norms are summed
        distributed.broadcast(list(model.state_dict().values()))
        if auxiliary is not None:
            self._parameters += list(auxiliary.parameters())
            distributed.broadcast(list(auxiliary.state_dict().values()))
        self.step = 0
        self._said_uncaptured = False
        self._metrics, self._transform = metrics, transform
        self._crash_directory = crash_directory
        model.memory.attention = options.attention
        if options.compile:
            model.memory.compile()
        self.captured = self.captured_passes() if options.compile else None
        self._copies = DeviceCopies(model.device)
        # The position (stage, epoch, batch), for crash records.
        self.position: dict[str, int] = {}
        self._unchecked: tuple[LateFlag, int, dict[str, int], Tensor] | None = None
        self._stored: StoredStates | None = None
        self._resumed: Mapping[str, Any] | None = None  # from a checkpoint

    def begin_stage(self, data: WindowDataset) -> None:
        """Call before the first batch of these windows, also when a run continues with them."""
        if self.options.window_state != "stored":
            return
        self._stored = StoredStates(data, self.model, variants=variants_of(self._transform))
        if self._resumed is not None:
            self._stored.load_state_dict(self._resumed)
            self._resumed = None

    def end_stage(self) -> None:
        """Call when other windows follow: their states replace these."""
        self._stored = self._resumed = None
        if self.captured is not None:
            self.captured.graphs.clear()  # other windows have other shapes

    def captured_passes(self) -> CapturedPasses | None:
        """For `captured`: passes captured as CUDA graphs; None without a GPU, or, with a line that says why, if they
        cannot be captured."""
        graphs = graphs_on(self.model.device)
        if graphs is None:
            return None
        reason = (
            "this memory reads from the GPU while it trains"
            if not self.model.memory.capturable
            else "there are auxiliary objectives"
            if self.auxiliary is not None
            else "windows start with stored states or a burn-in"
            if self.options.window_state == "stored" or self.options.burn_in
            else None
        )
        if reason is None:
            return CapturedPasses(self.model, self._parameters, self.options.precision, graphs)
        self._say_uncaptured(reason)
        return None

    def _say_uncaptured(self, reason: str) -> None:
        """Once: why passes do not run as CUDA graphs."""
        if not self._said_uncaptured and distributed.is_first():
            print(f"--compile true: no CUDA graph: {reason}", flush=True)
        self._said_uncaptured = True

    def train_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch, given on the CPU; returns scalars on the device: `train_loss`, `grad_norm`, `lr` and
        metrics.

        Raises:
            TrainingDiverged: loss or gradient is not finite. On a CPU the parameters are those before the step; on a
                GPU it is detected one step later, but before anything is saved.
        """
        self.model.train()
        indices = batch.indices
        inputs = self._inputs(batch)
        batch, valid, learned = inputs.batch, inputs.valid, inputs.learned
        captured = self._captured_for(batch, valid)
        states = self._first_states(batch, inputs.parts)
        losses, weights, logits, norm = [], [], [], None
        windows = list(self._windows(valid.shape[1]))
        counts = _counts(learned, windows)
        seen_counts = counts if learned is valid else _counts(valid, windows)
        # Loss of the actions, then of other objectives.
        no_loss = torch.zeros(1 + len(self._auxiliary_metrics), device=self.model.device)
        for window, count, seen in zip(windows, counts, seen_counts, strict=True):
            if not seen:
                logits.append(no_loss.new_zeros(*valid[:, window].shape, self.model.spec.num_actions))
                continue
            loss, window_logits = self._pass_window(inputs, window, count, states, captured)
            logits.append(window_logits)
            if count:
                loss, norm = self._optimize(loss, indices)
                losses.append(loss)
                weights.append(count)
            self.schedule.count(seen)
        mean = sum((loss * (count / sum(weights)) for loss, count in zip(losses, weights, strict=True)), start=no_loss)
        result = {"train_loss": mean[0], "grad_norm": norm} | dict(zip(self._auxiliary_metrics, mean[1:], strict=True))
        result["lr"] = torch.tensor(self.optimizer.param_groups[0]["lr"])
        if self._metrics is not None:
            with torch.no_grad():
                result |= _means(self._metrics(torch.cat(logits, dim=1), batch), batch.real_rows)
        return result

    def _inputs(self, batch: Batch) -> _Inputs:
        """A batch, given on the CPU, as the model sees it."""
        valid = batch.valid
        batch = without_burn_in(batch, self.options.burn_in)
        learned = batch.valid
        batch = self._copies(batch)
        if self._transform is not None:
            batch = self._transform(batch)
        return _Inputs(batch, self._shown(batch.actions), valid, learned, self._parts(len(valid)))

    def _pass_window(
        self,
        inputs: _Inputs,
        window: slice,
        count: int,
        states: list[AgentState | None],
        captured: CapturedPasses | None,
    ) -> tuple[Tensor, Tensor]:
        """The losses (actions first) and logits of a window, part by part.

        Accumulates gradients, replaces the parts' `states` by those after the window, and stores what is to be stored.

        Args:
            inputs, window: the batch, and the steps of the window.
            count: steps with a loss in this window, over all parts; 0: no gradients are computed.
            states: of every part, before the window; None: the initial state.
            captured: computes losses and gradients, if it is given.
        """
        loss = torch.zeros(1 + len(self._auxiliary_metrics), device=self.model.device)
        logits, border_states = [], []
        with torch.set_grad_enabled(count > 0):
            for number, rows in enumerate(inputs.parts):
                share = float(inputs.learned[rows, window].sum()) / max(count, 1)
                if captured is not None and count:
                    found = captured.run(inputs.batch, inputs.actions, rows, window, states[number], share)
                    self._add_gradients(found.gradients, keep=len(inputs.parts) == 1)
                    part_loss, part_logits, states[number], at_borders = found.loss, found.logits, found.state, []
                else:
                    part_loss, part_logits, states[number], at_borders = self._backward(
                        inputs, rows, window, states[number], share
                    )
                loss += part_loss
                logits.append(part_logits)
                border_states.append(at_borders)
        self._keep(inputs.batch, inputs.parts, border_states)
        if self.model.memory.keeps_data:
            self.model.memory.store_shown(distributed.gather)
        return loss, torch.cat(logits)

    def _captured_for(self, batch: Batch, valid: Tensor) -> CapturedPasses | None:
        """`captured`, if it suits this batch, whose valid steps `(B, T)` are on the CPU."""
        if self.captured is None or (reason := self.captured.unsuited(batch, valid)) is None:
            return self.captured
        self._say_uncaptured(reason)
        return None

    def _add_gradients(self, gradients: Sequence[Tensor | None], *, keep: bool) -> None:
        """Add to the parameters' gradients; `keep`: nothing overwrites these before the optimizer step."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient if keep else gradient.clone()
            else:
                parameter.grad += gradient

    @property
    def _auxiliary_metrics(self) -> tuple[str, ...]:
        """Names of the auxiliary losses."""
        return () if self.auxiliary is None else self.auxiliary.metrics

    def _forward(
        self, objective_input_of: Callable[[Tensor], ObjectiveInput], *inputs: Any, **options: Any
    ) -> tuple[Tensor, Tensor, AgentState]:
        """Logits, auxiliary losses `(A,)`, and the state after some steps.

        Args:
            objective_input_of: hidden states -> the input of auxiliary objectives.
            inputs, options: passed to the model.
        """
        if self.auxiliary is None:
            logits, state = self.model(*inputs, **options)
            return logits, logits.new_zeros(0), state
        hidden, state = self.model(*inputs, head=lambda hidden: hidden, **options)
        return self.model.head(hidden), self.auxiliary(objective_input_of(hidden)), state

    def _parts(self, rows: int) -> list[slice]:
        size = -(-rows // min(self.options.accumulate, rows))
        return [slice(start, start + size) for start in range(0, rows, size)]

    def _windows(self, steps: int) -> Iterator[slice]:
        size = window_steps(self.options, self.model.memory.segment) or steps
        return (slice(start, min(start + size, steps)) for start in range(0, steps, size))

    def _first_states(self, batch: Batch, parts: list[slice]) -> list[AgentState | None]:
        """The initial states of the trajectories of every part; None: the initial memory."""
        if self.options.window_state != "stored":
            return [None] * len(parts)
        if self._stored is None:
            raise RuntimeError("call begin_stage first")
        return [self._stored.begin(batch, rows) for rows in parts]

    def _keep(self, batch: Batch, parts: list[slice], border_states: list[_BorderStates]) -> None:
        """Store a window's states from every part, by step and in row order, independent of the number of parts."""
        if self._stored is None:
            return
        found = [
            [self._stored.found(batch, rows, step, state) for rows, (step, state) in zip(parts, states, strict=True)]
            for states in zip(*border_states, strict=True)
        ]
        for states in zip(*distributed.gather(found), strict=True):
            for state in itertools.chain.from_iterable(states):
                self._stored.keep(state)

    def _burn_in_end(self) -> int:
        """The step before which windows with a burn-in get no gradient: its end, or the end of its last whole segment.

        A unit that is processed at once, such as a segment of RATE, cannot be cut; the rest of the burn-in just has no
        loss.
        """
        context = self.model.memory.context
        return self.options.burn_in // context * context

    def _segment_ends(self, window: slice) -> list[int]:
        """Steps of a window, counted from its first, at which states are stored or cut."""
        length, segment = window.stop - window.start, self.model.memory.segment
        borders = set(range(segment, length, segment)) if self._stored is not None else set()
        return sorted(borders | ({self._burn_in_end() - window.start} & set(range(1, length))))

    def _shown(self, actions: Tensor) -> Tensor:
        """The past actions as input to the model: the recorded ones, some replaced by random ones."""
        if not self.options.action_noise:
            return actions
        replaced = torch.rand(actions.shape[:2], device=actions.device) < self.options.action_noise
        if self.model.spec.continuous:
            return torch.where(replaced[..., None], 2 * torch.rand_like(actions) - 1, actions)
        return torch.where(replaced, torch.randint_like(actions, self.model.spec.num_actions), actions)

    def _backward(
        self, inputs: _Inputs, rows: slice, window: slice, state: AgentState | None, share: float
    ) -> tuple[Tensor, Tensor, AgentState, _BorderStates]:
        """Accumulate the gradient of one part of one window.

        Returns:
            Its share of the losses (actions first), logits, the state after the window, and states to store.
        """
        batch, valid, begins = inputs.batch, inputs.valid, inputs.batch.begins
        steps = (batch.observations, inputs.actions, batch.rtg, valid)
        given = tuple(values[rows, window] for values in steps)
        at_borders: _BorderStates = []

        def at_border(step: int, state: AgentState) -> AgentState:
            if self._stored is not None:
                at_borders.append((window.start + step, state.detach()))
            if begins is None or window.start + step != self._burn_in_end():
                return state
            return _cut(state, ~begins[rows])

        def objective_input(hidden: Tensor) -> ObjectiveInput:
            return ObjectiveInput(self.model, hidden, batch, valid, rows, window)

        infos = None if batch.infos is None else {name: values[rows, window] for name, values in batch.infos.items()}
        with autocast(self.model.device, self.options.precision):
            logits, others, after = self._forward(
                objective_input, *given, state, borders=self._segment_ends(window), at_border=at_border, infos=infos
            )
            loss = cloning_loss(self.model.spec, logits, batch.targets[rows, window], batch.valid[rows, window]) * share
            total = loss if self.auxiliary is None else loss + (self.auxiliary.weights * others).sum() * share
        if total.requires_grad:  # a part with only padding in this window has computed nothing
            total.backward()
        after = after.detach()
        if self._stored is not None:
            at_borders.append((window.stop, after))
        return torch.cat([loss[None], others * share]).detach(), logits.detach(), after, at_borders

    def _optimize(self, loss: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step from the accumulated gradients; returns the losses and the unclipped gradient norm."""
        if distributed.size() > 1:
            loss = self._reduce_gradients(loss)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.options.grad_norm_clip)
        self._guard(torch.isfinite(loss).all() & torch.isfinite(norm), indices)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.schedule.factor(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss, norm

    def _reduce_gradients(self, loss: Tensor) -> Tensor:
        """Sum gradients over all processes, in one message; returns the summed losses, which are part of it.

        A process may have computed nothing. A parameter without a gradient in any process stays without one, so AdamW
        skips it.
        """
        missing = [parameter.grad is None for parameter in self._parameters]
        parts = [
            parameter.new_zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten()
            for parameter in self._parameters
        ]
        there = 1 - torch.tensor(missing, dtype=loss.dtype).to(loss.device, non_blocking=True)
        flat = distributed.sum_tensor(torch.cat([*parts, there, loss]))
        *gradients, there, loss = flat.split([*map(len, parts), len(parts), len(loss)])
        # Reading this would make a GPU wait, so it is only done if something is missing here.
        found = there.tolist() if any(missing) else [1] * len(parts)
        for parameter, gradient, processes in zip(self._parameters, gradients, found, strict=True):
            parameter.grad = gradient.view_as(parameter) if processes else None
        return loss

    def _guard(self, finite: Tensor, indices: Tensor) -> None:
        """Stop before a step that would corrupt the parameters.

        Reading a flag from a GPU immediately would make every step wait. There, the previous step's flag is read, and
        `check_finite` reads the last one before anything is saved.
        """
        self.check_finite()
        self._unchecked = (LateFlag(finite), self.step, self.position, indices)
        if finite.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Raise `TrainingDiverged` if a step whose flag has not been read yet was not finite."""
        if self._unchecked is None:
            return
        finite, step, position, indices = self._unchecked
        self._unchecked = None
        if bool(finite):
            return
        where, windows = "", list(itertools.chain.from_iterable(distributed.gather(indices.tolist())))
        if self._crash_directory is not None:
            path = self._crash_directory / f"crash_step_{step}.json"
            if distributed.is_first():
                path.write_text(json.dumps({"step": step, **position, "windows": windows}) + "\n")
            where = f"; the batch's windows are in {path}"
        raise TrainingDiverged(f"loss or gradient is not finite at optimizer step {step}{where}")

    def check_same(self) -> None:
        """Raise `RunError` if the processes' parameters are not bit-identical."""
        if distributed.size() == 1:
            return
        sums = torch.stack([parameter.detach().double().sum() for parameter in self._parameters]).tolist()
        if any(other != sums for other in distributed.gather(sums)):
            raise RunError(
                f"the processes' parameters differ after optimizer step {self.step}: a machine is faulty, or their "
                "versions differ; continue from the last checkpoint with --resume auto"
            )

    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Mean loss over the valid steps of all batches, and mean metrics over their trajectories, in eval mode.

        Windows burn in as in training, but always start from the initial state, so the result depends only on the
        parameters.
        """
        self.model.eval()
        parts = distributed.run_in_all(lambda: self._validate_part(batches))
        measured = {name: _merged([part[name] for part in parts]) for name in parts[0]}
        loss, counts = measured.pop(_LOSS)
        _, rows = measured.pop(_ROWS)
        kept = counts > 0
        result = {"validation_loss": _weighted_mean(loss[kept], counts[kept])}
        for name, (values, _) in measured.items():
            weights = counts if name in self._auxiliary_metrics else rows
            result[name.replace("train_", "validation_")] = _weighted_mean(values[kept], weights[kept])
        return result

    @torch.no_grad()
    def _validate_part(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """This process's share of every batch: means and their weights, (2, N) float64 on the CPU, by name."""
        measured: dict[str, list[tuple[Tensor, Any]]] = {}
        for batch in batches:
            valid, batch = batch.valid, without_burn_in(batch, self.options.burn_in)
            count = int(batch.valid.sum())
            batch = batch.to(self.model.device, non_blocking=True)
            with autocast(self.model.device, self.options.precision):
                logits, others, _ = self._forward(
                    lambda hidden, batch=batch, valid=valid: ObjectiveInput(
                        self.model, hidden, batch, valid, slice(None), slice(0, valid.shape[1])
                    ),
                    *(batch.observations, batch.actions, batch.rtg, valid),
                    infos=batch.infos,
                )
                loss = cloning_loss(self.model.spec, logits, batch.targets, batch.valid)
            found: dict[str, tuple[Tensor, Any]] = {_LOSS: (loss, count), _ROWS: (loss, batch.real_rows)}
            found |= {name: (other, count) for name, other in zip(self._auxiliary_metrics, others, strict=True)}
            if self._metrics is not None:
                found |= _with_weights(self._metrics(logits, batch), batch.real_rows)
            for name, value in found.items():
                measured.setdefault(name, []).append(value)
        return {
            name: torch.stack([torch.as_tensor(each, dtype=torch.float64).cpu() for each in zip(*pairs, strict=True)])
            for name, pairs in measured.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything except the model's parameters that the next steps depend on, from all processes."""
        random, *others = distributed.gather(_random_state())
        return {
            "step": self.step,
            "decay_start": self.schedule.decay_start,
            "tokens": self.schedule.tokens,
            "optimizer": self.optimizer.state_dict(),
            "rng": random,
            **({"rng_of_others": others} if others else {}),
            **({} if self.auxiliary is None else {"auxiliary": self.auxiliary.state_dict()}),
            "stored_states": self._resumed if self._stored is None else self._stored.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`; load the model's parameters first."""
        self.step = state["step"]
        self.schedule.decay_start = state["decay_start"]
        self.schedule.tokens = state.get("tokens", 0)
        self._resumed = state.get("stored_states")
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])
        saved = [state["rng"], *state.get("rng_of_others", [])]
        if len(saved) != distributed.size() and distributed.is_first():
            print(
                f"the run was trained by {len(saved)} processes and continues with {distributed.size()}: the batches "
                "are the same, but sums and random numbers differ, so results are not bit-identical"
            )
        if distributed.rank() < len(saved):
            _set_random_state(saved[distributed.rank()])


def _random_state() -> dict[str, Any]:
    """The states of torch's global generators: the CPU's and the GPUs' (one GPU per process if there are several)."""
    cuda: list[Tensor] = []
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all() if distributed.size() == 1 else [torch.cuda.get_rng_state()]
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if not torch.cuda.is_available():
        return
    if distributed.size() > 1 and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    elif len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _cut(state: AgentState, rows: Tensor) -> AgentState:
    """The same state, with no gradient through `rows` `(B,)` bool."""
    index = torch.nonzero(rows).squeeze(1)
    memory = state.memory
    return replace(state, memory=memory.put(index, memory.rows(index).detach())) if len(index) else state


def _counts(chosen: Tensor, windows: Sequence[slice]) -> list[int]:
    """Number of selected steps, (B, T) bool, in each window of the whole batch, over all processes."""
    return distributed.sum_integers([int(chosen[:, window].sum()) for window in windows])


def _with_weights(metrics: Mapping[str, Tensor | Share], rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and weights for a share of a batch with this many trajectories."""
    weights = {name: value.count if isinstance(value, Share) else rows for name, value in metrics.items()}
    means = _local_means(metrics)
    return {name: (means[name], torch.as_tensor(weight, device=means[name].device)) for name, weight in weights.items()}


def _local_means(metrics: Mapping[str, Tensor | Share]) -> dict[str, Tensor]:
    return {name: value.mean if isinstance(value, Share) else value for name, value in metrics.items()}


def _means(metrics: Mapping[str, Tensor | Share], rows: int) -> dict[str, Tensor]:
    """Means over the whole batch, from this process's share with this many trajectories."""
    if distributed.size() == 1:
        return _local_means(metrics)
    pairs = torch.stack([torch.stack([*map(Tensor.double, pair)]) for pair in _with_weights(metrics, rows).values()])
    means, weights = pairs.unbind(1)
    sums = torch.where(weights > 0, means * weights, 0.0)  # a mean over nothing is NaN
    totals, weights = distributed.sum_tensor(torch.stack([sums, weights]))
    return dict(zip(metrics, (totals / weights).unbind(), strict=True))


def _merged(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine means and weights, (N,) each, from the processes' shares, each (2, N)."""
    if len(parts) == 1:
        return parts[0][0], parts[0][1]
    means, weights = torch.stack(list(parts), 1)
    total = weights.sum(0)
    return torch.where(weights > 0, means * weights, 0.0).sum(0) / total, total


def _weighted_mean(values: Tensor, weights: Tensor) -> float:
    """Weighted mean of (N,) float64."""
    return float((values * (weights / weights.sum())).sum())
