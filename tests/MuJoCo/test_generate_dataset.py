"""Our own data, from PPO on a tiny budget: content of the files, and what is kept, repeated and resumed."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("stable_baselines3")

from MuJoCo.dataset import DataOptions, load_data
from MuJoCo.files import find_data
from MuJoCo.generate_dataset import GenerateOptions, generate, main, training_of
from MuJoCo.tasks import HOPPER, ROBOTS, TASKS, make_environment
from RATE_model.data.policies import PolicyData
from RATE_model.data.ppo import Policy, _Rounds, train_policies
from RATE_model.errors import UserError

ROUND = 128
FLAGS = {"--env": "hopper", "--steps": "100", "--train_steps": str(2 * ROUND), "--round_steps": str(ROUND)}


def options(folder, **changes):
    given = {"env": "hopper", "steps": 300, "train_steps": 2 * ROUND, "round_steps": ROUND, "data_path": folder}
    return GenerateOptions(**given | changes)


def policies_of(folder, rounds, seed=0):
    return train_policies(training_of(HOPPER, seed, ROUND), folder, enough=lambda made: len(made) == rounds + 1)


def content(path):
    """All arrays of a file."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("checksums/")}
    return arrays


def fake(steps, training_return):
    return Policy(steps, training_return, *(np.zeros(1),) * 2, (), np.zeros(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with hopper's medium data and its policies."""
    folder = tmp_path_factory.mktemp("data")
    generate(options(folder))
    return folder


def test_environments_are_those_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for robot in ROBOTS.values():
        for version in ("v4", "v5"):
            env = make_environment(robot, version)
            assert env.observation_space.shape == (robot.observation_size,)
            assert env.action_space.shape == (robot.action_size,)
            assert (env.action_space.high == 1).all() and (env.action_space.low == -1).all()
            assert env.spec.max_episode_steps == 1000
            env.close()
    assert not list(tmp_path.iterdir())  # MuJoCo's log


def test_file_contains_the_played_steps(made):
    """Replaying its actions from the stored states gives its rewards and next observations."""
    arrays = content(made / "hopper_medium-own.hdf5")
    assert set(arrays) == {"observations", "actions", "rewards", "terminals", "timeouts", "infos/qpos", "infos/qvel"}
    assert len(arrays["rewards"]) >= 300 and arrays["terminals"][-1] and not arrays["timeouts"].any()
    assert np.abs(arrays["actions"]).max() == 1  # clipped
    env = make_environment(HOPPER).unwrapped
    for step in range(0, len(arrays["rewards"]) - 1, 7):
        env.reset()
        env.set_state(arrays["infos/qpos"][step], arrays["infos/qvel"][step])
        observation, reward, terminated, _, _ = env.step(arrays["actions"][step])
        assert terminated == arrays["terminals"][step]
        np.testing.assert_allclose(reward, arrays["rewards"][step], rtol=1e-4)
        if not terminated:
            np.testing.assert_allclose(observation, arrays["observations"][step + 1], atol=1e-4)


def test_a_file_is_found_and_described(made):
    assert find_data(TASKS[6], made).name == "hopper_medium-own.hdf5"
    data = load_data(TASKS[6], DataOptions(data_path=made), size=20, fraction=0.8)
    attributes = data.file.attributes
    assert attributes["environment"] == "Hopper-v4" and attributes["seed"] == 0
    (policy,) = attributes["policies"]
    assert policy["episodes"] == data.file.num_episodes and policy["training_steps"] in (ROUND, 2 * ROUND)
    np.testing.assert_allclose(policy["return_mean"], data.file.returns.mean(), rtol=1e-5)
    np.testing.assert_allclose(policy["return_std"], data.file.returns.std(), rtol=1e-4)
    np.testing.assert_allclose(policy["normalised_score"], HOPPER.normalised_score(policy["return_mean"]))


def test_the_same_seed_makes_the_same_file(made, tmp_path):
    first, again = content(made / "hopper_medium-own.hdf5"), content(generate(options(tmp_path)))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    other = content(generate(options(tmp_path, seed=1, overwrite=True)))
    assert not np.array_equal(first["rewards"][:20], other["rewards"][:20])


def test_interrupted_policy_training_is_unchanged(tmp_path):
    straight = policies_of(tmp_path / "a", 3)
    policies_of(tmp_path / "b", 1)
    resumed = policies_of(tmp_path / "b", 3)
    assert [policy.steps for policy in resumed] == [0, ROUND, 2 * ROUND, 3 * ROUND]
    for one, other in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one.layers[0][0], other.layers[0][0])
        np.testing.assert_array_equal(one.mean, other.mean)
        assert one.training_return == other.training_return or one.steps == 0
    assert not np.array_equal(resumed[2].layers[0][0], resumed[3].layers[0][0])


def test_kept_policies_are_not_trained_again(made, monkeypatch):
    monkeypatch.setattr("RATE_model.data.ppo._Rounds", None)
    arrays = content(generate(options(made, dataset="medium-replay", steps=100)))
    assert len(arrays["rewards"]) >= 100


def test_policies_act_as_stable_baselines_does(made):
    training = _Rounds(training_of(HOPPER, 0, ROUND))
    training.load(torch.load(made / "policies" / "hopper_seed0" / f"{ROUND:09d}.pt", weights_only=True))
    policy = policies_of(made / "policies", 1)[1]
    raw = np.random.default_rng(0).normal(size=(500, 11))
    expected, _ = training.model.predict(training.environments.normalize_obs(raw), deterministic=True)

    class NoNoise:
        def standard_normal(self, shape):
            return np.zeros(shape)

    np.testing.assert_allclose(policy.act(raw, NoNoise()), expected, atol=1e-5)
    noisy = policy.act(np.zeros((100_000, 11)), np.random.default_rng(0))
    assert (np.abs(noisy) == 1).mean() > 0.1
    inside = np.abs(noisy[:, 0]) < 1
    assert 0.2 < noisy[inside, 0].std() < 0.7  # of a normal distribution of deviation 1, cut at -1 and 1


def test_which_policies_act():
    history = [fake(0, np.nan), fake(1, 5.0), fake(2, 30.0), fake(3, 20.0), fake(4, 90.0), fake(5, 80.0)]

    def steps(dataset, goal):
        data = PolicyData(training_of(HOPPER), Path(), dataset, goal, budget=0, steps=0, seed=0)
        return [policy.steps for policy in data.chosen(history)]

    assert steps("medium", 10) == [2] and steps("medium", 100) == [4]
    assert steps("medium-replay", 10) == [0, 1, 2]
    assert steps("expert", 10) == [4] and steps("medium-expert", 10) == [2, 4]


def test_medium_expert_is_the_union(tmp_path):
    """Half of the steps of each, with the same episodes as in their files."""
    kinds = {
        kind: content(generate(options(tmp_path, dataset=kind, steps=steps, medium_return=0.0)))
        for kind, steps in {"medium": 150, "expert": 150, "medium-expert": 300}.items()
    }
    for name, values in kinds["medium-expert"].items():
        np.testing.assert_array_equal(values, np.concatenate([kinds["medium"][name], kinds["expert"][name]]))


def test_training_stops_at_the_goal(tmp_path):
    generate(options(tmp_path, medium_return=0.0, train_steps=100 * ROUND))
    assert (
        len(list((tmp_path / "policies" / "hopper_seed0").iterdir())) == 2
    )  # untrained, and the first that has walked


def test_existing_file_is_not_replaced(made):
    before = (made / "hopper_medium-own.hdf5").read_bytes()
    with pytest.raises(UserError, match="exists; add --overwrite true"):
        generate(options(made))
    assert (made / "hopper_medium-own.hdf5").read_bytes() == before


@pytest.mark.parametrize("when", ["training", "acting"])
def test_an_interruption_leaves_no_file(tmp_path, monkeypatch, when, capsys):
    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    target = {"training": "RATE_model.data.ppo._Rounds.run_round", "acting": "RATE_model.data.ppo.Policy.act"}
    monkeypatch.setattr(target[when], interrupt)
    with pytest.raises(SystemExit) as stop:
        main([word for flag in FLAGS.items() for word in flag] + ["--data_path", str(tmp_path)])
    assert stop.value.code == 130 and "policies trained so far are kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policies"]
    monkeypatch.undo()
    assert generate(options(tmp_path)).exists()


def test_damaged_policies_are_named(tmp_path):
    policies_of(tmp_path, 1)
    path = tmp_path / "hopper_seed0" / f"{ROUND:09d}.pt"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read .* delete the folder '.*hopper_seed0' to train again"):
            policies_of(tmp_path, 1)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="made with other settings"):
        policies_of(_renamed(tmp_path), 1, seed=1)


def _renamed(folder):
    (folder / "hopper_seed0").rename(folder / "hopper_seed1")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "ant"], "--env ant: the value must be one of halfcheetah, hopper, walker2d"),
        (["--dataset", "random"], "--dataset random: the value must be one of medium, medium-replay"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--round_steps", "8"], "--round_steps 8: must be at least 128"),
    ],
)
def test_bad_flags(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--data_path", str(tmp_path)])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"stable-baselines3: pip install -c constraints.txt -e '\.\[mujoco\]'"):
        generate(options(tmp_path))
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"Hopper-v4 needs MuJoCo: pip install -c constraints.txt -e '\.\[mujoco\]'"):
        generate(options(tmp_path))
    assert not list(tmp_path.iterdir())
