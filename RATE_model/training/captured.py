"""Forward and backward passes captured as CUDA graphs, one by shape of a window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentState
from RATE_model.data.batch import Batch
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.system.graphs import Graphs
from RATE_model.system.precision import autocast


@dataclass(frozen=True)
class PassOutput:
    """The result of a pass: loss `()`, logits, the state after the window, and gradients, None where there are none.

    The next pass may overwrite the gradients, and nothing else.
    """

    loss: Tensor
    logits: Tensor
    state: AgentState
    gradients: list[Tensor | None]


class CapturedPasses:
    """Losses and gradients of behaviour cloning.

    All rows run in every segment, padding included, so shapes do not depend on lengths. Padding on the right changes
    neither loss nor gradients, because `Batch.valid` masks the loss; other padding is refused by `unsuited`.

    Args:
        model: its memory must be `capturable`.
        parameters: what to compute gradients of.
        precision: see `RATE_model.system.precision`.
        graphs: where passes are captured.
    """

    def __init__(self, model: Agent, parameters: Sequence[Tensor], precision: str, graphs: Graphs) -> None:
        self._model, self._parameters, self._precision, self.graphs = model, parameters, precision, graphs

    @staticmethod
    def unsuited(batch: Batch, valid: Tensor) -> str | None:
        """Why the windows of a batch cannot be captured; None if they can. `valid` `(B, T)` is on the CPU."""
        if not isinstance(batch.observations, Tensor):
            return "steps share images"
        if batch.infos is not None:
            return "batches hold privileged arrays"
        return None if bool(valid[:, 0].all()) else "windows are padded before their first step"

    def run(
        self, batch: Batch, shown: Tensor, rows: slice, window: slice, state: AgentState | None, share: float
    ) -> PassOutput:
        """Loss, times `share`, and gradients of some rows of a window; arguments as in `Trainer`."""
        steps = (batch.observations, shown, batch.rtg, batch.targets, batch.valid)
        inputs = [tensor[rows, window] for tensor in steps if isinstance(tensor, Tensor)]
        inputs.append(torch.full((), share, device=batch.rtg.device))
        moving, fixed = _split(state)

        def function(*values: Tensor) -> PassOutput:
            observations, actions, rtg, targets, valid, weight, *before = values
            everything = torch.ones(rtg.shape, dtype=torch.bool)  # on the CPU, where it decides which rows run
            with autocast(self._model.device, self._precision):
                logits, after = self._model(observations, actions, rtg, everything, _joined(state, before))
                loss = cloning_loss(self._model.spec, logits, targets, valid) * weight
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            return PassOutput(loss.detach(), logits.detach(), after.detach(), list(gradients))

        output = self.graphs.run(fixed, function, *inputs, *moving)
        kept = output.loss.clone(), output.logits.clone(), output.state.map(Tensor.clone)
        return PassOutput(*kept, output.gradients)


def _split(state: AgentState | None) -> tuple[list[Tensor], tuple]:
    """The tensors of a state that differ from batch to batch, and those on which shapes depend, as numbers."""
    if state is None or state.actions is None:
        return [], ()
    tensors = state.memory.tensors()
    moving = [tensor for tensor in tensors if tensor.is_floating_point()]
    return [*moving, state.actions], tuple(tuple(t.tolist()) for t in tensors if not t.is_floating_point())


def _joined(state: AgentState | None, tensors: Sequence[Tensor]) -> AgentState | None:
    """A state with other tensors, as `_split` returns them."""
    if state is None or state.actions is None:
        return state
    *others, actions = tensors
    left = iter(others)
    memory = state.memory.map(lambda tensor: next(left) if tensor.is_floating_point() else tensor)
    return replace(state, memory=memory, actions=actions)
