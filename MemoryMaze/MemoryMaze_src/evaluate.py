"""The evaluation protocol of Memory Maze: whole episodes in mazes that no data was made in, side by side.

The published protocol plays the seeds 0, 20, 40, 60 and 80 for 1000 steps each, asks for a return of 18.1 and draws the
actions. Returns-to-go fall with every ball. In data they end at 0, when an episode does; an agent that earns more than
it was asked for would see negative ones, which no data has. Here they stop at ``rtg_floor``, 0 unless told otherwise;
the published code lets them fall (``None``).
"""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import torch

from MemoryMaze.MemoryMaze_src.env import DEFAULT_SIZE, MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.generate import PlayerOfMix
from MemoryMaze.MemoryMaze_src.generate import play as play_expert
from MemoryMaze.MemoryMaze_src.vector import MemoryMazeVectorEnv
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes, mean_and_error, rollout_in_turns
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform
from RATE_model.system.processes import available_cores, in_order

TARGET_RETURN = 18.1
RTG_FLOOR = 0.0
PUBLISHED_EPISODES = 5
ALL_SEEDS = 100  # the published seeds are spread over the numbers below this one
MAX_EPISODES = 10_000  # seeds below this number are not used for data

# Who plays without a model, as the data's `--mix` names them; all actions of the first are random.
PLAYERS = {"random": "explorer:1:1", "explorer": "explorer:0:1", "planner": "planner:0:1"}


def check_episodes(**episodes: int) -> None:
    """Raise `UserError` if a flag asks for no episode, or for more than there are evaluation seeds."""
    for name, count in episodes.items():
        if not 1 <= count <= MAX_EPISODES:
            raise UserError(f"--{name} {count}: must be at least 1 and at most {MAX_EPISODES}")


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of so many episodes, (E,) int64, never those of data.

    Up to 100 are spread over 0 to 99, so that 5 are the published 0, 20, ..., 80; more count up from 0.
    """
    return np.arange(episodes) * max(ALL_SEEDS, episodes) // episodes


def play(
    model: Agent,
    *,
    size: int = DEFAULT_SIZE,
    episodes: int = PUBLISHED_EPISODES,
    steps: int | None = None,
    target_return: float = TARGET_RETURN,
    rtg_floor: float | None = RTG_FLOOR,
    greedy: bool = False,
    seed: int = 0,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
    workers: int | None = None,
) -> Episodes:
    """Act in so many mazes, all at once.

    Half of them are drawn while the model acts in the others.

    Args:
        model: in eval mode.
        size: of the mazes, in cells.
        episodes: with the seeds of `evaluation_seeds`.
        steps: of an episode; None: the package's limit, 1000 in 9x9.
        target_return: the return asked for.
        rtg_floor: see the module.
        greedy, seed, slide, transform_memory, precision: see `Actor`.
        workers: processes that draw the mazes, at least one for each half; None: one per core.

    Raises:
        UserError: the package is missing or cannot draw.
    """
    halves = np.array_split(evaluation_seeds(episodes), min(2, episodes))
    processes = max(1, (workers or available_cores()) // len(halves))
    mazes = [MemoryMazeVectorEnv(len(seeds), size, max_steps=steps, workers=processes) for seeds in halves]
    with torch.no_grad():
        actors = [
            Actor(
                model,
                len(seeds),
                target_return,
                rtg_floor=rtg_floor,
                greedy=greedy,
                seed=len(halves) * seed + number,
                slide=slide,
                transform_memory=transform_memory,
                precision=precision,
            )
            for number, seeds in enumerate(halves)
        ]
    return rollout_in_turns(actors, mazes, seeds=halves, max_steps=mazes[0].max_steps, description="Memory Maze")


def player_returns(
    player: str,
    *,
    size: int = DEFAULT_SIZE,
    episodes: int = PUBLISHED_EPISODES,
    steps: int | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Returns of one of `PLAYERS` in the mazes that `play` plays: (E,) float64. Arguments: see there."""
    work = functools.partial(_return_of, PLAYERS[player], size, steps)
    seeds = evaluation_seeds(episodes).tolist()
    return np.array(list(in_order(work, seeds, min(workers or available_cores(), episodes))))


class Undrawn(MemoryMazeEnv):
    """A maze whose observations stay black: players without a model look at `info`, and drawing takes most time."""

    def _observe(self) -> None:
        pass


def _return_of(player: str, size: int, steps: int | None, seed: int) -> float:
    """Return of a player in the maze of a seed; a function of its own, for processes."""
    with contextlib.closing(Undrawn(size, max_steps=steps, privileged=True)) as maze:
        return float(play_expert(maze, PlayerOfMix.of(player), seed)["rewards"].sum())


def metrics(episodes: Episodes, *, target_return: float) -> dict[str, float]:
    """Results under the published names, such as `ReturnsMean_18.1`, and the mean's standard error."""
    name = f"{target_return:g}"
    mean, error = mean_and_error(episodes.returns)
    result = {
        f"LifeTimeMean_{name}": float(episodes.lengths.mean()),
        f"ReturnsMax_{name}": float(episodes.returns.max()),
        f"ReturnsMean_{name}": mean,
    }
    return result | ({f"ReturnsSEM_{name}": error} if len(episodes.returns) > 1 else {})
