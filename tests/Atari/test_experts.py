"""The scripted players: they play well, the same every time, and worse with noise."""

import numpy as np
import pytest

pytest.importorskip("ale_py")

from Atari.env import AtariEnv
from Atari.experts import BreakoutPlayer, Planner, PongPlayer, expert, plans, player_class, reflected
from Atari.games import GAMES


def episode(env, noise=0.0, steps=500, seed=0):
    """The rewards and actions of a player's first steps, and the lives left after them."""
    player = expert(env.game, np.random.default_rng(seed), noise=noise)
    _, info = env.reset(seed=seed)
    rewards, actions = [], []
    for _ in range(steps):
        actions.append(player.act(env))
        _, reward, terminated, _, info = env.step(actions[-1])
        rewards.append(reward)
        if terminated:
            break
    return np.array(rewards), actions, info["lives"]


@pytest.fixture(scope="module")
def breakout():
    return AtariEnv("Breakout", frame_stack=1)


@pytest.fixture(scope="module")
def pong():
    return AtariEnv("Pong", frame_stack=1)


def test_every_game_has_a_player():
    players = [player_class(game) for game in GAMES.values()]
    assert players == [BreakoutPlayer, Planner, Planner, PongPlayer]
    assert [plans(game) for game in GAMES.values()] == [False, True, True, False]
    assert all(player.description for player in players)


def test_breakout_is_played_far_better_than_at_random(breakout):
    rewards, _, lives = episode(breakout, steps=900)
    assert rewards.sum() >= 60 and lives >= 4
    noisy, _, _ = episode(breakout, noise=0.4, steps=900)
    assert 5 < noisy.sum() < rewards.sum()
    random, _, lives = episode(breakout, noise=1.0, steps=900)
    assert random.sum() < 5 and lives == 0


def test_pong_is_won(pong):
    rewards, _, _ = episode(pong, steps=500)
    assert rewards.sum() >= 3 and rewards.min() == 0
    random, _, _ = episode(pong, noise=1.0, steps=500)
    assert random.sum() <= -7


def test_plans_win_points(monkeypatch):
    monkeypatch.setattr(Planner, "PLANS", 8)
    monkeypatch.setattr(Planner, "HORIZON", 20)
    rewards, actions, lives = episode(AtariEnv("Qbert", frame_stack=1), steps=60)
    assert rewards.sum() >= 100 and lives >= 3
    assert len(set(actions)) > 2


def test_players_leave_the_game_as_it_was(pong, monkeypatch):
    monkeypatch.setattr(Planner, "PLANS", 2)
    for env, steps in ((pong, 120), (AtariEnv("Qbert", frame_stack=1), 6)):
        player = expert(env.game, np.random.default_rng(0))
        env.reset(seed=0)
        for _ in range(steps):
            before = env.console.memory().copy()
            action = player.act(env)
            np.testing.assert_array_equal(env.console.memory(), before)
            env.step(action)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_player_is_a_function_of_its_generator(breakout, pong, noise):
    for env in (breakout, pong):
        first, again, other = (episode(env, noise, 150, seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1] == again[1] != other[1]


def test_noise_is_the_share_of_random_actions(pong, monkeypatch):
    monkeypatch.setattr(PongPlayer, "_choose", lambda self, console: 0)
    _, actions, _ = episode(pong, noise=0.3, steps=600)
    assert 0.2 < np.mean(np.array(actions) != 0) < 0.3  # a sixth of the random ones is 0, too
    _, actions, _ = episode(pong, noise=1.0, steps=600)
    assert set(actions) == set(range(6))
    assert set(episode(pong, noise=0.0, steps=50)[1]) == {0}


def test_balls_are_reflected():
    positions = [reflected(position, 10, 20) for position in (10, 15, 20, 23, 30, 33, 7, -1)]
    assert positions == [10, 15, 20, 17, 10, 13, 13, 19]
