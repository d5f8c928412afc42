"""Matrix products in float32 on processors where PyTorch's first choice, MKL, is slow.

MKL uses AVX-512 on Intel's processors alone. PyTorch also contains oneDNN, which uses it wherever it is: on an AMD
EPYC its products are twice as fast. Results differ by rounding at most.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Multiplications from which on oneDNN is faster: a call of it takes 10 to 30 microseconds more, the first with new
# shapes some 300.
_LEAST = 2**21


@cache
def mkl_is_slow() -> bool:
    """Whether this processor is AMD's with AVX-512, and PyTorch has both MKL and oneDNN."""
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not libraries:
        return False
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return maker and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: `(..., n)` and `(m, n)` to `(..., m)`; by oneDNN where that is faster.

    `weight` may be the transpose of a matrix: `linear(a, b.t())` is `a @ b`.
    """
    if (
        torch.compiler.is_compiling()  # first: what follows would break the graph
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or x.dim() < 2
        or x.numel() * weight.shape[0] < _LEAST
        or torch.is_autocast_enabled("cpu")
        or not mkl_is_slow()
    ):
        return F.linear(x, weight, bias)
    # Of more dimensions it returns a view, and autograd forbids changing a Function's view in place.
    rows = x.flatten(0, -2)
    y = _Linear.apply(rows, weight, bias) if torch.is_grad_enabled() else _by_onednn(rows, weight, bias)
    return y.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """`torch.nn.Linear`, by `linear`; where that takes oneDNN, its gradient cannot be differentiated again."""

    def forward(self, input: Tensor) -> Tensor:
        """See `linear`."""
        return linear(input, self.weight, self.bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # it ignores the strides of a bias
    return torch.ops.mkldnn._linear_pointwise(x, _dense(weight), bias, "none", [], "")


def _dense(weight: Tensor) -> Tensor:
    """A copy of a part of a wider matrix, transposed if that is: oneDNN would take a thousand times as long with it."""
    if weight.is_contiguous() or weight.t().is_contiguous():
        return weight
    return weight.t().contiguous().t() if weight.stride(0) == 1 else weight.contiguous()


class _Linear(torch.autograd.Function):
    """`_by_onednn` of a matrix with its gradient, whose products are taken by `linear`, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t()) if of_x else None,
            _weight_gradient(x, grad) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """`grad.t() @ x`. oneDNN copies a transposed matrix on the left, so the narrower one is there."""
    if x.shape[1] > grad.shape[1]:
        return linear(grad.t(), x.t())
    return linear(x.t(), grad.t()).t()
