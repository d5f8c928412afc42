"""Our own data: content of the files, independence of the number of processes, and interruptions."""

import functools

import h5py
import numpy as np
import pytest

pytest.importorskip("ale_py")

from Atari import generate as generation
from Atari import generate_dataset
from Atari.env import AtariEnv
from Atari.generate import FIRST_DATA_SEED, Recipe, generate
from Atari.generate_dataset import DATA, AtariData, GenerateOptions, main
from RATE_model.data.selection import strided_or_whole
from RATE_model.data.trajectories import TrajectoryFile

RECIPE = Recipe("Breakout", (0.2, 1.0), max_steps=150)
TINY = "--game Breakout --transitions 40 --mix 1 0.5 --episode_steps 30 --workers 1".split()


def content(path):
    """All arrays and attributes of a file."""
    arrays = {}
    with TrajectoryFile(path), h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        return arrays | dict(file.attrs)


def assert_same(one, other):
    one, other = content(one), content(other)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """400 steps: two whole episodes and the beginning of a third one."""
    return generate(RECIPE, 400, tmp_path_factory.mktemp("data") / "breakout.h5", workers=1)


def test_file_contains_the_played_steps(made):
    """Replaying its actions in the environment gives its pictures, rewards and lives."""
    data = content(made)
    file = TrajectoryFile(made, observation_shape=(1, 84, 84), observation_dtype="uint8", num_actions=4)
    assert file.num_steps == 400 and file.num_episodes > 2
    env = AtariEnv("Breakout", max_steps=150)
    for number, (start, length) in enumerate(zip(file.starts, file.lengths, strict=True)):
        observation, info = env.reset(seed=FIRST_DATA_SEED + number)
        for step in range(start, start + length):
            np.testing.assert_array_equal(data["observations"][step, 0], observation[-1])
            assert data["infos/lives"][step] == info["lives"]
            observation, reward, terminated, truncated, info = env.step(int(file.actions[step]))
            assert reward == file.rewards[step]
        whole = start + length < 400
        assert (terminated or truncated) == whole
        assert (data["terminals"][step], data["timeouts"][step]) == (terminated, truncated)
    assert file.whole.tolist() == [True] * (file.num_episodes - 1) + [False] and file.rewards.sum() > 0
    assert strided_or_whole(0, file, 8, 1)[:, 1:].sum(axis=1).max() == file.starts[-1], (
        "the cut episode is not trained on"
    )


def test_noise_levels_alternate_and_are_recorded(made):
    data, file = content(made), TrajectoryFile(made)
    noise = data["infos/noise"][file.starts]
    np.testing.assert_array_equal(noise, np.resize(np.float32([0.2, 1.0]), file.num_episodes))
    np.testing.assert_array_equal(np.repeat(noise, file.lengths), data["infos/noise"])
    seeds = FIRST_DATA_SEED + np.arange(file.num_episodes)
    np.testing.assert_array_equal(np.repeat(seeds, file.lengths), data["infos/seed"])
    attributes = file.attributes
    assert (attributes["game"], attributes["mix"], attributes["max_steps"]) == ("Breakout", [0.2, 1.0], 150)
    assert attributes["rewards"] == "unclipped" and "prediction of the ball" in attributes["generator"]
    returns = file.returns_to_go()[file.starts[file.whole]]
    assert attributes["return_mean"] == pytest.approx(returns.mean()) and attributes["return_min"] == returns.min()
    for number, level in enumerate(attributes["levels"]):
        assert level["noise"] == [0.2, 1.0][number]
        assert level["episodes"] == len(returns[number::2])
        np.testing.assert_allclose(level["return_mean"], returns[number::2].mean())
        assert level["return_max"] == returns[number::2].max()


def test_content_does_not_depend_on_the_number_of_processes(made, tmp_path):
    assert_same(generate(RECIPE, 400, tmp_path / "two.h5", workers=2), made)


def test_interrupted_generation_continues(made, tmp_path, monkeypatch):
    played = []

    def play(stop, env, seed, noise):
        if len(played) == stop:
            raise KeyboardInterrupt
        played.append(seed)
        return original(env, seed, noise)

    original = generation.play
    monkeypatch.setattr(generation, "play", functools.partial(play, 1))
    path = tmp_path / "data.h5"
    with pytest.raises(KeyboardInterrupt):
        generate(RECIPE, 400, path, workers=1)
    assert not path.exists() and played == [FIRST_DATA_SEED]
    played.clear()
    monkeypatch.setattr(generation, "play", functools.partial(play, None))
    assert_same(generate(RECIPE, 400, path, workers=1), made)
    assert FIRST_DATA_SEED not in played
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.h5"]


def test_parts_of_other_players_or_games_are_refused(made, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("RATE_model.data.parts._join", stop)
        generate(Recipe("Breakout", (1.0, 1.0), max_steps=150), 400, tmp_path / "data.h5", workers=1)
    assert_same(generate(RECIPE, 400, tmp_path / "data.h5", workers=1), made)


def test_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AtariData, "directory", tmp_path)
    main(TINY)
    path = tmp_path / "Breakout_mix1-0.5_cap30_n40.h5"
    shown = capsys.readouterr().out
    assert f"{path}: 2 episodes of 10 to 30 steps" in shown and "noise 1: 1 episodes" in shown
    with pytest.raises(SystemExit, match="2"):
        main(TINY)
    assert "exists; add --overwrite true" in capsys.readouterr().err
    before = content(path)
    main([*TINY, "--replay", str(tmp_path / "replay")])
    logs = tmp_path / "replay" / "Breakout" / "1" / "replay_logs"
    assert (logs / "$store$_observation_ckpt.0.gz").exists() and str(logs) in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(generate_dataset, "generate", lambda *_, **__: pytest.fail("it plays first"))
        main([*TINY, "--replay", str(tmp_path / "replay"), "--output", str(tmp_path / "new.h5")])
    assert "exists; add --overwrite true" in capsys.readouterr().err
    main([*TINY, "--replay", str(tmp_path / "replay"), "--overwrite"])
    main([*TINY, "--overwrite", "--output", str(tmp_path / "other.h5")])
    for name, values in content(tmp_path / "other.h5").items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_files_made_with_other_flags_are_not_exported(tmp_path, capsys, monkeypatch):
    file, replay = str(tmp_path / "data.h5"), str(tmp_path / "replay")
    main([*TINY, "--output", file])
    before = content(tmp_path / "data.h5")
    for flags, said in (
        ("--game Pong", "--game Breakout, not Pong"),
        ("--mix 1 0.25", "--mix 1.0 0.5, not 1.0 0.25"),
        ("--transitions 50", "--transitions 40, not 50"),
        ("--data_sticky 0.25", "--data_sticky 0.0, not 0.25"),
        ("--episode_steps 20", "--episode_steps 30, not 20"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*TINY, *flags.split(), "--output", file, "--replay", replay])
        error = capsys.readouterr().err
        assert f"'{file}': was made with {said}; name another file with --output, or add --overwrite" in error
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(generation, "EXPERT_VERSION", generation.EXPERT_VERSION + 1)
        main([*TINY, "--output", file, "--replay", replay])
    assert "expert_version 1, not 2" in capsys.readouterr().err
    assert not (tmp_path / "replay").exists()
    main([*TINY, "--game", "Breakout", "--output", file, "--replay", replay])
    for name, values in content(tmp_path / "data.h5").items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_file_names_contain_all_settings(tmp_path, monkeypatch):
    def name(game: str, **changes) -> str:
        return DATA.file_name(GenerateOptions(game, **changes))

    assert DATA.path(GenerateOptions()) == DATA.directory / "Breakout_n100000.h5"
    assert DATA.path(GenerateOptions("Qbert", data_dir=tmp_path)) == tmp_path / "Qbert_n20000.h5"
    breakout, qbert, pong = (GenerateOptions(game).recipe for game in ("Breakout", "Qbert", "Pong"))
    assert min(breakout.mix) > 0, "a player who hardly errs cannot be learned from"
    assert qbert.max_steps == 2000 and pong.max_steps == 7000
    changes = dict(transitions=7, mix=(0.5, 1.0), data_sticky=0.25, episode_steps=9)
    assert name("Pong", **changes) == "Pong_mix0.5-1_sticky0.25_cap9_n7.h5"
    assert GenerateOptions("Pong", **changes).recipe == Recipe("Pong", (0.5, 1.0), 0.25, 9)
    assert name("freeway") == "Freeway_n20000.h5"
    assert name("Pong", mix=(0.0, 0.05, 0.1, 0.5, 1.0)) == "Pong_mix0-0.05-0.1-0.5-1_n100000.h5"
    assert name("Pong", mix=(0.1000001,)) == "Pong_mix0.1000001_n100000.h5"
    assert name("Pong", data_sticky=0.1000001) == "Pong_sticky0.1000001_n100000.h5"
    monkeypatch.setattr(generate_dataset, "TRANSITIONS", 20)
    monkeypatch.setattr(generate_dataset, "MIXES", {"Breakout": (1.0,)})
    options = GenerateOptions(data_dir=tmp_path)
    path = DATA.ensure(options)
    assert path == DATA.path(options) and TrajectoryFile(path).num_steps == 20
    assert DATA.ensure(options) == path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--game Brakeout", "any ALE game works with --game"),
        ("--mix 0.5 1.5", "--mix 1.5: must be at most 1"),
        ("--transitions 0", "--transitions 0: must be at least 1"),
        ("--episode_steps 0", "--episode_steps 0: must be at least 1"),
        ("--data_sticky 1", "--data_sticky 1"),
        ("--workers 0", "--workers 0: must be at least 1"),
        ("--output data.npz", "the name must end in .h5"),
    ],
)
def test_bad_flags(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AtariData, "directory", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(flags.split())
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
