"""What passes from one segment to the next: memory tokens, cached hidden states, and the valve between old and new."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.rate.config import ModelConfig

_ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "no_act": lambda x: x,
}


@dataclass(frozen=True)
class MemoryState:
    """The memory of a batch of trajectories between two segments.

    Rows may have lived through different numbers of segments. Their caches are aligned at the right: row b may see the
    last `cache_lengths[b]` columns.
    """

    tokens: Tensor | None  # (B, n, d_model); None without memory tokens
    cache: tuple[Tensor, ...]  # one (B, m, d_model) per layer, the layer's inputs; empty without a cache
    cache_lengths: Tensor  # (B,) int64, on the CPU: which rows run together is planned there

    def detach(self) -> "MemoryState":
        """The same memory, through which no gradient flows."""
        tokens = None if self.tokens is None else self.tokens.detach()
        return replace(self, tokens=tokens, cache=tuple(layer.detach() for layer in self.cache))

    def select(self, rows: Tensor) -> "MemoryState":
        """The rows `(b,)` int64 (on the CPU), which must have caches of one length; the cache is cut to it."""
        lengths = self.cache_lengths[rows]
        length = int(lengths[0])
        everything = rows.numel() == self.cache_lengths.numel()

        def pick(tensor: Tensor) -> Tensor:
            return tensor if everything else tensor.index_select(0, rows.to(tensor.device, non_blocking=True))

        tokens = None if self.tokens is None else pick(self.tokens)
        cache = tuple(pick(layer[:, layer.shape[1] - length :]) for layer in self.cache)
        return MemoryState(tokens, cache, lengths)

    def permute(self, rows: Tensor) -> "MemoryState":
        """All rows, in the order `rows` `(B,)` int64 (on the CPU)."""
        tokens = None if self.tokens is None else self.tokens[rows.to(self.tokens.device)]
        cache = tuple(layer[rows.to(layer.device)] for layer in self.cache)
        return MemoryState(tokens, cache, self.cache_lengths[rows])

    def update(self, rows: Tensor, new: "MemoryState") -> "MemoryState":
        """This memory with the given rows replaced by those of `new`."""
        if rows.numel() == self.cache_lengths.numel():
            return new
        tokens = None if self.tokens is None else _replace_rows(self.tokens, rows, new.tokens)
        cache = tuple(_replace_rows(old, rows, fresh) for old, fresh in zip(self.cache, new.cache, strict=True))
        return MemoryState(tokens, cache, self.cache_lengths.index_copy(0, rows, new.cache_lengths))


def _replace_rows(old: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """`old` `(B, m, d)` with rows replaced by `new` `(b, m', d)`, the shorter of the two padded at the left."""
    width = max(old.shape[1], new.shape[1])
    old, new = (F.pad(t, (0, 0, width - t.shape[1], 0)) for t in (old, new))
    return old.index_copy(0, rows.to(old.device, non_blocking=True), new.to(old.dtype))


class MemoryRetentionValve(nn.Module):
    """MRV: cross-attention from the old memory to what the segment wrote (RATE paper, section 3).

    new memory = MultiHead(query = old memory, key = value = activation(written tokens)): each old token decides what to
    take over. No mask, residual or norm. In eval mode it is deterministic (the published system leaves its attention
    dropout on).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropatt = config.n_head_ca, config.dropatt
        self.activation = config.mrv_act
        self.query, self.key, self.value, self.output = (nn.Linear(config.d_model, config.d_model) for _ in range(4))

    def forward(self, old: Tensor, written: Tensor) -> Tensor:
        """Old and written memory tokens, both `(B, n, d_model)`, to the new ones."""
        source = _ACTIVATIONS[self.activation](written)
        query, key, value = (
            linear(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for linear, x in ((self.query, old), (self.key, source), (self.value, source))
        )
        dropout = self.dropatt if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))
