"""What vector environments are called with, checked: seeds, masks and actions of B environments side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv


def episode_seeds(
    environments: VectorEnv, seed: int | Sequence[int] | np.ndarray | None, *, below: int = 2**31
) -> Sequence[int] | np.ndarray:
    """One seed per environment, B in all.

    Args:
        environments: a given seed also starts their ``np_random`` anew.
        seed: as given to ``reset``: one per environment, or an int s for s, s + 1, ..., or None to draw them.
        below: those drawn are 0 to below - 1.

    Raises:
        ValueError: there are not B seeds, or the first is negative.
    """
    count = environments.num_envs
    if seed is None:
        return environments.np_random.integers(below, size=count)
    seeds = seed + np.arange(count) if isinstance(seed, (int, np.integer)) else seed
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} environments")
    if seeds[0] < 0:
        raise ValueError(f"a seed must not be negative, got {seeds[0]}")
    VectorEnv.reset(environments, seed=int(seeds[0]))  # not their own, which is what asks for the seeds
    return seeds


def reset_mask(environments: VectorEnv, options: dict[str, Any] | None) -> np.ndarray:
    """Which environments to reset: the option ``reset_mask`` of ``reset``, or all; (B,) bool.

    Raises:
        ValueError: it has another shape or type.
    """
    count = environments.num_envs
    mask = np.asarray((options or {}).get("reset_mask", np.ones(count, dtype=bool)))
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(f"reset_mask must be bool of shape ({count},), got {mask.dtype} {mask.shape}")
    return mask


def discrete_actions(environments: VectorEnv, actions: Any) -> np.ndarray:
    """The actions of all environments, those of finished ones included; (B,) integers.

    Raises:
        ValueError: they are not B integers, or there is no such action.
    """
    assert isinstance(environments.single_action_space, Discrete)
    count, last = environments.num_envs, int(environments.single_action_space.n) - 1
    actions = np.asarray(actions)
    if actions.shape != (count,) or not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"actions must be integers of shape ({count},), got {actions.dtype} {actions.shape}")
    if actions.min() < 0 or actions.max() > last:
        raise ValueError(f"actions must lie between 0 and {last}, got {actions.min()} to {actions.max()}")
    return actions
