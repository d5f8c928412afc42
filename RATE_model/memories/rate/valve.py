"""The memory retention valve: what of the old memory survives when a segment has written."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.rate.config import RATEConfig

_ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "no_act": lambda x: x,
}


class MemoryRetentionValve(nn.Module):
    """MRV: cross-attention from the old memory to what the segment wrote (RATE paper, section 3).

    new memory = MultiHead(query = old memory, key = value = activation(written tokens)): each old token decides what to
    take over. No mask, residual or norm. In eval mode it is deterministic (the published system leaves its attention
    dropout on).
    """

    def __init__(self, config: RATEConfig) -> None:
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
