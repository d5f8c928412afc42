"""Acting with the RATE family, one environment step at a time, for a batch of environments.

A past token affects later ones only through its attention input in every layer, `d_model` numbers (see `attention`).
Only those are kept, so a step costs its two or three new tokens, whatever the length of the segment or the episode.

Columns of the buffers, for K steps, n memory tokens and a cache of at most M hidden states:

    0 ........ M-1 | M .. M+n-1 | M+n ............. M+n+3K-1 | ...... M+2n+3K-1
    cache, aligned | read       | R0 O0 A0 ... R(K-1) O A     | write
    at the right

Segments close as in training: once the K-th action is known it gets its token, the write tokens follow, and the MRV and
the cache make the memory of the next segment. Rows may be at different points of their segments and episodes.

A window slides instead: the oldest steps leave it, and the rest is recomputed. Memory is still passed on whenever K
steps have passed, computed from the steps in the window.
"""

import functools
from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from RATE_model.memories.contract import StepOptions, Stepper
from RATE_model.memories.rate.attention import Keys
from RATE_model.memories.rate.blocks import ActingAttention, acting_piece
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.state import SegmentState
from RATE_model.system.graphs import graphs_on

if TYPE_CHECKING:
    from RATE_model.memories.rate.memory import RATE

# Rows from which on steps are computed by distance.
_ROWS_BY_DISTANCE = 16
# Recorded steps: those of a segment, and its borders, several times, while a cache fills.
_GRAPHS = 512
# Steps per attention call; longer appends are split, so that early tokens skip columns they cannot see.
_CHUNK = 64


@dataclass(frozen=True)
class _Plan:
    """Where appended tokens go and what they see; the same in all layers."""

    columns: slice | Tensor  # of the tokens: the same in all rows, or `(b, t)`
    seen: slice  # columns
    by_distance: bool = False
    wrap: int | None = None  # by distance, of a block of memory tokens; see `Piece`
    # Otherwise as `RelativeAttention.forward` has them: bias, (sin, cos) and wrap.
    bias: Tensor | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    distances: Tensor | None = None


class SegmentStepper(Stepper):
    """Buffers of a batch of environments; see the module's docstring, and `Memory.stepper` for the arguments.

    Raises:
        ValueError: `slide` is below 1. A value above K clears the window.
    """

    def __init__(self, memory: "RATE", batch_size: int, options: StepOptions, dtype: torch.dtype) -> None:
        config = memory.config
        if options.slide < 1:
            raise ValueError(f"slide {options.slide}: must be at least 1")
        self.memory, self.config, self.options, self.batch_size = memory, config, options, batch_size
        self.slide = min(options.slide, config.context_length)
        self.window = options.window or config.sliding
        self._device, self._dtype = memory.device, dtype
        # Steps of the running segment (or window) in the buffers, and steps since memory was passed on.
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._since_memory = np.zeros(batch_size, dtype=np.int64)
        self._cached = np.zeros(batch_size, dtype=np.int64)
        self._folded = memory.fold()
        self._wrap_distances = functools.cache(memory.wrap_distances)
        # For `_attend_by_distance`; a few rows do not use it.
        many = self._device.type == "cpu" and batch_size >= _ROWS_BY_DISTANCE
        folded = [folded.to(dtype) for folded in memory.fold("blocks")] if many else []
        self._by_distance = [ActingAttention(*layer.for_blocks()) for layer in folded]
        # Of rows that are all at the same step of their segments.
        self._plans: dict[Hashable, _Plan] = {}
        self._graphs = graphs_on(self._device, most=_GRAPHS) if options.cuda_graphs else None
        self._inputs = self._buffers()
        # The cache holds raw hidden states; only the reordered layers attend to something else.
        reordered = memory.layers[0].reordered and config.mem_len > 0
        self._hidden = self._buffers() if reordered else self._inputs
        self._memory_tokens = memory.initial(batch_size).tokens
        self._action_tokens = torch.zeros(batch_size, 1, config.d_model, dtype=dtype, device=self._device)
        tokens = config.step_tokens * config.context_length if self.window else 0
        self._window = torch.zeros(batch_size, tokens, config.d_model, dtype=dtype, device=self._device)

    def _buffers(self) -> list[Tensor]:
        """One buffer per layer, over all columns."""
        columns = self.config.mem_len + self.config.segment_tokens
        shape = (self.batch_size, columns, self.config.d_model)
        return [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in self.memory.layers]

    @staticmethod
    def bytes_per_row(config: RATEConfig) -> int:
        """The approximate memory per environment: its buffers, and scores while they are filled."""
        columns = config.mem_len + config.segment_tokens
        both = config.arch != "TrXL" and config.mem_len > 0  # hidden states besides attention inputs
        buffers = ((1 + both) * config.n_layer + 1) * config.d_model
        scores = 2 * min(_CHUNK, columns) * config.n_head if config.sliding else 0
        return 4 * columns * (buffers + scores)

    def reset(self, rows: np.ndarray) -> None:
        """Start new episodes in some rows."""
        self._steps[rows] = self._since_memory[rows] = self._cached[rows] = 0
        initial = self.memory.initial(len(rows)).tokens
        if self._memory_tokens is not None and initial is not None:
            tokens = self._memory_tokens.clone()
            tokens[torch.as_tensor(rows, device=self._device)] = initial.to(tokens.dtype)
            self._memory_tokens = tokens

    def keep(self, rows: np.ndarray) -> None:
        """Continue with some rows only."""
        index = torch.as_tensor(rows, device=self._device)
        hidden_is_inputs = self._hidden is self._inputs
        if self._graphs is not None:
            self._graphs.clear()  # buffers move
        self._inputs = [buffer[index] for buffer in self._inputs]
        self._hidden = self._inputs if hidden_is_inputs else [buffer[index] for buffer in self._hidden]
        if self._memory_tokens is not None:
            self._memory_tokens = self._memory_tokens[index]
        self._action_tokens, self._window = self._action_tokens[index], self._window[index]
        self._steps, self._since_memory, self._cached = self._steps[rows], self._since_memory[rows], self._cached[rows]
        self.batch_size = len(rows)

    def append(self, rtg: Tensor | None, observations: Tensor) -> Tensor:
        """The last action, the return-to-go and the observation of every row; the final states `(B, d)`."""
        parts = [self._action_tokens] + [part.to(self._dtype) for part in (rtg, observations) if part is not None]
        hidden = self._append_steps(torch.cat(parts, dim=1))
        self._steps += 1
        self._since_memory += 1
        return hidden[:, -1]

    def record(self, actions: Tensor) -> None:
        """Remember the actions taken until the next step is appended or the segment closes."""
        self._action_tokens = actions.to(self._dtype)

    # Segment and window borders -----------------------------------------------------------------------------------

    def pass_on(self) -> np.ndarray:
        """Pass memory on, and close segments or slide windows, so every row has room for one more step."""
        config = self.config
        full = self._steps == config.context_length
        if self._steps.all() and not full.any():  # as at most steps
            return full
        passed = full & (self._since_memory >= config.context_length)
        for rows in self._rows_by(passed, self._cached):
            self._pass_on(rows)
        self._steps[full] = config.context_length - self.slide if self.window else 0
        if self._memory_tokens is not None:
            for rows in self._rows_by(passed | (self._steps == 0), self._cached):
                start = config.mem_len
                self._append(rows, self._shown_tokens(rows), start, first=start, outputs=0, block=True)
        if self.window:
            for rows in self._rows_by(full, self._cached):
                self._refill(rows)
        return passed

    def _pass_on(self, rows: np.ndarray) -> None:
        """The memory after the K steps in the buffers, for rows with caches of equal length."""
        config = self.config
        base, cached = config.mem_len, int(self._cached[rows[0]])
        end = base + config.segment_tokens - config.num_mem_tokens
        self._append(rows, self._pick(self._action_tokens, rows), end - 1, first=base - cached, outputs=0)
        tokens = None if self._memory_tokens is None else self._pick(self._memory_tokens, rows)
        if tokens is not None:
            written = self._append(
                rows,
                self._shown_tokens(rows).to(self._dtype),
                end,
                first=base,
                outputs=config.num_mem_tokens,
                block=True,
            )
            tokens = written if self.memory.valve is None else self.memory.valve(tokens, written)
        cache = self._rolled_cache(rows)
        lengths = torch.full((len(rows),), cache[0].shape[1] if cache else 0)
        memory = SegmentState(tokens, cache, lengths)
        if self.options.transform is not None:
            memory = self.options.transform(memory, self.memory.initial(len(rows)))
        self._install(rows, memory)
        self._since_memory[rows] = 0

    def _refill(self, rows: np.ndarray) -> None:
        """Drop the oldest steps of full windows and recompute the rest, which they and the memory had influenced."""
        config = self.config
        self._store(self._window, rows, slice(-1, None), self._pick(self._action_tokens, rows))
        kept = self.config.step_tokens * (config.context_length - self.slide)
        if kept:
            window = self._pick(self._window, rows)[:, self.config.step_tokens * self.slide :].clone()
            self._store(self._window, rows, slice(0, kept), window)
            # The last action stays pending and is appended with the next step.
            base, cached = config.mem_len, int(self._cached[rows[0]])
            self._append(rows, window[:, :-1], base + config.num_mem_tokens, first=base - cached, outputs=0)

    def _rolled_cache(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """The caches after the running segment; empty without a cache."""
        base, tokens = self.config.mem_len, self.config.segment_tokens
        if not base:
            return ()
        start = base - int(self._cached[rows[0]])
        return tuple(
            self.memory.roll_cache(picked[:, start:base], picked[:, base : base + tokens])
            for picked in (self._pick(hidden, rows) for hidden in self._hidden)
        )

    def _install(self, rows: np.ndarray, memory: SegmentState) -> None:
        """Make a memory the initial one of the next segment of these rows."""
        base = self.config.mem_len
        self._cached[rows] = memory.cache_lengths.numpy()
        if memory.tokens is not None and self._memory_tokens is not None:
            self._memory_tokens = self._memory_tokens.clone()
            self._store(self._memory_tokens, rows, slice(None), memory.tokens.to(self._memory_tokens.dtype))
        for inputs, hidden, cache in zip(self._inputs, self._hidden, memory.cache, strict=False):
            columns = slice(base - cache.shape[1], base)
            cache = cache.to(self._dtype).clone()
            self._store(inputs, rows, columns, cache)
            self._store(hidden, rows, columns, cache)

    # Appending tokens to the buffers -------------------------------------------------------------------------------

    def _append_steps(self, x: Tensor) -> Tensor:
        """Append (last action, rtg, observation), `(B, 3, d_model)`, to every row; returns the observations' final
        states.

        Rows at the start of a segment have no last action; without conditioning there is no rtg.
        """
        config = self.config
        first_step = config.mem_len + config.num_mem_tokens
        hidden = x.new_empty(self.batch_size, 1, config.d_model)
        starts = self._steps == 0
        for begins in (True, False):
            rows = np.flatnonzero(starts if begins else ~starts)
            if not rows.size:
                continue
            offset = config.step_tokens * self._steps[rows] - (0 if begins else 1)
            tokens = self._pick(x, rows)[:, int(begins) :]
            if self.window:
                self._remember(rows, tokens, offset)
            output = self._append(
                rows, tokens, first_step + offset, first=config.mem_len - self._cached[rows], outputs=1
            )
            if rows.size == self.batch_size:
                return output
            self._store(hidden, rows, slice(None), output.to(hidden.dtype))
        return hidden

    def _remember(self, rows: np.ndarray, tokens: Tensor, offset: np.ndarray) -> None:
        """Keep the embedded tokens of a sliding window, so sliding encodes nothing again."""
        places = offset[:, None] + np.arange(tokens.shape[1])
        index = torch.as_tensor(rows, device=self._device)[:, None], torch.as_tensor(places, device=self._device)
        self._window[index] = tokens

    def _append(
        self,
        rows: np.ndarray,
        x: Tensor,
        start: int | np.ndarray,
        *,
        first: int | np.ndarray,
        outputs: int,
        block: bool = False,
    ) -> Tensor:
        """Append tokens to some rows' buffers.

        Args:
            rows: `(b,)` indices.
            x: `(b, t, d_model)` embedded tokens.
            start: column of the first of them, one number or `(b,)`.
            first: the first column they may attend to, one number or `(b,)`.
            outputs: how many of the last tokens' final hidden states to return.
            block: the tokens are a block of memory tokens, which see one another in both directions.

        Returns:
            `(b, outputs, d_model)`.
        """
        plan, key = self._plan(rows, x.shape[1], start, first, block)
        if self._graphs is None or key is None or rows.size < self.batch_size:
            return self._through_layers(rows, x, plan, outputs)
        return self._graphs.run((key, outputs), lambda x: self._through_layers(rows, x, plan, outputs), x)

    def _plan(
        self, rows: np.ndarray, count: int, start: int | np.ndarray, first: int | np.ndarray, block: bool
    ) -> "tuple[_Plan, Hashable | None]":
        """Where tokens go and what they see; and what the plan depends on, if these are the same in all rows."""
        place, low, cached = _common(start), _common(first), int(self._cached[rows[0]])
        if place is None or low is None:
            starts, firsts = (np.broadcast_to(np.asarray(value), rows.shape) for value in (start, first))
            return self._make_plan(starts, firsts, count, cached, block, by_distance=False), None
        by_distance = self._pays_by_distance(rows.size)
        key = (place, low, count, cached, block, by_distance)
        if key not in self._plans:
            of_all = np.array([place]), np.array([low]), count, cached, block
            self._plans[key] = self._make_plan(*of_all, by_distance=by_distance)
        return self._plans[key], key

    def _make_plan(
        self, starts: np.ndarray, firsts: np.ndarray, count: int, cached: int, block: bool, *, by_distance: bool
    ) -> "_Plan":
        """A plan for rows with these first columns, of the tokens and of what they see; a single one for all rows."""
        places = starts[:, None] + np.arange(count)
        low, high = int(firsts.min()), int(starts.max()) + count
        columns = slice(int(starts[0]), high) if len(starts) == 1 else torch.as_tensor(places, device=self._device)
        if by_distance and count <= _CHUNK:
            wrap = self.memory.farthest_wrapped(cached) if block else None
            return _Plan(columns, slice(low, high), by_distance=True, wrap=wrap)
        index = torch.as_tensor(places[0] if len(starts) == 1 else places, device=self._device)
        positions = self.memory.positions
        return _Plan(
            columns,
            slice(low, high),
            bias=None if block else self._bias(places, firsts, low, high),
            rotation=(positions.sin[index], positions.cos[index]),
            distances=self._wrap_distances(cached) if block else None,
        )

    def _through_layers(self, rows: np.ndarray, x: Tensor, plan: "_Plan", outputs: int) -> Tensor:
        """See `_append`."""
        count, rotation, bias = x.shape[1], plan.rotation, plan.bias
        for number, layer in enumerate(self.memory.layers):
            last = number == len(self.memory.layers) - 1
            inputs = layer.attention_inputs(x)
            self._store(self._inputs[number], rows, plan.columns, inputs)
            if self._hidden is not self._inputs:
                self._store(self._hidden[number], rows, plan.columns, x)
            wanted = outputs if last else count
            if not wanted:
                return x[:, :0]
            states = self._pick(self._inputs[number], rows)
            if wanted < count:
                x, inputs = x[:, -wanted:], inputs[:, -wanted:]
            if plan.by_distance:
                attended = self._attend_by_distance(number, inputs, states, plan)
            else:
                assert rotation is not None
                if wanted < count:
                    rotation = rotation[0][..., -wanted:, :], rotation[1][..., -wanted:, :]
                    bias = None if bias is None else bias[..., -wanted:, :]
                keys = Keys(states[:, plan.seen], self.memory.positions.keys[plan.seen])
                attended = self._attend(number, inputs, keys, rotation, bias, plan.distances)
            x = layer.finish(x, inputs, attended)
        return x

    def _pays_by_distance(self, rows: int) -> bool:
        """Whether `_attend_by_distance` is used: fewer operations, but more weights to read than pays for few rows."""
        return bool(self._by_distance) and rows >= _ROWS_BY_DISTANCE

    def _attend_by_distance(self, number: int, inputs: Tensor, states: Tensor, plan: "_Plan") -> Tensor:
        """One layer's attention for the last tokens in `states` `(b, k, d_model)`, from their attention inputs
        `(b, t, d_model)`."""
        low, high = plan.seen.start, plan.seen.stop
        states, count = states[:, low:], inputs.shape[1]
        piece = acting_piece(high - low - count, count, states.shape[1], self.config.n_head, plan.wrap)
        # Under autocast the softmax would be computed in float32 copies.
        with torch.autocast("cpu", enabled=False) if self._dtype == torch.bfloat16 else nullcontext():
            return self._by_distance[number](inputs.to(self._dtype), states, piece)

    def _attend(
        self,
        number: int,
        inputs: Tensor,
        keys: Keys,
        rotation: tuple[Tensor, Tensor],
        bias: Tensor | None,
        wrap: Tensor | None,
    ) -> Tensor:
        """Appended tokens `(b, t, d_model)` through one layer's attention.

        `rotation` holds the sines and cosines of their positions, `(t, d_model / 2)` or `(b, t, d_model / 2)`.
        """
        attention, folded = self.memory.layers[number].attention, self._folded[number]
        count = inputs.shape[1]
        if wrap is not None or count <= _CHUNK:  # a block of memory tokens is never split
            sin, cos = rotation
            queries = attention.queries(inputs, folded)
            return attention(queries, keys, folded, sin=sin, cos=cos, bias=bias, wrap=wrap)[0]
        attended = []
        for start in range(0, count, _CHUNK):
            part = slice(start, min(start + _CHUNK, count))
            # The tokens after a chunk are in the last columns, which none of its rows sees.
            columns = keys.positions.shape[0] - (count - part.stop)
            output, _ = attention(
                attention.queries(inputs[:, part], folded),
                keys.columns(0, columns),
                folded,
                sin=rotation[0][..., part, :],
                cos=rotation[1][..., part, :],
                bias=None if bias is None else bias[..., part, :columns],
            )
            attended.append(output)
        return torch.cat(attended, dim=1)

    def _bias(self, places: np.ndarray, firsts: np.ndarray, low: int, high: int) -> Tensor | None:
        """0 where a token at `places` `(b or 1, t)` may attend to the columns from `low` to `high`, -inf elsewhere."""
        columns = np.arange(low, high)
        hidden = (columns > places[..., None]) | (columns < firsts[: len(places), None, None])
        if not hidden.any():
            return None
        bias = torch.zeros(hidden.shape).masked_fill(torch.from_numpy(hidden), float("-inf"))
        return (bias[0] if len(places) == 1 else bias).to(self._device, non_blocking=True)

    # Rows ----------------------------------------------------------------------------------------------------------

    def _rows_by(self, mask: np.ndarray, *keys: np.ndarray) -> list[np.ndarray]:
        """The rows of a mask, grouped by equal keys; nearly always a single group or none."""
        rows = np.flatnonzero(mask)
        if not rows.size:
            return []
        _, group = np.unique(np.stack([key[rows] for key in keys]), axis=1, return_inverse=True)
        group = group.reshape(-1)
        return [rows[group == number] for number in range(group.max() + 1)]

    def _pick(self, tensor: Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of a tensor; a view if these are all rows."""
        if rows.size == self.batch_size:
            return tensor
        return tensor.index_select(0, torch.as_tensor(rows, device=self._device))

    def _shown_tokens(self, rows: np.ndarray) -> Tensor:
        """The memory tokens of some rows, as layers see them."""
        assert self._memory_tokens is not None
        return self.memory.shown(self._pick(self._memory_tokens, rows))

    def _store(self, tensor: Tensor, rows: np.ndarray, columns: slice | Tensor, values: Tensor) -> None:
        """Write `(b, t, d_model)` to some rows, at common columns (slice) or each row's own (`(b, t)` indices)."""
        values = values.to(tensor.dtype)
        if isinstance(columns, slice):
            if rows.size == self.batch_size:
                tensor[:, columns] = values
            else:
                tensor[torch.as_tensor(rows, device=self._device), columns] = values
        else:
            tensor[torch.as_tensor(rows, device=self._device)[:, None], columns] = values


def _common(value: int | np.ndarray) -> int | None:
    """The number that is the same in all rows; None if it is not."""
    if isinstance(value, int):
        return value
    first = int(value[0])
    return first if (value == first).all() else None
