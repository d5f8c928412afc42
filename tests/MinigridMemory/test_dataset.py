"""Minigrid-Memory data: what the options ask for, the files, their seeds and balance, loading, the published files."""

import h5py
import numpy as np
import pytest

pytest.importorskip("minigrid")

from MinigridMemory.MinigridMemory_src import generate as collecting
from MinigridMemory.MinigridMemory_src.dataset import (
    DATA,
    PRESETS,
    DataOptions,
)
from MinigridMemory.MinigridMemory_src.env import MinigridMemoryEnv
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT
from MinigridMemory.MinigridMemory_src.generate import FIRST_SEED, generate
from RATE_model.errors import UserError


@pytest.fixture
def small(tmp_path):
    """Options of a small dataset; keyword arguments replace them."""

    def options(**changes):
        return DataOptions(**{"size": 9, "trajectories": 41, "data_dir": tmp_path / "data"} | changes)

    return options


def replay(path):
    """Play every episode of a file again; returns cue, arm and success of each."""
    with DATA.open(path) as file, h5py.File(path) as raw:
        made, outcomes = file.attributes, []
        env = MinigridMemoryEnv(made["size"], random_length=made["random_length"], max_steps=made["cap"])
        observations, actions = file.load()
        for start, length in zip(file.starts, file.lengths, strict=True):
            seeds = raw["infos/seed"][start : start + length]
            assert (seeds == seeds[0]).all()
            observation, _ = env.reset(seed=int(seeds[0]))
            for step in range(start, start + length):
                np.testing.assert_array_equal(observations[step], observation)
                observation, reward, terminated, truncated, _ = env.step(int(actions[step]))
                assert file.rewards[step] == np.float32(reward)
                assert (terminated or truncated) == (step == start + length - 1)
            assert raw["terminals"][step] == terminated and raw["timeouts"][step] == truncated
            outcomes.append((env.cue, env.arm, env.success))
    return outcomes


def test_file_has_equal_numbers_of_expert_successes(small, capsys):
    path = DATA.ensure(small())
    assert "Making 41 Minigrid-Memory episodes" in capsys.readouterr().out
    outcomes = replay(path)
    assert all(success for *_, success in outcomes)
    kinds = [outcome[:2] for outcome in outcomes]
    assert sorted(kinds.count(kind) for kind in set(kinds)) == [10, 10, 10, 11]
    with h5py.File(path) as raw:
        seeds = np.unique(raw["infos/seed"][:])
        assert "infos/first_seen" in raw
    assert len(seeds) == 41 and seeds.min() == FIRST_SEED == 1_000_000 > 10_000 > max(ENVIRONMENT.seeds(100))
    made = DATA.open(path).attributes
    assert made["environment"] == "MinigridMemory-v0" and made["expert_success"] == 1.0 and made["size"] == 9
    assert made["played"] == made["last_seed"] - made["first_seed"] + 1 == 41 + sum(made["dropped"].values())
    assert made["acceptance"] == 41 / made["played"] and made["last_seed"] == seeds.max()
    before = path.stat().st_mtime_ns
    assert DATA.ensure(small()) == path and path.stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


def content(path):
    with h5py.File(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        arrays = {name: array for name, array in arrays.items() if not name.startswith("checksums/")}
        return arrays, {name: value for name, value in file.attrs.items()}


def test_content_does_not_depend_on_the_number_of_processes(small, tmp_path):
    selection = small(trajectories=130, noise=0.1).selection()
    paths = [generate(selection, tmp_path / f"{workers}.h5", workers=workers) for workers in (1, 2, 3)]
    arrays, attributes = content(paths[0])
    assert set(arrays) == {
        *("observations", "actions", "rewards", "terminals", "timeouts"),
        *("infos/seed", "infos/first_seen", "infos/expert_action"),
        *("infos/agent_pos", "infos/agent_dir", "infos/cue", "infos/arm"),
    }
    for path in paths[1:]:
        others, other_attributes = content(path)
        assert other_attributes == attributes and others.keys() == arrays.keys()
        for name, values in arrays.items():
            np.testing.assert_array_equal(others[name], values)
    assert DATA.open(paths[0]).attributes["dropped"]["failed"] > 0  # those that failed because of noise
    assert (DATA.open(paths[0]).returns_to_go()[DATA.open(paths[0]).starts] > 0).all()


@pytest.mark.parametrize("flaw", [{"wrong_arm": 0.4}, {"guess": 0.8}])
def test_failures_are_kept_if_requested(small, flaw):
    path = DATA.ensure(small(trajectories=60, cap=11, noise=0.2, **flaw))
    outcomes = replay(path)
    with h5py.File(path) as raw:
        assert raw["timeouts"][:].sum() > 3, "episodes that were cut off are kept too"
    assert 0.2 < np.mean([success for *_, success in outcomes]) < 0.8
    assert DATA.open(path).attributes["keep_failures"]


def test_lengths_are_filtered_and_the_rest_counted(small, monkeypatch):
    monkeypatch.setattr(collecting, "PATIENCE", 60)  # in a row: every kept episode resets the count
    path = DATA.ensure(small(size=21, min_steps=20, max_steps=26))
    file = DATA.open(path)
    assert file.lengths.min() == 20 and file.lengths.max() == 26
    dropped = file.attributes["dropped"]
    assert dropped["too short"] > 0 and dropped["too long"] > 0
    assert file.attributes["played"] == 41 + sum(dropped.values())


def test_presets_and_their_overrides():
    def of(**changes):
        chosen = DataOptions(**changes).selection()
        return chosen.size, chosen.random_length, chosen.min_steps, chosen.max_steps, chosen.cap

    assert of() == of(preset="clean_31") == (31, True, 1, 96, 96)
    assert of(preset="clean_41") == (41, True, 1, 96, 96)
    assert of(preset="published_31") == (31, True, 38, 45, 96)
    assert of(preset="published_41") == (41, True, 60, 96, 96)
    assert of(preset="published_41", corridor="fixed", min_steps=1) == (41, False, 1, 96, 96)
    assert of(preset="published_31", max_steps=60, cap=50) == (31, True, 38, 50, 50)
    assert of(preset="clean_41", size=91) == (91, True, 1, 196, 196)  # so that the expert succeeds there
    assert of(size=91, cap=96) == (91, True, 1, 96, 96)
    for preset in PRESETS:
        DataOptions(preset=preset).validate()


def test_file_names_contain_all_settings(small):
    base = DATA.path(small())
    assert base.name == "minigrid_memory_size9_random_n41.h5"
    changes = [{"size": 11}, {"corridor": "fixed"}, {"min_steps": 3}, {"max_steps": 90}, {"cap": 95}, {"noise": 0.1}]
    changes += [{"wrong_arm": 0.1}, {"guess": 0.1}, {"trajectories": 40}, {"preset": "published_31"}]
    assert len({DATA.path(small(**change)) for change in changes} | {base}) == len(changes) + 1
    for value, shown in ((0.05, "0.05"), (0.1, "0.1"), (0.5, "0.5"), (1.0, "1"), (0.1000001, "0.1000001")):
        assert f"_noise{shown}_guess{shown}_n" in DATA.file_name(small(noise=value, guess=value))
    assert DATA.path(small(preset="clean_41")) == base  # replaced in everything that differs
    assert DATA.path(small(corridor="random", cap=96, max_steps=96)) == base
    assert DATA.path(DataOptions()).parts[-3:-1] == ("MinigridMemory", "MinigridMemory_data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 40}, "--size 40: .* odd"),
        ({"size": 5}, "--size 5: .* 7 to"),
        ({"min_steps": 0}, "--min_steps 0: must be at least 1"),
        ({"min_steps": 50, "max_steps": 40}, "--min_steps 50: must be at most --max_steps, which is 40"),
        ({"min_steps": 97}, "--min_steps 97: must be at most --cap, which is 96"),
        ({"min_steps": 50, "preset": "published_31"}, r"--max_steps, which is 45 \(of --preset published_31\)"),
        ({"max_steps": 10, "preset": "published_31"}, r"38 \(of --preset published_31\): .* --max_steps, which is 10$"),
        ({"cap": 20, "preset": "published_31"}, r"38 \(of --preset published_31\): .* --cap, which is 20$"),
        ({"cap": 0}, "--cap 0"),
        ({"noise": 1.5}, "--noise 1.5: must be at most 1"),
        ({"guess": -0.1}, "--guess -0.1: must be at least 0"),
        ({"trajectories": 9}, "--trajectories 9: must be at least 10"),
        ({"trajectories": 10**9}, "--trajectories"),
    ],
)
def test_bad_options_are_named(small, changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes).validate()


@pytest.mark.parametrize("workers", [1, 2])
def test_impossible_selection_reports_the_counts(small, monkeypatch, workers):
    """The expert needs at most 14 steps in a maze of size 9."""
    monkeypatch.setattr(collecting, "PATIENCE", 120)
    options = small(min_steps=15)
    with pytest.raises(UserError) as error:
        generate(options.selection(), DATA.path(options), workers=workers)
    message = str(error.value)
    assert "collected 0 of 41" in message and "120 played, dropped: 120 too short" in message
    assert "had 6 to 14" in message and "--min_steps" in message
    assert not DATA.path(options).parent.exists()
    options = small(cap=5)
    with pytest.raises(UserError, match="120 played, dropped: 120 failed"):
        generate(options.selection(), DATA.path(options))


def test_existing_files_stay_and_unwritable_folders_are_reported(small, tmp_path, monkeypatch):
    path = DATA.ensure(small())
    with pytest.raises(UserError, match="exists; add --overwrite true"):
        generate(small().selection(), path)
    generate(small().selection(), path, overwrite=True)
    monkeypatch.setattr(collecting, "_collect", None)  # not even started
    with pytest.raises(UserError, match="is not a directory"):
        generate(small().selection(), path / "inner" / "x.h5")
    with pytest.raises(UserError, match="is a directory"):
        generate(small().selection(), tmp_path, overwrite=True)


def test_windows_are_episodes_split_once(small, capsys):
    paths = [DATA.ensure(small())]
    capsys.readouterr()
    training, validation = DATA.whole_windows(paths, size=20)
    assert (len(training), len(validation)) == (37, 4) and capsys.readouterr().out == ""
    batch = training.__getitems__(range(37))
    assert batch.actions.shape == batch.observations.index.shape == (37, 20)
    assert len(batch.observations.images) < 70, "equal pictures are kept once"
    start = int(training.windows[3, 1])
    with DATA.open(paths[0]) as file:
        expected = file.read(start, start + int(batch.lengths[3]))[0]
    shown = batch.observations.images[batch.observations.index[3]].numpy()
    np.testing.assert_array_equal(shown[: len(expected)], expected)
    assert (shown[len(expected) :] == expected[-1]).all()
    assert ((batch.rtg > 0.9) == batch.valid).all()
    rows = [{tuple(row) for row in part.windows.tolist()} for part in (training, validation)]
    assert not rows[0] & rows[1]
    again = DATA.whole_windows(paths, size=15)[1]
    assert {tuple(row) for row in again.windows.tolist()} == rows[1]


def test_long_episodes_are_left_out_and_counted(small, capsys):
    paths = [DATA.ensure(small())]
    capsys.readouterr()
    lengths = DATA.open(paths[0]).lengths
    long = int((lengths > 10).sum())
    training, validation = DATA.whole_windows(paths, size=10)
    assert len(training) + len(validation) == 41 - long
    printed = capsys.readouterr().out
    assert f"{long} of 41 episodes are left out" in printed and "not at most 10 (--segments times" in printed
    with pytest.raises(UserError) as error:
        DATA.whole_windows(paths, size=5)
    for part in ("nothing to train on", "none of 41 episodes has at most 5 steps", "7 to 13", "--segments"):
        assert part in str(error.value)
    # All episodes of a second file may be too long.
    other = [DATA.ensure(small(size=21, min_steps=20))]
    training, validation = DATA.whole_windows([*paths, *other], size=14)
    assert len(training) + len(validation) == 41 and "41 of 82 episodes" in capsys.readouterr().out


def published_files(folder, episodes, *, floats):
    """The published collector's output: a directory for each file, and the file beside it."""
    for number in range(episodes):
        env = MinigridMemoryEnv(9)
        observation, _ = env.reset(seed=number)
        frames, actions, rewards, dones, over = [], [], [], [], False
        rng = np.random.default_rng(number)
        while not over:
            frames.append(observation)
            actions.append(int(rng.integers(3)))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            over = terminated or truncated
            rewards.append(reward)
            dones.append(int(over))
        obs = np.array(frames) if not floats else np.array(frames).astype(np.float32) / 255
        name = f"train_data_{number}.npz"
        (folder / name).mkdir(parents=True)
        np.savez(folder / f"{name}{name}", obs=obs, action=np.array(actions), reward=np.array(rewards), done=dones)


def test_files_of_several_episodes_are_split(small, tmp_path):
    """Rewards and actions are those of their episode; a file whose marks contradict each other is refused."""
    folder, last = tmp_path / "several", np.isin(np.arange(12), [3, 8, 11])
    folder.mkdir()
    number = np.cumsum(np.append(0, last[:-1]))
    arrays = {"obs": np.zeros((12, 3, 84, 84), np.uint8), "action": number % 3, "reward": number.astype(float)}
    np.savez(folder / "train_data_0.npz", **arrays, done=last)
    np.savez(folder / "train_data_1.npz", **arrays, terminals=last, episode_id=number)
    np.savez(folder / "train_data_2.npz", **arrays, done=last, episode_id=np.arange(12) // 6)
    path = DATA.ensure(small(data_path=folder))
    file = DATA.open(path)
    assert file.lengths.tolist() == [4, 5, 3] * 2
    assert file.returns_to_go()[file.starts].tolist() == [0, 5, 6] * 2
    assert file.actions.tolist() == [*(number % 3)] * 2


@pytest.mark.parametrize("floats", [True, False])
def test_published_files_are_converted_once(small, tmp_path, capsys, floats):
    folder = tmp_path / "published"
    published_files(folder, 12, floats=floats)
    options = small(data_path=folder)
    options.validate()
    path = DATA.ensure(options)
    assert "converted 12 episodes" in capsys.readouterr().out and path.parent == tmp_path / "data"
    file = DATA.open(path)
    assert file.num_episodes == 12 and file.frames() is not None
    first = file.read(0, 1)[0][0]
    np.testing.assert_array_equal(first, MinigridMemoryEnv(9).reset(seed=0)[0])
    assert DATA.ensure(options) == path and capsys.readouterr().out == ""
    training, validation = DATA.whole_windows([path], size=96)
    assert len(training) == 11 and len(validation) == 1
    with pytest.raises(UserError, match="at most 2 steps"):  # the published loader silently dropped them
        DATA.whole_windows([path], size=2)


def test_given_data_is_read_or_refused(small, tmp_path):
    path = DATA.ensure(small())
    assert DATA.ensure(small(data_path=path)) == path
    for bad, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has no train_data"),
        (path.parent, "name that file"),
        (tmp_path / "train_data_0.npz", "give the folder"),
    ):
        if bad.suffix:
            bad.write_bytes(b"x")
        with pytest.raises(UserError, match=message) as error:
            DATA.ensure(small(data_path=bad))
        assert "--data_path" in str(error.value)
    unusable = tmp_path / "unusable"
    unusable.mkdir()
    (unusable / "train_data_0.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of 1 files .* can be used: train_data_0.npz is damaged"):
        DATA.ensure(small(data_path=unusable))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="training makes its data"):
        DATA.whole_windows([path], size=20)
