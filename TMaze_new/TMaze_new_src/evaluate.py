"""The evaluation protocol of T-Maze.

An episode of length T has a corridor of T - 2 cells and at most T steps; T - 1 are needed. It is a success if its last
reward is the goal's. The published protocol names lengths by segments of 30 steps, `Success_rate_S_{S}` with T = 30 S.
"""

from collections.abc import Sequence

import numpy as np
import torch

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import rollout, side_by_side
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform
from TMaze_new.TMaze_new_src.env import EVALUATION_SEEDS, TMazeVectorEnv, goals_of_seeds

# Episode lengths T of the RATE paper, and the numbers of 30-step segments S of the published script.
LENGTHS = (9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600)
SEGMENT_COUNTS = (1, 2, 3, 5, 9, 16, 30)
SEGMENT_STEPS = 30
MAX_EPISODES = 9992  # as many up as down, with seeds below 10,000


def check_episodes(**episodes: int) -> None:
    """Raise `UserError` if a flag asks for fewer than two episodes or for more than there are evaluation seeds."""
    for name, count in episodes.items():
        if not 2 <= count <= MAX_EPISODES:
            raise UserError(f"--{name} {count}: must be at least 2 and at most {MAX_EPISODES}")


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of so many episodes, as many up as down when even: the published list, and more from below 10,000."""
    seeds = list(EVALUATION_SEEDS)
    if episodes > len(seeds):
        seeds += [seed for seed in range(10_000) if seed not in set(seeds)]
    goals = goals_of_seeds(seeds)
    up, down = (np.asarray(seeds)[goals == goal] for goal in (1, -1))
    if min(len(up), len(down)) < (episodes + 1) // 2:
        raise ValueError(f"{episodes} episodes: there are only {2 * min(len(up), len(down))} evaluation seeds")
    return np.sort(np.concatenate([up[: (episodes + 1) // 2], down[: episodes // 2]]))


def success_by_length(
    model: Agent,
    lengths: Sequence[int],
    *,
    episodes: int = 100,
    target_return: float = 1.0,
    hint_steps: int = 1,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
) -> dict[int, dict[str, float]]:
    """Act greedily in `episodes` mazes of each length.

    Args:
        model: in eval mode.
        lengths: episode lengths T, each at least 3.
        episodes: per length; as many up as down.
        target_return: the return asked for.
        hint_steps: observations that show the hint.
        slide, transform_memory, precision: see `Actor`.

    Returns:
        Per length `success_rate` and `mean_delay`: steps beyond the T - 1 that are needed; 0 is optimal.
    """
    results: dict[int, dict[str, float]] = {}
    for group in side_by_side(model, lengths, episodes):
        steps = np.repeat(np.asarray(group), episodes)
        mazes = TMazeVectorEnv(len(steps), steps - 2, hint_steps=hint_steps, max_steps=steps)
        with torch.no_grad():
            actor = Actor(
                model,
                len(steps),
                target_return,
                slide=slide,
                transform_memory=transform_memory,
                precision=precision,
            )
        seeds = np.tile(evaluation_seeds(episodes), len(group))
        played = rollout(actor, mazes, seeds=seeds, max_steps=max(group), description="T-Maze")
        success = (played.last_rewards == mazes.goal_reward).reshape(len(group), episodes)
        delay = (played.lengths - (steps - 1)).reshape(len(group), episodes)
        for row, length in enumerate(group):
            results[length] = {
                "success_rate": float(success[row].mean()),
                "mean_delay": float(delay[row].mean()),
            }
    return results


def published_keys(results: dict[int, dict[str, float]]) -> dict[str, float]:
    """Results under the names of the published system: by episode length, and by segments where 30 divides it."""
    metrics = {}
    for length, result in results.items():
        metrics[f"Success_rate_T_{length}"] = result["success_rate"]
        if length % SEGMENT_STEPS == 0 and length // SEGMENT_STEPS in SEGMENT_COUNTS:
            segments = length // SEGMENT_STEPS
            metrics[f"Success_rate_S_{segments}"] = result["success_rate"]
            metrics[f"Mean_D[time]_S_{segments}"] = result["mean_delay"]
    return metrics
