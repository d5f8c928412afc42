"""Widths at which different memories have the same number of parameters."""

from bisect import bisect_left
from collections.abc import Callable

import torch

from RATE_model.errors import UserError
from RATE_model.memories.contract import Memory, MemoryConfig

# Values of `--budget`, in parameters of the memory. Encoders and head depend on the environment and come on top.
BUDGETS = {"0.1M": 100_000, "0.5M": 500_000, "2M": 2_000_000}
# How far a memory may miss its budget, as a share of it.
WITHIN = 0.1
# Widths are searched up to this one.
_WIDEST = 8192


def parameters(memory: type[Memory], sizes: MemoryConfig) -> int:
    """How many numbers a memory learns; nothing is allocated."""
    with torch.device("meta"):
        built = memory(sizes)
        built.initialise()  # some parameters are made there
        return sum(parameter.numel() for parameter in built.parameters())


def width_for(budget: str, name: str, memory: type[Memory], sized: Callable[[int], MemoryConfig]) -> int:
    """The valid d_model that brings a memory closest to the budget's number of parameters.

    Args:
        budget: a key of `BUDGETS`.
        name: of the memory, for messages.
        memory: its class.
        sized: the configuration by d_model.

    Raises:
        UserError: the closest is too far off, or no width is valid.
    """
    widths = [width for width in range(2, _WIDEST + 1, 2) if _is_valid(sized(width))]
    if not widths:
        sized(_WIDEST).validate()
    wanted = BUDGETS[budget]
    above = bisect_left(widths, wanted, key=lambda width: parameters(memory, sized(width)))
    counts = {width: parameters(memory, sized(width)) for width in widths[max(above - 1, 0) : above + 1]}
    width = min(counts, key=lambda width: abs(counts[width] - wanted))
    if abs(counts[width] - wanted) > WITHIN * wanted:
        raise UserError(
            f"--budget {budget}: {name} cannot have {wanted:,} parameters within {WITHIN:.0%}; the nearest is "
            f"{counts[width]:,} with --d_model {width}: change its other sizes, or give that instead of --budget"
        )
    return width


def _is_valid(sizes: MemoryConfig) -> bool:
    try:
        sizes.validate()
    except UserError:
        return False
    return True
