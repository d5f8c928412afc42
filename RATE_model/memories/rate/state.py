"""What passes from one segment to the next: memory tokens and cached hidden states."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from RATE_model.memories.contract import State, put_rows


@dataclass(frozen=True)
class SegmentState(State):
    """The memory of a batch of trajectories between two segments.

    Rows may have lived through different numbers of segments. Their caches are right-aligned: row b may see the
    last `cache_lengths[b]` columns.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"tokens": ("tokens",), "cache": ("cache", "cache_lengths")}

    tokens: Tensor | None  # (B, n, tokens_width), the first d_model visible; None without memory tokens
    cache: tuple[Tensor, ...]  # one (B, m, d_model) per layer, the layer's inputs; empty without a cache
    cache_lengths: Tensor  # (B,) int64, on the CPU, where the grouping of rows is planned

    @property
    def slots(self) -> Tensor | None:
        """The memory tokens."""
        return self.tokens

    def select(self, rows: Tensor) -> "SegmentState":
        """The rows `(b,)` int64 (on the CPU), which must have caches of equal length; the cache is cut to it."""
        length = int(self.cache_lengths[rows[0]])
        everything = rows.numel() == self.cache_lengths.numel()
        cut = replace(self, cache=tuple(layer[:, layer.shape[1] - length :] for layer in self.cache))
        return cut if everything else cut.rows(rows)

    def put(self, index: Tensor, other: "SegmentState") -> "SegmentState":
        """This memory with the given rows replaced by those of `other`; the shorter cache is padded on the left."""
        if index.numel() == self.cache_lengths.numel() and bool((index[1:] > index[:-1]).all()):
            return other
        width = max((layer.shape[1] for layer in self.cache[:1] + other.cache[:1]), default=0)
        tokens = None if self.tokens is None or other.tokens is None else put_rows(self.tokens, index, other.tokens)
        cache = tuple(
            put_rows(_widened(old, width), index, _widened(new, width))
            for old, new in zip(self.cache, other.cache, strict=True)
        )
        return SegmentState(tokens, cache, put_rows(self.cache_lengths, index, other.cache_lengths))

    def fitted(self, room: "SegmentState") -> "SegmentState":
        """The same with a cache as wide as `room`'s, padded on the left."""
        cache = tuple(_widened(layer, like.shape[1]) for layer, like in zip(self.cache, room.cache, strict=True))
        return replace(self, cache=cache)

    def trimmed(self) -> "SegmentState":
        """The same with a cache no wider than the longest among the rows."""
        longest = int(self.cache_lengths.max())
        return replace(self, cache=tuple(layer[:, layer.shape[1] - longest :] for layer in self.cache))


def _widened(layer: Tensor, width: int) -> Tensor:
    """Pad `(B, m, d)` on the left to `(B, width, d)`."""
    return F.pad(layer, (0, 0, width - layer.shape[1], 0))
