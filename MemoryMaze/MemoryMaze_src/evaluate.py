"""The evaluation protocol of Memory Maze: whole episodes side by side, in mazes that no data uses.

The published protocol plays the seeds 0, 20, 40, 60 and 80 for 1000 steps each, with a target return of 18.1 and
sampled actions. Returns-to-go fall with every ball. In data they are 0 when an episode ends; an agent that exceeds its
target would see negative ones, which no data has. Here they stop at ``rtg_floor``, 0 in the shipped settings; the
published code lets them fall (``None``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import numpy as np

from MemoryMaze.MemoryMaze_src.env import DEFAULT_SIZE, MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.generate import EXPERTS_VERSION, PlayerOfMix, simulation
from MemoryMaze.MemoryMaze_src.generate import play as play_expert
from MemoryMaze.MemoryMaze_src.graphics import maze_tasks
from RATE_model.acting.players import Row, play_players
from RATE_model.acting.rollout import Episodes, error_entry
from RATE_model.system import cache

TARGET_RETURN = 18.1
PUBLISHED_EPISODES = 5
ALL_SEEDS = 100  # the published seeds are spread over the numbers below this one
MAX_EPISODES = 10_000  # seeds below this number are not used for data
# The shortest correlation horizon by size of the maze (Cherepanov et al. 2024, arXiv 2412.06531, table 2).
SHORTEST_HORIZONS = {9: 28, 15: 45}

# Players without a model, named as in the data's `--mix`; the first one is fully random.
PLAYERS = {"random": "explorer:1:1", "explorer": "explorer:0:1", "planner": "planner:0:1"}


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of this many episodes, (E,) int64, never those of data.

    Up to 100 are spread over 0 to 99, so that 5 are the published 0, 20, ..., 80; more count up from 0.
    """
    return np.arange(episodes) * max(ALL_SEEDS, episodes) // episodes


def player_returns(
    player: str,
    *,
    size: int = DEFAULT_SIZE,
    episodes: int = PUBLISHED_EPISODES,
    steps: int | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Returns of one of `PLAYERS` in the mazes of an evaluation: (E,) float64; cached.

    Args:
        player: of `PLAYERS`.
        size: of the mazes, in cells.
        episodes: with the seeds of `evaluation_seeds`.
        steps: of an episode; None: the package's limit, 1000 in 9x9.
        workers: processes; None: one per core.

    Raises:
        UserError: the package is missing.
    """
    maze_tasks()  # fails here, not in a worker, if the package is missing
    found = play_players(
        [player],
        evaluation_seeds(episodes),
        functools.partial(_play, size, steps),
        made=(EXPERTS_VERSION, simulation(), size, steps),
        folder=cache.directory("memory_maze"),
        workers=workers,
    )
    return found[player].returns


class UnrenderedMaze(MemoryMazeEnv):
    """A maze whose observations stay black: players without a model use `info`, and drawing takes most of the time."""

    def _observe(self) -> None:
        pass


def _play(size: int, steps: int | None, player: str, seeds: Sequence[int]) -> list[Row]:
    """Return, steps and last reward of a player in the mazes of some seeds."""
    with contextlib.closing(UnrenderedMaze(size, max_steps=steps, privileged=True)) as maze:
        played = [play_expert(maze, PlayerOfMix.of(PLAYERS[player]), seed)["rewards"] for seed in seeds]
    return [(float(rewards.sum()), len(rewards), float(rewards[-1])) for rewards in played]


def metrics(episodes: Episodes, *, target_return: float) -> dict[str, float]:
    """Results under the published names, such as `ReturnsMean_18.1`, and the mean's standard error."""
    name = f"{target_return:g}"
    return {
        f"LifeTimeMean_{name}": float(episodes.lengths.mean()),
        f"ReturnsMax_{name}": float(episodes.returns.max()),
        f"ReturnsMean_{name}": float(episodes.returns.mean()),
        **error_entry(f"ReturnsSEM_{name}", episodes.returns),
    }


def figures(returns: np.ndarray) -> dict[str, float]:
    """Statistics of the balls (E,) that a player found: mean, its standard error, minimum and maximum."""
    mean = {"mean_return": float(returns.mean()), **error_entry("standard_error", returns)}
    return mean | {"min_return": float(returns.min()), "max_return": float(returns.max())}
