"""Recorded play: alignment of arrays, dependence on the recipe only, interruptions, and mistakes."""

import contextlib

import h5py
import numpy as np
import pytest

from MemoryMaze.MemoryMaze_src import generate as generating
from MemoryMaze.MemoryMaze_src.dataset import DataOptions
from MemoryMaze.MemoryMaze_src.env import MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.generate import DEFAULT_MIX, FIRST_DATA_SEED, PlayerOfMix, Recipe, generate, play
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError

QUICK = Recipe(9, 12, ("explorer:0.3:1", "planner:0:1"), perturbation=0.5)


@pytest.fixture
def small_parts(tasks, monkeypatch):
    """Two episodes per part."""
    monkeypatch.setattr(generating, "PART", 2)


@pytest.fixture(scope="module")
def recording(tasks, tmp_path_factory):
    """A file of four episodes made by one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "PART", 2)
        return generate(QUICK, 4, tmp_path_factory.mktemp("recording") / "data.h5", workers=1)


def content(path):
    """All arrays and attributes of a file."""
    with TrajectoryFile(path), h5py.File(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        return arrays, dict(file.attrs)


def assert_same_content(one, other):
    (arrays, attributes), (others, other_attributes) = content(one), content(other)
    assert arrays.keys() == others.keys() and attributes == other_attributes
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)


def test_actions_are_aligned_with_their_pictures(recording):
    """Replayed in a game with the episode's seed, the actions give the recorded pictures and rewards."""
    file = TrajectoryFile(recording, observation_shape=(3, 64, 64), observation_dtype="uint8", num_actions=6)
    assert file.lengths.tolist() == [12] * 4
    with h5py.File(recording) as raw, contextlib.closing(MemoryMazeEnv(privileged=True)) as game:
        infos = {name: values[12:24] for name, values in raw["infos"].items()}
        assert not raw["terminals"][:].any() and np.flatnonzero(raw["timeouts"]).tolist() == [11, 23, 35, 47]
        assert (infos["seed"] == FIRST_DATA_SEED + 1).all() and (infos["player"] == 1).all()
        observation, info = game.reset(seed=FIRST_DATA_SEED + 1)
        observations, actions = file.read(12, 24)
        for step, action in enumerate(actions):
            np.testing.assert_array_equal(observations[step], observation)
            np.testing.assert_allclose(infos["agent_pos"][step], info["agent_pos"], rtol=1e-6)
            np.testing.assert_allclose(infos["agent_dir"][step], info["agent_dir"], rtol=1e-6)
            assert infos["target"][step] == info["target_index"]
            observation, reward, _, _, info = game.step(action)
            assert file.rewards[12 + step] == reward
    assert file.attributes["environment"] == "MemoryMaze-9x9-v0" and file.attributes["mix"] == list(QUICK.mix)
    assert file.attributes["simulation"]["mujoco"].startswith("3.")
    assert file.attributes["experts"] == generating.EXPERTS_VERSION, "what a training asks for"
    # The explorer is random in about three of ten steps, the planner never.
    with h5py.File(recording) as raw:
        noisy = raw["infos/random"][:].reshape(4, 12).sum(axis=1)
        assert (raw["infos/expert_action"][:] != raw["actions"][:]).any(), "they erred"
        assert raw["infos/player"][::12].tolist() == [0, 1, 0, 1]
    assert noisy[0] > 0 and noisy[2] > 0 and noisy[1] == noisy[3] == 0


def test_players_can_be_perturbed(tasks):
    player = PlayerOfMix("planner", 0.0, 1.0)
    with contextlib.closing(MemoryMazeEnv(privileged=True, max_steps=60)) as game:
        straight, perturbation = (play(game, player, FIRST_DATA_SEED, share) for share in (0.0, 1.0))
    np.testing.assert_array_equal(straight["actions"], straight["infos"]["expert_action"])
    assert (perturbation["actions"] != perturbation["infos"]["expert_action"]).mean() > 0.1


def test_content_does_not_depend_on_the_number_of_processes(recording, small_parts, tmp_path):
    assert_same_content(generate(QUICK, 4, tmp_path / "two.h5", workers=2), recording)


def test_interrupted_generation_continues(recording, small_parts, tmp_path, monkeypatch, capsys):
    original, made = generating.play_part, []

    def interrupted(recipe, writer, first, count):
        if made:
            raise KeyboardInterrupt
        made.append(first)
        original(recipe, writer, first, count)

    path = tmp_path / "data.h5"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generating, "play_part", interrupted)
        generate(QUICK, 4, path, workers=1)
    assert [part.name for part in (tmp_path / "data.h5.parts").iterdir()] == ["part_00000.h5"] and not path.exists()
    assert "run the same command to continue" in capsys.readouterr().out
    assert_same_content(generate(QUICK, 4, path, workers=1), recording)
    assert "resuming with 1 of 2 parts" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.h5"]


def test_players_alternate_by_their_shares():
    recipe = Recipe(mix=("explorer:0:0.5", "explorer:0.1:0.3", "planner:0:0.2"))
    chosen = recipe.assignment(100)
    assert np.bincount(chosen).tolist() == [50, 30, 20]
    played = np.cumsum(np.eye(3)[chosen], axis=0)
    assert np.abs(played - np.arange(1, 101)[:, None] * [0.5, 0.3, 0.2]).max() < 1
    np.testing.assert_array_equal(recipe.assignment(37), chosen[:37])
    assert [player.kind for player in Recipe(mix=DEFAULT_MIX).players] == ["explorer"] * 3


def test_every_player_gets_an_episode(tasks, tmp_path):
    mix = ("planner:0:1", "explorer:0:1e-9")
    with pytest.raises(UserError, match="^--mix explorer:0:1e-9: this player gets none of the 10 episodes; raise"):
        generate(Recipe(mix=mix), 10, tmp_path / "data" / "data.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "--size 8: Memory Maze has the sizes"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"mix": ()}, "--mix: name at least one player"),
        ({"mix": ("oracle:0:1",)}, "--mix oracle:0:1: must be EXPERT:NOISE:SHARE.* explorer or planner"),
        ({"mix": ("planner:1.5:1",)}, "--mix planner:1.5:1: must be"),
        ({"mix": ("planner:0:0",)}, "SHARE above 0"),
        ({"mix": ("planner:0",)}, "--mix planner:0: must be"),
        ({"mix": ("planner:a:1",)}, "--mix planner:a:1: must be"),
    ],
)
def test_bad_recipes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        DataOptions(**arguments).validate()


def test_file_is_replaced_only_on_request(tasks, tmp_path):
    path = tmp_path / "data.h5"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists; add --overwrite true"):
        generate(QUICK, 4, path)
    assert path.read_bytes() == b"mine"
