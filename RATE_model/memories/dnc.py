"""DNC, the Differentiable Neural Computer (Graves et al. 2016, Nature 538, "Methods"; NTM is its ancestor).

An LSTM controller reads and writes a memory M of N slots of W numbers. At every step it emits an interface: keys k and
strengths beta, an erase vector e, a write vector v, gates g, and read modes pi, three numbers that sum to 1.

    content:    C(M, k, beta)_i = softmax over i of  beta cos(M_i, k)
    usage:      u = (u + w_w - u * w_w) * prod_r (1 - g_free_r w_r)
    allocation: a_j = (1 - u_j) prod of u over the slots that are used less than j
    write:      w_w = g_w (g_a a + (1 - g_a) C(M, k_w, beta_w));     M = M * (1 - w_w e^T) + w_w v^T
    links:      L_ij = (1 - w_w_i - w_w_j) L_ij + w_w_i p_j, L_ii = 0;    p = (1 - sum w_w) p + w_w
    read:       w_r = pi_1 L^T w_r + pi_2 C(M, k_r, beta_r) + pi_3 L w_r     backward, content, forward in time
                r = M^T w_r;     h = W_y [controller; r_1 ... r_R]

Steps must be computed one after another: there is no parallel form, and links cost N^2 numbers.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.contract import MemoryOptions, State, as_wide
from RATE_model.memories.stack import Cell, CellState, Stack, StackConfig, StepSignals
from RATE_model.system.products import Linear


@dataclass(frozen=True, kw_only=True)
class DNCConfig(StackConfig):
    """Sizes."""

    layers: int = 1
    # Size of the controller's state
    hidden: int = 64
    # N slots of W numbers
    slots: int = 16
    width: int = 32
    # R: read heads
    heads: int = 2

    def sizes(self) -> dict[str, int]:
        """The sizes by flag name."""
        return {
            "dnc_layers": self.layers,
            "dnc_hidden": self.hidden,
            "dnc_slots": self.slots,
            "dnc_width": self.width,
            "dnc_heads": self.heads,
        }


@dataclass(frozen=True)
class DNCState(State):
    """The state of every layer."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "controller": ("hidden", "cell"),
        "memory": ("contents", "usage", "links", "precedence", "write", "read", "found"),
    }

    hidden: tuple[Tensor, ...]  # (B, hidden), the controller's
    cell: tuple[Tensor, ...]  # the same
    contents: tuple[Tensor, ...]  # M, (B, N, W)
    usage: tuple[Tensor, ...]  # u, (B, N)
    links: tuple[Tensor, ...]  # L, (B, N, N)
    precedence: tuple[Tensor, ...]  # p, (B, N)
    write: tuple[Tensor, ...]  # w_w, (B, N)
    read: tuple[Tensor, ...]  # w_r, (B, R, N)
    found: tuple[Tensor, ...]  # r, (B, R, W)

    @property
    def slots(self) -> Tensor:
        """The slots of all layers, `(B, layers N, W)`."""
        return torch.cat(self.contents, dim=1)


def by_content(contents: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """C(M, k, beta): `(B, N, W)`, `(B, r, W)` and `(B, r)` to shares of slots, `(B, r, N)`."""
    likeness = F.normalize(keys, dim=-1, eps=1e-6) @ F.normalize(contents, dim=-1, eps=1e-6).transpose(1, 2)
    return torch.softmax(strengths[..., None] * likeness, dim=-1)


def allocation(usage: Tensor) -> Tensor:
    """a: usage `(B, N)` to each slot's share of a new write, least used first; sums to at most 1."""
    ascending, order = usage.sort(dim=1, stable=True)  # of equal ones, the same slot comes first on every device
    before = F.pad(ascending[:, :-1].cumprod(dim=1), (1, 0), value=1.0)
    return torch.zeros_like(usage).scatter(1, order, (1 - ascending) * before)


def linked(links: Tensor, precedence: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """L `(B, N, N)` and p `(B, N)` after a write `(B, N)`: L_ij says that i was written right after j."""
    row, column = write[:, :, None], write[:, None]
    links = (1 - row - column) * links + row * precedence[:, None]
    diagonal = torch.eye(write.shape[1], dtype=torch.bool, device=write.device)
    return links.masked_fill(diagonal, 0.0), (1 - write.sum(dim=1, keepdim=True)) * precedence + write


class DNCCell(Cell):
    """Controller and memory."""

    def __init__(self, config: DNCConfig) -> None:
        super().__init__()
        self.config = config
        d, width, heads = config.d_model, config.width, config.heads
        self.controller = nn.LSTMCell(d + heads * width, config.hidden)
        # Read keys, strengths, free gates and modes; write key, strength, erase, vector, and two gates.
        self.sizes = (heads * width, heads, heads, 3 * heads, width, 1, width, width, 2)
        self.interface = Linear(config.hidden, sum(self.sizes))
        self.output = Linear(config.hidden + heads * width, d)

    def initial(self, batch_size: int, device: torch.device) -> CellState:
        """Zeros."""
        config = self.config
        n, width, heads = config.slots, config.width, config.heads
        shapes = [(config.hidden,)] * 2 + [(n, width), (n,), (n, n), (n,), (n,), (heads, n), (heads, width)]
        return tuple(torch.zeros(1, *shape, device=device).expand(batch_size, *shape) for shape in shapes)

    def forward(self, x: Tensor, state: CellState, valid: Tensor | None) -> tuple[Tensor, CellState, StepSignals]:
        """See `Cell.forward`."""
        outputs, writes, reads = [], [], []
        # In float32 even under autocast: a state rounded at every step drifts, and these products are small.
        with torch.autocast(x.device.type, enabled=False):
            # Views of one tensor: the gradient of an index would be as large as all steps.
            for step, one in enumerate(x.unbind(1)):
                after = self.step(one, state)
                if valid is not None:
                    here = valid[:, step]
                    after = tuple(
                        torch.where(here.view(-1, *[1] * (new.ndim - 1)), new, old)
                        for new, old in zip(after, state, strict=True)
                    )
                state = after
                hidden, write, read, found = state[0], *state[6:]
                outputs.append(torch.cat([hidden, found.flatten(1)], dim=1))
                writes.append(write)
                reads.append(read)
            shown = {
                f"read by head {head + 1}": torch.stack([r[:, head] for r in reads], dim=1)
                for head in range(self.config.heads)
            }
            return self.output(torch.stack(outputs, dim=1)), state, {"written": torch.stack(writes, dim=1), **shown}

    def step(self, x: Tensor, state: CellState) -> CellState:
        """One step, `(B, d)`."""
        hidden, cell, contents, usage, links, precedence, write, read, found = state
        heads = self.config.heads
        hidden, cell = self.controller(torch.cat([x, found.flatten(1)], dim=1), (hidden, cell))
        parts = self.interface(hidden).split(self.sizes, dim=1)
        read_keys, read_strengths, free, modes, write_key, write_strength, erase, vector, gates = parts

        freed = (1 - torch.sigmoid(free)[..., None] * read).prod(dim=1)
        usage = (usage + write - usage * write) * freed
        allocate, writing = torch.sigmoid(gates).split(1, dim=1)
        looked_up = by_content(contents, write_key[:, None], _strength(write_strength)).squeeze(1)
        write = writing * (allocate * allocation(usage) + (1 - allocate) * looked_up)
        contents = (
            contents * (1 - write[..., None] * torch.sigmoid(erase)[:, None]) + write[..., None] * vector[:, None]
        )

        links, precedence = linked(links, precedence, write)
        backward, forward = read @ links, read @ links.transpose(1, 2)
        looked_up = by_content(contents, read_keys.unflatten(1, (heads, -1)), _strength(read_strengths))
        mode = modes.unflatten(1, (heads, 3)).softmax(dim=-1)
        read = mode[..., :1] * backward + mode[..., 1:2] * looked_up + mode[..., 2:] * forward
        return hidden, cell, contents, usage, links, precedence, write, read, read @ contents


def _strength(x: Tensor) -> Tensor:
    """At least 1 ("oneplus")."""
    return 1 + F.softplus(x)


class DNC(Stack):
    """Differentiable neural computers."""

    config: DNCConfig
    cell, state = DNCCell, DNCState
    norm: ClassVar[Any] = None


@dataclass(frozen=True)
class DNCOptions(MemoryOptions):
    """Differentiable Neural Computer: an LSTM with slots addressed by content, by usage and in temporal order."""

    makes, prefix = DNCConfig, "dnc_"
    derived = {"hidden": as_wide}

    # Stacked controllers, each with its own memory
    dnc_layers: int = 1
    # Size of the controller's hidden state; none = d_model
    dnc_hidden: int | None = None
    # Slots per controller; their links cost the square of this
    dnc_slots: int = 16
    # Width of a slot
    dnc_width: int = 32
    # Read heads
    dnc_heads: int = 2
