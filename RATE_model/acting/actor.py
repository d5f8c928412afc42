"""Acting with a model, one environment step at a time, for a batch of environments.

What a past token contributes to later ones is its attention input in every layer, `d_model` numbers (see `attention`).
Those are all that is kept: a step costs its two or three new tokens, whatever the length of the segment or the episode.

Columns of the buffers, for K steps, n memory tokens and a cache of at most M hidden states:

    0 ........ M-1 | M .. M+n-1 | M+n ............. M+n+3K-1 | ...... M+2n+3K-1
    cache, aligned | read       | R0 O0 A0 ... R(K-1) O A     | write
    at the right

Segments are closed as in training: when the K-th action is known it gets its token, the write tokens follow, and the
MRV and the cache make the memory of the next segment. Rows may be at different points of their segments and episodes.

A window slides instead: the oldest steps leave it, and what is left is computed again. Memory is handed on all the
same, whenever K steps have passed, from the steps in the window.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from RATE_model.data.frames import Frames
from RATE_model.memories.rate.attention import Keys
from RATE_model.memories.rate.model import RATE
from RATE_model.memories.rate.valve import MemoryState
from RATE_model.system.precision import autocast, uses_bfloat16

# Steps' tokens of one attention call; longer appends are cut, so that early tokens do not meet columns they cannot see.
_CHUNK = 64

MemoryTransform = Callable[[MemoryState, MemoryState], MemoryState]


def knock_out_memory(memory: MemoryState, initial: MemoryState) -> MemoryState:
    """A `transform_memory` for control experiments: every segment starts from the initial memory."""
    return initial


def knock_out_tokens(memory: MemoryState, initial: MemoryState) -> MemoryState:
    """Of the memory only the cache is handed on: every segment starts from the initial memory tokens."""
    return replace(memory, tokens=initial.tokens)


def knock_out_cache(memory: MemoryState, initial: MemoryState) -> MemoryState:
    """Of the memory only the tokens are handed on: every segment starts without cached hidden states."""
    return replace(initial, tokens=memory.tokens)


def exchange_twins(seed: int = 0) -> MemoryTransform:
    """A `transform_memory` for control experiments on twins: episodes that differ in what is to be remembered alone.

    Rows 2 i and 2 i + 1 are twins, and no row has been dropped (`rollout` with `compact=False`). Before every segment a
    pair's memories are exchanged with probability 1/2, also with a twin whose episode is over. What else memory holds
    (where the agent is, what it is about to do) survives, so an agent that decides by what it remembers is right half
    of the time.
    """
    generator = torch.Generator().manual_seed(seed)

    def transform(memory: MemoryState, initial: MemoryState) -> MemoryState:
        rows = torch.arange(len(memory.cache_lengths)).view(-1, 2)
        exchanged = torch.rand(len(rows), generator=generator) < 0.5
        rows[exchanged] = rows[exchanged].flip(1)
        return memory.permute(rows.flatten())

    return transform


def memory_conditions(model: RATE) -> dict[str, MemoryTransform | None]:
    """What to compare in a control experiment: a label and the `transform_memory` of each condition.

    Memory is what passes between segments: memory tokens and cached hidden states. A model without either (DT) has
    nothing to knock out, and one condition.
    """
    if not (model.config.num_mem_tokens or model.config.mem_len):
        return {"no memory": None}
    return {"memory intact": None, "memory knocked out": knock_out_memory}


def bytes_per_row(model: RATE) -> int:
    """About how much memory an `Actor` takes for one environment: its buffers, and scores while they are filled."""
    config = model.config
    columns = config.mem_len + config.segment_tokens
    buffers = (config.n_layer + 1) * config.d_model
    scores = 2 * min(_CHUNK, columns) * config.n_head if config.sliding else 0
    return 4 * columns * (buffers + scores)


class Actor:
    """Acts for `batch_size` environments at once.

    The parameters are read at construction: make a new actor after a training step.

    Args:
        model: in eval mode.
        batch_size: B, the number of environments.
        target_return: the return to ask for, in units of reward; one number, or `(B,)`.
        greedy: take the most probable action; False: draw from the predicted distribution (discrete actions).
        seed: of those draws.
        window: see the last K steps at every step, across the borders of segments, as DT and DTXL always do.
        slide: how many of the oldest steps leave a full window at once. 1 is the published protocol and recomputes the
            window at every step; up to `context_length`, more is faster, with a shorter context.
        reset_target: ask for the target return again whenever K steps have passed, as if nothing had been earned.
        rtg_floor: the return-to-go falls to this and no further, however much is earned: data has none below its
            smallest. A target return that lies below stays. None: it falls freely.
        transform_memory: applied to the memory before every segment but an episode's first, as
            `transform(memory, initial_memory)`; for ablations, e.g. `knock_out_memory`.
        precision: "32", "bf16" or "auto"; see `uses_bfloat16`.

    Raises:
        ValueError: a model in training mode, or `slide` outside 1..context_length.
    """

    def __init__(
        self,
        model: RATE,
        batch_size: int,
        target_return: float | np.ndarray | Tensor,
        *,
        greedy: bool = True,
        seed: int = 0,
        window: bool = False,
        slide: int = 1,
        reset_target: bool = False,
        rtg_floor: float | None = None,
        transform_memory: MemoryTransform | None = None,
        precision: str = "32",
    ) -> None:
        config = model.config
        if model.training:
            raise ValueError("the model is in training mode, with dropout on: call model.eval() before acting")
        if not 1 <= slide <= config.context_length:
            raise ValueError(f"slide {slide}: must be between 1 and the context of {config.context_length} steps")
        self.model, self.batch_size, self.greedy, self.slide = model, batch_size, greedy, slide
        self.window, self.reset_target = window or config.sliding, reset_target
        self.rtg_floor, self.transform_memory = rtg_floor, transform_memory
        self._precision = precision
        # Looked for until a step shows none: where all images differ, looking costs for nothing.
        self._images_repeat = model.spec.is_image and batch_size > 1
        self._device = model.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._rtg = torch.empty(batch_size, device=self._device)
        self._target = torch.empty(batch_size, device=self._device)
        # Steps of the running segment (or window) in the buffers, and steps since memory was handed on.
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._since_memory = np.zeros(batch_size, dtype=np.int64)
        self._cached = np.zeros(batch_size, dtype=np.int64)
        self._fresh = np.ones(batch_size, dtype=bool)
        columns = config.mem_len + config.segment_tokens
        dtype = torch.bfloat16 if uses_bfloat16(self._device, precision) else self.model.content_bias.dtype

        def buffers() -> list[Tensor]:
            shape = (batch_size, columns, config.d_model)
            return [torch.zeros(shape, dtype=dtype, device=self._device) for _ in model.layers]

        with torch.inference_mode(), autocast(self._device, precision):
            self._folded = model.fold()
            self._inputs = buffers()
            # The cache holds raw hidden states; only the reordered layers attend to something else.
            reordered = model.layers[0].reordered and config.mem_len > 0
            self._hidden = buffers() if reordered else self._inputs
            self._memory_tokens = model.initial_memory(batch_size).tokens
            self._action_tokens = torch.zeros(batch_size, 1, config.d_model, dtype=dtype, device=self._device)
            tokens = 3 * config.context_length if self.window else 0
            self._window = torch.zeros(batch_size, tokens, config.d_model, dtype=dtype, device=self._device)
        self.reset(target_return=target_return)

    def reset(
        self, rows: np.ndarray | None = None, *, target_return: float | np.ndarray | Tensor | None = None
    ) -> None:
        """Begin new episodes.

        Args:
            rows: bool mask or indices of the environments that begin anew; None: all.
            target_return: what to ask for in them; None: what was asked for at their last reset.
        """
        rows = np.arange(self.batch_size) if rows is None else np.arange(self.batch_size)[rows]
        index = torch.as_tensor(rows, device=self._device)
        if target_return is not None:
            target = torch.as_tensor(target_return, dtype=torch.float32, device=self._device)
            self._target[index] = target.expand(self.batch_size)[index] if target.ndim == 0 else target
        self._rtg[index] = self._target[index]
        self._steps[rows] = self._since_memory[rows] = self._cached[rows] = 0
        self._fresh[rows] = True
        if self._memory_tokens is not None:
            with torch.inference_mode():
                tokens = self._memory_tokens.clone()
                tokens[index] = self.model.memory_tokens.to(tokens.dtype)
                self._memory_tokens = tokens

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some rows only, `(b,)` indices in the order wanted: finished episodes then cost nothing."""
        index = torch.as_tensor(rows, device=self._device)
        with torch.inference_mode():
            hidden_is_inputs = self._hidden is self._inputs
            self._inputs = [buffer[index] for buffer in self._inputs]
            self._hidden = self._inputs if hidden_is_inputs else [buffer[index] for buffer in self._hidden]
            for name in ("_rtg", "_target", "_memory_tokens", "_action_tokens", "_window"):
                if (value := getattr(self, name)) is not None:
                    setattr(self, name, value[index])
        for name in ("_steps", "_since_memory", "_cached", "_fresh"):
            setattr(self, name, getattr(self, name)[rows])
        self.batch_size = len(rows)

    def act(self, observations: np.ndarray | Tensor, rewards: np.ndarray | Tensor | None = None) -> np.ndarray:
        """One environment step for every row: `observe`, choose, `take`.

        Args:
            observations: `(B, *observation_shape)`.
            rewards: `(B,)` rewards of the previous actions; ignored where an episode begins; None: all zero.

        Returns:
            Actions, `(B,)` int64, or `(B, A)` float32 when continuous.
        """
        logits = self.observe(observations, rewards)
        if self.model.spec.continuous:
            actions = logits
        elif self.greedy:
            actions = logits.argmax(-1)
        else:
            actions = torch.multinomial(logits.softmax(-1), 1, generator=self._generator).squeeze(1)
        self.take(actions)
        return actions.cpu().numpy()

    @torch.inference_mode()
    def observe(self, observations: np.ndarray | Tensor, rewards: np.ndarray | Tensor | None = None) -> Tensor:
        """Show the rows their next observations, `(B, *observation_shape)`.

        Returns:
            float32 action logits `(B, num_actions)` (actions when continuous). Call `take` before the next `observe`.
        """
        if rewards is not None:
            rewards = torch.as_tensor(rewards, dtype=torch.float32, device=self._device)
            self._rtg -= torch.where(torch.as_tensor(self._fresh, device=self._device), 0.0, rewards)
            if self.rtg_floor is not None:
                self._rtg.clamp_(min=self._target.clamp(max=self.rtg_floor))
        self._fresh[:] = False
        with autocast(self._device, self._precision):
            self._make_room()
            rtg = self.model.encoder.encode_rtg(self._rtg[:, None])
            observed = self._encode(observations)
            x = torch.cat([self._action_tokens, rtg.to(self._dtype), observed.to(self._dtype)], dim=1)
            hidden = self._append_steps(x)
            logits = self.model.head(hidden[:, -1]).float()
        self._steps += 1
        self._since_memory += 1
        return logits

    def _encode(self, observations: np.ndarray | Tensor) -> Tensor:
        """Observation tokens `(B, 1, d_model)`; images that several rows show are encoded once."""
        encoder = self.model.encoder
        if self._images_repeat and isinstance(observations, np.ndarray):
            frames = Frames.of(observations)
            self._images_repeat = len(frames.images) < len(observations)
            return encoder.encode_observations(encoder.encode_frames(frames.to(self._device)))
        return encoder.encode_observations(torch.as_tensor(observations, device=self._device)[:, None])

    @torch.inference_mode()
    def take(self, actions: np.ndarray | Tensor) -> None:
        """Record the actions that are taken, `(B,)` int64 or `(B, A)` float; `act` does this itself."""
        actions = torch.as_tensor(actions, device=self._device)
        with autocast(self._device, self._precision):
            self._action_tokens = self.model.encoder.encode_actions(actions[:, None]).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self._inputs[0].dtype

    # Segment and window borders -----------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Hand memory on, and close segments or slide windows, so that every row has room for one more step."""
        config = self.model.config
        full = self._steps == config.context_length
        passed = full & (self._since_memory >= config.context_length)
        for rows in self._rows_by(passed, self._cached):
            self._hand_on(rows)
        self._steps[full] = config.context_length - self.slide if self.window else 0
        if config.num_mem_tokens:
            for rows in self._rows_by(passed | (self._steps == 0), self._cached):
                start = config.mem_len
                self._append(rows, self._pick(self._memory_tokens, rows), start, first=start, outputs=0, block=True)
        if self.window:
            for rows in self._rows_by(full, self._cached):
                self._refill(rows)

    def _hand_on(self, rows: np.ndarray) -> None:
        """From the K steps in the buffers of rows with caches of one length to the memory behind them."""
        config = self.model.config
        base, cached = config.mem_len, int(self._cached[rows[0]])
        end = base + config.segment_tokens - config.num_mem_tokens
        self._append(rows, self._pick(self._action_tokens, rows), end - 1, first=base - cached, outputs=0)
        tokens = None if self._memory_tokens is None else self._pick(self._memory_tokens, rows)
        if tokens is not None:
            written = self._append(
                rows, tokens.to(self._dtype), end, first=base, outputs=config.num_mem_tokens, block=True
            )
            tokens = written if self.model.valve is None else self.model.valve(tokens, written)
        cache = self._rolled_cache(rows, config.segment_tokens)
        lengths = torch.full((len(rows),), cache[0].shape[1] if cache else 0)
        memory = MemoryState(tokens, cache, lengths)
        if self.transform_memory is not None:
            memory = self.transform_memory(memory, self.model.initial_memory(len(rows)))
        self._install(rows, memory)
        self._since_memory[rows] = 0
        if self.reset_target:
            index = torch.as_tensor(rows, device=self._device)
            self._rtg[index] = self._target[index]

    def _refill(self, rows: np.ndarray) -> None:
        """Drop the oldest steps of full windows and recompute what is left, which they and the memory had shaped."""
        config = self.model.config
        self._store(self._window, rows, slice(-1, None), self._pick(self._action_tokens, rows))
        kept = 3 * (config.context_length - self.slide)
        if kept:
            window = self._pick(self._window, rows)[:, 3 * self.slide :].clone()
            self._store(self._window, rows, slice(0, kept), window)
            # The last action stays pending: it is appended with the next step.
            base, cached = config.mem_len, int(self._cached[rows[0]])
            self._append(rows, window[:, :-1], base + config.num_mem_tokens, first=base - cached, outputs=0)

    def _rolled_cache(self, rows: np.ndarray, tokens: int) -> tuple[Tensor, ...]:
        """The caches behind the running segment of `tokens` tokens; empty without a cache."""
        base = self.model.config.mem_len
        if not base:
            return ()
        start = base - int(self._cached[rows[0]])
        return tuple(
            self.model.roll_cache(picked[:, start:base], picked[:, base : base + tokens])
            for picked in (self._pick(hidden, rows) for hidden in self._hidden)
        )

    def _install(self, rows: np.ndarray, memory: MemoryState) -> None:
        """Make a memory the one that the next segment of these rows begins with."""
        base = self.model.config.mem_len
        self._cached[rows] = memory.cache_lengths.numpy()
        if memory.tokens is not None:
            self._memory_tokens = self._memory_tokens.clone()
            self._store(self._memory_tokens, rows, slice(None), memory.tokens.to(self._memory_tokens.dtype))
        for inputs, hidden, cache in zip(self._inputs, self._hidden, memory.cache, strict=False):
            columns = slice(base - cache.shape[1], base)
            cache = cache.to(self._dtype).clone()
            self._store(inputs, rows, columns, cache)
            self._store(hidden, rows, columns, cache)

    # Appending tokens to the buffers -------------------------------------------------------------------------------

    def _append_steps(self, x: Tensor) -> Tensor:
        """Append (last action, rtg, observation), `(B, 3, d_model)`, to every row; its observations' final states.

        Rows that begin a segment have no last action in it.
        """
        config = self.model.config
        first_step = config.mem_len + config.num_mem_tokens
        hidden = x.new_empty(self.batch_size, 1, config.d_model)
        for begins in (True, False):
            rows = np.flatnonzero((self._steps == 0) == begins)
            if not rows.size:
                continue
            offset = 3 * self._steps[rows] - (0 if begins else 1)
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
        """Keep the embedded tokens of a sliding window: nothing is encoded again when it slides."""
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
            outputs: how many of the last tokens' final hidden states are wanted.
            block: the tokens are a block of memory tokens, which see one another in both directions.

        Returns:
            `(b, outputs, d_model)`.
        """
        count = x.shape[1]
        starts, firsts = (np.broadcast_to(np.asarray(value), rows.shape) for value in (start, first))
        uniform = bool((starts == starts[0]).all() and (firsts == firsts[0]).all())
        places = starts[:1, None] + np.arange(count) if uniform else starts[:, None] + np.arange(count)
        low, high = int(firsts.min()), int(starts.max()) + count
        bias = None if block else self._bias(places, firsts, low, high)
        wrap = self.model.wrap_distances(int(self._cached[rows[0]])) if block else None
        index = torch.as_tensor(places, device=self._device)
        if uniform:
            index = index[0]
        for number, layer in enumerate(self.model.layers):
            last = number == len(self.model.layers) - 1
            inputs = layer.attention_inputs(x)
            columns = slice(int(starts[0]), int(starts[0]) + count) if uniform else index
            self._store(self._inputs[number], rows, columns, inputs)
            if self._hidden is not self._inputs:
                self._store(self._hidden[number], rows, columns, x)
            wanted = outputs if last else count
            if not wanted:
                return x[:, :0]
            states = self._pick(self._inputs[number], rows)[:, low:high]
            keys = Keys(states, self.model.positions.keys[low:high])
            x, inputs, query_places = x[:, -wanted:], inputs[:, -wanted:], index[..., -wanted:]
            attended = self._attend(
                number, inputs, keys, query_places, None if bias is None else bias[..., -wanted:, :], wrap
            )
            x = layer.finish(x, inputs, attended)
        return x

    def _attend(
        self, number: int, inputs: Tensor, keys: Keys, places: Tensor, bias: Tensor | None, wrap: Tensor | None
    ) -> Tensor:
        """Appended tokens `(b, t, d_model)` at `places` `(t,)` or `(b, t)` through one layer's attention."""
        attention, folded = self.model.layers[number].attention, self._folded[number]
        positions = self.model.positions
        attended = []
        size = _CHUNK if wrap is None else inputs.shape[1]  # a block of memory tokens is one piece
        for start in range(0, inputs.shape[1], size):
            part = slice(start, min(start + size, inputs.shape[1]))
            # The tokens behind a chunk are the last columns, and none of its rows sees them.
            columns = keys.positions.shape[0] - (inputs.shape[1] - part.stop)
            output, _ = attention(
                attention.queries(inputs[:, part], folded),
                keys.columns(0, columns),
                folded,
                sin=positions.sin[places[..., part]],
                cos=positions.cos[places[..., part]],
                bias=None if bias is None else bias[..., part, :columns],
                wrap=wrap,
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
        """The rows of a mask, in groups in which all keys are equal; nearly always one group or none."""
        rows = np.flatnonzero(mask)
        if not rows.size:
            return []
        _, group = np.unique(np.stack([key[rows] for key in keys]), axis=1, return_inverse=True)
        group = group.reshape(-1)
        return [rows[group == number] for number in range(group.max() + 1)]

    def _pick(self, tensor: Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of a tensor; a view if they are all."""
        if rows.size == self.batch_size:
            return tensor
        return tensor.index_select(0, torch.as_tensor(rows, device=self._device))

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
