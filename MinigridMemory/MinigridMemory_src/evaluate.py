"""The evaluation protocol of Minigrid-Memory.

Every size is played once, up to a cap on steps that always suffices for the expert. The published protocol, whose cap
of 96 steps is too short for any agent in large mazes, is evaluated on the same episodes: longer ones count as failed.
The same holds for any other requested cap. Rewards do not change, as they depend only on the number of steps.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP, Layouts, expert_cap
from MinigridMemory.MinigridMemory_src.expert import expert_episodes
from RATE_model.acting.rollout import Episodes

# Sizes during training and at its end (published), and beyond.
TRAINING_SIZES = (31, 91)
SIZES = (11, 21, 31, 41, 51, 61, 71, 81, 91)
LARGE_SIZES = (151, 301, 501)
TARGET_RETURN = 0.96


@dataclass(frozen=True)
class SizeResult:
    """Episodes of one size under one cap on steps."""

    success: np.ndarray  # (E,) bool
    returns: np.ndarray  # (E,) float64
    lengths: np.ndarray  # (E,) int64, steps

    @classmethod
    def of(cls, episodes: Episodes, cap: int) -> "SizeResult":
        """The results if the episodes had been truncated after `cap` steps."""
        within = episodes.lengths <= cap
        return cls(
            success=(episodes.last_rewards > 0) & within,
            returns=np.where(within, episodes.returns, 0.0),
            lengths=np.minimum(episodes.lengths, cap),
        )

    @property
    def success_rate(self) -> float:
        """Share of successes."""
        return float(self.success.mean())


def widest_cap(size: int) -> int:
    """The cap used for playing: the expert's or the published one, whichever is longer."""
    return max(PUBLISHED_CAP, expert_cap(size))


@lru_cache
def expert_play(size: int, episodes: int, random_length: bool = True, layouts: Layouts = "own") -> Episodes:
    """The expert's episodes in the same mazes."""
    cap = widest_cap(size)
    return expert_episodes(size, np.arange(episodes), random_length=random_length, max_steps=cap, layouts=layouts)
