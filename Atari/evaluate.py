"""The evaluation protocol of Atari: games side by side, unclipped points, sampled or greedy actions.

Published: 10 episodes of at most 28,000 frames (7000 decisions), starting with up to 30 frames without a button; no
sticky actions; the target return is the game's, and every point is subtracted from it. After training on data with
clipped rewards, the subtracted rewards are clipped as well; reported points never are.
"""

from __future__ import annotations

import numpy as np

from Atari.games import Game
from RATE_model.acting.rollout import Episodes, Memoryless, PlayerWrapper, error_entry
from RATE_model.errors import UserError


def target_of(game: Game, given: float | None, flag: str = "--target_return") -> float:
    """The target return in points: the given one, or the game's. Raises UserError if there is neither."""
    target = game.target_return if given is None else given
    if target is None:
        raise UserError(f"{flag}: {game.name} has no published target return; give one, in points")
    return float(target)


class ClippedRewards(PlayerWrapper):
    """A player that sees rewards clipped to [-1, 1], as in its model's training data."""

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """See `BatchActor`."""
        return super().act(observations, np.clip(rewards, -1, 1))


def random_player(game: Game, seed: int = 0) -> Memoryless:
    """Presses buttons at random."""
    generator = np.random.default_rng(seed)
    return Memoryless(lambda observations: generator.integers(game.actions, size=len(observations)))


def metrics(played: Episodes, game: Game) -> dict[str, float]:
    """Results by name: mean, standard deviation and standard error of returns, mean length, gamer-normalised score.

    `eval_return` and `eval_std` are the published names. Scores exist only for games with a measured human player.
    """
    mean = float(played.returns.mean())
    result = {"eval_return": mean, "eval_std": float(np.std(played.returns)), **error_entry("eval_sem", played.returns)}
    result["eval_length"] = float(np.mean(played.lengths))
    score = game.normalised_score(mean)
    return result if score is None else result | {"normalised_score": float(score)}
