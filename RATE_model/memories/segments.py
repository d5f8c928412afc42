"""Layers that see a segment of K steps at once, and pass their own memory on from segment to segment.

    a segment's steps     0 ... c-1 | c ... c+t-1        the first c are in the state ("running"), t are new
    step i attends to     0 ... i                        and to the layer's memory
    after step K - 1      the segment moves into the memory, and running is emptied

So a step costs what one step must, wherever a call begins. Rows may be at different steps of their segments. Acting
keeps keys and values by head, and writes each step into its place (`SegmentStepper`).
"""

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.memories.contract import State
from RATE_model.memories.stack import Cell, CellState, CellStepper, Stack, StackConfig, StepSignals
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(StackConfig):
    """Sizes of attention layers; `flag` is the prefix of their flags."""

    flag: ClassVar[str]

    # Attention heads
    heads: int = 4
    # Width inside the feed-forward networks
    inner: int = 64

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {f"{self.flag}_{name}": getattr(self, name) for name in ("layers", "heads", "inner")}

    def validate(self) -> None:
        """Raise a `UserError`, in terms of the flags, for invalid sizes."""
        super().validate()
        if self.d_model % self.heads:
            fitting = [count for count in range(1, min(self.d_model, 16) + 1) if self.d_model % count == 0]
            raise UserError(
                f"--{self.flag}_heads {self.heads} does not divide --d_model {self.d_model}: choose one of "
                f"{', '.join(map(str, fitting))}"
            )


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) whose keys and values can be cached.

    `project`: with an output projection.
    """

    def __init__(self, d_model: int, heads: int, *, project: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(d_model, d_model, bias=False)
        self.source = Linear(d_model, 2 * d_model, bias=False)  # keys, values
        self.output = Linear(d_model, d_model, bias=False) if project else nn.Identity()

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """Attend from x `(B, t, d)` to keys and values `(B, c, 2 d)` from `source`.

        `bias`, `(B or 1, heads or 1, t, c)` float, is added to the scores: -inf where a row may not attend.
        """
        query, key, value = self.by_head(x, source)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.output(mixed.transpose(1, 2).flatten(2))

    def look(self, x: Tensor, source: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Like `forward`, plus the attention to each column averaged over heads, `(B, t, c)`."""
        query, key, value = self.by_head(x, source)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        probabilities = softmax(scores)
        mixed = probabilities.to(value.dtype) @ value
        return self.output(mixed.transpose(1, 2).flatten(2)), probabilities.mean(dim=1)

    def of_one_step(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """`forward` for one step of every row, `(B, d)`, with keys and values from `split`.

        `bias` is `(B or 1, heads or 1, c)`. Uses batched products: for one query they are several times faster
        than torch's attention.
        """
        query = (self.query(x) * keys.shape[-1] ** -0.5).view(-1, 1, keys.shape[-1])
        scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2)).view(*keys.shape[:3]) + bias
        shares = softmax(scores).to(values.dtype).flatten(0, 1)
        return self.output(torch.bmm(shares[:, None], values.flatten(0, 1)).view(x.shape))

    def split(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, c, 2 d)` as keys and values, `(B, heads, c, d / heads)` each."""
        key, value = source.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def by_head(self, x: Tensor, source: Tensor) -> list[Tensor]:
        """Queries, keys and values, `(B, heads, t or c, d / heads)`."""
        query = self.query(x)
        parts = (query, *source.to(query.dtype).chunk(2, dim=-1))
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; on a CPU torch's own is several times slower below 16 columns."""
    if scores.shape[-1] >= 16 or scores.device.type != "cpu":
        return scores.softmax(dim=-1)
    shares = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()  # whatever is subtracted, shares are the same
    return shares / shares.sum(dim=-1, keepdim=True)


def merge_heads(keys: Tensor, values: Tensor) -> Tensor:
    """The inverse of `Attention.split`."""
    return torch.stack([keys, values]).permute(1, 3, 0, 2, 4).flatten(2)


def bias_of(allowed: Tensor) -> Tensor:
    """0 where a row may attend, -inf elsewhere; `(..., t, c)` bool to `(..., 1, t, c)` float."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf")).unsqueeze(-3)


def feed_forward(d_model: int, width: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(Linear(d_model, width), nn.GELU(), Linear(width, d_model))


@dataclass(frozen=True)
class SegmentState(State):
    """The state of a layer, or, for the stack, tuples by layer; a memory adds fields."""

    running: Any  # (B, K, n) what later steps of the segment see of earlier ones; arbitrary beyond `count`
    count: Any  # (B,) int64, on the CPU: number of filled steps


class SegmentCell(Cell):
    """A layer; see the module's docstring.

    Class attributes:
        state: class of its state.

    Args:
        segment: K.
        kept: numbers per step needed by the rest of its segment, or by the memory afterwards.
    """

    state: ClassVar[type[SegmentState]]

    def __init__(self, segment: int, kept: int) -> None:
        super().__init__()
        self.segment, self.kept = segment, kept

    @abstractmethod
    def begin(self, batch_size: int, device: torch.device) -> Any:
        """The state before the first step."""

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """See `Cell.initial`."""
        return tensors_of(self.begin(batch_size, device))

    def empty(self, batch_size: int, device: torch.device) -> dict[str, Tensor]:
        """`running` and `count` at the start of a segment."""
        running = torch.zeros(1, self.segment, self.kept, device=device).expand(batch_size, -1, -1)
        return {"running": running, "count": torch.zeros(batch_size, dtype=torch.int64)}

    @abstractmethod
    def attend(self, x: Tensor, state: Any, places: Tensor) -> tuple[Tensor, Any, StepSignals]:
        """Process new steps of a running segment.

        Args:
            x: `(B, t, d_model)`.
            state: the state before them.
            places: `(B or 1, t)` int64, position of each in the segment.

        Returns:
            The layer's output, `(B, t, d_model)`; the state with them in `running`; and signals for
            figures.
        """

    @abstractmethod
    def close(self, state: Any) -> Any:
        """The state after a full segment, which is in `running`; `running` need not be emptied."""

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        before: Any = self.state(*state)
        y, after, seen = self._run(x, before, valid)
        return y, tensors_of(after), seen

    def _run(self, x: Tensor, state: Any, valid: Tensor | None) -> tuple[Tensor, Any, StepSignals]:
        """`forward`, a piece within one segment of every row at a time."""
        batch, length = x.shape[:2]
        lengths = torch.full((batch,), length) if valid is None else valid.sum(dim=1).cpu()
        outputs, looks = [], []
        start = 0
        while start < length:
            left = (lengths - start).clamp(min=0)
            room = self.segment - int((state.count * (left > 0)).max())
            stop = min(length, start + room)
            y, state, seen = self._piece(x[:, start:stop], state, left.clamp(max=stop - start))
            outputs.append(y)
            looks.append(seen)
            start = stop
        joined = {name: torch.cat([look[name] for look in looks], dim=1) for name in looks[0]}
        return torch.cat(outputs, dim=1), state, joined

    def _piece(self, x: Tensor, state: Any, steps: Tensor) -> tuple[Tensor, Any, StepSignals]:
        """Process steps that lie within one segment in every row; `steps` `(B,)` is the number in each row."""
        count = state.count
        first = count[:1] if bool((count == count[0]).all()) else count
        # Rows without any may be anywhere in their segments; what is written there is discarded below.
        first = first.clamp(max=self.segment - x.shape[1])
        places = (first[:, None] + torch.arange(x.shape[1])).to(x.device, non_blocking=True)
        y, after, seen = self.attend(x, state, places)
        active = steps > 0
        if not bool(active.all()):
            after = after.map(lambda new, old: _where_rows(active, new, old), state)
        state = replace(after, count=count + steps)
        full = state.count == self.segment
        if bool(full.all()):
            state = replace(self.close(state), **self.empty(len(x), x.device))
        elif bool(full.any()):
            rows = full.nonzero().squeeze(1)
            closed = replace(self.close(state.rows(rows)), **self.empty(len(rows), x.device))
            state = state.put(rows, closed)
        return y, state, seen

    def extended(self, running: Tensor, new: Tensor, places: Tensor) -> Tensor:
        """`running` `(B, K, n)` with the kept part of new steps `(B, t, n)` at their places `(B or 1, t)`."""
        if new.shape[1] == self.segment:
            return new
        index = places[..., None].expand(len(new), -1, new.shape[-1])
        return running.to(new.dtype).scatter(1, index, new)

    def causal(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """How far back every column of `running` lies, `(B or 1, t, K)` int64, and the bias that hides later ones."""
        back = places[..., None] - torch.arange(self.segment, device=places.device)
        return back, bias_of(back >= 0)


class SegmentStepper(CellStepper):
    """A layer in acting. `buffers` starts with the count of steps, and with keys and values of columns, by head.

    A step is written to its column; the columns of the layer's memory are updated when a segment ends.
    """

    cell: Any

    def step(self, x: Tensor) -> Tensor:
        """See `CellStepper.step`."""
        count = self.buffers[0]
        first = int(count[0])
        if bool((count == first).all()):  # slices are written several times as fast as rows one by one
            y = self.attend(x, slice(None), first)
        else:
            y = self.attend(x, torch.arange(len(x), device=x.device), count.to(x.device))
        count += 1
        full = count == self.cell.segment
        if bool(full.any()):
            self.close(None if bool(full.all()) else full.nonzero().squeeze(1))
        return y

    def attend(self, x: Tensor, rows: Tensor | slice, places: Tensor | int) -> Tensor:
        """The layer's output for a step, `(B, d)`, which is also written into `buffers`.

        `rows` and `places` are all rows and the position of each in its segment, `(B,)` int64; or a slice and a number
        if all have the same position.
        """
        raise NotImplementedError

    def write(self, rows: Tensor | slice, places: Tensor | int, source: Tensor) -> None:
        """Write `Attention.source` of a step, `(B, 2 d)`, into columns `(B,)` of `buffers`."""
        keys, values = self.buffers[1:3]
        key, value = source.to(keys.dtype).view(len(source), 2, keys.shape[1], -1).unbind(1)
        keys[rows, :, places], values[rows, :, places] = key, value

    def close(self, rows: Tensor | None) -> None:
        """Move full segments into the memory, in some rows or all."""
        closed = self.cell.close(self.cell.state(*self.read(rows)))
        batch = len(closed.count)
        self.put(tensors_of(replace(closed, **self.cell.empty(batch, closed.running.device))), rows)


def by_place(distance_bias: Tensor, segment: int) -> Tensor:
    """Biases by distance, `(heads, n)`, for a step at every place of its segment, `(K, heads, n)`.

    The segment is the last K of n columns; later steps are hidden.
    """
    columns = torch.arange(segment - distance_bias.shape[1], segment, device=distance_bias.device)
    back = torch.arange(segment, device=columns.device)[:, None] - columns
    return (distance_bias[:, back.clamp(min=0)] + bias_of(back >= 0)).transpose(0, 1)


def _where_rows(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows `(B,)` bool, `old` in the others."""
    return torch.where(chosen.to(new.device, non_blocking=True).view(-1, *[1] * (new.ndim - 1)), new, old.to(new.dtype))


def tensors_of(state: State) -> CellState:
    """The fields of a layer's state, as the stack stores them."""
    return tuple(getattr(state, field.name) for field in fields(state))


class SegmentStack(Stack):
    """Layers of `SegmentCell`."""

    norm: ClassVar[Any] = None

    @property
    def context(self) -> int:
        """K: a segment is processed at once."""
        return self.config.context_length

    def bytes_per_row(self) -> int:
        """About how much memory acting takes for one environment: its state, and the next one."""
        return 4 * (2 * self.initial(1).numbers_per_row() + 16 * self.config.d_model)
