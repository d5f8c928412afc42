"""Dropout with masks that are cheap on a CPU, where PyTorch draws every element separately."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RESOLUTION = 2**16  # probabilities are rounded to this many parts


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Like `torch.nn.functional.dropout`: zeros with probability p, everything else divided by 1 - p.

    On a CPU four elements share one draw of 64 random bits. The bits are those of torch's default generator.
    """
    if not training or p == 0:
        return x
    rounded_to_one = p > 1 - 1 / _RESOLUTION  # it would keep too many, divided by too little
    if x.device.type != "cpu" or rounded_to_one or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return x * scaled_mask(x, p)


def scaled_mask(x: Tensor, p: float) -> Tensor:
    """What `dropout` multiplies x by on a CPU: of its shape and type, 0 with probability p and 1 / (1 - p) else."""
    count = x.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = bits.view(torch.int16)[:count].view(x.shape)
    first_kept = min(round(p * _RESOLUTION) - _RESOLUTION // 2, _RESOLUTION // 2 - 1)
    # Converting bytes to floats is several times faster than converting booleans.
    return (bits >= first_kept).view(torch.uint8).to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, using `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, of any shape, in training mode."""
        return dropout(x, self.p, self.training)
