"""The memory retention valve (MRV): combines the old memory with what a segment wrote.

M is the memory that a segment started with, W the outputs of its write tokens; the next segment starts with the valve's
M'. Variants and names are those of the RATE paper (arXiv 2306.09459, section 3 and table 6):

    CA-2     M' = MultiHead(query = M, key = value = act(W)): each old token decides what to take over; published
    CA-1     M' = MultiHead(query = act(W), key = value = M): each written token decides what to keep.
    G        a gate, with a sigmoid of the result
    GRU      M' = GRU cell(input = W, state = M)
    LSTM     M', C' = LSTM cell(input = W, state = M, cell = C); C is passed on along with M, and zero at the start
    FSQ      M' = round(tanh(s * W)), each number -1, 0 or 1; not in the paper
    none     M' = W, as in the Recurrent Memory Transformer

None has a mask, residual or norm. Only CA-2 is in the authors' code; the paper's other valves are implemented from its
formulas. docs/memories/valve.md compares them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.rate.config import RATEConfig
from RATE_model.system.products import Linear

_ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "no_act": lambda x: x,
}


class AttentionValve(nn.Module):
    """CA-2; and CA-1, which swaps old and written memory.

    In eval mode it is deterministic (the published system leaves its attention dropout on).
    """

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        self.n_head, self.dropatt = config.n_head_ca, config.dropatt
        self.activation, self.old_asks = config.mrv_act, config.mrv == "CA-2"
        self.query, self.key, self.value, self.output = (Linear(config.d_model, config.d_model) for _ in range(4))

    def forward(self, old: Tensor, written: Tensor) -> Tensor:
        """Map old and written memory tokens, both `(B, n, d_model)`, to the new ones."""
        written = _ACTIVATIONS[self.activation](written)
        asking, source = (old, written) if self.old_asks else (written, old)
        query, key, value = (
            linear(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for linear, x in ((self.query, asking), (self.key, source), (self.value, source))
        )
        dropout = self.dropatt if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))


class GateValve(nn.Module):
    """G, as printed in the paper:

        r = sigmoid(M W_r + W U_r),  z = sigmoid(M W_z + W U_z - b),  h = tanh(M W_g + (W * r) U_g)
        M' = sigmoid(M * (1 - z) + z * h)

    b starts at 2, so a fresh gate keeps most of the old memory; the paper gives no value.
    """

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        d = config.d_model
        self.from_old = Linear(d, 3 * d, bias=False)
        self.from_written = Linear(d, 2 * d, bias=False)
        self.from_reset = Linear(d, d, bias=False)
        self.bias = nn.Parameter(torch.full((d,), 2.0))

    def forward(self, old: Tensor, written: Tensor) -> Tensor:
        """As `AttentionValve.forward`."""
        reset_old, update_old, candidate_old = self.from_old(old).chunk(3, dim=-1)
        reset_written, update_written = self.from_written(written).chunk(2, dim=-1)
        reset = torch.sigmoid(reset_old + reset_written)
        update = torch.sigmoid(update_old + update_written - self.bias)
        candidate = torch.tanh(candidate_old + self.from_reset(written * reset))
        return torch.sigmoid(torch.lerp(old.to(candidate.dtype), candidate, update.to(candidate.dtype)))


class CellValve(nn.Module):
    """GRU and LSTM: torch's cells, stepping over segments, with every memory token as a row."""

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        cell = nn.LSTMCell if config.mrv == "LSTM" else nn.GRUCell
        self.cell = cell(config.d_model, config.d_model)

    def forward(self, old: Tensor, written: Tensor) -> Tensor:
        """As `AttentionValve.forward`; LSTM's old and new memory are `(B, n, 2 d_model)`, tokens and cells."""
        rows = old.shape[:2]
        # In float32 also under autocast: a memory rounded at every segment drifts.
        with torch.autocast(old.device.type, enabled=False):
            old, written = old.float().flatten(0, 1), written.float().flatten(0, 1)
            if isinstance(self.cell, nn.LSTMCell):
                return torch.cat(self.cell(written, old.chunk(2, dim=-1)), dim=-1).unflatten(0, rows)
            return self.cell(written, old).unflatten(0, rows)


class RoundingValve(nn.Module):
    """FSQ: finite scalar quantisation with three levels (Mentzer et al. 2023, arXiv 2309.15505), straight through.

    A memory of few values does not drift: changes of less than a step, as in a segment without news, are rounded away.
    """

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.d_model))

    def forward(self, old: Tensor, written: Tensor) -> Tensor:
        """See `AttentionValve.forward`; the old memory is replaced."""
        soft = torch.tanh(self.scale * written.float())
        return soft.round().detach() + (soft - soft.detach())  # the second term is zero, but has the gradient


_VALVES: dict[str, type[nn.Module]] = {
    "CA-1": AttentionValve,
    "CA-2": AttentionValve,
    "G": GateValve,
    "GRU": CellValve,
    "LSTM": CellValve,
    "FSQ": RoundingValve,
}


def make_valve(config: RATEConfig) -> nn.Module | None:
    """The valve that a configuration asks for; None: written tokens replace the memory."""
    return _VALVES[config.mrv](config) if config.has_valve else None
