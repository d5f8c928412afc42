"""The T-Maze: its rules against a plain implementation, its seeds, its Gymnasium side and its pictures."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from RATE_model.errors import UserError
from RATE_model.plots.corridors import GAP, visible_columns
from RATE_model.system.hashing import stream_keys
from TMaze_new.TMaze_new_src.env import (
    DOWN,
    EVALUATION_SEEDS,
    LEFT,
    RIGHT,
    UP,
    TMazeEnv,
    TMazeVectorEnv,
    expert_actions,
    goals_of_seeds,
    observation_noise,
)
from TMaze_new.TMaze_new_src.render import AGENT, CELL


def plain_noise(seed, step):
    """The noise of one observation, in Python integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key = mix((seed * golden + 1) & mask)
    return ((mix((key + (step + 1) * golden) & mask) >> 32) * 3 >> 32) - 1


def plain_episode(seed, actions, corridor_length, hint_steps=1, goal_reward=1.0, max_steps=None):
    """One episode by the rules: a list of (observation, reward, terminated, truncated), the reset first."""
    goal = int(np.random.RandomState(seed).choice([-1, 1]))
    max_steps = corridor_length + 2 if max_steps is None else max_steps
    x = y = step = 0
    reached = False
    rows = [([0, goal, 0, plain_noise(seed, 0)], 0.0, False, False)]
    for action in actions:
        if rows[-1][2] or rows[-1][3]:
            rows.append((rows[-1][0], 0.0, *rows[-1][2:]))
            continue
        if action == RIGHT:
            x = min(x + 1, corridor_length)
        elif action == LEFT:
            x = max(x - 1, 0)
        elif x == corridor_length:
            y = 1 if action == UP else -1
        step += 1
        flag = x == corridor_length and not reached
        reached = reached or flag
        terminated = y != 0
        truncated = not terminated and step >= max_steps
        reward = 0.0
        if terminated or truncated:
            reward = goal_reward if y == goal else (0.0 if goal_reward == 1.0 else -1.0)
        observation = [y, goal if step < hint_steps else 0, int(flag), plain_noise(seed, step)]
        rows.append((observation, reward, terminated, truncated))
    return rows


def busy_actions(rng, shape):
    """Random, but mostly to the right, so that junctions and goals are reached."""
    return rng.choice([RIGHT, UP, LEFT, DOWN], size=shape, p=[0.7, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("hint_steps", [1, 3])
@pytest.mark.parametrize("goal_reward", [1.0, 5.0])
def test_both_environments_follow_the_rules(hint_steps, goal_reward):
    """Random episodes of mixed lengths, some with a late timeout, against the plain implementation."""
    lengths, steps = np.tile([1, 2, 5, 17], 8), 40
    limits = np.where(np.arange(32) % 3 == 0, lengths + 2, lengths + 12)
    seeds = np.arange(100, 132)
    actions = busy_actions(np.random.default_rng(0), (32, steps))
    options = {"hint_steps": hint_steps, "goal_reward": goal_reward}
    mazes = TMazeVectorEnv(32, lengths, max_steps=limits, **options)
    observations, info = mazes.reset(seed=seeds)
    vector = [(observations, np.zeros(32), np.zeros(32, bool), np.zeros(32, bool))]
    for step in range(steps):
        *row, info = mazes.step(actions[:, step])
        vector.append(tuple(row))
    outcomes = set()
    for i in range(32):
        expected = plain_episode(int(seeds[i]), actions[i], lengths[i], max_steps=limits[i], **options)
        single = TMazeEnv(int(lengths[i]), max_steps=int(limits[i]), **options)
        observation, _ = single.reset(seed=int(seeds[i]))
        np.testing.assert_array_equal(observation, expected[0][0])
        for step, (expected_observation, *rest) in enumerate(expected):
            assert vector[step][0][i].tolist() == expected_observation
            assert [values[i] for values in vector[step][1:]] == rest
            if step and not any(expected[step - 1][2:]):
                observation, *outcome, single_info = single.step(int(actions[i, step - 1]))
                assert observation.tolist() == expected_observation and outcome == rest
        assert single_info == {"goal": info["goal"][i], "x": info["x"][i]}
        outcomes.add((max(row[1] for row in expected), min(row[1] for row in expected), *expected[-1][2:]))
    wrong = 0.0 if goal_reward == 1.0 else -1.0
    assert outcomes == {(goal_reward, 0.0, True, False), (0.0, wrong, True, False), (0.0, wrong, False, True)}


def test_flag_shows_once():
    env = TMazeEnv(2, max_steps=9)
    env.reset(seed=0)
    flags = [env.step(action)[0][2] for action in (RIGHT, RIGHT, RIGHT, LEFT, RIGHT)]
    assert flags == [0, 1, 0, 0, 0]


def test_published_goals_and_seed_list():
    assert goals_of_seeds(range(10)).tolist() == [-1, 1, -1, -1, -1, 1, -1, 1, 1, -1]
    assert goals_of_seeds([5, 2**32 + 5]).tolist() == [np.random.RandomState(5).choice([-1, 1])] * 2
    goals = goals_of_seeds(EVALUATION_SEEDS)
    assert len(EVALUATION_SEEDS) == 100 and len(set(EVALUATION_SEEDS)) == 99
    assert (goals == 1).sum() == (goals == -1).sum() == 50
    assert EVALUATION_SEEDS.count(3) == 2 and max(EVALUATION_SEEDS) == 107


def test_noise_is_uniform_and_streams_differ():
    keys = stream_keys(range(1000))
    noise = np.stack([observation_noise(keys, np.full(1000, step)) for step in range(200)], axis=1)
    shares = [(noise == value).mean() for value in (-1, 0, 1)]
    assert sum(shares) == 1 and np.allclose(shares, 1 / 3, atol=0.005)
    assert len(np.unique(noise, axis=0)) == 1000
    # A value predicts neither the next one in time nor that of the next seed.
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.01
    # A function of (seed, step): any step can be computed directly, however far away.
    assert observation_noise(keys[[7, 7]], np.array([150, 10**9])).tolist() == [noise[7, 150], plain_noise(7, 10**9)]


@pytest.mark.parametrize("length", [1, 28, 88, 300])
def test_expert_solves_every_maze(length):
    mazes = TMazeVectorEnv(100, length, hint_steps=1)
    observations, _ = mazes.reset(seed=EVALUATION_SEEDS)
    hints = observations[:, 1].copy()
    for _ in range(length + 1):
        observations, rewards, terminated, truncated, _ = mazes.step(expert_actions(observations, hints))
    assert rewards.sum() == 100 and terminated.all() and not truncated.any()


def test_without_memory_success_is_a_coin_flip():
    mazes = TMazeVectorEnv(2000, 10)
    observations, info = mazes.reset(seed=0)
    guesses = np.random.default_rng(0).choice([-1, 1], size=2000)
    for _ in range(11):
        observations, rewards, *_ = mazes.step(expert_actions(observations, guesses))
    assert 0.46 < rewards.mean() < 0.54
    assert 0.46 < (info["goal"] == 1).mean() < 0.54


def test_partial_reset_leaves_the_other_rows():
    mazes = TMazeVectorEnv(3, 2, max_steps=9)
    mazes.reset(seed=10)
    for _ in range(2):
        before = mazes.step(np.full(3, RIGHT))
    mask = np.array([False, True, False])
    observations, info = mazes.reset(seed=[0, 77, 0], options={"reset_mask": mask})
    assert before[0][:, 2].tolist() == [1, 1, 1]  # at the junction; no later observation repeats it
    np.testing.assert_array_equal(observations[~mask], before[0][~mask])
    assert info["x"].tolist() == [2, 0, 2]
    fresh, _ = TMazeEnv(2).reset(seed=77)
    np.testing.assert_array_equal(observations[1], fresh)
    after, *_ = mazes.step(np.full(3, RIGHT))
    assert after[:, 3].tolist() == [plain_noise(10, 3), plain_noise(77, 1), plain_noise(12, 3)]


def test_returned_arrays_belong_to_the_caller():
    mazes = TMazeVectorEnv(5, 3)
    results = [mazes.reset(seed=0)[0], *mazes.step(np.zeros(5, int))[:4]]
    copies = [result.copy() for result in results]
    for _ in range(4):
        last = mazes.step(np.full(5, RIGHT))
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)
    frozen = [values.copy() for values in last[:4]]
    for values in (*last[:4], *last[4].values()):
        values[:] = 0
    for values, expected in zip(mazes.step(np.full(5, RIGHT)), frozen, strict=False):
        np.testing.assert_array_equal(values, expected)


def test_seeding():
    env = TMazeEnv(5)
    first, second = (env.reset(seed=3)[0], [env.reset()[0].tolist() for _ in range(5)])
    assert env.reset(seed=3)[0].tolist() == first.tolist()
    assert [env.reset()[0].tolist() for _ in range(5)] == second and len(set(map(tuple, second))) > 1
    for goal in (-1, 1):
        assert env.reset(seed=3, options={"goal": goal})[0][1] == goal
    mazes = TMazeVectorEnv(4, 5)
    assert mazes.reset(seed=3)[0].tolist() == mazes.reset(seed=[3, 4, 5, 6])[0].tolist()
    assert mazes.reset(seed=3, options={"goal": [1, -1, 1, -1]})[1]["goal"].tolist() == [1, -1, 1, -1]


def test_gymnasium_accepts_both():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for render_mode in ("ansi", "rgb_array"):
            check_env(gymnasium.make("TMaze-v0", corridor_length=9, render_mode=render_mode).unwrapped)
        mazes = gymnasium.make_vec("TMaze-v0", num_envs=3, corridor_length=9, hint_steps=2)
    assert isinstance(mazes.unwrapped, TMazeVectorEnv) and mazes.unwrapped.hint_steps == 2
    observations, _ = mazes.reset(seed=0)
    assert mazes.observation_space.contains(observations)
    assert mazes.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.DISABLED


def test_horizon():
    assert TMazeEnv(88).horizons == (89,) and TMazeEnv(88, hint_steps=3).horizons == (87,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corridor_length": 0}, "corridor_length is 0"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"hint_steps": 0}, "hint_steps is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        TMazeEnv(**arguments)


@pytest.mark.parametrize("actions", [np.array([0, 4]), np.array([0, -1]), np.array([0.0, 1.0]), np.array([0])])
def test_bad_actions_are_refused(actions):
    mazes = TMazeVectorEnv(2, 5)
    mazes.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        mazes.step(actions)


@pytest.mark.parametrize("options", [{"reset_mask": np.array([1, 0])}, {"reset_mask": np.array([True])}, {"goal": 0}])
def test_bad_resets_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        TMazeVectorEnv(2, 5).reset(seed=0, options=options)
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        TMazeVectorEnv(2, 5).reset(seed=[1, 2, 3])


def test_text_picture():
    env = TMazeEnv(5, render_mode="ansi")
    env.reset(seed=1)  # up
    assert env.render() == "     *\nA.....\n     x\nstep 0, x 0 of 5, hint up"
    for _ in range(5):
        env.step(RIGHT)
    assert env.render().splitlines()[1] == "S....A"
    env.step(DOWN)
    assert env.render() == "     *\nS.....\n     A\nstep 6, x 5 of 5, hint none"


@pytest.mark.parametrize("length", [61, 62, 75, 1000])
def test_long_corridor_is_abbreviated_in_order(length):
    for x in range(length + 1):
        columns = visible_columns(length + 1, length + 1, x)
        cells = columns[columns != GAP]
        assert len(columns) == 61 and len(cells) == 59 and x in cells
        assert (np.diff(cells) > 0).all() and cells[0] == 0 and cells[-1] == length


@pytest.mark.parametrize("length", [1, 60, 61, 1000])
def test_frames_show_the_agent_and_have_equal_size(length):
    text, image = TMazeEnv(length, render_mode="ansi"), TMazeEnv(length, render_mode="rgb_array")
    shapes, agents = set(), []
    for env in (text, image):
        env.reset(seed=0)
    for step in range(length + 1):
        agents.append(text.render().count("A"))
        frame = image.render()
        shapes.add((frame.shape, frame.dtype))
        agents.append(set(np.nonzero((frame == AGENT).all(axis=-1))[0] // CELL) == {2})
        action = RIGHT if step < length else UP
        text.step(action), image.step(action)
    assert all(agents) and len(shapes) == 1
    assert set(np.nonzero((image.render() == AGENT).all(axis=-1))[0] // CELL) == {1}  # went up
    assert max(map(len, text.render().splitlines()[:3])) == min(length + 1, 61)
