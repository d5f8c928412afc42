"""The random numbers for the layout of a maze: those of the installed Minigrid or of the published system."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

# own: the generator of the installed Minigrid; published: that of gym 0.18.3 and gym-minigrid 1.0.2. The same seed
# gives different mazes.
Layouts = Literal["own", "published"]


class PublishedDraws:
    """The random numbers of gym 0.18.3 for a seed, behind the interface that Minigrid uses.

    gym hashed the seed and seeded NumPy's legacy generator with the words of the hash. Minigrid still draws in the
    order of gym-minigrid 1.0.2: the corridor's end (if random), the agent's column, the cue, the fork's objects.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        low, high = np.frombuffer(hashlib.sha512(str(seed).encode()).digest()[:8], dtype="<u4").tolist()
        self._generator = np.random.RandomState([low, high] if high else [low])

    def integers(self, low: int, high: int) -> int:
        """A random integer from `low` to `high` - 1."""
        return int(self._generator.randint(low, high, dtype=np.int64))
