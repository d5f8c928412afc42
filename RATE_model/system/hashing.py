"""Random bits by number: any element of a stream costs the same, and no state is kept.

Counter-based splitmix64 (Steele, Lea and Flood 2014). So an episode is the same alone and among a thousand, and a
million steps take no storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: the increment of splitmix64


def stream_keys(seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """One 64-bit stream key per seed, (E,) uint64. Seeds count modulo 2**64."""
    return _mix(np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64) * _GOLDEN + 1)


def hashed(keys: np.ndarray, numbers: np.ndarray | int) -> np.ndarray:
    """64 random bits, uint64: number ``numbers`` (0 for the first) of each stream; both broadcast."""
    return _mix(keys + (np.atleast_1d(numbers).astype(np.uint64) + 1) * _GOLDEN)


def drawn(keys: np.ndarray, numbers: np.ndarray | int, below: int) -> np.ndarray:
    """Number ``numbers`` of each stream as an int64, uniform in 0 to ``below`` - 1; ``below`` is at most 2**31."""
    return (((hashed(keys, numbers) >> 32) * below) >> 32).astype(np.int64)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 that spreads every bit over all others."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
