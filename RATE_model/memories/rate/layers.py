"""Decoder layers: post-norm Transformer-XL, identity-map reordering (TrXL-I) and gated (GTrXL).

The latter two are from Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning". All three match
the published RATE system, including two peculiarities that published weights depend on: TrXL adds the input twice
around the attention, and TrXL-I and GTrXL add it to the *normalised* input before the first ReLU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.memories.rate.attention import RelativeAttention
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.dropout import Dropout
from RATE_model.system.products import Linear


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, `(..., d_model)` to `(..., d_model)`; no residual, no norm."""

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        self.expand = Linear(config.d_model, config.d_inner)
        self.contract = Linear(config.d_inner, config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token alone."""
        return self.dropout(self.contract(self.dropout(F.relu(self.expand(x)))))


class GRUGate(nn.Module):
    """The gate g(x, y) of GTrXL (section 3.2, "Gated-Recurrent-Unit-type gating").

    The bias of the update gate starts at 2, so a fresh layer passes its input x nearly unchanged.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        # W_r, W_z, W_g act on y; U_r, U_z on x; U_g on the reset x.
        self.from_output = Linear(d_model, 3 * d_model, bias=False)
        self.from_input = Linear(d_model, 2 * d_model, bias=False)
        self.from_reset = Linear(d_model, d_model, bias=False)
        self.bias = nn.Parameter(torch.full((d_model,), 2.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mix the stream x and a sub-layer's output y, both `(..., d_model)`."""
        reset_y, update_y, candidate_y = self.from_output(y).chunk(3, dim=-1)
        reset_x, update_x = self.from_input(x).chunk(2, dim=-1)
        reset = torch.sigmoid(reset_y + reset_x)
        update = torch.sigmoid(update_y + update_x - self.bias)
        candidate = torch.tanh(candidate_y + self.from_reset(reset * x))
        return torch.lerp(x, candidate.to(x.dtype), update.to(x.dtype))


class DecoderLayer(nn.Module):
    """One layer, in two halves around the attention, so training and acting share everything except the cache."""

    def __init__(self, config: RATEConfig) -> None:
        super().__init__()
        self.reordered = config.arch != "TrXL"
        self.attention = RelativeAttention(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.ffn = None if config.skip_dec_ffn else FeedForward(config)
        self.norm2 = None if config.skip_dec_ffn else nn.LayerNorm(config.d_model)
        gated = config.arch == "GTrXL"
        self.gate1 = GRUGate(config.d_model) if gated else None
        self.gate2 = GRUGate(config.d_model) if gated and not config.skip_dec_ffn else None

    def attention_inputs(self, x: Tensor) -> Tensor:
        """The attention's input for the segment's tokens `(B, q, d_model)`; cached tokens are used unchanged."""
        return self.norm1(x) if self.reordered else x

    def finish(self, x: Tensor, inputs: Tensor, attended: Tensor) -> Tensor:
        """Residuals, norms and the feed-forward network after the attention.

        Args:
            x: the layer's input rows, `(B, r, d_model)`.
            inputs: `attention_inputs(x)`.
            attended: the attention's output for these rows.

        Returns:
            The layer's output rows, `(B, r, d_model)`.
        """
        if self.reordered:
            y = self._merge(self.gate1, x, F.relu(inputs + attended))
        else:
            y = self.norm1(torch.add(attended, x, alpha=2))
        if self.ffn is None or self.norm2 is None:
            return y
        if self.reordered:
            return self._merge(self.gate2, y, F.relu(self.ffn(self.norm2(y))))
        return self.norm2(y + self.ffn(y))

    @staticmethod
    def _merge(gate: GRUGate | None, x: Tensor, y: Tensor) -> Tensor:
        return x + y if gate is None else gate(x, y)
