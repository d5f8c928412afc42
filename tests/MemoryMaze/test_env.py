"""One maze and many: the package's own pictures and rewards, seeds, ends, views, and errors."""

import contextlib
import gc
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from MemoryMaze.MemoryMaze_src import graphics
from MemoryMaze.MemoryMaze_src.env import (
    EPISODE_STEPS,
    FORWARD,
    LEFT,
    MIRRORED,
    NUM_ACTIONS,
    MemoryMazeEnv,
    MemoryMazeVectorEnv,
    env_id,
)
from MemoryMaze.MemoryMaze_src.experts import Planner
from RATE_model.errors import UserError
from RATE_model.system import offscreen

TURNS = (1, 4, 2, 1, 5, 3, 0, 1)
drawn = pytest.mark.usefixtures("tasks")


@pytest.fixture
def maze():
    """Makes mazes, with the arguments of `MemoryMazeEnv`, and closes them after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(contextlib.closing(MemoryMazeEnv(*given, **options)))


@pytest.fixture
def mazes():
    """The same for `MemoryMazeVectorEnv`."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(contextlib.closing(MemoryMazeVectorEnv(*given, **options)))


def play(env, seed, actions=TURNS):
    """All pictures, rewards and ends of an episode."""
    steps = [(env.reset(seed=seed)[0].tobytes(), 0.0, False)]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not terminated
        steps.append((observation.tobytes(), reward, truncated))
    return steps


def test_pictures_rewards_and_state_equal_the_package(tasks, maze):
    """With seed 0, the planner touches its second ball within 70 steps, and walls on the way."""
    stock = tasks.memory_maze_9x9(seed=0, global_observables=True)
    ours, planner, total = maze(9, privileged=True), Planner(np.random.default_rng(0)), 0.0
    observation, info = ours.reset(seed=0)
    expected = stock.reset().observation
    for _ in range(70):
        np.testing.assert_array_equal(observation, expected["image"].transpose(2, 0, 1))
        for name in ("maze_layout", "agent_pos", "agent_dir", "targets_pos"):
            np.testing.assert_array_equal(info[name], expected[name])
        np.testing.assert_array_equal(info["targets_pos"][info["target_index"]], expected["target_pos"])
        action = planner.act(info)
        observation, reward, _, _, info = ours.step(action)
        step = stock.step(action)
        assert reward == step.reward
        total, expected = total + reward, step.observation
    assert total == 2


@drawn
@pytest.mark.parametrize(("size", "targets"), [(11, 4), (15, 6)])
def test_larger_mazes_are_drawn_and_walked_in(maze, size, targets):
    env = maze(size, privileged=True)
    observation, info = env.reset(seed=0)
    assert info["maze_layout"].shape == (size, size) and info["targets_pos"].shape == (targets, 2)
    assert env.observation_space.contains(observation) and (env.step(LEFT)[0] != observation).mean() > 0.1


@drawn
def test_episode_is_determined_by_its_seed(maze):
    one, other = maze(), maze()
    first = play(one, 3)
    assert play(other, 4) != first
    assert play(one, 4) == play(other, 4)
    assert play(other, 3) == first
    one.reset(seed=7)
    drawn_seeds = [one.reset()[0] for _ in range(2)]
    other.reset(seed=7)
    np.testing.assert_array_equal([other.reset()[0] for _ in range(2)], drawn_seeds)
    assert (drawn_seeds[0] != drawn_seeds[1]).any()


@drawn
def test_deleted_maze_leaves_textures_of_others(maze):
    one = maze()
    expected = play(one, 3)
    forgotten = MemoryMazeEnv()
    forgotten.reset(seed=5)
    del forgotten
    gc.collect()
    assert play(one, 3) == expected and play(maze(), 3) == expected


@drawn
def test_mazes_render_beside_other_renderers(tasks, maze):
    """Such as Gymnasium's MuJoCo, whose OpenGL context replaces ours in this thread and is then destroyed."""
    from mujoco import GLContext

    env = maze()
    expected = env.reset(seed=3)[0].copy()
    other = GLContext(64, 64)
    other.make_current()
    np.testing.assert_array_equal(env.reset(seed=3)[0], expected)
    other.make_current()
    other.free()
    np.testing.assert_array_equal(env.reset(seed=3)[0], expected)


def test_finished_episode_does_not_change(maze):
    env = maze(max_steps=3)
    assert [truncated for *_, truncated in play(env, 0, TURNS[:3])] == [False, False, False, True]
    last = env.step(FORWARD)
    assert last[1:] == (0.0, False, True, {})
    np.testing.assert_array_equal(env.step(FORWARD)[0], last[0])
    assert env.observation_space.contains(last[0]) and last[0].flags["C_CONTIGUOUS"]
    observation, info = env.reset(seed=0)
    assert info == {} and (observation != last[0]).any()
    for action in (-1, 6):
        with pytest.raises(ValueError, match="between 0 and 5"):
            env.step(action)
    for seed in (2**32, -1):
        with pytest.raises(ValueError, match=f"between 0 and 2\\*\\*32 - 1, got {seed}"):
            env.reset(seed=seed)


@drawn
def test_views_for_people(maze):
    assert maze().render() is None
    env, plain = maze(render_mode="rgb_array"), maze()
    assert env.render().shape == (256, 256, 3)
    np.testing.assert_array_equal(env.reset(seed=1)[0], plain.reset(seed=1)[0])  # a larger buffer, the same picture
    agent, top = env.render(), env.render("top")
    assert agent.shape == top.shape == (256, 256, 3) and (agent != top).mean() > 0.5
    # The agent's view is its observation, four times as large; all sides of the border show the target.
    observation = env.step(FORWARD)[0].transpose(1, 2, 0)
    small = env.render().reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - observation).mean() < 6
    for picture in (agent, top):
        np.testing.assert_array_equal(picture[:8, 100], np.broadcast_to(observation[0, 0], (8, 3)))
    with pytest.raises(ValueError, match="agent, top"):
        env.render("side")


@drawn
def test_render_mode_is_set_at_creation(maze, mazes):
    """`gymnasium.make` wraps it, and the wrappers' `render` takes no argument."""
    with contextlib.closing(gymnasium.make("MemoryMaze-9x9-v0", render_mode="rgb_array", view="top")) as env:
        env.reset(seed=1)
        plain, many = maze(render_mode="rgb_array"), mazes(1, workers=0, render_mode="rgb_array", view="top")
        plain.reset(seed=1), many.reset(seed=1)
        np.testing.assert_array_equal(env.render(), plain.render("top"))
        np.testing.assert_array_equal(many.render()[0], plain.render("top"))


def test_registered_names_and_limits():
    for size, steps in EPISODE_STEPS.items():
        env = gymnasium.make(env_id(size), disable_env_checker=True)
        assert env.unwrapped.size == size and env.unwrapped.max_steps == steps
    many = gymnasium.make_vec("MemoryMaze-11x11-v0", num_envs=2, vectorization_mode="vector_entry_point")
    assert many.unwrapped.max_steps.tolist() == [2000, 2000] and many.observation_space.shape == (2, 3, 64, 64)
    assert MemoryMazeVectorEnv(2, [9, 15]).max_steps.tolist() == [EPISODE_STEPS[9], EPISODE_STEPS[15]]


@pytest.mark.parametrize("kind", [MemoryMazeEnv, lambda *given, **options: MemoryMazeVectorEnv(2, *given, **options)])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 10}, "--size 10: Memory Maze has the sizes 9, 11, 13, 15"),
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"render_mode": "human"}, "'human'; it must be 'rgb_array'"),
        ({"view": "side"}, "view is 'side'; it must be 'agent' or 'top'"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(UserError, match=message):
        kind(**arguments)


@drawn
def test_vector_equals_single_mazes(maze, mazes):
    here, there = (mazes(3, max_steps=6, workers=workers, privileged=True) for workers in (1, 2))
    assert here.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    single, seeds = maze(max_steps=6, privileged=True), [5, 2, 9]
    starts = [many.reset(seed=seeds) for many in (here, there)]
    expected, expected_info = single.reset(seed=2)
    for number, action in enumerate((*TURNS, 1)):
        for observations, *_, info in starts:
            np.testing.assert_array_equal(observations[1], expected)
            assert {name: values[1].tolist() for name, values in info.items()} == {
                name: np.asarray(values).tolist() for name, values in expected_info.items()
            }
        starts = [many.step(np.array([3, action, 2])) for many in (here, there)]
        expected, reward, _, truncated, expected_info = single.step(action)
        for many in starts:
            assert many[1][1] == reward and not many[2].any() and many[3].tolist() == [truncated] * 3
        np.testing.assert_array_equal(starts[0][0], starts[1][0])
        assert truncated == (number >= 5)
    before, _, _, _, _ = starts[1]
    mask = {"reset_mask": np.array([False, False, True])}
    for many in (here, there):
        observations, _ = many.reset(seed=[0, 0, 2], options=mask)
        np.testing.assert_array_equal(observations[:2], before[:2])
        np.testing.assert_array_equal(observations[2], single.reset(seed=2)[0])
        *_, truncated, _ = many.step(np.array([1, 1, 1]))
        assert truncated.tolist() == [True, True, False]
    with pytest.raises(ValueError, match="2 seeds for 3"):
        here.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=f"between 0 and {2**32 - 1}"):
        here.reset(seed=[1, 2, -1])
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        here.reset(seed=-1)


@drawn
def test_dead_process_is_reported_and_none_is_left(mazes):
    psutil = pytest.importorskip("psutil")
    many = mazes(2, workers=2)
    many.reset(seed=0)
    started = [group._process.pid for group in many._groups]
    psutil.Process(started[1]).kill()
    with pytest.raises(UserError, match="a worker process was killed"):
        many.step(np.array([1, 1]))
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert many.reset(seed=0)[0].any()  # new ones


@pytest.fixture
def fresh(monkeypatch):
    """`maze_tasks` as in a new process, without a setting by the user."""
    monkeypatch.setenv("MUJOCO_GL", "")  # as if unset; restored afterwards, also if the code sets it
    return graphics.maze_tasks.__wrapped__


@pytest.mark.parametrize("missing", ["memory_maze", "mujoco", "dm_control"])
def test_a_missing_package_is_named(fresh, monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=r"needs the package memory.maze|needs the package " + missing) as caught:
        fresh()
    assert "pip install -c constraints.txt -e '.[memory-maze]'" in str(caught.value)


@drawn
@pytest.mark.parametrize(
    ("chosen", "egl", "osmesa", "expected"),
    [
        (None, True, False, "egl"),
        (None, False, True, "osmesa"),
        (None, False, False, "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 .* libosmesa6"),
        ("osmesa", True, False, "osmesa"),
        ("disable", True, True, "MUJOCO_GL=disable disables rendering"),
        ("egl", False, False, "MUJOCO_GL=egl does not work here .*apt-get install"),
    ],
)
def test_the_graphics_library_is_chosen(fresh, monkeypatch, chosen, egl, osmesa, expected):
    monkeypatch.setattr(offscreen, "egl_works", lambda: egl)
    monkeypatch.setattr(offscreen, "osmesa_works", lambda: osmesa)
    if chosen:
        monkeypatch.setenv("MUJOCO_GL", chosen)
    if expected in ("egl", "osmesa"):
        fresh()
        assert graphics.os.environ["MUJOCO_GL"] == expected
        return

    def broken(name):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(graphics.importlib, "import_module", broken)
    with pytest.raises(UserError, match=expected):
        fresh()


@drawn
def test_missing_display_is_reported():
    """In a separate process, because dm_control decides on import."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("DISPLAY")}
    code, root = "from MemoryMaze.MemoryMaze_src.graphics import maze_tasks; maze_tasks()", Path(__file__).parents[2]
    environment |= {"MUJOCO_GL": "glfw", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert "UserError: Memory Maze cannot draw: MUJOCO_GL=glfw does not work here" in done.stderr
    assert "needs a display" in done.stderr and "apt-get install libegl1" in done.stderr


@drawn
def test_mujoco_4_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(graphics.importlib.metadata, "version", lambda name: "4.0.1")
    with pytest.raises(UserError, match="needs mujoco 3.17.0, and 4.0.1 is installed"):
        fresh()


@drawn
def test_the_old_gym_is_not_imported(maze):
    maze().reset(seed=0)
    assert "gym" not in sys.modules


def test_mirrored_actions_swap_turns_only(tasks, maze):
    env, directions, ways = maze(privileged=True), [], []
    for action in range(NUM_ACTIONS):
        _, before = env.reset(seed=0)
        *_, after = env.step(action)
        (x, y), (new_x, new_y) = before["agent_dir"], after["agent_dir"]
        directions.append(np.arctan2(x * new_y - y * new_x, x * new_x + y * new_y))
        ways.append(np.linalg.norm(after["agent_pos"] - before["agent_pos"]))
    mirrored = list(MIRRORED)
    np.testing.assert_allclose(np.array(directions)[mirrored], -np.array(directions), atol=1e-3)
    np.testing.assert_allclose(np.array(ways)[mirrored], ways, atol=1e-2)
    assert np.ptp(directions) > 0.4 and np.ptp(ways) > 0.05
