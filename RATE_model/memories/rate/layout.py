"""The place of every token in a segment, and the tokens it may attend to.

A segment of K steps with n memory tokens, after a cache of m hidden states (columns; R, O, A = return-to-go,
observation, action; read and write tokens are the same memory, placed at both ends):

    column   0 ... m-1 | m ... m+n-1 | m+n ........................ m+n+3K-1 | ... + n
             cache     | read tokens | R0 O0 A0 R1 O1 A1 ... R(K-1) ... A(K-1)| write tokens

    row \\ may attend to     cache   read    steps                write
    read                      -      all     -                    -
    step                      all    all     itself and earlier   -
    write                     -      all     all                  all

Rows of one kind form groups that see a contiguous range of columns. A group is computed at once, and columns that none
of its rows sees cost nothing. Only the outputs of the observation rows (which predict the action) and of the write rows
(the next memory) are used, so the last layer computes only those.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from RATE_model.memories.rate.wrap_around import right_of_self

# Rows of steps computed together: fewer skip more of the masked triangle, more make larger products.
_CHUNK = 32


@dataclass(frozen=True)
class RowGroup:
    """Rows of a segment that attend to the same range of columns of [cache; segment]."""

    rows: slice
    columns: tuple[int, int]
    bias: Tensor | None = None  # (rows, c), 0 or -inf, for the last c columns; all others are visible
    is_memory: bool = False  # memory tokens, whose own columns are the last of `columns`


@dataclass(frozen=True)
class MaskedRows:
    """Rows of a segment for attention in one piece: all of them, or those of the last layer.

    The columns are those of [cache; segment], padded to a multiple of 8, which tensor cores want.
    """

    rows: tuple[slice, ...]
    bias: Tensor  # (r, columns), 0 where a row may attend and -inf where not
    blocks: tuple[tuple[int, int], ...]  # first row here, and first column, of every block of memory tokens
    right: Tensor  # (n, 1, n) bool: which tokens of a block are to the right of which

    def take(self, x: Tensor) -> Tensor:
        """These rows of `(..., q, d)`."""
        parts = [x[..., rows, :] for rows in self.rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def cut(self, scores: Tensor) -> list[Tensor]:
        """Views `(B, n, n_head, n)` of the blocks of memory tokens in scores `(B, r, n_head, columns)`."""
        size = self.right.shape[-1]
        return [scores[:, row : row + size, :, column : column + size] for row, column in self.blocks]

    def to(self, dtype: torch.dtype) -> "MaskedRows":
        """With the bias in another type."""
        return replace(self, bias=self.bias.to(dtype))


@dataclass(frozen=True)
class Layout:
    """A segment of `steps` steps with `tokens` memory tokens, after `cached` hidden states."""

    steps: int
    tokens: int
    cached: int
    step_tokens: int = 3  # per step; 2 without returns-to-go

    @property
    def length(self) -> int:
        """Tokens in the segment."""
        return 2 * self.tokens + self.step_tokens * self.steps

    @property
    def observations(self) -> slice:
        """The rows of the observation tokens."""
        first = self.tokens + self.step_tokens - 2
        return slice(first, self.tokens + self.step_tokens * self.steps, self.step_tokens)

    @property
    def written(self) -> slice:
        """The rows of the write tokens."""
        return slice(self.length - self.tokens, self.length)

    def step_rows(self, *, last: bool) -> range:
        """The rows of steps: all of them, or those of observations, the only ones the `last` layer is asked for."""
        end = self.tokens + self.step_tokens * self.steps
        return range(self.observations.start if last else self.tokens, end, self.step_tokens if last else 1)

    def groups(self, device: torch.device, *, last: bool, one_group: bool = False) -> list[RowGroup]:
        """Row groups in row order: for all rows, or for those whose outputs are needed in the `last` layer.

        `one_group`: the rows of steps are one group.
        """
        groups = []
        if self.tokens and not last:
            groups.append(RowGroup(slice(0, self.tokens), (self.cached, self.cached + self.tokens), is_memory=True))
        rows = self.step_rows(last=last)
        first, end, stride = rows.start, rows.stop, rows.step
        for start in range(first, end, (end - first) if one_group else _CHUNK * stride):
            stop = rows[-1] + 1 if one_group else range(start, min(start + _CHUNK * stride, end), stride)[-1] + 1
            hidden = torch.arange(start, stop) > torch.arange(start, stop, stride)[:, None]
            bias = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")).to(device)
            groups.append(RowGroup(slice(start, stop, stride), (0, self.cached + stop), bias))
        if self.tokens:
            groups.append(RowGroup(self.written, (self.cached, self.cached + self.length), is_memory=True))
        return groups

    def masked_rows(self, device: torch.device, *, last: bool) -> MaskedRows:
        """All rows, or those whose outputs are needed in the `last` layer, at once."""
        groups = self.groups(torch.device("cpu"), last=last, one_group=True)
        rows = tuple(group.rows for group in groups) if last else (slice(0, self.length),)
        biases, blocks, first = [], [], 0
        for group in groups:
            start, stop = group.columns
            count = len(range(*group.rows.indices(self.length)))
            bias = torch.full((count, -(-(self.cached + self.length) // 8) * 8), float("-inf"))
            bias[:, start:stop] = 0.0
            if group.bias is not None:
                bias[:, stop - group.bias.shape[1] : stop] = group.bias
            if group.is_memory:
                blocks.append((first, stop - self.tokens))
            biases.append(bias)
            first += count
        return MaskedRows(rows, torch.cat(biases).to(device), tuple(blocks), right_of_self(self.tokens).to(device))
