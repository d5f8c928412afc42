"""The evaluation protocol of Atari: games side by side, unclipped points, sampled or greedy actions.

Published: 10 episodes, each of at most 28,000 frames (7000 decisions), begun with up to 30 frames without a button,
without sticky actions; the return asked for is the game's, and every point is taken off it. After training on data
with clipped rewards what is taken off is clipped as well; the points that are reported never are.
"""

from __future__ import annotations

import numpy as np
import torch

from Atari.env import PUBLISHED_CAP, PUBLISHED_NOOPS, Opening
from Atari.games import Game
from Atari.vector import AtariVectorEnv
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor, Episodes, mean_and_error, rollout
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform

# Data is collected with seeds below this one.
FIRST_SEED = 2**31
MAX_EPISODES = 10_000


def check_episodes(**episodes: int) -> None:
    """Raise `UserError` if a flag asks for no episode, or for more than anybody waits for."""
    for name, count in episodes.items():
        if not 1 <= count <= MAX_EPISODES:
            raise UserError(f"--{name} {count}: must be at least 1 and at most {MAX_EPISODES}")


def evaluation_seeds(episodes: int) -> np.ndarray:
    """Seeds of so many episodes, (E,) int64; never those of data."""
    return np.arange(FIRST_SEED, FIRST_SEED + episodes)


def target_of(game: Game, given: float | None, flag: str = "--target_return") -> float:
    """The return to ask for, in points: the one given, else the game's. Raises UserError if there is neither."""
    target = game.target_return if given is None else given
    if target is None:
        raise UserError(f"{flag}: {game.name} has no published one; give the return to ask for, in points")
    return float(target)


def play(
    model: Agent,
    game: Game,
    *,
    target_return: float,
    episodes: int = 10,
    greedy: bool = False,
    seed: int = 0,
    sticky: float = 0.0,
    max_steps: int = PUBLISHED_CAP,
    opening: Opening = "black",
    clip_rewards: bool = False,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
) -> Episodes:
    """Episodes of a model, all at once.

    Args:
        model: in eval mode.
        game: which.
        target_return: the return to ask for, in points.
        episodes: with the seeds of `evaluation_seeds`.
        greedy: take the most probable action; False, published: draw from the predicted distribution.
        seed: of those draws.
        sticky: probability, at every frame, that the action before goes on.
        max_steps: decisions after which an episode is cut off.
        opening: what is seen where an episode begins; see `Atari.env`.
        clip_rewards: the model was trained on clipped rewards; see `ClippedRewards`.
        slide, transform_memory, precision: see `Actor`.

    Raises:
        UserError: ale-py is not installed.
    """
    with torch.no_grad():
        actor = Actor(
            model,
            episodes,
            target_return,
            greedy=greedy,
            seed=seed,
            slide=slide,
            transform_memory=transform_memory,
            precision=precision,
        )
    player = ClippedRewards(actor) if clip_rewards else actor
    return play_with(player, game, episodes=episodes, sticky=sticky, max_steps=max_steps, opening=opening)


class ClippedRewards:
    """A player who sees rewards within [-1, 1], as in the data that its model was trained on."""

    def __init__(self, player: BatchActor) -> None:
        self._player = player

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """See `BatchActor`."""
        return self._player.act(observations, np.clip(rewards, -1, 1))

    def keep(self, rows: np.ndarray) -> None:
        """See `BatchActor`."""
        self._player.keep(rows)


def play_with(
    player: BatchActor,
    game: Game,
    *,
    episodes: int,
    sticky: float = 0.0,
    max_steps: int = PUBLISHED_CAP,
    opening: Opening = "black",
) -> Episodes:
    """Episodes of anything that acts; arguments as in `play`."""
    environments = AtariVectorEnv(
        episodes, game.name, sticky=sticky, noops=PUBLISHED_NOOPS, max_steps=max_steps, opening=opening
    )
    try:
        return rollout(
            player, environments, seeds=evaluation_seeds(episodes), max_steps=max_steps, description=game.name
        )
    finally:
        environments.close()


class RandomPlayer:
    """Presses buttons at random: an actor for `play_with`."""

    def __init__(self, game: Game, seed: int = 0) -> None:
        self._actions, self._generator = game.actions, np.random.default_rng(seed)

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Actions (B,) int64."""
        return self._generator.integers(self._actions, size=len(observations))

    def keep(self, rows: np.ndarray) -> None:
        """Nothing is remembered of rows."""


def metrics(played: Episodes, game: Game) -> dict[str, float]:
    """Results by name: mean, standard deviation and standard error of returns, mean length, gamer-normalised score.

    `eval_return` and `eval_std` are the published names. Scores are of the games that have a measured human player.
    """
    mean, error = mean_and_error(played.returns)
    result = {"eval_return": mean, "eval_std": float(np.std(played.returns))}
    if len(played.returns) > 1:
        result["eval_sem"] = error
    result["eval_length"] = float(np.mean(played.lengths))
    if (score := game.normalised_score(mean)) is not None:
        result["normalised_score"] = float(score)
    return result
