"""The expert of Minigrid-Memory: it always succeeds, or fails as requested."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("minigrid")

from MinigridMemory.MinigridMemory_src.env import MinigridMemoryEnv, expert_cap, frames_of_views
from MinigridMemory.MinigridMemory_src.expert import BALL, KEY, Expert, Flaws, expert_episodes, play
from RATE_model.errors import UserError

NEVER = 10**6  # a limit that no episode reaches


@pytest.mark.parametrize("random_length", [True, False])
@pytest.mark.parametrize(("size", "episodes"), [(7, 60), (9, 60), (13, 300), (31, 100), (41, 100), (91, 20), (501, 4)])
def test_expert_always_succeeds_within_the_cap(size, episodes, random_length):
    result = expert_episodes(size, range(episodes), random_length=random_length)
    assert (result.last_rewards > 0).all()
    np.testing.assert_array_equal(result.returns, result.last_rewards)
    assert result.lengths.max() <= min(expert_cap(size), max(10, 2 * size - 4))
    if size == 13 and not random_length:
        assert result.lengths.max() == 22, "the longest way that the limit is derived from occurs"
    np.testing.assert_allclose(result.returns, np.maximum(0.1, 1 - 0.9 * result.lengths / 845))


def test_the_published_cap_is_too_short_for_large_mazes():
    assert (expert_episodes(41, range(100), random_length=False, max_steps=96).last_rewards > 0).all()
    large = expert_episodes(91, range(100), max_steps=96)
    assert 0.55 < (large.last_rewards > 0).mean() < 0.8
    assert large.lengths.max() == 96 and (large.last_rewards[large.lengths == 96] == 0).any()


def test_expert_episode_is_reproducible_from_its_seed():
    """Replayed from the recorded actions; the same alone and together with others."""
    flaws = Flaws(noise=0.2, wrong_arm=0.3, guess=0.3)
    episodes = play(13, range(20), max_steps=40, flaws=flaws)
    env = MinigridMemoryEnv(13, max_steps=40)
    for episode in episodes:
        observation, _ = env.reset(seed=episode.seed)
        frames = frames_of_views(episode.views)
        for step in range(episode.steps):
            np.testing.assert_array_equal(frames[step], observation)
            observation, reward, terminated, truncated, _ = env.step(int(episode.actions[step]))
            assert (terminated or truncated) == (step == episode.steps - 1)
        assert (episode.reward, episode.terminated, episode.success) == (reward, terminated, env.success)
        assert (episode.cue, episode.arm) == (env.cue, env.arm)
    alone = play(13, [7], max_steps=40, flaws=flaws)[0]
    np.testing.assert_array_equal(alone.actions, episodes[7].actions)
    assert len({episode.actions.tobytes() for episode in episodes}) > 15


def test_the_cue_is_remembered_over_the_horizon():
    """The horizon from the last sight of the cue to the turn into the arm matches the environment's."""
    for random_length in (False, True):
        horizons = MinigridMemoryEnv(21, random_length=random_length).horizons
        seen = set()
        for episode in play(21, range(60), random_length=random_length, max_steps=NEVER):
            sights = np.flatnonzero(np.isin(episode.views[..., 0], (KEY, BALL)).any(axis=(1, 2)))
            seen.add(int(np.diff(sights).max()) + 1)
        assert seen <= set(horizons) and max(seen) == horizons[-1]


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
def test_expert_recovers_from_noise(noise):
    """It always finds an arm, and the wrong one only after a random action."""
    result = play(21, range(150), max_steps=NEVER, flaws=Flaws(noise=noise))
    assert all(episode.terminated for episode in result)
    success = np.mean([episode.success for episode in result])
    assert {0.1: 0.93, 0.3: 0.85, 0.6: 0.6}[noise] < success < 1
    perfect = play(21, range(150), max_steps=NEVER)
    assert np.mean([episode.steps for episode in result]) > 1.05 * np.mean([episode.steps for episode in perfect])


def test_expert_tracks_its_position():
    env = MinigridMemoryEnv(9, max_steps=NEVER)
    for seed in range(40):
        env.reset(seed=seed)
        expert = Expert(np.random.default_rng(seed), Flaws(noise=0.7))
        start, over = np.array(env._maze.agent_pos), False
        while not over:
            action = expert.act(env.view)
            _, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            assert (expert._x, expert._y) == tuple(np.array(env._maze.agent_pos) - start)
            assert expert._heading == env._maze.agent_dir


def test_expert_tells_room_from_fork():
    """In the smallest maze, much of a noisy walk is in the room, outside the corridor's row."""
    episodes = play(7, range(600), max_steps=2000, flaws=Flaws(noise=0.4))
    assert all(episode.terminated for episode in episodes) and max(episode.steps for episode in episodes) < 120


def test_wrong_arms_and_guesses():
    wrong = play(21, range(100), max_steps=NEVER, flaws=Flaws(wrong_arm=1.0))
    assert all(episode.terminated and not episode.success for episode in wrong)
    some = play(21, range(400), max_steps=NEVER, flaws=Flaws(wrong_arm=0.2))
    assert 0.7 < np.mean([episode.success for episode in some]) < 0.9
    guessed = play(21, range(400), max_steps=NEVER, flaws=Flaws(guess=1.0))
    assert 0.4 < np.mean([episode.success for episode in guessed]) < 0.6
    assert all(episode.terminated for episode in guessed)
    perfect = play(21, range(400), max_steps=NEVER)
    lengths = [np.mean([episode.steps for episode in episodes]) for episodes in (guessed, perfect)]
    assert lengths[0] < 0.7 * lengths[1], "a guess saves the way to the room"
    # From every fourth start of the smallest maze the cue is visible, but not used: both objects are guessed.
    for cue in ("key", "ball"):
        small = play(7, range(800), max_steps=NEVER, flaws=Flaws(guess=1.0))
        assert 0.43 < np.mean([episode.success for episode in small if episode.cue == cue]) < 0.57
        north = [episode for episode in small if episode.cue == cue and episode.arm == "north"]
        assert 0.4 < np.mean([episode.success for episode in north]) < 0.6


def test_no_episode_is_an_error():
    with pytest.raises(UserError, match="no seed"):
        expert_episodes(13, [])


def test_playing_does_not_load_torch():
    code = "import sys; import MinigridMemory.MinigridMemory_src.expert; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
