"""Minigrid-Memory: rules and pictures against Minigrid itself, many mazes against one, limits and pictures."""

import hashlib
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("minigrid")

from minigrid.envs.memory import MemoryEnv

from MinigridMemory.MinigridMemory_src.env import (
    FORWARD,
    LEFT,
    PUBLISHED_CAP,
    RIGHT,
    MinigridMemoryEnv,
    MinigridMemoryVectorEnv,
    expert_cap,
    frames_of_views,
)
from RATE_model.errors import UserError
from RATE_model.plots.corridors import BEYOND, GAP, visible_columns

RECORDED = Path(__file__).parents[1] / "data" / "minigrid_layouts.npz"  # see tools/record_minigrid_layouts.py


def busy_actions(rng, count):
    """Random actions, mostly forward, so that the whole maze is visited."""
    return rng.choice([LEFT, RIGHT, FORWARD], size=count, p=[0.15, 0.15, 0.7])


def plain_maze(size, random_length, max_steps=845):
    """The published environment: Minigrid's, with its own time limit and rewards."""
    return MemoryEnv(size=size, random_length=random_length, max_steps=max_steps, agent_view_size=3)


def plain_frame(maze):
    return maze.get_frame(tile_size=28, agent_pov=True).transpose(2, 0, 1)


def walk_to_an_arm(env, maze, *, right_one):
    """Drive from the start into the right or wrong arm; returns the last step and the number of steps."""
    north = (maze.success_pos[1] < maze.height // 2) == right_one
    ahead = int(maze.success_pos[0] - maze.agent_pos[0])
    for action in [FORWARD] * ahead + [LEFT if north else RIGHT, FORWARD]:
        last = env.step(action)
    return last, ahead + 2


@pytest.mark.parametrize(("size", "random_length"), [(7, True), (7, False), (13, True), (31, True), (31, False)])
def test_random_walks_match_minigrid(size, random_length):
    """Equal frames, rewards and ends. Minigrid draws the frames, this environment looks them up."""
    rng = np.random.default_rng(size)
    env, plain = MinigridMemoryEnv(size, random_length=random_length, max_steps=845), plain_maze(size, random_length)
    ends = set()
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        plain.reset(seed=seed)
        np.testing.assert_array_equal(observation, plain_frame(plain))
        assert observation.dtype == np.uint8 and observation.shape == (3, 84, 84) and info == {"success": False}
        assert env.cue == plain.grid.get(1, size // 2 - 1).type
        for action in busy_actions(rng, 120):
            observation, reward, terminated, truncated, info = env.step(action)
            encoded, plain_reward, *plain_ends, _ = plain.step(action)
            np.testing.assert_array_equal(observation, plain_frame(plain))
            np.testing.assert_array_equal(env.view, encoded["image"])
            assert reward == plain_reward and [terminated, truncated] == plain_ends
            if terminated:
                ends.add(info["success"])
                assert info["success"] == (reward > 0)
                break
    assert ends == {True, False} or size > 13


def test_rewards_and_ends():
    """Right arm, wrong arm, time limit; the reward of a success at step 845 and beyond."""
    for seed in range(8):
        for right_one in (True, False):
            env = MinigridMemoryEnv(13)
            env.reset(seed=seed)
            (_, reward, terminated, truncated, info), steps = walk_to_an_arm(env, env._maze, right_one=right_one)
            assert terminated and not truncated and info == {"success": right_one}
            assert reward == (1 - 0.9 * steps / 845 if right_one else 0.0)
            assert env.step(FORWARD)[1:] == (0.0, True, False, {"success": right_one})  # frozen
    for wait, expected in ((844, 0.1), (2000, 0.1), (700, None)):
        env = MinigridMemoryEnv(9, max_steps=5000)
        env.reset(seed=0)
        for _ in range(wait // 4 * 4):
            env.step(LEFT)
        (_, reward, *_), steps = walk_to_an_arm(env, env._maze, right_one=True)
        late = wait // 4 * 4 + steps
        assert reward == (1 - 0.9 * late / 845 if expected is None else expected)
    env = MinigridMemoryEnv(13, max_steps=5)
    env.reset(seed=0)
    steps = [env.step(LEFT) for _ in range(6)]
    assert [step[3] for step in steps] == [False] * 4 + [True] * 2 and not any(step[2] for step in steps)
    assert steps[3][4] == {"success": False} and steps[4][4] == {"success": False} and steps[5][1] == 0.0
    assert env.reset(seed=0)[1] == {"success": False} and not env.step(FORWARD)[3]


def test_the_last_permitted_step_can_succeed():
    env = MinigridMemoryEnv(13)
    env.reset(seed=1)
    _, steps = walk_to_an_arm(env, env._maze, right_one=True)
    for limit, success in ((steps, True), (steps - 1, False)):
        env = MinigridMemoryEnv(13, max_steps=limit)
        env.reset(seed=1)
        (_, _, terminated, truncated, info), _ = walk_to_an_arm(env, env._maze, right_one=True)
        assert (terminated, truncated, info["success"]) == (success, not success, success)


def test_many_mazes_are_single_mazes():
    """Mixed sizes, corridors and limits; finished mazes ignore actions."""
    sizes, limits = np.tile([7, 9, 13, 21], 4), np.repeat([10, 60, 96, 40], 4)
    drawn = np.arange(16) % 3 > 0
    mazes = MinigridMemoryVectorEnv(16, sizes, random_length=drawn, max_steps=limits)
    rng, seeds = np.random.default_rng(0), np.arange(100, 116)
    actions = busy_actions(rng, (100, 16))
    observations, infos = mazes.reset(seed=seeds)
    singles = [
        MinigridMemoryEnv(int(size), random_length=bool(random), max_steps=int(limit))
        for size, random, limit in zip(sizes, drawn, limits, strict=True)
    ]
    for row, env in enumerate(singles):
        np.testing.assert_array_equal(env.reset(seed=int(seeds[row]))[0], observations[row])
    assert infos["success"].dtype == bool and not infos["success"].any()
    for step in range(100):
        observations, rewards, terminated, truncated, infos = mazes.step(actions[step])
        for row, env in enumerate(singles):
            expected = env.step(int(actions[step, row]))
            np.testing.assert_array_equal(observations[row], expected[0])
            assert (rewards[row], terminated[row], truncated[row]) == expected[1:4]
            assert infos["success"][row] == env.success
    assert (terminated | truncated).all() and infos["success"].any() and truncated.any()
    kinds = [(env.cue, env.arm) for env in mazes.environments]
    assert kinds == [(env.cue, env.arm) for env in singles]
    assert [set(kind) for kind in zip(*kinds, strict=True)] == [{"key", "ball"}, {"north", "south"}]
    with pytest.raises(ValueError, match="integers"):
        mazes.step(np.zeros(16))
    with pytest.raises(ValueError, match="0 and 2"):
        mazes.step(np.full(16, 3))


def test_resetting_some_mazes_leaves_the_others():
    mazes = MinigridMemoryVectorEnv(3, 13, max_steps=4)
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        mazes.reset(seed=[1, 2])
    mazes.reset(seed=5)
    for _ in range(4):
        before = mazes.step(np.full(3, FORWARD))
    assert before[3].all()
    mask = np.array([False, True, False])
    after, _ = mazes.reset(seed=[9, 9, 9], options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[0][~mask])
    np.testing.assert_array_equal(after[1], MinigridMemoryEnv(13).reset(seed=9)[0])
    assert mazes.step(np.zeros(3, dtype=int))[3].tolist() == [True, False, True]


def test_new_episode_does_not_depend_on_the_last():
    mazes = MinigridMemoryVectorEnv(1, 13)
    mazes.reset(seed=[2])
    (*_, terminated, truncated, infos), _ = walk_to_an_arm(_OneMaze(mazes), mazes.environments[0]._maze, right_one=True)
    assert terminated.all() and not truncated.any() and infos["success"].all()
    assert not mazes.reset(seed=[2])[1]["success"].any()
    _, _, terminated, truncated, infos = mazes.step(np.array([LEFT]))
    assert not (terminated | truncated | infos["success"]).any()


class _OneMaze:
    """A vector environment of one row that takes single actions."""

    def __init__(self, mazes):
        self.mazes = mazes

    def step(self, action):
        return self.mazes.step(np.array([action]))


def test_episode_is_determined_by_its_seed():
    env = MinigridMemoryEnv(31)
    first, again = env.reset(seed=3)[0], None
    layout = env._maze.grid.encode()
    for seed in (4, 3):
        again, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(layout, env._maze.grid.encode())
    plain = plain_maze(31, True)
    plain.reset(seed=3)
    np.testing.assert_array_equal(layout, plain.grid.encode())
    drawn = {tuple(int(v) for v in env._maze.success_pos) for _ in range(20) if env.reset() is not None}
    assert len(drawn) > 5  # without a seed, a different maze each time
    layouts = MinigridMemoryVectorEnv(100, 13)
    layouts.reset(seed=np.arange(100))
    assert 30 < sum(maze.cue == "key" for maze in layouts.environments) < 70


def test_published_layouts_are_those_of_gym_minigrid():
    """Six kinds of mazes, 100 seeds each: positions, every cell, and the first observation."""
    with np.load(RECORDED) as recorded:
        cases = [recorded[name] for name in ("sizes", "random_length", "layouts", "grids", "views")]
    for size, random_length, layouts, grids, views in zip(*cases, strict=True):
        size = int(size)
        env = MinigridMemoryEnv(size, random_length=bool(random_length), layouts="published")
        found, cells, seen = [], hashlib.sha256(), hashlib.sha256()
        for seed in range(100):
            seen.update(env.reset(seed=seed)[0].tobytes())
            maze = env._maze
            cells.update(maze.grid.encode().tobytes())
            end, north = maze.success_pos[0] - 1, (env.arm == "north") == (env.cue == "ball")
            found.append((end, maze.agent_pos[0], env.cue == "ball", north))
        np.testing.assert_array_equal(found, layouts)
        assert (cells.hexdigest(), seen.hexdigest()) == (str(grids), str(views)), (size, random_length)


def test_published_layouts_follow_the_same_rules():
    env, own = MinigridMemoryEnv(31, layouts="published"), MinigridMemoryEnv(31)
    first = env.reset(seed=3)[0]
    layout = env._maze.grid.encode()
    own.reset(seed=3)
    assert (own._maze.grid.encode() != layout).any()
    mazes = MinigridMemoryVectorEnv(2, 31, layouts="published")
    np.testing.assert_array_equal(mazes.reset(seed=[3, 4])[0][0], first)
    np.testing.assert_array_equal(mazes.environments[0]._maze.grid.encode(), layout)
    other = {"key": "ball", "ball": "key"}[env.cue]
    env.reset(seed=3, options={"cue": other})
    assert env.cue == other and np.argwhere((env._maze.grid.encode() != layout).any(-1)).tolist() == [[1, 14]]
    (_, reward, terminated, _, info), _ = walk_to_an_arm(env, env._maze, right_one=True)
    assert terminated and reward > 0 and info == {"success": True}
    with pytest.raises(UserError, match="layouts is 'old'; it must be 'own' or 'published'"):
        MinigridMemoryEnv(31, layouts="old")


def test_observations_belong_to_the_caller():
    """Writing to an observation changes neither the next one nor the cached pictures."""
    env = MinigridMemoryEnv(13)
    observation, _ = env.reset(seed=0)
    kept = observation.copy()
    observation[:] = 7
    np.testing.assert_array_equal(env.reset(seed=0)[0], kept)
    np.testing.assert_array_equal(frames_of_views(env.view), kept)
    assert frames_of_views(np.stack([env.view] * 4).reshape(2, 2, 3, 3, 3)).shape == (2, 2, 3, 84, 84)
    assert frames_of_views(np.empty((0, 3, 3, 3), dtype=np.uint8)).shape == (0, 3, 84, 84)


@pytest.mark.parametrize("size", [5, 6, 0, -7, 12, 40, 2003])
def test_bad_sizes_are_named(size):
    for build in (lambda: MinigridMemoryEnv(size), lambda: MinigridMemoryVectorEnv(2, [13, size])):
        with pytest.raises(UserError, match=f"--size {size}: .* odd and 7 to 2001"):
            build()


def test_other_bad_values_are_named():
    with pytest.raises(UserError, match="max_steps is 0"):
        MinigridMemoryEnv(13, max_steps=0)
    with pytest.raises(UserError, match="render_mode is 'human'"):
        MinigridMemoryEnv(13, render_mode="human")
    env = MinigridMemoryEnv(13)
    env.reset(seed=0)
    for action in (-1, 3, 6):
        with pytest.raises(ValueError, match="between 0 and 2"):
            env.step(action)
    with pytest.raises(ValueError, match="reset_mask"):
        MinigridMemoryVectorEnv(2, 13).reset(seed=0, options={"reset_mask": [1, 0]})


def test_gymnasium_makes_and_accepts_it():
    env = gymnasium.make("MinigridMemory-v0", size=13, random_length=False, max_steps=50, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=False)
    mazes = gymnasium.make_vec("MinigridMemory-v0", num_envs=3, vectorization_mode="vector_entry_point", size=13)
    assert isinstance(mazes.unwrapped, MinigridMemoryVectorEnv)
    assert mazes.reset(seed=0)[0].shape == (3, 3, 84, 84)


def test_without_minigrid_the_extra_is_named():
    code = (
        "import sys; sys.modules['minigrid'] = None\n"
        "from RATE_model.errors import UserError\n"
        "from MinigridMemory.MinigridMemory_src.env import MinigridMemoryEnv\n"
        "try:\n    MinigridMemoryEnv(13)\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -c constraints.txt -e '.[minigrid]'" in done.stdout


def test_limits_and_horizons():
    assert expert_cap(41) == PUBLISHED_CAP == 96
    assert all(expert_cap(size) >= 2 * size - 3 for size in range(7, 503, 2))
    assert MinigridMemoryEnv(21, random_length=False).horizons == (20,)
    assert MinigridMemoryEnv(9).horizons == (6, 7, 8)


@pytest.mark.parametrize(("size", "shape"), [(7, (224, 224)), (31, (224, 992)), (41, (112, 656)), (501, (112, 976))])
def test_pictures_of_the_maze(size, shape):
    env = MinigridMemoryEnv(size, random_length=False, max_steps=10**6, render_mode="rgb_array")
    env.reset(seed=0)
    pictures = []
    for _ in range(size // 4 + 1):
        pictures.append(env.render())
        env.step(FORWARD)
    assert all(picture.shape == (*shape, 3) and picture.dtype == np.uint8 for picture in pictures)
    red = [((picture[..., 0] == 255) & (picture[..., 1] < 120)).any() for picture in pictures]
    assert all(red), "the agent is in every picture"
    assert size < 41 or len({picture.tobytes() for picture in pictures}) > 1
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), pictures[0])
    assert MinigridMemoryEnv(13).render() is None
    if size == 7:  # nothing is left out: Minigrid's own picture
        np.testing.assert_array_equal(pictures[0], plain_of(7).get_frame(tile_size=32))


def plain_of(size):
    maze = plain_maze(size, False)
    maze.reset(seed=0)
    return maze


def test_long_mazes_are_shortened_around_the_agent():
    np.testing.assert_array_equal(visible_columns(13, 8, 3), [*range(8), *[BEYOND] * 5])
    for x in range(1, 480):
        columns = visible_columns(501, 482, x)
        assert len(columns) == 61 and (columns == x).sum() == 1
        assert columns[:6].tolist() == list(range(6)) and columns[-1] == 481 and (columns == GAP).sum() == 2
        assert (np.diff(columns[columns >= 0]) > 0).all()
    assert len(visible_columns(501, 40, 3)) == 61  # a short corridor in a large grid
