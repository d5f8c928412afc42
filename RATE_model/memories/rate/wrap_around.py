"""The published wrap-around: how a memory token scores the keys to its right in its block.

Memory tokens see one another in both directions. Transformer-XL computes distances by a shift: scores for the distances
k - 1 ... 0 are laid out in a padded matrix, which is read one row later. In a causal model what stands to the right of
a query is masked. In a block of memory tokens it is not, and there the shift wraps around: with local indices a < b
within the block it yields

    b == a + 1:  0            b >= a + 2:  the query a + 1 with the distance  k - 1 - (b - a - 2)

where k is the number of columns of a full segment and its cache. It has no meaning, but published weights were trained
with it, and mean the same here only if it is reproduced. `plain.py` has the shift itself; here is what to add to scores
that were computed without one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def wrap_around(position: Tensor, rotated: Tensor, positions: Tensor, wrap: Tensor) -> Tensor:
    """What to add to scores `(B, w, n_head, k)` so that keys to the right within the block get wrapped values.

    Only w * w entries of the last w columns change; the blocks are a handful of tokens.

    Args:
        position, rotated: `(B, w, n_head, d_model)`, the block's position queries, as they are and rotated.
        positions: `(k, d_model)`, the table that rotated queries are multiplied with, of the columns they see.
        wrap: `(w, d_model)`, sinusoids of the distances that wrap around, the farthest first.
    """
    size = wrap.shape[0]
    far = wrapped(position, wrap)
    near = torch.einsum("brhd,cd->brhc", rotated, positions[-size:])
    delta = torch.where(right_of_self(size, far.device), far - near, far.new_zeros(()))
    return F.pad(delta, (positions.shape[0] - size, 0))


def wrapped(position: Tensor, wrap: Tensor) -> Tensor:
    """Position scores `(B, w, n_head, w)` of the keys to the right within the block; arguments as for `wrap_around`."""
    return shifted(torch.einsum("brhd,cd->brhc", position, wrap))


def right_of_self(size: int, device: torch.device | None = None) -> Tensor:
    """Which of a block's tokens are to the right of which, `(w, 1, w)` bool, for scores `(B, w, n_head, w)`."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)[:, None]


def shifted(far: Tensor) -> Tensor:
    """The published shift, `(B, w, n_head, w)`: put a zero column in front, read the buffer one row later."""
    size = far.shape[-1]
    far = F.pad(far.transpose(1, 2), (1, 0))
    return far.reshape(*far.shape[:2], size + 1, size)[:, :, 1:].transpose(1, 2)


def unshifted(grad: Tensor) -> Tensor:
    """The gradient of what `shifted` was given, from that of its result."""
    size = grad.shape[-1]
    grad = F.pad(grad.transpose(1, 2), (0, 0, 1, 0))
    return grad.reshape(*grad.shape[:2], size, size + 1)[..., 1:].transpose(1, 2)
