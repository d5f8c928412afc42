"""The tasks that distinguish memories: rules against a plain implementation, twins, horizons, experts, Gymnasium."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from benchmarks import tmaze_tasks
from RATE_model.errors import UserError
from TMaze_new.TMaze_new_src.env import DOWN, LEFT, RIGHT, UP
from TMaze_new.TMaze_new_src.tasks import (
    TASKS,
    ChainEnv,
    MultiCueVectorEnv,
    RecallVectorEnv,
    environment_id,
    first_turns,
)

ALL = pytest.mark.parametrize("task", TASKS)
HINT, FLAG, COLOUR, NAMES = 0, 1, 3, slice(3, None)


def told(task, observations, actions, junction):
    """The side given by the observations up to a junction and the actions before it, which an agent can know."""
    at = np.flatnonzero(observations[:, FLAG])[junction]
    seen = observations[:at]
    if task == "multi-cue":
        return seen[(seen[:, NAMES] == observations[at, NAMES]).all(1) & (seen[:, FLAG] == 0), HINT]
    if task == "endless":
        return seen[seen[:, HINT] != 0, HINT][-1:]
    if task == "distracted":
        return seen[seen[:, COLOUR] == 1, HINT]
    return np.array([1 if actions[0] == UP else -1])


@ALL
def test_hints_determine_every_turn(task):
    chains = TASKS[task](64, np.repeat([9, 14], 32))
    chains.reset(seed=np.arange(64), options={"flip": np.arange(64) % 2 == 1})
    observations, actions, rewards, terminated = chains.play_expert()
    assert terminated.all() and chains.outcomes.all()
    assert np.allclose(rewards.sum(1) + chains.step_cost * chains.steps_needed, chains.rewards[0] * chains.counted)
    for row in range(64):
        flags = np.flatnonzero(observations[row, :, FLAG])[-chains.counted :]
        for junction in range(chains.counted):
            side = told(task, observations[row], actions[row], junction + chains.junctions - chains.counted)
            assert side.tolist() == [1 if actions[row, flags[junction]] == UP else -1]
    assert set(np.unique(actions)) == {RIGHT, UP, DOWN}


@ALL
def test_wrong_turns_are_wrong_and_bits_are_fair(task):
    chains = TASKS[task](2000, 9)
    options = {"flip": np.arange(2000) % 2 == 1}
    chains.reset(seed=0, options=options)
    _, right, rewards, _ = chains.play_expert()
    chains.reset(seed=0, options=options)
    _, _, failed, _ = chains.play_expert(wrong=np.arange(2000) % 4 > 1)
    assert chains.outcomes.all(1).tolist() == [True, True, False, False] * 500
    assert np.all(failed.sum(1)[2::4] < rewards.sum(1)[2::4])
    assert np.mean(right[:, -1] == UP) == pytest.approx(0.5, abs=0.05)


@ALL
def test_twins_differ_only_in_sides(task):
    flip = np.tile([False, True], 50)
    chains = TASKS[task](100, 9)
    chains.reset(seed=np.repeat(np.arange(50), 2), options={"flip": flip})
    observations, actions, _, _ = chains.play_expert()
    first, twin = observations[0::2], observations[1::2].copy()
    if task != "recall":
        own = twin[..., COLOUR] == 1 if task == "distracted" else np.ones(twin.shape[:2], dtype=bool)
        twin[..., HINT] = np.where(own, -twin[..., HINT], twin[..., HINT])
    np.testing.assert_array_equal(first, twin)
    turns = actions != RIGHT
    assert np.array_equal(turns[0::2], turns[1::2]) and np.all(actions[0::2][turns[0::2]] != actions[1::2][turns[1::2]])


@ALL
@pytest.mark.parametrize("side", [UP, DOWN])
def test_a_fixed_choice_is_right_half_of_the_time(task, side):
    chains = TASKS[task](100, 9)
    observations, _ = chains.reset(seed=np.repeat(np.arange(50), 2), options={"flip": np.arange(100) % 2 == 1})
    forced = first_turns(100) if task == "recall" else None
    for step in range(int(chains.max_steps.max())):
        actions = np.where(observations[:, FLAG] == 1, side, RIGHT)
        observations, *_ = chains.step(forced if step == 0 and forced is not None else actions)
    assert chains.outcomes.mean() == 0.5


@ALL
def test_horizons_are_those_of_an_episode(task):
    """Measured steps from the informative observation or action to the turn."""
    chains = TASKS[task](300, 9)
    chains.reset(seed=0)
    observations, _, _, _ = chains.play_expert()
    measured = set()
    for row in observations:
        hints = np.flatnonzero(row[:, HINT])
        for turn in np.flatnonzero(row[:, FLAG])[-chains.counted :]:
            if task == "multi-cue":
                hints = np.flatnonzero((row[:, NAMES] == row[turn, NAMES]).all(1) & (row[:, FLAG] == 0))
            elif task == "distracted":
                hints = np.flatnonzero(row[:, COLOUR] == 1)
            measured.add(int(turn - (0 if task == "recall" else hints[hints < turn][-1]) + 1))
    assert tuple(sorted(measured)) == chains.horizons


@ALL
def test_left_walls_timeouts_and_frozen_ends(task):
    chains = TASKS[task](2, 9)
    observations, _ = chains.reset(seed=[3, 3])
    if task == "recall":
        observations, *_ = chains.step(first_turns(2))
    steps = int(chains.max_steps[0]) - (task == "recall")
    for _ in range(steps):
        assert not chains.step(np.array([LEFT, LEFT]))[2].any()
    truncated = chains.step(np.array([RIGHT, RIGHT]))[3]
    assert truncated.all() and not chains.outcomes.any()
    before = chains.step(np.array([RIGHT, RIGHT]))
    after = chains.step(np.array([UP, LEFT]))
    np.testing.assert_array_equal(before[0], after[0])
    assert not after[1].any()


def test_hint_is_not_repeated_on_the_way_back():
    chains = TASKS["endless"](1, 9)
    chains.reset(seed=0)
    chains.step(np.array([RIGHT]))
    observation, *_ = chains.step(np.array([LEFT]))
    assert observation[0, HINT] == 0


def test_bits_in_order_need_no_names():
    chains = MultiCueVectorEnv(32, 12, junctions=6, by_name=False)
    chains.reset(seed=0)
    observations, actions, _, _ = chains.play_expert()
    assert observations.shape[-1] == 3 and chains.outcomes.all() and chains.horizons == (13,)
    np.testing.assert_array_equal(observations[:, :6, HINT], np.where(actions[:, -6:] == UP, 1, -1))


def test_any_first_turn_sets_the_answer_of_recall():
    chains = RecallVectorEnv(2, 4)
    chains.reset(seed=[0, 0])
    chains.step(np.array([UP, DOWN]))
    for _ in range(4):
        chains.step(np.array([RIGHT, RIGHT]))
    assert chains.step(np.array([UP, DOWN]))[1].tolist() == [1, 1]


@ALL
def test_rows_and_single_environment_agree(task):
    rng, chains = np.random.default_rng(0), TASKS[task](8, 9)
    observations, _ = chains.reset(seed=np.arange(8))
    singles = [gymnasium.make(environment_id(task), corridor_length=9).unwrapped for _ in range(8)]
    for row, single in enumerate(singles):
        np.testing.assert_array_equal(single.reset(seed=row)[0], observations[row])
    ended = np.zeros(8, dtype=bool)
    for _ in range(80):
        actions = rng.choice([RIGHT, UP, LEFT, DOWN], size=8, p=[0.6, 0.15, 0.1, 0.15])
        observations, rewards, terminated, truncated, info = chains.step(actions)
        for row in np.flatnonzero(~ended):
            observation, *rest, own = singles[row].step(int(actions[row]))
            np.testing.assert_array_equal(observation, observations[row])
            assert rest == [rewards[row], terminated[row], truncated[row]]
            assert own == {name: values[row] for name, values in info.items()}
        ended |= terminated | truncated
    assert ended.all() and singles[0].horizons == chains.horizons


@ALL
def test_gymnasium_accepts_it(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(environment_id(task), corridor_length=9, render_mode="rgb_array")
        check_env(env.unwrapped, skip_render_check=True)
        env.reset(seed=0)
        pictures = [env.render(), *(env.step(action) and env.render() for action in (UP, RIGHT))]
        assert [picture.shape for picture in pictures] == [(60, 144, 3)] * 3
        text = gymnasium.make(environment_id(task), corridor_length=9, render_mode="ansi")
        text.reset(seed=0)
        assert "A" in text.render() and "step 0" in text.render()
    vector = gymnasium.make_vec(environment_id(task), num_envs=3, vectorization_mode="vector_entry_point")
    assert vector.reset(seed=0)[0].shape == (3, vector.single_observation_space.shape[0])


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="corridor_length is 3; it must be at least 4"):
        MultiCueVectorEnv(1, 3)
    with pytest.raises(UserError, match="junctions is 0"):
        TASKS["endless"](1, 9, junctions=0)
    with pytest.raises(UserError, match="render_mode is 'human'"):
        ChainEnv("recall", render_mode="human")


def test_the_benchmark_runs(tmp_path, capsys):
    tmaze_tasks.main(["--mazes", "2", "--rounds", "1", "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result["steps_per_second"]) == {"passive", *TASKS} and "| endless" in capsys.readouterr().out
