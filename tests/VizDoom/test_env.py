"""One game and many: pictures, determinism, ends, engines that die, nothing left over."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("vizdoom")
pytest.importorskip("psutil")

import psutil
import vizdoom

from RATE_model.acting.rollout import BatchActor, rollout
from RATE_model.data.resize import Bilinear
from RATE_model.errors import UserError
from VizDoom.VizDoom_src import launcher
from VizDoom.VizDoom_src.engine import SCREEN
from VizDoom.VizDoom_src.env import FORWARD, LEFT, OBSERVATION_SHAPE, RIGHT_FORWARD, VizDoomTwoColorsVectorEnv
from VizDoom.VizDoom_src.scenario import Scenario

ACTIONS = (1, 2, 0, 1, 3)


def engines():
    """Processes of running engines that this process started."""
    started = psutil.Process().children(recursive=True)
    return [process for process in started if process.name() == "vizdoom" and process.status() != psutil.STATUS_ZOMBIE]


def play(env, seed, actions):
    """All observations, rewards, ends and health of an episode, as a list of tuples."""
    observation, info = env.reset(seed=seed)
    steps = [(observation.tobytes(), 0.0, False, False, info["is_red"], info["health"])]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append((observation.tobytes(), reward, terminated, truncated, info["is_red"], info["health"]))
    return steps


def slow_bilinear(image, height, width):
    """Pixel by pixel, in Python integers."""

    def taps(place, size, target):
        centre = (place + 0.5) * (size / target) - 0.5
        first = int(np.floor(centre))
        weight = np.float32(centre - first)
        second = round(float(weight * np.float32(2048)))
        first_weight = round(float((np.float32(1) - weight) * np.float32(2048)))
        return first, first + 1, first_weight, second

    scaled = np.empty((3, height, width), dtype=np.uint8)
    for channel in range(3):
        for y in range(height):
            y0, y1, b0, b1 = taps(y, image.shape[1], height)
            for x in range(width):
                x0, x1, a0, a1 = taps(x, image.shape[2], width)
                top = int(image[channel, y0, x0]) * a0 + int(image[channel, y0, x1]) * a1
                bottom = int(image[channel, y1, x0]) * a0 + int(image[channel, y1, x1]) * a1
                scaled[channel, y, x] = ((b0 * (top >> 4) >> 16) + (b1 * (bottom >> 4) >> 16) + 2) >> 2
    return scaled


def test_resize_equals_the_published_one_bit_for_bit():
    rng = np.random.default_rng(0)
    resize = Bilinear(SCREEN, OBSERVATION_SHAPE[1:])
    image = rng.integers(0, 256, (3, *SCREEN), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image), slow_bilinear(image, *OBSERVATION_SHAPE[1:]))
    for value in (0, 1, 254, 255):
        assert (resize(np.full((3, *SCREEN), value, dtype=np.uint8)) == value).all()


@pytest.mark.skipif(vizdoom.__version__ != "1.3.2", reason="the pictures of this version were compared")
def test_pictures_equal_the_original(game):
    """Digests of frames of a scenario that was shown to equal the original."""
    env, digest = game(), hashlib.sha256()
    for seed in (2, 0):
        digest.update(env.reset(seed=seed)[0].tobytes())
        for step in range(60):
            digest.update(env.step((2, 3, 1, 2, 4)[step % 5])[0].tobytes())
    assert digest.hexdigest() == "565b8581660501ae09fa6f6ced55ae3a6220bf56f9df1310042156e8157de86e"


@pytest.mark.parametrize("variant", ["published", "clear"])
def test_an_episode_is_a_function_of_its_seed(game, variant):
    """Whatever was played before, in another engine, and with or without `surroundings`."""
    first, second = game(Scenario(variant)), game(Scenario(variant), privileged=True)
    actions = ACTIONS * 14
    expected = play(first, 7, actions)
    play(second, 8, actions[:33])
    play(second, 9, actions[:5])
    assert play(second, 7, actions) == expected
    assert play(first, 7, actions) == expected != play(first, 8, actions)
    colours = {play(first, seed, ())[0][4] for seed in range(8)}
    assert colours == {True, False}


def test_observations_rewards_and_ends(game):
    env = game(max_steps=500)
    observation, info = env.reset(seed=0)
    assert observation.shape == OBSERVATION_SHAPE and observation.dtype == np.uint8 and observation.std() > 5
    assert info == {"is_red": False, "health": 92.0}
    total = steps = 0
    terminated = False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(LEFT)
        total, steps = total + reward, steps + 1
    assert steps == 192 and not truncated and total == pytest.approx(0.01 * 2 * 192)
    assert not observation.any() and info["health"] <= 0
    for _ in range(3):  # frozen
        after = env.step(FORWARD)
        np.testing.assert_array_equal(after[0], observation)
        assert after[1:4] == (0.0, True, False) and after[4] == info
    limited = game(max_steps=3)
    limited.reset(seed=0)
    steps = [limited.step(LEFT) for _ in range(5)]
    assert [step[3] for step in steps] == [False, False, True, True, True] and not any(step[2] for step in steps)
    assert steps[2][0].any() and [step[1] for step in steps[2:]] == [0.02, 0.0, 0.0]
    np.testing.assert_array_equal(steps[2][0], steps[4][0])
    limited.reset(seed=0)
    assert not limited.step(LEFT)[3]


def test_observations_belong_to_the_caller(game):
    env = game()
    observation, _ = env.reset(seed=0)
    kept = observation.copy()
    observation[:] = 7
    for _ in range(2):
        env.step(LEFT)
    np.testing.assert_array_equal(env.reset(seed=0)[0], kept)


def test_rendering(game):
    env = game(render_mode="rgb_array", max_steps=400)
    env.reset(seed=2)
    picture = env.render()
    assert picture.shape == (*SCREEN, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(
        Bilinear(SCREEN, OBSERVATION_SHAPE[1:])(np.ascontiguousarray(picture.transpose(2, 0, 1))), env.reset(seed=2)[0]
    )
    assert picture[80:100, 150:170, 0].mean() > 2 * picture[80:100, 150:170, 2].mean(), (
        "a red pillar, under a red flash"
    )
    while not env.step(LEFT)[2]:
        pass
    assert not env.render().any()
    assert game().render() is None


def test_the_colour_can_be_chosen_in_the_clear_variant(game):
    env = game(Scenario("clear"))
    pictures = []
    for red in (True, False, np.bool_(True)):
        observation, info = env.reset(seed=3, options={"is_red": red})
        assert info["is_red"] == red
        pictures.append(observation.tobytes())
    assert pictures[0] == pictures[2] != pictures[1]
    with pytest.raises(ValueError, match="needs the variant 'clear'"):
        game().reset(seed=3, options={"is_red": True})


def test_bad_values_are_named(game):
    with pytest.raises(UserError, match="max_steps is 0"):
        game(max_steps=0)
    with pytest.raises(UserError, match="render_mode is 'human'"):
        game(render_mode="human")
    with pytest.raises(UserError, match="--items 0"):
        game(Scenario(items=0))
    env = game()
    with pytest.raises(ValueError, match=r"between 0 and 2\*\*32 - 1"):
        env.reset(options={}, seed=2**32)
    env.reset(seed=0)
    for action in (-1, 5):
        with pytest.raises(ValueError, match="between 0 and 4"):
            env.step(action)


def test_dead_engine_is_replaced_once(game):
    actions = ACTIONS * 8
    expected = play(game(), 5, actions)
    env = game()
    observation, info = env.reset(seed=5)
    steps = [(observation.tobytes(), 0.0, False, False, info["is_red"], info["health"])]
    before = {process.pid for process in engines()}
    for number, action in enumerate(actions):
        if number == 30:
            _kill_engine_of(env)
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append((observation.tobytes(), reward, terminated, truncated, info["is_red"], info["health"]))
    assert steps == expected and {process.pid for process in engines()} != before
    _kill_engine_of(env)
    with pytest.raises(UserError, match=r"engine died twice in the episode of seed 5, at step 41 .*20 MB"):
        env.step(FORWARD)
    assert env.step(FORWARD)[1:4] == (0.0, False, True)
    assert play(env, 5, actions) == expected  # a reset starts another engine
    _kill_engine_of(env)
    assert play(env, 5, actions) == expected  # also if the engine died between episodes


def _kill_engine_of(env):
    """Kill the newest engine, and wait until it is gone."""
    newest = max(engines(), key=lambda process: process.create_time())
    newest.kill()
    psutil.wait_procs([newest], timeout=60)


@pytest.mark.parametrize(
    ("script", "said"),
    [("#!/bin/sh\nexit 3\n", "no message"), ("#!/bin/sh\nexec /nowhere/{{}}\n", "not found"), ("nothing", "")],
)
def test_engine_that_does_not_start_is_an_error(game, tmp_path, monkeypatch, script, said):
    """Alone, it would end this process."""
    monkeypatch.setattr("VizDoom.VizDoom_src.launcher._SCRIPT", script)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = game()
    for _ in range(2):
        with pytest.raises(UserError, match=f"engine does not start .*{said}.*set XDG_CACHE_HOME"):
            env.reset(seed=1)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("before", "the ViZDoom engine does not start (status"),
        ("between", "the ViZDoom engine died twice in the episode of seed 6, at step 0 (the ViZDoom engine does not"),
        ("amid", "the ViZDoom engine died twice in the episode of seed 5, at step 1 (the ViZDoom engine does not"),
    ],
)
def test_engine_that_cannot_restart_is_an_error(tmp_path, when, said):
    """That one started before, in this process or another, does not mean that the next one will."""
    code = (
        "import pathlib, sys, psutil\n"
        "from RATE_model.errors import UserError\n"
        "from VizDoom.VizDoom_src.env import VizDoomTwoColorsEnv\n"
        "from VizDoom.VizDoom_src.scenario import Scenario\n"
        "env, (cache, when) = VizDoomTwoColorsEnv(Scenario(graphics='installed')), sys.argv[1:]\n"
        "if when != 'first':\n"
        "    (script,) = pathlib.Path(cache).rglob('engine_*.sh')\n"
        "try:\n"
        "    if when == 'before':\n"
        "        script.write_text('#!/bin/sh\\nexit 3\\n')\n"
        "    env.reset(seed=5)\n"
        "    if when in ('between', 'amid'):\n"
        "        script.write_text('#!/bin/sh\\nexit 3\\n')\n"
        "        (engine,) = psutil.Process().children()\n"
        "        engine.kill()\n"
        "        psutil.wait_procs([engine], timeout=60)\n"
        "    if when == 'between':\n"
        "        env.reset(seed=6)\n"
        "    env.step(0)\n"
        "except UserError as error:\n"
        "    print(error, env.step(0)[1:4])\n"
    )
    places = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "XDG_CACHE_HOME": str(tmp_path)}
    for moment in ("first", when):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), moment], capture_output=True, text=True, env=os.environ | places
        )
        assert done.returncode == 0 and done.stderr == "", (moment, done)
    assert done.stdout.startswith(said) and done.stdout.endswith("(0.0, False, True)\n")


def test_missing_launcher_is_an_error(game, tmp_path, monkeypatch):
    monkeypatch.setattr("VizDoom.VizDoom_src.engine.launcher", lambda package, **how: tmp_path / "gone.sh")
    with pytest.raises(UserError, match="engine died twice in the episode of seed 1, at step 0"):
        game().reset(seed=1)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="an engine learns of a death by setpriv")
@pytest.mark.parametrize("alive", [True, False])
def test_engines_do_not_outlive_their_owner(tmp_path, alive):
    """An engine that was killed while the launcher runs."""
    script, started = tmp_path / "launcher.sh", tmp_path / "started"
    script.write_text(launcher._SCRIPT.format(engine="touch"))
    script.chmod(0o755)
    owner = os.getpid() if alive else os.getppid()
    subprocess.run([script, started], env=os.environ | {"RATE_ENGINE_OWNER": str(owner)}, timeout=60)
    assert started.exists() == alive


def test_no_processes_or_files_are_left(tmp_path):
    """No file and no engine remains after close, an exception, the end of the program, or a kill."""
    code = (
        "import sys, os\n"
        "from VizDoom.VizDoom_src.env import VizDoomTwoColorsEnv\n"
        "from VizDoom.VizDoom_src.scenario import Scenario\n"
        "env = VizDoomTwoColorsEnv(Scenario(graphics='installed'))\n"
        "env.reset(seed=0); env.step(0); print(os.listdir('.'), flush=True)\n"
        "how = sys.argv[1]; sys.stdin.readline()\n"
        "if how == 'close': env.close()\n"
        "if how == 'raise': raise RuntimeError('broken')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for how, path in (("close", None), ("end", "/nowhere"), ("raise", "/nowhere"), ("wait", None)):
        program = subprocess.Popen(
            [sys.executable, "-c", code, how],
            cwd=tmp_path,
            env=environment | ({"PATH": path} if path else {}),  # `setpriv` may be missing
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert program.stdout.readline() == b"[]\n"
        children = psutil.Process(program.pid).children()
        assert [child.name() for child in children] == ["vizdoom"]
        if how == "wait":
            program.kill()
        program.communicate(input=b"\n", timeout=120)
        assert program.returncode == {"raise": 1, "wait": -9}.get(how, 0)
        deadline = time.monotonic() + 60
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < deadline, f"the engine outlived its program: {how}"
            time.sleep(0.05)
        assert not list(tmp_path.iterdir()), how
    assert not engines()


def test_closing_ends_the_engine(game):
    env = game()
    env.reset(seed=0)
    (running,) = engines()
    env.close()
    env.close()
    psutil.wait_procs([running], timeout=60)
    assert not engines() and env.step(LEFT)[3]
    assert env.reset(seed=0)[1]["health"] == 92
    del running
    (running,) = engines()
    env._engine = None  # games without references end too
    psutil.wait_procs([running], timeout=60)
    assert not engines()


def test_without_vizdoom_the_extra_is_named():
    code = (
        "import sys; sys.modules['vizdoom'] = None\n"
        "from RATE_model.errors import UserError\n"
        "from VizDoom.VizDoom_src.env import VizDoomTwoColorsEnv\n"
        "try:\n    VizDoomTwoColorsEnv().reset()\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -c constraints.txt -e '.[vizdoom]'" in done.stdout


def test_gymnasium_makes_and_accepts_it():
    env = gymnasium.make("VizDoomTwoColors-v0", max_steps=50, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=False)
    env.close()
    envs = gymnasium.make_vec("VizDoomTwoColors-v0", num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(envs.unwrapped, VizDoomTwoColorsVectorEnv)
    assert envs.reset(seed=0)[0].shape == (2, *OBSERVATION_SHAPE)
    envs.close()
    assert not engines()


def test_many_games_are_single_games(game, games, monkeypatch):
    """With the same seeds and actions. Finished games ignore actions and take no step."""
    seeds, limits = [3, 2, 0, 5], 12
    rng = np.random.default_rng(0)
    actions = rng.integers(5, size=(20, 4))
    envs, single = games(4, max_steps=limits, threads=2, render_mode="rgb_array"), game(max_steps=limits)
    observations, infos = envs.reset(seed=seeds)
    rows = [play(single, seed, actions[:, row]) for row, seed in enumerate(seeds)]
    rewards, terminated, truncated = np.zeros(4), np.zeros(4, dtype=bool), np.zeros(4, dtype=bool)
    for step in range(20):
        for row, expected in enumerate(rows):
            assert observations[row].tobytes() == expected[step][0]
            assert (rewards[row], terminated[row], truncated[row]) == expected[step][1:4]
            assert (infos["is_red"][row], infos["health"][row]) == expected[step][4:]
        observations, rewards, terminated, truncated, infos = envs.step(actions[step])
    assert truncated.all() and not rewards.any() and infos["is_red"].tolist() == [True, True, False, False]
    pictures = envs.render()
    assert len(pictures) == 4 and pictures[0].shape == (*SCREEN, 3)
    monkeypatch.setattr("VizDoom.VizDoom_src.engine.Engine.act", None)
    envs.step(actions[0])  # no engine was called
    with pytest.raises(ValueError, match="integers"):
        envs.step(np.zeros(4))
    with pytest.raises(ValueError, match="0 and 4"):
        envs.step(np.full(4, 5))


def test_resetting_some_games_leaves_the_others(games):
    envs = games(3, max_steps=4)
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        envs.reset(seed=[1, 2])
    envs.reset(seed=5)
    for _ in range(4):
        before = envs.step(np.full(3, RIGHT_FORWARD))
    assert before[3].all()
    mask = np.array([False, True, False])
    after, _ = envs.reset(seed=[9, 9, 9], options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[0][~mask])
    assert envs.step(np.zeros(3, dtype=int))[3].tolist() == [True, False, True]
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(seed=0, options={"reset_mask": [1, 0, 1]})
    clear = games(2, Scenario("clear"))
    _, infos = clear.reset(seed=[4, 4], options={"is_red": np.array([True, False])})
    assert infos["is_red"].tolist() == [True, False]


def test_error_of_one_game_reaches_the_caller(games):
    envs = games(2)
    with pytest.raises(ValueError, match="seeds must be"):
        envs.reset(seed=[1, -1])
    envs.reset(seed=[1, 2])
    assert len(engines()) == 2
    envs.close()
    deadline = time.monotonic() + 60
    while engines() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engines()


def test_closed_or_missing_games_are_reported(games):
    with pytest.raises(UserError, match="num_envs is 0; it must be at least 1"):
        games(0)
    envs = games(1)
    envs.close()
    for use in (envs.reset, lambda: envs.step(np.zeros(1, dtype=int))):
        with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="closed; make new ones"):
            use()


def test_gymnasium_plays_games_in_separate_processes():
    """Each process has an engine, which ends with it."""
    envs = gymnasium.make_vec("VizDoomTwoColors-v0", num_envs=2, vectorization_mode="async", max_steps=2)
    observations, infos = envs.reset(seed=[2, 0])
    assert observations.shape == (2, *OBSERVATION_SHAPE) and infos["is_red"].tolist() == [True, False]
    for last in (False, True):
        _, rewards, _, truncated, _ = envs.step(np.array([LEFT, FORWARD]))
        assert rewards.tolist() == [0.02, 0.02] and truncated.tolist() == [last, last]
    running = engines()
    assert len(running) == 2
    envs.close()
    assert not psutil.wait_procs(running, timeout=60)[1]


class SpinningActor(BatchActor):
    """Replaces a model's actor: turns left in the first game, right in the second, and so on."""

    def __init__(self, count):
        self.rows = np.arange(count)

    def act(self, observations, rewards):
        assert observations.shape == (len(self.rows), *OBSERVATION_SHAPE) and len(rewards) == len(self.rows)
        return self.rows % 2

    def keep(self, rows):
        self.rows = self.rows[rows]


def test_episodes_are_rolled_out_in_parallel(game, games):
    seeds = np.array([2, 6, 0])
    episodes = rollout(SpinningActor(3), games(3), seeds=seeds, max_steps=300)
    env = game()
    for row, seed in enumerate(seeds):
        steps = play(env, int(seed), [row % 2] * 200)
        assert episodes.returns[row] == pytest.approx(sum(step[1] for step in steps))
        assert episodes.lengths[row] == sum(not step[2] for step in steps) == 192
