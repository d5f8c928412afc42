"""Layers in plain NumPy, in float64, as references for the tests of memories."""

import math
from collections.abc import Callable

import numpy as np
from torch import nn

from RATE_model.memories.segments import Attention


def norm(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    weight, bias = (parameter.detach().numpy() for parameter in layer.parameters())
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    bias = getattr(layer, "bias", None)
    return x @ layer.weight.detach().numpy().T + (0 if bias is None else bias.detach().numpy())


def mlp(layer: nn.Sequential, x: np.ndarray) -> np.ndarray:
    inside = linear(layer[0], x)
    return linear(layer[2], inside * 0.5 * (1 + np.vectorize(math.erf)(inside / math.sqrt(2))))


def attended(
    layer: Attention, n: np.ndarray, columns: list[np.ndarray], bias: Callable[[int, int], float]
) -> np.ndarray:
    """One query `(d,)` over columns `(d,)`, before the output projection; `bias(head, column)`."""
    query, mixed, heads = linear(layer.query, n), np.zeros(len(n)), layer.heads
    for head in range(heads):
        part = slice(head * len(n) // heads, (head + 1) * len(n) // heads)
        keys, values = zip(*(np.split(linear(layer.source, column), 2) for column in columns), strict=True)
        scores = np.array(
            [query[part] @ key[part] / math.sqrt(len(n) / heads) + bias(head, index) for index, key in enumerate(keys)]
        )
        taken = np.exp(scores) / np.exp(scores).sum()
        mixed[part] = sum(share * value[part] for share, value in zip(taken, values, strict=True))
    return mixed
