"""An index of training data, and keys of histories to look it up with.

    key of step t:  phi_t = [P x_t;  averages of P x over the last 2, 8, 32, 128, ... steps]
    average:        m_t = (1 - 1/h) m_{t-1} + P x_t / h                     P is random and frozen

Nothing in it is learned. In training mode a memory offers what it is shown; what was offered is stored after each
window, from all processes that train together. In eval mode the index is fixed. It is part of the checkpoint, so it
always belongs to the run's own data.
"""

import math
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from RATE_model.errors import UserError
from RATE_model.memories.contract import Gather, single_process
from RATE_model.memories.scan import scan
from RATE_model.memories.stack import last_valid
from RATE_model.system.products import linear


class History(nn.Module):
    """Keys of steps.

    Args:
        width: size of a step.
        projected: size of its random projection (Johnson and Lindenstrauss 1984).
        horizons: number of averages, over 2, 8, 32, ... steps.
    """

    projection: Tensor
    horizons: Tensor

    def __init__(self, width: int, projected: int, horizons: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(projected, width) / math.sqrt(width))
        self.register_buffer("horizons", 2.0 * 4.0 ** torch.arange(horizons), persistent=False)

    @property
    def key_size(self) -> int:
        """Size of a key."""
        return len(self.projection) * (1 + len(self.horizons))

    def initial(self, batch_size: int, device: torch.device) -> Tensor:
        """The averages before the first step, `(B, horizons, projected)`."""
        return torch.zeros(1, len(self.horizons), len(self.projection), device=device).expand(batch_size, -1, -1)

    @torch.no_grad()
    def forward(self, x: Tensor, averages: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map steps `(B, T, width)` and the previous averages to keys `(B, T, key_size)` and new averages."""
        projected = linear(x.float(), self.projection)[:, :, None]  # (B, T, 1, projected)
        rate = (1 / self.horizons)[:, None]
        states = scan((1 - rate)[None, None], projected * rate, averages)
        keys = torch.cat([projected, states], dim=2).flatten(2)
        return keys, last_valid(states, averages, valid)


class Index(nn.Module):
    """A bounded store of keys and values.

    Args:
        size: maximum number of pairs.
        key: size of a key.
        value: shape of a value.
    """

    keys: Tensor
    values: Tensor
    offered: Tensor

    def __init__(self, size: int, key: int, value: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, key))
        self.register_buffer("values", torch.zeros(size, *value))
        self.register_buffer("offered", torch.zeros((), dtype=torch.int64))  # how many there were to store
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, keys and values that are to be stored
        self._scaled: tuple[Any, Tensor, Tensor] | None = None  # see `_standardised`

    @property
    def count(self) -> int:
        """Number of stored pairs."""
        return min(int(self.offered), len(self.keys))

    def check_not_empty(self, mode: str) -> None:
        """Raise a `UserError` if nothing is stored."""
        if not self.count:
            raise UserError(f"--model_mode {mode}: its index is empty; train it on data first")

    def offer(self, keys: Tensor, values: Tensor, *, step: int = 0) -> None:
        """Queue pairs `(n, key)` and `(n, *value)` for the next `store_offered`, in the order of steps."""
        steps = torch.full((len(keys),), step)
        self._waiting.append((steps, keys.detach().cpu(), values.detach().cpu()))

    def store_offered(self, gather: Gather, *, newest: bool) -> None:
        """`store` everything queued since the last call, ordered by step, then process, then as offered."""
        own = [torch.cat(parts) for parts in zip(*self._waiting, strict=True)]
        self._waiting = []
        found = [parts for parts in gather(own) if parts]
        if found:
            steps, keys, values = (torch.cat(parts) for parts in zip(*found, strict=True))
            order = steps.argsort(stable=True)
            self.store(keys[order], values[order], newest=newest, gather=gather)

    @torch.no_grad()
    def store(self, keys: Tensor, values: Tensor, *, newest: bool, gather: Gather = single_process) -> None:
        """Store pairs `(n, key)` and `(n, *value)`: keeps the newest, or an even (reservoir) sample of all.

        All training processes store the same: they use process 0's random numbers.

        The sample is algorithm R of Vitter 1985, a batch at a time: pair i takes a random place below i, if that is
        within the index.
        """
        number = int(self.offered) + torch.arange(len(keys))
        size = len(self.keys)
        if newest:
            places = number % size
        else:
            drawn = (gather(torch.rand(len(keys), dtype=torch.float64))[0] * (number + 1)).long()
            places = torch.where(number < size, number, drawn)
        kept = places < size
        # If two pairs get the same place, the later one stays, as if added one by one.
        places, rows = places[kept].flip(0), kept.nonzero().squeeze(1).flip(0)
        places, first = _first_of_each(places)
        rows, places = rows[first], places.to(self.keys.device)
        self.keys[places] = keys[rows].to(self.keys)
        self.values[places] = values[rows].to(self.values)
        self.offered += len(keys)

    @torch.no_grad()
    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest neighbours of queries `(n, key)`: places and distances, `(n, k)`, nearest first.

        Distances are Euclidean, in standard deviations of the index, per component of a key. If k exceeds the index,
        fewer are returned.
        """
        scale, keys = self._standardised()
        places, distances = _nearest(queries / scale, keys, min(k, len(keys)))
        return places, distances / math.sqrt(keys.shape[1])

    def _standardised(self) -> tuple[Tensor, Tensor]:
        """Standard deviations `(key,)`, and the stored keys in these units; kept until keys change."""
        content = self.keys.data_ptr(), self.keys._version, self.keys.device, self.count
        if self._scaled is None or self._scaled[0] != content:
            keys = self.keys[: self.count]
            scale = keys.std(dim=0, correction=0)
            # A constant component carries no information.
            scale = torch.where(scale > 1e-4 * scale.amax(), scale, float("inf"))
            self._scaled = content, scale, keys / scale
        return self._scaled[1:]


def _nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places and Euclidean distances of the k nearest keys; uses faiss on a CPU if installed."""
    if queries.device.type != "cpu" or (faiss := _faiss()) is None:
        found = torch.cdist(queries, keys).topk(k, dim=1, largest=False)
        return found.indices, found.values
    index = faiss.IndexFlatL2(keys.shape[1])
    index.add(keys.float().numpy())
    squares, places = index.search(queries.float().numpy(), k)
    return torch.from_numpy(places), torch.from_numpy(squares).clamp(min=0).sqrt().to(queries.dtype)


@cache
def _faiss() -> Any:
    """The package faiss, or None."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


def _first_of_each(places: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct numbers in `(n,)`, and the first position of each."""
    different, inverse = places.unique(return_inverse=True)
    first = torch.full((len(different),), len(places)).scatter_reduce(
        0, inverse, torch.arange(len(places)), reduce="amin"
    )
    return different, first
