"""The evaluation protocol of Minigrid-Memory.

Every size is played once, up to a cap on steps that the expert always meets. The published protocol, whose cap of 96
steps no agent can meet in large mazes, is read off the same episodes: one that took longer counts as failed there. So
is any other cap that is asked for.
Rewards are the same in both, as they depend on the number of steps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from MinigridMemory.MinigridMemory_src.env import (
    CUES,
    EVALUATION_SEEDS,
    PUBLISHED_CAP,
    MinigridMemoryVectorEnv,
    expert_cap,
)
from MinigridMemory.MinigridMemory_src.expert import expert_episodes
from MinigridMemory.MinigridMemory_src.layouts import Layouts
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes, rollout, side_by_side
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform

# Sizes during training and at its end (published), and beyond.
TRAINING_SIZES = (31, 91)
SIZES = (11, 21, 31, 41, 51, 61, 71, 81, 91)
LARGE_SIZES = (151, 301, 501)
TARGET_RETURN = 0.96
# What runs did that were made before they could record these flags.
BEFORE = {"layouts": "own", "episode_timeout": PUBLISHED_CAP}
MAX_EPISODES = 10_000  # seeds below this number are not used for data


@dataclass(frozen=True)
class SizeResult:
    """Episodes of one size under one cap on steps."""

    success: np.ndarray  # (E,) bool
    returns: np.ndarray  # (E,) float64
    lengths: np.ndarray  # (E,) int64, steps

    @classmethod
    def of(cls, episodes: Episodes, cap: int) -> "SizeResult":
        """What the episodes would have been had they been cut off after `cap` steps."""
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


def check_episodes(**episodes: int) -> None:
    """Raise `UserError` if a flag asks for no episode, or for more than there are evaluation seeds."""
    for name, count in episodes.items():
        if not 1 <= count <= MAX_EPISODES:
            raise UserError(f"--{name} {count}: must be at least 1 and at most {MAX_EPISODES}")


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of so many episodes: the published 0..99 and on from there, never those of data."""
    return np.arange(EVALUATION_SEEDS[0], EVALUATION_SEEDS[0] + episodes)


def widest_cap(size: int) -> int:
    """The cap that episodes are played to: the expert's, or the published one where that is wider."""
    return max(PUBLISHED_CAP, expert_cap(size))


def play(
    model: Agent,
    sizes: Sequence[int],
    *,
    episodes: int = 100,
    random_length: bool = True,
    target_return: float = TARGET_RETURN,
    greedy: bool = True,
    seed: int = 0,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
    twins: bool = False,
    layouts: Layouts = "own",
    cap: int = PUBLISHED_CAP,
) -> dict[int, Episodes]:
    """Act in `episodes` mazes of each size, to the end, or to `widest_cap` or `cap`, whichever is wider.

    A size has the same result alone and among others, also where actions are drawn; those of one size are drawn from
    one generator, so there they depend on the number of episodes.

    Args:
        model: in eval mode.
        sizes: odd, at least 7.
        episodes: per size, with the seeds of `evaluation_seeds`.
        random_length: corridors of random length; False: the longest that fit.
        target_return: the return asked for.
        greedy, seed, slide, transform_memory, precision: see `Actor`.
        twins: play every maze twice, with a key and with a ball in the room, in neighbouring rows (see
            `exchange_twins`): 2 `episodes` episodes per size.
        layouts: of the mazes; see `layouts.py`.
        cap: that results will be read off for, in steps.
    """
    results: dict[int, Episodes] = {}
    own_seeds, cues = evaluation_seeds(episodes), None
    if twins:
        own_seeds, cues = np.repeat(own_seeds, 2), np.tile(CUES, episodes)
        episodes *= 2
    # Rows that act side by side draw from one generator: sizes that draw are played one by one.
    groups = side_by_side(model, sizes, episodes) if greedy else ([size] for size in dict.fromkeys(sizes))
    for group in groups:
        rows = np.repeat(np.asarray(group), episodes)
        caps = np.repeat([max(cap, widest_cap(size)) for size in group], episodes)
        mazes = MinigridMemoryVectorEnv(len(rows), rows, random_length=random_length, max_steps=caps, layouts=layouts)
        with torch.no_grad():
            actor = Actor(
                model,
                len(rows),
                target_return,
                greedy=greedy,
                seed=seed,
                slide=slide,
                transform_memory=transform_memory,
                precision=precision,
            )
        played = rollout(
            actor,
            mazes,
            seeds=np.tile(own_seeds, len(group)),
            max_steps=int(caps.max()),
            options=None if cues is None else {"cue": np.tile(cues, len(group))},
            compact=not twins,
            description="Minigrid-Memory",
        )
        for number, size in enumerate(group):
            part = slice(number * episodes, (number + 1) * episodes)
            results[size] = Episodes(played.returns[part], played.lengths[part], played.last_rewards[part])
    return results


@lru_cache
def expert_play(size: int, episodes: int, random_length: bool = True, layouts: Layouts = "own") -> Episodes:
    """The expert in the same mazes."""
    seeds, cap = evaluation_seeds(episodes), widest_cap(size)
    return expert_episodes(size, seeds, random_length=random_length, max_steps=cap, layouts=layouts)


def metrics(
    played: dict[int, Episodes],
    *,
    target_return: float,
    prefix: str = "",
    cap: int = PUBLISHED_CAP,
    layouts: Layouts = "own",
) -> dict[str, float]:
    """Results by name.

    The published names hold what `cap` gives, the published one of 96 steps unless another is asked for,
    `Success_rate_l_{L}` included; names that end in `_expert_cap` what the expert's cap gives;
    `Expert_success_rate_l_{L}` what the expert does under `cap`, in the mazes of the same layouts.
    """
    result = {}
    for size, episodes in played.items():
        published, wide = (SizeResult.of(episodes, steps) for steps in (cap, widest_cap(size)))
        expert = SizeResult.of(expert_play(size, len(episodes.returns), layouts=layouts), cap)
        name = f"r_{target_return:g}_l_{size}"
        result |= {
            f"{prefix}LifeTimeMean_{name}": float(published.lengths.mean()),
            f"{prefix}ReturnsMax_{name}": float(published.returns.max()),
            f"{prefix}ReturnsMean_{name}": float(published.returns.mean()),
            f"{prefix}Success_rate_l_{size}": published.success_rate,
            f"{prefix}Success_rate_l_{size}_expert_cap": wide.success_rate,
            f"{prefix}Expert_success_rate_l_{size}": expert.success_rate,
        }
    return result
