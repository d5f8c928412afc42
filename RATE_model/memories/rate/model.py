"""RATE, the Recurrent Action Transformer with Memory, and its relatives (RMT, TrXL, DT, ...): one class.

RATE paper: Cherepanov et al. 2023, "Recurrent Action Transformer with Memory" (arXiv 2306.09459). A trajectory is cut
into segments of K steps. A Transformer-XL decoder reads each segment with the memory tokens put at both ends, and hands
on to the next what it wrote in the second block, passed through a memory retention valve, and the hidden states of its
layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from RATE_model.data.frames import Frames, FrameStack
from RATE_model.encoders import ActionHead, TokenEncoder
from RATE_model.memories.rate.attention import Folded, Keys, Positions
from RATE_model.memories.rate.config import ModelConfig
from RATE_model.memories.rate.dropout import Dropout
from RATE_model.memories.rate.layers import DecoderLayer
from RATE_model.memories.rate.layout import Layout, RowGroup
from RATE_model.memories.rate.valve import MemoryRetentionValve, MemoryState
from RATE_model.spec import EnvironmentSpec


@dataclass(frozen=True)
class SegmentMaps:
    """Attention maps of one segment, for looking at; rows and columns are as in `layout`."""

    layout: Layout
    attention: Tensor  # (layers, B, n_head, q, m + q) float32, rows sum to 1


class RATE(nn.Module):
    """The model of every mode.

    Args:
        config: sizes and switches; see `RATE_model.memories.rate.config.apply_mode` for the modes.
        spec: what the environment's observations and actions are.

    Raises:
        UserError: sizes that make no model.
    """

    def __init__(self, config: ModelConfig, spec: EnvironmentSpec) -> None:
        super().__init__()
        config.validate()
        self.config, self.spec = config, spec
        self.encoder = TokenEncoder(spec, config.d_model)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer))
        self.head = ActionHead(spec, config.d_model)
        self.valve = MemoryRetentionValve(config) if config.n_head_ca else None
        # u and v of Transformer-XL, shared by all layers.
        self.content_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.n_head, config.d_head)))
        self.position_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.n_head, config.d_head)))
        tokens = config.num_mem_tokens
        # Distinct random vectors: equal tokens would stay equal but for their positions.
        self.memory_tokens = nn.Parameter(torch.randn(tokens, config.d_model)) if tokens else None
        self.positions = Positions(config.d_model, config.mem_len + config.segment_tokens)
        self.dropout = Dropout(config.dropout)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.content_bias.device

    def initial_memory(self, batch_size: int) -> MemoryState:
        """Memory before the first segment: the learned tokens, an empty cache."""
        config = self.config
        tokens = None if self.memory_tokens is None else self.memory_tokens.expand(batch_size, -1, -1)
        cache = ()
        if config.mem_len:
            empty = self.content_bias.new_zeros(batch_size, 0, config.d_model)
            cache = (empty,) * config.n_layer
        return MemoryState(tokens, cache, torch.zeros(batch_size, dtype=torch.int64))

    def forward_segment(
        self, observations: Tensor, actions: Tensor, rtg: Tensor, memory: MemoryState
    ) -> tuple[Tensor, MemoryState]:
        """One segment of at most K steps.

        Args:
            observations: `(B, T, *observation_shape)`.
            actions: `(B, T)` int64, or `(B, T, A)` float when continuous. A step's own action is not seen by it.
            rtg: `(B, T)` float32 returns-to-go in units of reward.
            memory: from `initial_memory` or the segment before; rows with caches of one length.

        Returns:
            Action logits `(B, T, num_actions)` (actions in [-1, 1] when continuous), and the memory handed on.

        Raises:
            ValueError: more steps than the context, or caches of several lengths.
        """
        if memory.cache_lengths.unique().numel() > 1:
            raise ValueError("forward_segment takes rows with caches of one length; forward takes any")
        return self._segment(observations, actions, rtg, memory, self.fold())

    def forward(
        self,
        observations: Tensor | Frames | FrameStack,
        actions: Tensor,
        rtg: Tensor,
        valid: Tensor,
        memory: MemoryState | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """A trajectory, or a window of consecutive segments of one.

        Gradients flow through the memory tokens between all segments of the call; none flows into `memory`: the cut is
        here. Cached hidden states never carry a gradient (Dai et al. 2019, section 3.2).

        Args:
            observations, actions, rtg: as in `forward_segment`, of any number of steps T; observations may be `Frames`
                or a `FrameStack`.
            valid: `(B, T)` bool, False for padding. Give it on the CPU: it decides which rows run, and reading it from
                a device would stop the queue. A row costs nothing in a segment where all its steps are padding.
            memory: where the window before ended; None: the beginning of the trajectories.

        Returns:
            Logits `(B, T, num_actions)`, zero where a whole segment of a row is padding, and the memory at the end.
        """
        memory = self.initial_memory(len(rtg)) if memory is None else memory.detach()
        if isinstance(observations, Frames):
            observations = self.encoder.encode_frames(observations)
        elif isinstance(observations, FrameStack):
            observations = observations.dense()
        folded = self.fold()
        logits = []
        for start in range(0, rtg.shape[1], self.config.context_length):
            steps = slice(start, start + self.config.context_length)
            inputs = (observations[:, steps], actions[:, steps], rtg[:, steps])
            segment_logits, memory = self._active_rows(inputs, valid[:, steps], memory, folded)
            logits.append(segment_logits)
        return torch.cat(logits, dim=1), memory

    def _active_rows(
        self, inputs: tuple[Tensor | Frames, ...], valid: Tensor, memory: MemoryState, folded: Sequence[Folded]
    ) -> tuple[Tensor, MemoryState]:
        """Run one segment for the rows that are not wholly padding, rows with caches of one length together."""
        active = valid.any(dim=1).cpu()
        lengths = memory.cache_lengths
        if bool(active.all()) and bool((lengths == lengths[0]).all()):
            return self._segment(*inputs, memory, folded)
        rtg = inputs[2]
        logits = rtg.new_zeros(*rtg.shape, self.spec.num_actions)
        for length in lengths[active].unique():
            rows = torch.nonzero(active & (lengths == length)).squeeze(1)
            on_device = rows.to(rtg.device, non_blocking=True)
            picked = (tensor.index_select(0, on_device) for tensor in inputs)
            row_logits, row_memory = self._segment(*picked, memory.select(rows), folded)
            logits = logits.to(row_logits.dtype).index_copy(0, on_device, row_logits)
            memory = memory.update(rows, row_memory)
        return logits, memory

    def _segment(
        self,
        observations: Tensor | Frames,
        actions: Tensor,
        rtg: Tensor,
        memory: MemoryState,
        folded: Sequence[Folded],
        maps: list[Tensor] | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """`forward_segment` with the layers' folded projections; appends every layer's attention to `maps`."""
        layout = self._layout(rtg.shape[1], memory)
        x = self.encoder(observations, actions, rtg)
        if memory.tokens is not None:
            ends = memory.tokens.to(x.dtype)
            x = torch.cat([ends, x, ends], dim=1)
        x, seen = self._decode(x, memory.cache, folded, layout, maps)
        return self.head(x[:, : layout.steps]), self._hand_on(memory, x[:, layout.steps :], seen)

    def compile_decoder(self) -> None:
        """Compile what nearly all time goes into: the decoder's pass over one segment, a graph of tensors alone."""
        self._decode = torch.compile(self._decode)

    def _decode(
        self,
        x: Tensor,
        cache: tuple[Tensor, ...],
        folded: Sequence[Folded],
        layout: Layout,
        maps: list[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers over the tokens of a segment, `(B, q, d_model)`.

        Returns:
            Final hidden states of the observation rows, then of the write rows, and every layer's input.
        """
        x = self.dropout(x)
        places = self._places(layout)
        seen = []
        for index, layer in enumerate(self.layers):
            seen.append(x)
            last = index == len(self.layers) - 1 and maps is None
            cached = cache[index] if cache else None
            x = self._layer(layer, x, cached, folded[index], places, last, maps)
        if maps is not None:
            x = torch.cat([x[:, layout.observations], x[:, layout.written]], dim=1)
        return self.dropout(x), seen

    def _layout(self, steps: int, memory: MemoryState) -> Layout:
        if steps > self.config.context_length:
            raise ValueError(f"a segment of {steps} steps; the context is {self.config.context_length}")
        cached = int(memory.cache_lengths[0]) if memory.cache else 0
        return Layout(steps=steps, tokens=self.config.num_mem_tokens, cached=cached)

    def _layer(
        self,
        layer: DecoderLayer,
        x: Tensor,
        cached: Tensor | None,
        folded: Folded,
        places: "_Places",
        last: bool,
        maps: list[Tensor] | None,
    ) -> Tensor:
        """All rows of a segment through one layer; in the last, observation rows then write rows."""
        inputs = layer.attention_inputs(x)
        states = inputs if cached is None else torch.cat([cached.to(inputs.dtype), inputs], dim=1)
        keys = Keys(states, places.keys)
        attended, rows, row_inputs, probabilities = [], [], [], []
        for group in _groups(places.layout, x.device, last):
            rows.append(x[:, group.rows])
            row_inputs.append(inputs[:, group.rows])
            output, weights = layer.attention(
                layer.attention.queries(row_inputs[-1], folded),
                keys.columns(*group.columns),
                folded,
                sin=places.sin[group.rows],
                cos=places.cos[group.rows],
                bias=group.bias,
                wrap=places.wrap if group.is_memory else None,
            )
            attended.append(output)
            probabilities.append(weights)
        if maps is not None:
            maps.append(_assemble_map(probabilities, places.layout, x.device))
        if not last:
            return layer.finish(x, inputs, torch.cat(attended, dim=1))
        return layer.finish(torch.cat(rows, dim=1), torch.cat(row_inputs, dim=1), torch.cat(attended, dim=1))

    def _places(self, layout: Layout) -> "_Places":
        """Positions of a segment's rows and columns. A cache of full length would begin at position 0."""
        table, start = self.positions, self.config.mem_len
        stop = start + layout.length
        return _Places(
            layout=layout,
            keys=table.keys[start - layout.cached : stop],
            sin=table.sin[start:stop],
            cos=table.cos[start:stop],
            wrap=self.wrap_distances(layout.cached) if layout.tokens else None,
        )

    def wrap_distances(self, cached: int) -> Tensor:
        """Sinusoids `(n, d_model)` of the distances that wrap around in a block of memory tokens (see `attention`)."""
        farthest = cached + self.config.segment_tokens - 1
        tokens = torch.arange(self.config.num_mem_tokens, device=self.device)
        return self.positions.distances(farthest - tokens)

    def fold(self) -> list[Folded]:
        """Every layer's folded projections; good until a parameter changes."""
        return [layer.attention.fold(self.content_bias, self.position_bias) for layer in self.layers]

    def _hand_on(self, memory: MemoryState, written: Tensor, seen: list[Tensor]) -> MemoryState:
        """The memory behind a segment, from its write tokens' outputs and its layers' inputs."""
        tokens = memory.tokens
        if tokens is not None:
            tokens = written if self.valve is None else self.valve(tokens, written)
        if not memory.cache:
            return MemoryState(tokens, (), memory.cache_lengths)
        cache = tuple(self.roll_cache(old, x) for old, x in zip(memory.cache, seen, strict=True))
        return MemoryState(tokens, cache, torch.full_like(memory.cache_lengths, cache[0].shape[1]))

    def roll_cache(self, cached: Tensor, hidden: Tensor) -> Tensor:
        """The last `mem_len` of the old cache `(B, m, d)` and a segment's hidden states `(B, q, d)`, detached."""
        joined = torch.cat([cached.to(hidden.dtype), hidden], dim=1) if cached.shape[1] else hidden
        return joined[:, -self.config.mem_len :].detach()

    @torch.no_grad()
    def attention_maps(
        self, observations: Tensor, actions: Tensor, rtg: Tensor
    ) -> tuple[Tensor, list[SegmentMaps], list[MemoryState]]:
        """A whole trajectory with everything there is to look at.

        Args as in `forward`; no padding. Returns logits `(B, T, num_actions)`, each segment's attention maps, and the
        memory before each segment and after the last.
        """
        memories = [self.initial_memory(len(rtg))]
        logits, segments = [], []
        for start in range(0, rtg.shape[1], self.config.context_length):
            steps = slice(start, start + self.config.context_length)
            maps: list[Tensor] = []
            layout = self._layout(rtg[:, steps].shape[1], memories[-1])
            inputs = (observations[:, steps], actions[:, steps], rtg[:, steps])
            segment_logits, memory = self._segment(*inputs, memories[-1], self.fold(), maps)
            logits.append(segment_logits)
            segments.append(SegmentMaps(layout, torch.stack(maps)))
            memories.append(memory)
        return torch.cat(logits, dim=1), segments, memories


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a segment stand; the same for every layer."""

    layout: Layout
    keys: Tensor  # (m + q, d_model), of all columns
    sin: Tensor  # (q, d_model / 2), of the segment's rows
    cos: Tensor
    wrap: Tensor | None  # (n, d_model), see `RATE.wrap_distances`


@lru_cache(maxsize=64)
def _groups(layout: Layout, device: torch.device, last: bool) -> list[RowGroup]:
    """Row groups are the same for every layer and batch: their masks are made once per layout and device."""
    return layout.groups(device, last=last)


def _assemble_map(probabilities: list[Tensor], layout: Layout, device: torch.device) -> Tensor:
    """One `(B, n_head, q, k)` map from the row groups' `(B, rows, n_head, columns)`."""
    batch, _, heads, _ = probabilities[0].shape
    full = torch.zeros(batch, heads, layout.length, layout.cached + layout.length, device=device)
    for group, weights in zip(_groups(layout, device, False), probabilities, strict=True):
        full[:, :, group.rows, slice(*group.columns)] = weights.transpose(1, 2).float()
    return full
