"""The evaluation protocol of T-Maze.

An episode of length T has a corridor of T - 2 cells and at most T steps; T - 1 suffice. It is a success if its last
reward is the goal's. The published protocol names lengths by segments of 30 steps, `Success_rate_S_{S}` with T = 30 S.

In the recall task the evaluation makes the agent's first turn, see `ForcedFirstTurn`.
"""

import numpy as np

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor, Episodes, PlayerWrapper
from TMaze_new.TMaze_new_src.env import EVALUATION_SEEDS, goals_of_seeds
from TMaze_new.TMaze_new_src.tasks import first_turns

# Episode lengths T of the RATE paper, and the numbers of 30-step segments S of the published script.
LENGTHS = (9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600)
SEGMENT_COUNTS = (1, 2, 3, 5, 9, 16, 30)
SEGMENT_STEPS = 30
GOAL_REWARD = 1.0
MAX_EPISODES = 9992  # half up and half down, with seeds below 10,000


class ForcedFirstTurn(PlayerWrapper):
    """An actor with forced first actions: up in a row, down in its twin. See the recall task."""

    def __init__(self, player: BatchActor) -> None:
        super().__init__(player)
        self._begins = True

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """As `Actor.act`."""
        if not self._begins:
            return self._player.act(observations, rewards)
        self._begins, actions = False, first_turns(len(observations))
        if isinstance(self._player, Actor):  # other actors do not remember actions
            self._player.observe(observations, rewards)
            self._player.take(actions)
        return actions


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds for this many episodes, half up, half down (odd: one more up): the published ones, then others < 10,000."""
    seeds = list(EVALUATION_SEEDS)
    if episodes > len(seeds):
        seeds += [seed for seed in range(10_000) if seed not in set(seeds)]
    goals = goals_of_seeds(seeds)
    up, down = (np.asarray(seeds)[goals == goal] for goal in (1, -1))
    if min(len(up), len(down)) < (episodes + 1) // 2:
        raise ValueError(f"{episodes} episodes: there are only {2 * min(len(up), len(down))} evaluation seeds")
    return np.sort(np.concatenate([up[: (episodes + 1) // 2], down[: episodes // 2]]))


def figures(length: int, episodes: Episodes) -> dict[str, float]:
    """`success_rate`, and `mean_delay`: steps beyond the optimal T - 1."""
    success, delay = episodes.last_rewards == GOAL_REWARD, episodes.lengths - (length - 1)
    return {"success_rate": float(success.mean()), "mean_delay": float(delay.mean())}


def published_keys(results: dict[int, dict[str, float]]) -> dict[str, float]:
    """Results under the names of the published system: by episode length, and by segments where 30 divides it.

    `Recalled_T_{T}`, of chains of junctions, is our own: the share of turns that were right.
    """
    metrics = {}
    for length, result in results.items():
        metrics[f"Success_rate_T_{length}"] = result["success_rate"]
        if "recalled" in result:
            metrics[f"Recalled_T_{length}"] = result["recalled"]
        if length % SEGMENT_STEPS == 0 and length // SEGMENT_STEPS in SEGMENT_COUNTS:
            segments = length // SEGMENT_STEPS
            metrics[f"Success_rate_S_{segments}"] = result["success_rate"]
            metrics[f"Mean_D[time]_S_{segments}"] = result["mean_delay"]
    return metrics
