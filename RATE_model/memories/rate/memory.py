"""RATE, the Recurrent Action Transformer with Memory, and its relatives (RMT, TrXL, DT, ...): one class.

RATE paper: Cherepanov et al. 2023, "Recurrent Action Transformer with Memory" (arXiv 2306.09459). A trajectory is cut
into segments of K steps. A Transformer-XL decoder reads each segment with the memory tokens at both ends. It passes on
to the next segment what it wrote in the second block, after the memory retention valve, and the hidden states of its
layers.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.contract import Memory, StepOptions, Steps
from RATE_model.memories.rate.attention import Folded, Form, Keys, Positions, fold_together
from RATE_model.memories.rate.blocks import AHEAD, Piece, by_distance, pieces
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.dropout import Dropout
from RATE_model.memories.rate.layers import DecoderLayer
from RATE_model.memories.rate.layout import Layout, MaskedRows, RowGroup
from RATE_model.memories.rate.state import SegmentState
from RATE_model.memories.rate.stepper import SegmentStepper
from RATE_model.memories.rate.valve import make_valve

Head = Callable[[Tensor], Tensor]

# Versions of a layer's compiled code.
_MOST_COMPILED = 64
# Attention scores of a batch's segment and layer from which on "blocks" is faster on a CPU, without a cache: in float32
# products, and in bfloat16. See docs/speed.md.
_BLOCKS_FROM, _BLOCKS_FROM_BF16 = 2**22, 6 * 2**20
# On a GPU those up to which "whole" is used. An estimate: it keeps them all for the gradient, in every layer and
# segment, 64 MiB each in bfloat16; "fused" keeps those of memory tokens alone.
_WHOLE_UP_TO = 2**25


@dataclass(frozen=True)
class SegmentMaps:
    """Attention maps of one segment, for inspection; rows and columns are as in `layout`."""

    layout: Layout
    attention: Tensor  # (layers, B, n_head, q, m + q) float32, rows sum to 1


class RATE(Memory):
    """The memory of every mode of the family.

    Args:
        config: sizes and switches; see `apply_mode` for the modes.

    Raises:
        UserError: invalid sizes.
    """

    can_slide = True
    has_forms = True
    capturable = True
    config: RATEConfig
    layers: Sequence[DecoderLayer]

    def __init__(self, config: RATEConfig) -> None:
        super().__init__(config)
        self.layers = cast(Sequence[DecoderLayer], nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer)))
        self.positions = Positions(config.d_model, config.mem_len + config.segment_tokens)
        self.dropout = Dropout(config.dropout)
        self._compiled: Callable[..., Any] | None = None

    def initialise(self) -> None:
        """Draw the valve, the biases of attention and the memory tokens."""
        config = self.config
        self.valve = make_valve(config)
        # u and v of Transformer-XL, shared by all layers.
        self.content_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.n_head, config.d_head)))
        self.position_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.n_head, config.d_head)))
        tokens = config.num_mem_tokens
        # Distinct random vectors: equal tokens would differ only by position.
        self.memory_tokens = nn.Parameter(torch.randn(tokens, config.d_model)) if tokens else None

    def initialise_as_published(self) -> None:
        """One random vector for all memory tokens."""
        if self.memory_tokens is not None:
            self.memory_tokens.copy_(self.memory_tokens[:1].expand_as(self.memory_tokens))

    @property
    def context(self) -> int:
        """K: a segment is seen at once."""
        return self.config.context_length

    @property
    def slides(self) -> bool:
        """True for DT and DTXL."""
        return self.config.sliding

    @property
    def reach(self) -> int | None:
        """No limit with tokens; otherwise a segment, and the content of all layers' caches.

        A cache holds tokens of the last `steps` steps before a segment. Above the first layer each of them has seen its
        own segment from the beginning, and the cache of the layer below.
        """
        config = self.config
        if config.num_mem_tokens:
            return None
        steps = -(-config.mem_len // config.step_tokens)
        segments = -(-steps // config.context_length)
        return config.context_length * (1 + (config.n_layer - 1) * segments) + steps

    @property
    def gradient_reach(self) -> int | None:
        """No limit with tokens; without, one segment, because cached hidden states carry no gradient."""
        return None if self.config.num_mem_tokens else self.config.context_length

    @property
    def has_memory(self) -> bool:
        """Whether there are memory tokens or cached hidden states: a DT has neither."""
        return bool(self.config.num_mem_tokens or self.config.mem_len)

    def initial(self, batch_size: int) -> SegmentState:
        """Memory before the first segment: the learned tokens, an empty cache."""
        config = self.config
        tokens = None if self.memory_tokens is None else self.memory_tokens.expand(batch_size, -1, -1)
        if tokens is not None and config.tokens_width > config.d_model:
            tokens = torch.cat([tokens, torch.zeros_like(tokens)], dim=-1)
        cache = ()
        if config.mem_len:
            empty = self.content_bias.new_zeros(batch_size, 0, config.d_model)
            cache = (empty,) * config.n_layer
        return SegmentState(tokens, cache, torch.zeros(batch_size, dtype=torch.int64))

    def largest_state(self) -> SegmentState:
        """With a full cache."""
        state = self.initial(1)
        full = self.content_bias.new_zeros(1, self.config.mem_len, self.config.d_model)
        return replace(state, cache=(full,) * len(state.cache))

    def forward(self, steps: Steps, valid: Tensor, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Process consecutive segments, the first of which starts with the first step.

        Gradients flow through the memory tokens between all segments of the call. Cached hidden states never carry a
        gradient (Dai et al. 2019, section 3.2).
        """
        return self.decide(steps, valid, state, lambda hidden: hidden)

    def decide(self, steps: Steps, valid: Tensor, state: SegmentState, head: Head) -> tuple[Tensor, SegmentState]:
        """`forward` and the head, segment by segment.

        A row costs nothing in a segment of padding only; its output there is zero.
        """
        form = self._form(len(valid))
        folded = self.fold(form)
        decisions = []
        for start in range(0, steps.shape[1], self.config.context_length):
            times = slice(start, start + self.config.context_length)
            decided, state = self._active_rows(steps, times, valid[:, times], state, folded, head)
            decisions.append(decided)
        return torch.cat(decisions, dim=1), state

    def _active_rows(
        self, steps: Steps, times: slice, valid: Tensor, state: SegmentState, folded: Sequence[Folded], head: Head
    ) -> tuple[Tensor, SegmentState]:
        """Run one segment for the rows that are not all padding; rows with caches of equal length run together."""
        active = valid.any(dim=1).cpu()
        lengths = state.cache_lengths
        if bool(active.all()) and bool((lengths == lengths[0]).all()):
            hidden, state = self._segment(steps.cut(times), state, folded)
            return head(hidden), state
        decided: Tensor | None = None
        for length in lengths[active].unique():
            rows = torch.nonzero(active & (lengths == length)).squeeze(1)
            hidden, row_state = self._segment(steps.cut(times, rows), state.select(rows), folded)
            of_rows = head(hidden)
            if decided is None:
                decided = of_rows.new_zeros(len(valid), *of_rows.shape[1:])
            decided = decided.index_copy(0, rows.to(self.device, non_blocking=True), of_rows)
            state = state.put(rows, row_state)
        if decided is None:  # only padding
            decided = torch.zeros_like(head(torch.zeros(*valid.shape, self.config.d_model, device=self.device)))
        return decided, state

    def _segment(self, steps: Steps, state: SegmentState, folded: Sequence[Folded]) -> tuple[Tensor, SegmentState]:
        """One segment of at most K steps, for rows with caches of equal length."""
        layout = self._layout(steps.shape[1], state)
        x, seen = self._decode(self._tokens(steps, state), state.cache, folded, layout)
        return x[:, : layout.steps], self._pass_on(state, x[:, layout.steps :], seen)

    def _tokens(self, steps: Steps, state: SegmentState) -> Tensor:
        """A segment's tokens, `(B, q, d_model)`: (rtg_0, observation_0, action_0, rtg_1, ...) between memory tokens."""
        parts = [part for part in (steps.rtg, steps.observations, steps.actions) if part is not None]
        dtype = steps.observations.dtype  # under autocast a table look-up stays float32 while linear layers do not
        x = torch.stack([part.to(dtype) for part in parts], dim=2).flatten(1, 2)
        if state.tokens is None:
            return x
        ends = self.shown(state.tokens).to(x.dtype)
        return torch.cat([ends, x, ends], dim=1)

    def shown(self, tokens: Tensor) -> Tensor:
        """The part of memory tokens `(B, n, tokens_width)` that layers see: `(B, n, d_model)`."""
        # Do not slice if nothing is cut off: the gradient would be accumulated in another order.
        return tokens if tokens.shape[-1] == self.config.d_model else tokens[..., : self.config.d_model]

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile a layer's pass over a segment, where nearly all time goes; all layers share the compiled code.

        There is one version for the last layer and one for the others, in every shape, in training and in evaluation.
        """
        import torch._dynamo.config as dynamo  # takes seconds

        # Shapes differ while a cache fills. Beyond its limit, 8, PyTorch would no longer use compiled code.
        dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_COMPILED)
        self._compiled = torch.compile(self._layer)

    def _decode(
        self, x: Tensor, cache: tuple[Tensor, ...], folded: Sequence[Folded], layout: Layout
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers over the tokens of a segment, `(B, q, d_model)`.

        Returns:
            Final hidden states of the observation rows, then of the write rows, and every layer's input.
        """
        x = self.dropout(x)
        through = self._layer if self._compiled is None else self._compiled
        places = self._places(layout, folded[0].form)
        seen = []
        for index, layer in enumerate(self.layers):
            seen.append(x)
            last = index == len(self.layers) - 1
            cached = cache[index] if cache else None
            x, _ = through(layer, x, cached, folded[index], places[last], last=last)
        return self.dropout(x), seen

    def _layout(self, steps: int, state: SegmentState) -> Layout:
        if steps > self.config.context_length:
            raise ValueError(f"a segment of {steps} steps; the context is {self.config.context_length}")
        cached = int(state.cache_lengths[0]) if state.cache else 0
        return Layout(
            steps=steps, tokens=self.config.num_mem_tokens, cached=cached, step_tokens=self.config.step_tokens
        )

    def _layer(
        self, layer: DecoderLayer, x: Tensor, cached: Tensor | None, folded: Folded, places: "_Places", *, last: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """All rows of a segment through one layer; in the last, observation rows then write rows.

        Returns:
            The layer's output, and the attention probabilities of every group of rows if the form is "shared".
        """
        inputs = layer.attention_inputs(x)
        states = inputs if cached is None else torch.cat([cached.to(inputs.dtype), inputs], dim=1)
        if places.masked is not None:
            return self._whole(layer, x, inputs, states, folded, places.masked, places), []
        if folded.form == "blocks":
            return self._in_blocks(layer, x, inputs, states, folded, places, last=last), []
        keys = Keys(states, places.keys)
        attended, rows, row_inputs, probabilities = [], [], [], []
        for group in places.groups:
            rows.append(x[:, group.rows])
            row_inputs.append(inputs[:, group.rows])
            of_group = (layer.attention.queries(row_inputs[-1], folded), keys.columns(*group.columns), folded)
            where: dict[str, Any] = {"sin": places.sin[group.rows], "cos": places.cos[group.rows], "bias": group.bias}
            if folded.form == "fused" and not group.is_memory:
                attended.append(layer.attention.fused(*of_group, **where))
                continue
            output, weights = layer.attention(*of_group, **where, wrap=places.wrap if group.is_memory else None)
            attended.append(output)
            probabilities.append(weights)
        if not last:
            return layer.finish(x, inputs, torch.cat(attended, dim=1)), probabilities
        output = layer.finish(torch.cat(rows, dim=1), torch.cat(row_inputs, dim=1), torch.cat(attended, dim=1))
        return output, probabilities

    def _in_blocks(
        self,
        layer: DecoderLayer,
        x: Tensor,
        inputs: Tensor,
        states: Tensor,
        folded: Folded,
        places: "_Places",
        *,
        last: bool,
    ) -> Tensor:
        """`_layer` in the form "blocks"."""
        pieces = _pieces(places.layout, last, self.config.n_head, self.farthest_wrapped(places.layout.cached))
        attended = layer.attention.blocks(states, folded, pieces)
        if last:
            x, inputs = (torch.cat([each[:, group.rows] for group in places.groups], dim=1) for each in (x, inputs))
        return layer.finish(x, inputs, attended)

    @staticmethod
    def _whole(
        layer: DecoderLayer,
        x: Tensor,
        inputs: Tensor,
        states: Tensor,
        folded: Folded,
        rows: MaskedRows,
        places: "_Places",
    ) -> Tensor:
        """`_layer` in the form "whole"."""
        padding = len(places.keys) - states.shape[1]
        keys = Keys(F.pad(states, (0, 0, 0, padding)) if padding else states, places.keys)
        of_rows = rows.take(inputs)
        attended = layer.attention.whole(
            layer.attention.queries(of_rows, folded), keys, folded, rows,
            sin=places.sin, cos=places.cos, wrap=places.wrap,
        )  # fmt: skip
        return layer.finish(rows.take(x), of_rows, attended)

    def _places(self, layout: Layout, form: Form) -> "dict[bool, _Places]":
        """Positions of a segment's rows and columns, for the last layer (True) and the others. A full cache would start
        at position 0.

        Made once for all layers, and outside of what is compiled.
        """
        table, start, device = self.positions, self.config.mem_len, self.device
        stop = start + layout.length
        keys, sin, cos = table.keys[start - layout.cached : stop], table.sin[start:stop], table.cos[start:stop]
        wrap = self.wrap_distances(layout.cached) if layout.tokens else None
        if form != "whole":
            groups = {last: _groups(layout, device, last, form != "shared") for last in (False, True)}
            return {last: _Places(layout, keys, sin, cos, wrap, of_rows) for last, of_rows in groups.items()}
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else keys.dtype
        masked = {last: _masked_rows(layout, device, last).to(dtype) for last in (False, True)}
        keys = F.pad(keys, (0, 0, 0, masked[True].bias.shape[1] - len(keys))).to(dtype)
        sin, cos, wrap = sin.to(dtype), cos.to(dtype), None if wrap is None else wrap.to(dtype)
        return {
            last: _Places(layout, keys, rows.take(sin), rows.take(cos), wrap, masked=rows)
            for last, rows in masked.items()
        }

    def wrap_distances(self, cached: int) -> Tensor:
        """Sinusoids `(n, d_model)` of the wrapped-around distances in a block of memory tokens; see `wrap_around`."""
        tokens = torch.arange(self.config.num_mem_tokens, device=self.device)
        return self.positions.distances(self.farthest_wrapped(cached) - tokens)

    def farthest_wrapped(self, cached: int) -> int:
        """The largest of these distances."""
        return cached + self.config.segment_tokens - 1

    def fold(self, form: Form = "shared") -> list[Folded]:
        """Every layer's folded projections, with what the form of attention needs; valid until a parameter changes."""
        attentions = [layer.attention for layer in self.layers]
        # In float32: what it costs does not depend on the batch, and gradients are added up over segments here.
        with torch.autocast(self.device.type, enabled=False) if form == "blocks" else nullcontext():
            if self.device.type == "cpu":  # where launches cost nothing, and tests pin results to the last bit
                folded = [attention.fold(self.content_bias, self.position_bias) for attention in attentions]
            else:
                folded = fold_together(attentions, self.content_bias, self.position_bias)
            if form == "blocks":
                farthest, heads = self.config.mem_len + self.config.segment_tokens, self.config.n_head
                sinusoids = self.positions.distances(torch.arange(farthest, -AHEAD - 1, -1))
                found = [by_distance(f.position_weight, f.position_bias, sinusoids, heads, farthest) for f in folded]
                folded = [replace(f, distances=d) for f, d in zip(folded, found, strict=True)]
        return [replace(f, form=form) for f in folded]

    def _form(self, batch: int) -> Form:
        """How attention is computed for this many trajectories: as asked for, or by device and size (docs/speed.md)."""
        if self.attention != "auto":
            return cast(Form, self.attention)
        config, device = self.config, self.device.type
        if device != "cpu":
            scores = batch * config.n_head * config.segment_tokens * (config.mem_len + config.segment_tokens)
            return "whole" if scores <= _WHOLE_UP_TO else "fused"
        if config.mem_len or self._compiled is not None or torch.compiler.is_compiling():
            return "shared"
        least = _BLOCKS_FROM_BF16 if torch.is_autocast_enabled(device) else _BLOCKS_FROM
        return "blocks" if batch * config.n_head * config.segment_tokens**2 >= least else "shared"

    def _pass_on(self, state: SegmentState, written: Tensor, seen: list[Tensor]) -> SegmentState:
        """The memory after a segment, from its write tokens' outputs and its layers' inputs."""
        tokens = state.tokens
        if tokens is not None:
            tokens = written if self.valve is None else self.valve(tokens, written)
        if not state.cache:
            return SegmentState(tokens, (), state.cache_lengths)
        cache = tuple(self.roll_cache(old, x) for old, x in zip(state.cache, seen, strict=True))
        return SegmentState(tokens, cache, torch.full_like(state.cache_lengths, cache[0].shape[1]))

    def roll_cache(self, cached: Tensor, hidden: Tensor) -> Tensor:
        """The last `mem_len` of the old cache `(B, m, d)` and a segment's hidden states `(B, q, d)`, detached."""
        joined = torch.cat([cached.to(hidden.dtype), hidden], dim=1) if cached.shape[1] else hidden
        return joined[:, -self.config.mem_len :].detach()

    def stepper(self, batch_size: int, options: StepOptions, dtype: torch.dtype) -> SegmentStepper:
        """A stepper with buffers of hidden states: a step only computes its two or three new tokens."""
        return SegmentStepper(self, batch_size, options, dtype)

    def bytes_per_row(self) -> int:
        """The approximate memory that a `SegmentStepper` takes per environment."""
        return SegmentStepper.bytes_per_row(self.config)

    @torch.no_grad()
    def inspect(self, steps: Steps) -> dict[str, Any]:
        """Whole trajectories without padding: "states" as for every memory, "attention" (`SegmentMaps` by segment)."""
        states, segments = [self.initial(steps.shape[0])], []
        for start in range(0, steps.shape[1], self.config.context_length):
            part = steps.cut(slice(start, start + self.config.context_length))
            layout = self._layout(part.shape[1], states[-1])
            state, attention = self._inspect_segment(self._tokens(part, states[-1]), states[-1], layout)
            segments.append(SegmentMaps(layout, attention))
            states.append(state)
        return {"states": states, "attention": segments}

    def _inspect_segment(self, x: Tensor, state: SegmentState, layout: Layout) -> tuple[SegmentState, Tensor]:
        """One segment like `_decode`, with all rows of the last layer and every layer's attention."""
        folded, places = self.fold(), self._places(layout, "shared")[False]
        x = self.dropout(x)
        seen, maps = [], []
        for index, layer in enumerate(self.layers):
            seen.append(x)
            cached = state.cache[index] if state.cache else None
            x, probabilities = self._layer(layer, x, cached, folded[index], places, last=False)
            maps.append(_assemble_map(probabilities, layout, x.device))
        return self._pass_on(state, self.dropout(x[:, layout.written]), seen), torch.stack(maps)


@dataclass(frozen=True)
class _Places:
    """Positions of a segment's tokens, and what they may see; the same for every layer but the last."""

    layout: Layout
    keys: Tensor  # (m + q, d_model), of all columns; for `masked`, as many as its bias has
    sin: Tensor  # (q, d_model / 2), of the segment's rows, or of those in `masked`
    cos: Tensor
    wrap: Tensor | None  # (n, d_model), see `RATE.wrap_distances`
    groups: Sequence[RowGroup] = ()
    masked: MaskedRows | None = None  # in place of `groups`, for the form "whole"


@cache
def _groups(layout: Layout, device: torch.device, last: bool, one_group: bool = False) -> list[RowGroup]:
    """Row groups are the same for every layer and batch, so their masks are made once per layout and device.

    They are never dropped: captured CUDA graphs read them.
    """
    return layout.groups(device, last=last, one_group=one_group)


@cache
def _masked_rows(layout: Layout, device: torch.device, last: bool) -> MaskedRows:
    """As `_groups`, for the form "whole"."""
    return layout.masked_rows(device, last=last)


@cache
def _pieces(layout: Layout, last: bool, heads: int, wrap: int) -> list[Piece]:
    """What the form "blocks" computes at once."""
    return pieces(layout, last=last, heads=heads, wrap=wrap)


def _assemble_map(probabilities: list[Tensor], layout: Layout, device: torch.device) -> Tensor:
    """One `(B, n_head, q, k)` map from the row groups' `(B, rows, n_head, columns)`."""
    batch, _, heads, _ = probabilities[0].shape
    full = torch.zeros(batch, heads, layout.length, layout.cached + layout.length, device=device)
    for group, weights in zip(_groups(layout, device, False), probabilities, strict=True):
        full[:, :, group.rows, slice(*group.columns)] = weights.transpose(1, 2).float()
    return full
