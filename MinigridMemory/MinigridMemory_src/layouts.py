"""The random numbers that a maze is laid out with: today's Minigrid's own, or those of the published system."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

# own: the generator of the installed Minigrid; published: that of gym 0.18.3 and gym-minigrid 1.0.2. The mazes of a
# seed differ.
Layouts = Literal["own", "published"]


class PublishedDraws:
    """The draws of gym 0.18.3 for a seed, in the form in which Minigrid asks for them.

    gym hashed the seed and seeded NumPy's legacy generator with the words of the hash. Minigrid still asks in the order
    of gym-minigrid 1.0.2: the corridor's end (where it is random), the agent's column, the cue, the fork's objects.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        low, high = np.frombuffer(hashlib.sha512(str(seed).encode()).digest()[:8], dtype="<u4").tolist()
        self._generator = np.random.RandomState([low, high] if high else [low])

    def integers(self, low: int, high: int) -> int:
        """A number of at least `low` and below `high`."""
        return int(self._generator.randint(low, high, dtype=np.int64))
