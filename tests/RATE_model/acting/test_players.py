"""Players without a model: played once, cached, whatever the number of processes."""

from functools import partial
from pathlib import Path

import gymnasium
import numpy as np

from RATE_model.acting.players import play_episode, play_players


def play(log: Path, player: str, seeds: list[int]) -> list[tuple[float, int, float]]:
    with log.open("a") as file:
        file.write(f"{player} {len(seeds)}\n")
    return [(seed + 0.5 * (player == "expert"), seed + 1, 0.0) for seed in seeds]


def test_players_are_played_once(tmp_path):
    def returns(*players: str, workers: int = 1, made: object = 1, episodes: int = 5) -> dict[str, list[float]]:
        found = play_players(
            players,
            np.arange(episodes),
            partial(play, tmp_path / "log"),
            made=made,
            folder=tmp_path / "cache",
            workers=workers,
            part=2,
        )
        return {player: episodes.returns.tolist() for player, episodes in found.items()}

    def played() -> int:
        return len((tmp_path / "log").read_text().splitlines())

    both = {"random": [0, 1, 2, 3, 4], "expert": [0.5, 1.5, 2.5, 3.5, 4.5]}
    assert returns("random", "expert", workers=2) == both and played() == 6, "three parts each"
    assert returns("expert", "random") == both and played() == 6
    assert returns("expert", made=2)["expert"] == both["expert"] and played() == 9, "another version"
    assert returns("random", episodes=4)["random"] == both["random"][:4] and played() == 11


class Countdown(gymnasium.Env):
    """Rewards the action taken, and ends when the actions have summed up to 6."""

    left = 6

    def step(self, action: int):
        self.left -= action
        return None, action, self.left <= 0, False, {}


def test_an_episode_played_alone():
    assert play_episode(Countdown(), iter([1, 2, 4, 8]).__next__) == (7.0, 3, 4.0)
