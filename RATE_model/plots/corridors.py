"""Which columns of a long corridor to draw: pictures of all steps have the same size, whatever its length."""

from __future__ import annotations

import numpy as np

MAX_COLUMNS = 61
# Columns kept at either end of a shortened corridor
ENDS = 6
# A column that replaces omitted ones; one beyond the corridor's end
GAP, BEYOND = -1, -2
# The colour of omitted columns
OMITTED = (130, 132, 138)


def visible_columns(size: int, used: int, x: int) -> np.ndarray:
    """The columns to draw, left to right: (min(size, MAX_COLUMNS),) int64.

    A longer corridor is shortened: its ends and a stretch around the agent stay, with `GAP` for what is omitted.

    Args:
        size: columns of the grid.
        used: columns up to the corridor's end, at most `size`; `BEYOND` follows.
        x: column of the agent, always among them.
    """
    shown = min(size, MAX_COLUMNS)
    if used <= shown:
        return np.where(np.arange(shown) < used, np.arange(shown), BEYOND)
    middle = shown - 2 * ENDS - 2
    first = int(np.clip(x - middle // 2, ENDS, used - ENDS - middle))
    parts = [np.arange(ENDS), [GAP], np.arange(first, first + middle), [GAP], np.arange(used - ENDS, used)]
    return np.concatenate(parts)
