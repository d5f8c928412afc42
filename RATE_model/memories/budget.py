"""Widths that give different memories the same number of parameters."""

from bisect import bisect_left
from collections.abc import Callable

import torch

from RATE_model.errors import UserError
from RATE_model.memories.contract import Memory, MemoryConfig

# Values of `--budget`, in parameters of the memory. Encoders and head depend on the environment and are not counted.
BUDGETS = {"0.1M": 100_000, "0.5M": 500_000, "2M": 2_000_000}
# Relative tolerance of a budget.
WITHIN = 0.1
# Largest width tried.
_WIDEST = 8192


def parameters(memory: type[Memory], sizes: MemoryConfig) -> int:
    """Number of parameters of a memory; nothing is allocated."""
    with torch.device("meta"):
        built = memory(sizes)
        built.initialise()  # creates some of the parameters
        return sum(parameter.numel() for parameter in built.parameters())


def width_for(budget: str, name: str, memory: type[Memory], sized: Callable[[int], MemoryConfig]) -> int:
    """The valid d_model that brings a memory closest to the budget's number of parameters.

    Args:
        budget: a key of `BUDGETS`.
        name: name of the memory, for messages.
        memory: its class.
        sized: maps d_model to a configuration.

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
            f"{counts[width]:,} with --d_model {width}: change its other sizes, or use that instead of --budget"
        )
    return width


def _is_valid(sizes: MemoryConfig) -> bool:
    try:
        sizes.validate()
    except UserError:
        return False
    return True
