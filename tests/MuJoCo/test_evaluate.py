"""Acting in the simulators: model inputs, ends of episodes, both prompts, and metrics."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

import torch

from MuJoCo.dataset import spec_of
from MuJoCo.environment import ENVIRONMENT, Play
from MuJoCo.evaluate import metrics
from MuJoCo.tasks import HALFCHEETAH, HOPPER, ROBOTS, TASKS, Robot, make_environment
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes
from RATE_model.acting.vector import FrozenVectorEnv
from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from tests.small_models import K, one_segment, small_model

HOPPER_MEDIUM = 6
SKEWED = np.linspace(-1, 1, 11).astype(np.float32), np.linspace(0.5, 3, 11).astype(np.float32)  # mean, deviation


def robots(robot: Robot, count: int, version="v4") -> FrozenVectorEnv:
    options = Play(env_version=version, env_id=TASKS.index(next(task for task in TASKS if task.robot == robot)))
    return ENVIRONMENT.vector(np.full(count, None), options)


def play_prompts(
    model: Agent, *, target_return: float = 3600.0, episodes: int = 2, **options: bool
) -> dict[str, Episodes]:
    """Episodes of Hopper by prompt."""
    evaluation = Evaluation(
        ENVIRONMENT, model, Play(env_id=HOPPER_MEDIUM, **options), (target_return,), episodes=episodes
    )
    (played,) = evaluation.play().values()
    return played


def play(model: Agent, *, window: bool = False, **asked: Any) -> Episodes:
    """Episodes of Hopper with one prompt."""
    return [*play_prompts(model, **asked).values()][window]


def hopper_model(mode: str = "RATE", statistics: tuple[np.ndarray, np.ndarray] | None = SKEWED, **changes):
    return small_model(mode, spec=spec_of(HOPPER, statistics), **changes)


# --- the environments ---


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_vector_equals_single_robots(robot, version):
    size = robot.observation_size
    together = robots(robot, 3, version)
    alone = [make_environment(robot, version) for _ in range(3)]
    seeds = [5, 2**31 + 1, 5]
    observations, _ = together.reset(seed=np.array(seeds))
    assert observations.shape == (3, size)
    rng = np.random.default_rng(0)
    expected = np.stack([environment.reset(seed=seed)[0] for environment, seed in zip(alone, seeds, strict=True)])
    for _ in range(5):
        np.testing.assert_array_equal(observations, expected)
        actions = rng.uniform(-1, 1, (3, robot.action_size)).astype(np.float32)
        observations, rewards, terminated, truncated, _ = together.step(actions)
        stepped = [environment.step(action) for environment, action in zip(alone, actions, strict=True)]
        expected = np.stack([step[0] for step in stepped])
        np.testing.assert_allclose(rewards, [step[1] for step in stepped])
        assert not terminated.any() and not truncated.any()
    assert not np.allclose(observations[0], observations[2]), "other actions from the same beginning"


def test_episodes_end_with_their_thousandth_step():
    cheetah = robots(HALFCHEETAH, 1)
    cheetah.reset(seed=np.array([0]))
    assert cheetah.max_steps.tolist() == [1000]
    flags = [cheetah.step(np.zeros((1, 6), np.float32))[2:4] for _ in range(1000)]
    assert not any(terminated[0] for terminated, _ in flags)
    assert [truncated[0] for _, truncated in flags] == [False] * 999 + [True]


def test_seeds_are_never_those_of_data():
    seeds = ENVIRONMENT.seeds(10_000)
    assert len(set(seeds.tolist())) == 10_000 and seeds.min() >= 2**31  # generate_dataset.collect draws below


# --- acting ---


def reference(
    model, statistics: tuple[np.ndarray, np.ndarray], seed: int, target: float, *, window: bool, renew: bool = False
):
    """One episode by whole segments, with lists and no state between steps except the memory.

    The model does not normalise: observations are normalised here.
    """
    environment = make_environment(HOPPER)
    observation, _ = environment.reset(seed=seed)
    memory, shown, acted, asked, total, over = model.initial(1).memory, [], [], [], 0.0, False
    rtg = target
    while not over:
        step = len(shown)
        if step and step % K == 0:
            parts = tuple(torch.as_tensor(np.stack(part[-K:]))[None] for part in (shown, acted, asked))
            _, memory = one_segment(model, parts, memory)
            rtg = target if renew else rtg
        shown.append((observation.astype(np.float32) - statistics[0]) / statistics[1])
        acted.append(np.zeros(3, np.float32))  # not known yet, and not visible
        asked.append(np.float32(rtg))
        first = max(0, step - K + 1) if window else step - step % K
        parts = tuple(torch.as_tensor(np.stack(part[first:]))[None] for part in (shown, acted, asked))
        acted[-1] = one_segment(model, parts, memory)[0][0, -1].numpy()
        observation, reward, terminated, truncated, _ = environment.step(acted[-1])
        over, total, rtg = terminated or truncated, total + reward, rtg - reward
    return total, len(shown)


@pytest.mark.parametrize("window", [False, True], ids=["prompt 1", "prompt K"])
@pytest.mark.parametrize("renew", [False, True], ids=["", "target renewed"])
@torch.no_grad()
def test_episodes_equal_a_plain_loop(window, renew):
    """Float32 results differ in the last bit, and falling is chaotic; episodes of 20 to 30 steps are still equal."""
    model, plain = hopper_model(), hopper_model(statistics=None)
    played = play(model, episodes=3, window=window, reset_target=renew)
    for row, seed in enumerate(ENVIRONMENT.seeds(3)):
        total, length = reference(plain, SKEWED, int(seed), 3600.0, window=window, renew=renew)
        assert played.lengths[row] == length > 2 * K
        assert played.returns[row] == pytest.approx(total, rel=1e-3)


@torch.no_grad()
def test_plain_loop_comparison_detects_changes():
    model = hopper_model()

    def returns(model=model, **changes) -> np.ndarray:
        return play(model, episodes=3, **changes).returns

    usual = returns()
    assert (np.abs(usual - returns(hopper_model(statistics=None))) > 1e-2).all(), "normalisation"
    assert (np.abs(usual - returns(window=True)) > 1e-2).all(), "the prompt"
    assert (np.abs(usual - returns(reset_target=True)) > 1e-3).all(), "renewed targets"
    assert (np.abs(usual - returns(target_return=1000.0)) > 1e-2).all(), "the target"
    np.testing.assert_array_equal(usual, returns())


def test_models_that_slide_their_own_window_are_played_once():
    assert [*play_prompts(hopper_model("DT"))] == ["window"]
    assert [*play_prompts(hopper_model())] == ["1", f"{K}"]
    assert [*play_prompts(hopper_model(), long_prompt=False)] == ["1"]


# --- figures ---


def test_metrics():
    def episodes(*returns: float) -> Episodes:
        lengths = np.arange(len(returns)) + 10
        return Episodes(np.array(returns), lengths, np.zeros(len(returns)))

    found = metrics({"": episodes(-20.272305, 3234.3), "20_": episodes(100.0)}, HOPPER)
    assert found["return_MEAN"] == pytest.approx(1607.013848) and found["length_MEAN"] == 10.5
    assert found["return_STD"] == pytest.approx(1627.286153)
    assert found["return_SEM"] == pytest.approx(1627.286153)  # sqrt(2) / sqrt(2) of it
    assert found["episode_MEAN"] == pytest.approx(50) and found["episode_STD"] == pytest.approx(50)
    assert found["20_return_MEAN"] == 100 and found["20_return_STD"] == 0 and "20_return_SEM" not in found


def test_missing_mujoco_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    with pytest.raises(UserError, match="mujoco"):
        play(hopper_model())


def test_missing_rendering_library_is_reported(monkeypatch):
    def fail(name):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(UserError, match="MUJOCO_GL=osmesa .*unset MUJOCO_GL"):
        make_environment(HOPPER)


@torch.no_grad()
def test_own_loop_gets_raw_observations():
    model, seed = hopper_model(), int(ENVIRONMENT.seeds(1)[0])
    environment, actor = make_environment(HOPPER), Actor(model, 1, 3600.0)
    (observation, _), reward, total, over = environment.reset(seed=seed), 0.0, 0.0, False
    while not over:
        action = actor.act(observation[None], np.array([reward]))[0]
        observation, reward, terminated, truncated, _ = environment.step(action)
        total, over = total + reward, terminated or truncated
    assert play(model, episodes=1).returns[0] == total
