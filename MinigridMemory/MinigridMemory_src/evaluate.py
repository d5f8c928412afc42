"""The evaluation protocol of Minigrid-Memory.

Every size is played once, up to a cap on steps that always suffices for the expert. The published protocol, whose cap
of 96 steps is too short for any agent in large mazes, is evaluated on the same episodes: longer ones count as failed.
The same holds for any other requested cap. Rewards do not change, as they depend only on the number of steps.
"""

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


def capped(episodes: Episodes, cap: int) -> Episodes:
    """The episodes as if they had been truncated after `cap` steps; a last reward above 0 is a success."""
    within = episodes.lengths <= cap
    returns, last_rewards = (np.where(within, values, 0.0) for values in (episodes.returns, episodes.last_rewards))
    return Episodes(returns, np.minimum(episodes.lengths, cap), last_rewards)


def success_rate(episodes: Episodes) -> float:
    """Share of successes."""
    return float((episodes.last_rewards > 0).mean())


def widest_cap(size: int) -> int:
    """The cap used for playing: the expert's or the published one, whichever is longer."""
    return max(PUBLISHED_CAP, expert_cap(size))


@lru_cache
def expert_play(size: int, episodes: int, random_length: bool = True, layouts: Layouts = "own") -> Episodes:
    """The expert's episodes in the same mazes."""
    cap = widest_cap(size)
    return expert_episodes(size, np.arange(episodes), random_length=random_length, max_steps=cap, layouts=layouts)
