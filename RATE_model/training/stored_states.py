"""Initial states of windows, stored during an earlier pass over their episode (R2D2).

Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement learning": a window from the middle
of an episode starts with a stored state, and its first steps, the burn-in, only refresh that state.

    episode    0 1 2 3 4 5 6 7 8 9 ...
    pass over  [0 1 2 3 4 5]            stores the states before steps 3 and 6, where segments of K = 3 end
    window           [3 4 5 6 7 8]      starts with the first of them when it is drawn later

Stored states depend on the parameters of their time and include training's dropout, noise and mirrored images.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentState
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.errors import UserError

MAX_BYTES = 2 * 2**30


class StoredStates:
    """States before the first steps of all windows that do not start their episode, on the CPU; initially empty.

    There is one state per such step and variant of its window (see `Batch.variants`); a later one replaces it.

    Args:
        data: the windows, padded on the right.
        model: the model that produces the states.
        variants: number of variants of a window made by a batch transform.

    Raises:
        UserError: all states would take more than `MAX_BYTES`, or windows are padded on the left.
    """

    def __init__(self, data: WindowDataset, model: Agent, *, variants: int = 1) -> None:
        if data.pad == "left":
            raise UserError("--window_state stored: not possible with --pad left; use --pad right")
        starts = data.positions
        self._starts = starts  # of all windows
        self._steps = np.unique(starts[~data.begins])  # a state is stored before each
        self._variants = variants
        self._row = row = AgentState(model.memory.largest_state(), _no_action(model)).detach()
        count = len(self._steps) * variants
        bytes_per_row = sum(tensor.nbytes for tensor in row.tensors())
        if count * bytes_per_row > MAX_BYTES:
            raise UserError(
                f"--window_state stored: {count} states of {bytes_per_row} bytes would take "
                f"{count * bytes_per_row / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:g} are allowed. Use a smaller "
                "state (--d_model, and whatever else the memory passes on), less data, or --window_state initial"
            )
        # Uninitialised: the system allocates no memory for parts that are never written.
        self._held = row.map(lambda tensor: torch.empty(count, *tensor.shape[1:], dtype=tensor.dtype))
        self._known = torch.zeros(count, dtype=torch.bool)

    def begin(self, batch: Batch, rows: slice) -> AgentState | None:
        """The initial states of some rows of a batch: stored ones, else the initial memory (None if for all rows)."""
        slots = self._slots(batch, rows, 0)
        known = torch.nonzero((slots >= 0) & self._known[slots]).squeeze(1) if len(self._known) else slots[:0]
        if not len(known):
            return None
        stored = self._held.rows(slots[known])
        stored = replace(stored, memory=stored.memory.trimmed())
        # A memory may need some tensors on the CPU, so every tensor goes to its own device.
        stored = self._row.map(lambda like, tensor: tensor.to(like.device), stored)
        return replace(stored, started=known)

    def found(self, batch: Batch, rows: slice, step: int, state: AgentState) -> tuple[Tensor, list[Tensor]]:
        """Select the states to store, from the states of some rows before this step of their windows; see `keep`."""
        slots = self._slots(batch, rows, step)
        slots[batch.lengths[rows] < step] = -1  # the trajectory has ended before
        # If windows start together, the last one counts.
        _, last = np.unique(slots.numpy()[::-1], return_index=True)
        last = torch.from_numpy(np.sort(len(slots) - 1 - last))
        last = last[slots[last] >= 0]
        if not len(last):
            return slots[:0], []
        state = state.rows(last)
        state = replace(state, memory=state.memory.fitted(self._held.memory))
        tensors = self._held.map(lambda held, new: new.to(held), state).tensors()
        return slots[last], list(tensors)

    def keep(self, found: tuple[Tensor, list[Tensor]]) -> None:
        """Store the selected states."""
        slots, tensors = found
        for held, new in zip(self._held.tensors() if len(slots) else (), tensors, strict=True):
            held.index_copy_(0, slots, new)
        self._known[slots] = True

    def _slots(self, batch: Batch, rows: slice, step: int) -> Tensor:
        """The slots of states before a step of windows, (b,) int64; -1: none, because no window starts there."""
        wanted = self._starts[batch.indices[rows].numpy()] + step
        slots = np.searchsorted(self._steps, wanted)
        found = np.append(self._steps, -1)[slots] == wanted
        variant = 0 if batch.variants is None else batch.variants[rows].cpu().numpy()
        return torch.from_numpy(np.where(found, slots * self._variants + variant, -1))

    def state_dict(self) -> dict[str, Any]:
        """Everything stored."""
        slots = torch.nonzero(self._known).squeeze(1)
        return {"slots": slots, "tensors": self._held.rows(slots).tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, for the same windows and model."""
        slots, held = state["slots"], self._held.tensors()
        for tensor, saved in zip(held, state["tensors"], strict=True):
            tensor.index_copy_(0, slots, saved)
        self._known.zero_()
        self._known[slots] = True


def _no_action(model: Agent) -> Tensor:
    """A slot for the last action of one row."""
    spec = model.spec
    if spec.continuous:
        return torch.zeros(1, spec.num_actions, device=model.device)
    return torch.zeros(1, dtype=torch.int64, device=model.device)
