"""Folders of .npz files: conversion, reuse, and refused files."""

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from RATE_model.data import npz
from RATE_model.data.npz import NpzKeys, conversion_path, find_npz, import_npz, resolve_data
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError

SHAPE = (3, 4, 5)


def episode(seed, steps=6, *, shape=SHAPE, actions=4):
    """The arrays of one file, images as uint8."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.integers(256, size=(steps, *shape), dtype=np.uint8),
        "action": rng.integers(actions, size=steps),
        "reward": rng.normal(size=steps),
        "done": np.arange(steps) == steps - 1,
    }


def save(folder, episodes, name="train_data_{}.npz"):
    """One file per entry of {number: arrays}; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, arrays in episodes.items():
        np.savez(folder / name.format(number), **arrays)
    return folder


def convert(folder, **changes):
    settings = {"observation_shape": SHAPE, "num_actions": 4, "attributes": {"environment": "Test-v0"}} | changes
    return import_npz(folder, settings.pop("target", folder.parent / "converted.h5"), **settings)


def everything(path):
    with h5py.File(path) as file:
        names = [*file, *(f"infos/{name}" for name in file.get("infos", ()))]
        return {name: file[name][:] for name in names if isinstance(file[name], h5py.Dataset)}


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
def test_episodes_are_converted_exactly_and_in_order(tmp_path, dtype):
    """Numbers are sorted numerically; every grey level survives scaling to [0, 1]."""
    episodes = {number: episode(number, steps=number % 5 + 1) for number in (10, 9, 1, 100, 2)}
    episodes[2]["obs"] = np.arange(3 * 60).astype(np.uint8).reshape(3, *SHAPE) + np.uint8(76)
    stored = {}
    for number, arrays in episodes.items():
        obs = arrays["obs"]
        stored[number] = arrays | {"obs": obs.astype(dtype) / dtype_scale(dtype) if dtype[0] == "f" else obs}
        stored[number]["obs"] = stored[number]["obs"].astype(dtype)
    file = TrajectoryFile(convert(save(tmp_path / "data", stored)), observation_shape=SHAPE, num_actions=4)
    observations, actions = file.load()
    for start, length, number in zip(file.starts, file.lengths, (1, 2, 9, 10, 100), strict=True):
        rows = slice(start, start + length)
        np.testing.assert_array_equal(observations[rows], episodes[number]["obs"])
        np.testing.assert_array_equal(actions[rows], episodes[number]["action"])
        np.testing.assert_array_equal(file.rewards[rows], episodes[number]["reward"].astype(np.float32))
    assert file.observation_dtype == np.uint8
    made = file.attributes
    assert (made["environment"], made["source"], made["source_files"]) == ("Test-v0", "data", 5)


def dtype_scale(dtype):
    return np.dtype(dtype).type(255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_grey_level_survives(tmp_path, dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(256, 1, 1)
    arrays = {"obs": levels.astype(dtype) / dtype(255), "action": np.zeros(256, int), "reward": np.zeros(256)}
    path = convert(save(tmp_path / "data", {0: arrays}), observation_shape=(1, 1), keys=NpzKeys(marked=False))
    np.testing.assert_array_equal(everything(path)["observations"], levels)


def test_ends_and_further_arrays(tmp_path):
    """A file without a done was cut off; numbers per episode and per step are kept as infos."""
    first = episode(0) | {"is_red": np.bool_(True), "position": np.ones((6, 2), np.float64)}
    second = episode(1, 4) | {"done": np.zeros(4, int), "is_red": np.array([0]), "position": np.zeros((4, 2))}
    folder = save(tmp_path / "data", {0: first, 1: second})
    path = convert(folder, infos=("is_red", "position"), index_frames=True)
    arrays = everything(path)
    assert arrays["terminals"].tolist() == [0] * 5 + [1] + [0] * 4
    assert arrays["timeouts"].tolist() == [0] * 9 + [1]
    assert arrays["infos/is_red"].tolist() == [1] * 6 + [0] * 4
    assert arrays["infos/position"].shape == (10, 2) and arrays["infos/position"].dtype == np.float32
    assert arrays["infos/first_seen"].tolist() == list(range(10))
    assert "infos/first_seen" not in everything(convert(folder, target=tmp_path / "plain.h5"))


def test_other_names_of_files_and_arrays(tmp_path):
    arrays = episode(0)
    renamed = {"image": arrays["obs"], "act": arrays["action"], "rew": arrays["reward"]}
    folder = save(tmp_path / "data", {3: renamed}, name="ep-{}.npz")
    keys = NpzKeys(observations="image", actions="act", rewards="rew", marked=False)
    file = TrajectoryFile(convert(folder, pattern="ep-*.npz", keys=keys))
    assert file.num_episodes == 1 and everything(file.path)["timeouts"].tolist() == [0] * 5 + [1]


def test_directories_named_like_files_are_skipped(tmp_path):
    """The published collector made a directory next to every file, and doubled the file's name."""
    folder = save(tmp_path / "data", {i: episode(i) for i in (2, 10)}, name="train_data_{0}.npztrain_data_{0}.npz")
    save(folder, {3: episode(3)})
    for number in (2, 10):
        (folder / f"train_data_{number}.npz").mkdir()
    assert [path.name for path in find_npz(folder)] == [
        "train_data_2.npztrain_data_2.npz",
        "train_data_3.npz",
        "train_data_10.npztrain_data_10.npz",
    ]
    assert TrajectoryFile(convert(folder)).num_episodes == 3


def changed(name, value):
    return episode(7) | {name: value}


BAD = {
    "has no 'reward' (available: action, done, obs)": {k: v for k, v in episode(7).items() if k != "reward"},
    "has 'obs' of shape (6, 4, 5, 3); expected (6, 3, 4, 5)": changed("obs", np.zeros((6, 4, 5, 3), np.uint8)),
    "has 'obs' of shape (5, 3, 4, 5)": changed("obs", np.zeros((5, *SHAPE), np.uint8)),
    "has 'obs' from 0.0 to 255.0; floating-point images must be in [0, 1]": changed(
        "obs", np.linspace(0, 255, 360, dtype=np.float32).reshape(6, *SHAPE)
    ),
    "has 'obs' from -0.5 to": changed("obs", np.linspace(-0.5, 0.5, 360).reshape(6, *SHAPE)),
    "has 'obs' from nan to nan": changed("obs", np.full((6, *SHAPE), np.nan, np.float32)),
    "has 'obs' from -1 to 0; allowed is 0 to 255": changed("obs", -np.eye(6, 60, dtype=int).reshape(6, *SHAPE)),
    "has 'obs' with values between the 256 grey levels": changed("obs", np.full((6, *SHAPE), 0.123, np.float32)),
    "has 'obs' of type <U1; expected numbers": changed("obs", np.full((6, *SHAPE), "a")),
    "has 'action' int64 (6, 4); expected 6 integers": changed("action", np.eye(6, 4, dtype=int)),
    "has 'action' int64 (); expected 6 integers": changed("action", np.array(3)),
    "has 'action' float64 (6,)": changed("action", np.zeros(6)),
    "has actions from 0 to 4; allowed is 0 to 3": changed("action", np.array([0, 1, 2, 3, 4, 0])),
    "has actions from -10 to 0": changed("action", np.array([0, 0, 0, 0, 0, -10])),
    "has 'reward' of shape (6, 2)": changed("reward", np.zeros((6, 2))),
    "has 'reward' of shape (0,)": changed("reward", np.zeros(0)),
    "has a NaN or infinite value in 'reward'": changed("reward", np.array([0, 0, 1e300, 0, 0, np.nan])),
    "has 'done' of shape (5,); expected (6,)": changed("done", np.zeros(5)),
    "has an end at each of the steps 3 to 4 ('done'): padding": changed("done", np.array([0, 0, 0, 1, 1, 1])),
    "has no 'done' and no other array that marks ends": {k: v for k, v in episode(7).items() if k != "done"},
    "contradicts itself: by 'done' an episode ends with step 2 of 6, by 'is_last' it goes": changed(
        "done", np.array([0, 0, 1, 0, 0, 1])
    )
    | {"is_last": np.arange(6) == 5},
    "is damaged or not an .npz file": changed("obs", np.full((6, *SHAPE), None)),  # pickled: never read
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_files_are_refused_with_the_reason(tmp_path, capsys, reason):
    """The others are converted; a folder of nothing else is an error."""
    folder = save(tmp_path / "data", {0: episode(0), 5: BAD[reason], 6: episode(6)})
    path = convert(folder)
    assert TrajectoryFile(path).num_episodes == 2
    printed = capsys.readouterr().out
    assert f"converted 2 episodes to '{path}'; skipped 1 of 3 files: train_data_5.npz {reason}" in printed
    for number in (0, 6):
        (folder / f"train_data_{number}.npz").unlink()
    with pytest.raises(UserError, match="none of 1 files train_data_") as error:
        convert(folder, target=tmp_path / "none.h5")
    assert reason in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted.h5", "data"]


def test_damaged_files_are_refused(tmp_path, capsys):
    folder = save(tmp_path / "data", {number: episode(number) for number in range(6)})
    whole = (folder / "train_data_0.npz").read_bytes()
    (folder / "train_data_1.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "train_data_2.npz").write_bytes(b"")
    (folder / "train_data_3.npz").write_bytes(whole[:400] + b"\xff" * 40 + whole[440:])
    (folder / "train_data_4.npz").write_bytes(b"text")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "train_data_5.npz")
    with zipfile.ZipFile(folder / "train_data_6.npz", "w") as archive:  # the header's last bracket is not closed
        whole = zipfile.ZipFile(folder / "train_data_0.npz").read("reward.npy")
        archive.writestr("reward.npy", whole.replace(b"(6,)", b"(6, "))
        for name in ("obs", "action", "done"):
            archive.writestr(f"{name}.npy", whole)
    assert TrajectoryFile(convert(folder)).num_episodes == 1
    printed = capsys.readouterr().out
    assert "skipped 6 of 7 files" in printed and printed.count("train_data_") == 3, "an example of each reason"
    assert "train_data_1.npz is damaged or not an .npz file (not a zip archive) (and 3 more)" in printed


def test_reasons_are_listed_by_frequency_with_an_example(tmp_path, capsys, monkeypatch):
    bad = {number: episode(number) | {"action": np.full(6, 9)} for number in range(4)}
    missing = {number: {"obs": np.zeros(3)} for number in range(4, 10)}
    folder = save(tmp_path / "data", bad | missing | {10: changed("done", np.zeros(5)), 11: episode(11)})
    convert(folder)
    printed = capsys.readouterr().out
    frequent, rest = printed.index("train_data_4.npz has no 'action'"), printed.index("train_data_0.npz has actions")
    assert frequent < rest < printed.index("train_data_10.npz has 'done' of shape (5,); expected (6,)\n")
    assert "(and 5 more)" in printed[frequent:rest] and "(and 3 more)" in printed[rest:]
    monkeypatch.setattr(npz, "REASONS_SHOWN", 1)
    convert(folder, target=tmp_path / "again.h5")
    assert capsys.readouterr().out.rstrip().endswith("(and 5 more); 5 more for other reasons")


def test_further_arrays_must_fit(tmp_path, capsys):
    episodes = {
        0: episode(0) | {"extra": np.zeros((6, 2))},
        1: episode(1) | {"extra": np.zeros((6, 3))},
        2: episode(2) | {"extra": np.zeros(4)},
        3: episode(3),
    }
    assert TrajectoryFile(convert(save(tmp_path / "data", episodes), infos=("extra",))).num_episodes == 1
    printed = capsys.readouterr().out
    for part in ("'extra' of shape (3,) per step; earlier files have (2,)", "expected 6 steps", "has no 'extra'"):
        assert part in printed


def test_a_conversion_is_reused_until_the_folder_changes(tmp_path, capsys):
    folder = save(tmp_path / "data", {0: episode(0), 1: episode(1)})
    path = convert(folder)
    capsys.readouterr()
    before = path.stat().st_mtime_ns
    assert convert(folder) == path and path.stat().st_mtime_ns == before and capsys.readouterr().out == ""

    def renewed(**changes):
        nonlocal before
        convert(folder, **changes)
        old, before = before, path.stat().st_mtime_ns
        return before != old

    save(folder, {2: episode(2)})
    assert renewed() and TrajectoryFile(path).num_episodes == 3
    os.utime(folder / "train_data_0.npz", ns=(1, 1))
    assert renewed() and not renewed()
    (folder / "train_data_2.npz").unlink()
    assert renewed() and TrajectoryFile(path).num_episodes == 2
    assert renewed(num_actions=5) and renewed(index_frames=True)  # read in another way
    # A conversion that fails leaves the old one.
    for number in range(2):
        (folder / f"train_data_{number}.npz").write_bytes(b"")
    with pytest.raises(UserError, match="none of 2 files"):
        convert(folder)
    assert TrajectoryFile(path).num_episodes == 2


def test_a_file_that_is_not_a_conversion_is_not_replaced(tmp_path):
    folder = save(tmp_path / "data", {0: episode(0)})
    for name, content in (("text.h5", b"mine"), ("other.h5", None)):
        target = tmp_path / name
        if content is None:
            with h5py.File(target, "w") as file:
                file["mine"] = 1
        else:
            target.write_bytes(content)
        before = target.read_bytes()
        with pytest.raises(UserError, match="is not a conversion"):
            convert(folder, target=target)
        assert target.read_bytes() == before


def test_a_folder_without_such_files_is_named(tmp_path):
    with pytest.raises(UserError, match="has no file train_data_.*: it is not a folder"):
        convert(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no file ep-\*.npz"):
        convert(save(tmp_path / "data", {0: episode(0)}), pattern="ep-*.npz")
    assert not Path(tmp_path / "converted.h5").exists()


def test_data_is_a_file_or_a_folder_to_convert(tmp_path):
    folder = save(tmp_path / "data", {0: episode(0)})
    settings = {"observation_shape": SHAPE, "num_actions": 4, "attributes": {}}
    target = conversion_path(folder, tmp_path / "made", "maze")
    assert target.name.startswith("maze_imported_data_") and target.parent == tmp_path / "made"
    assert resolve_data(folder, target, **settings) == target and TrajectoryFile(target).num_episodes == 1
    assert resolve_data(target, tmp_path / "unused.h5", **settings) == target
    for bad, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has no train_data_.*npz.$"),
        (target.parent, f"To train on '{target.name}' in it, name that file"),
        (folder / "train_data_0.npz", "give the folder"),
    ):
        with pytest.raises(UserError, match=message) as error:
            resolve_data(bad, tmp_path / "unused.h5", **settings)
        assert f"--data_path '{bad}'" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "made"]


def test_folders_of_equal_name_have_separate_conversions(tmp_path, monkeypatch):
    one, two = (conversion_path(tmp_path / parent / "data", tmp_path, "maze") for parent in "ab")
    assert one != two
    monkeypatch.chdir(tmp_path)
    assert conversion_path(Path("a/data"), tmp_path, "maze") == one


# --- rows of arrivals, one-hot actions, channels last ---


def dreamer(seed, steps=5, *, actions=4, name="image"):
    """An episode as stored by Dreamer's collectors: (arrays, observations, actions, rewards)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(steps + 1, *SHAPE), dtype=np.uint8)
    taken, rewards = rng.integers(actions, size=steps), rng.normal(size=steps).astype(np.float32)
    arrays = {
        name: np.moveaxis(images, 1, -1),
        "action": np.concatenate([np.zeros((1, actions)), np.eye(actions)[taken]]).astype(np.float32),
        "reward": np.concatenate([[0], rewards]).astype(np.float32),
    }
    return arrays, images[:-1], taken, rewards


def dreamer_keys(rows):
    return NpzKeys(observations=("image", "obs"), marked=False, rows=rows, one_hot=True, channels_last=True)


@pytest.mark.parametrize("rows", ["arrivals", "auto"])
def test_an_arriving_action_belongs_to_the_previous_step(tmp_path, rows):
    episodes = [dreamer(1), dreamer(2, steps=3, name="obs")]
    folder = save(tmp_path / "data", {number: arrays for number, (arrays, *_) in enumerate(episodes)}, "{}.npz")
    found = everything(convert(folder, keys=dreamer_keys(rows), pattern="*.npz"))
    for position, name in enumerate(("observations", "actions", "rewards"), start=1):
        np.testing.assert_array_equal(found[name], np.concatenate([episode[position] for episode in episodes]))
    assert found["timeouts"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1] and not found["terminals"].any()


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("rows", ["steps", "auto"])
def test_an_action_taken_on_an_image_stays_with_it(tmp_path, rows, extra):
    """One more observation than actions proves it."""
    arrays, observations, taken, rewards = dreamer(1)
    arrays = {"action": arrays["action"][1:], "reward": arrays["reward"][1:], "image": arrays["image"][: 5 + extra]}
    folder = save(tmp_path / "data", {0: arrays})
    if rows == "auto" and not extra:
        with pytest.raises(UserError, match="does not show whether an action was taken on the image of its row"):
            convert(folder, keys=dreamer_keys(rows))
        return
    found = everything(convert(folder, keys=dreamer_keys(rows)))
    np.testing.assert_array_equal(found["observations"], observations)
    assert found["actions"].tolist() == taken.tolist() and found["rewards"].tolist() == rewards.tolist()


def test_arrivals_may_start_with_any_action(tmp_path):
    arrays, _, taken, _ = dreamer(1)
    arrays["action"][0] = np.eye(4)[2]
    found = everything(convert(save(tmp_path / "data", {0: arrays}), keys=dreamer_keys("arrivals")))
    assert found["actions"].tolist() == taken.tolist()


def test_other_settings_convert_the_files_again(tmp_path):
    folder = save(tmp_path / "data", {0: dreamer(1)[0] | {"action": np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 2]]}})
    lengths = [
        len(everything(convert(folder, keys=dreamer_keys(rows)))["actions"]) for rows in ("steps", "arrivals", "steps")
    ]
    assert lengths == [6, 5, 6]


REFUSED_ROWS = {
    "has no 'image' or 'obs' (available: action, picture, reward)": lambda a: {"picture": a.pop("image")},
    "has 'image' of shape (6, 3, 4, 5); expected (6, 4, 5, 3)": lambda a: {"image": np.moveaxis(a["image"], -1, 1)},
    "has 'image' of shape (8, 4, 5, 3); expected (6, 4, 5, 3)": lambda a: {"image": np.zeros((8, 4, 5, 3), np.uint8)},
    "has 'action' of shape (6,); expected (6, 4), one-hot": lambda a: {"action": a["action"].argmax(1)},
    "has 'action' at row 3 of 6 that is not one-hot": lambda a: {"action": a["action"] * (np.arange(6) != 3)[:, None]},
    "has 7 images and 6 rewards": lambda a: {"image": np.zeros((7, 4, 5, 3), np.uint8)},
}


@pytest.mark.parametrize("reason", REFUSED_ROWS)
def test_rows_that_cannot_be_read_are_refused_with_the_reason(tmp_path, capsys, reason):
    arrays, *_ = dreamer(1)
    arrays |= REFUSED_ROWS[reason](arrays)
    folder = save(tmp_path / "data", {0: dreamer(2)[0], 1: arrays})
    convert(folder, keys=dreamer_keys("arrivals"))
    assert f"skipped 1 of 2 files: train_data_1.npz {reason}" in capsys.readouterr().out


def test_errors_name_the_flag_or_setting(tmp_path):
    with pytest.raises(UserError, match=r"^data: of settings.yaml '.*': this folder has no \*.npz"):
        resolve_data(tmp_path, tmp_path / "x.h5", pattern="*.npz", named="data: of settings.yaml")


# --- several episodes in a file, and files that begin or end within one ---


def levels(lengths, *, dones=True):
    """Rows of episodes 1, 2, ...: pixels, rewards and, modulo 4, actions are the episode's number; and last rows."""
    number = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    last = np.append(np.diff(number) > 0, True)
    arrays = {"obs": np.broadcast_to(number[:, None, None, None].astype(np.uint8), (len(number), *SHAPE)).copy()}
    arrays |= {"action": number % 4, "reward": number.astype(np.float32)}
    return arrays | ({"done": last} if dones else {}), last


def cut(arrays, start, stop):
    return {name: values[start:stop] for name, values in arrays.items()}


def assert_episodes(path, expected):
    """Assert that the file has these episodes (number, steps), unmixed, with their own returns-to-go."""
    file = TrajectoryFile(path)
    assert file.lengths.tolist() == [steps for _, steps in expected]
    numbers = np.concatenate([[number] * steps for number, steps in expected])
    np.testing.assert_array_equal(file.load()[0][:, 0, 0, 0], numbers)
    np.testing.assert_array_equal(file.actions, numbers % 4)
    assert file.returns_to_go()[file.starts].tolist() == [number * steps for number, steps in expected]
    return everything(path)


@pytest.mark.parametrize(
    "name", ["done", "is_last", "is_first", "reset", "episode_id", "episode_starts", "episode_ends", "terminated"]
)
def test_a_file_of_several_episodes_is_split(tmp_path, name):
    """At every known mark. The last one has no end if only starts are marked and there is no next file."""
    arrays, last = levels([3, 4, 2], dones=False)
    first = np.append(True, last[:-1])
    marks = {
        "done": last[:, None],
        "terminated": last,
        "is_last": last,
        "is_first": first,
        "reset": first.astype(float),
    }
    marks |= {"episode_starts": first, "episode_id": np.cumsum(first), "episode_ends": np.flatnonzero(last) + 1}
    folder = save(tmp_path / "data", {0: arrays | {name: marks[name]}})
    told = name in ("done", "terminated", "is_last", "episode_ends")
    found = assert_episodes(convert(folder), [(1, 3), (2, 4), (3, 2)][: 3 if told else 2])
    assert found["terminals"].any() == (name in ("done", "terminated"))


def test_columns_of_a_file(tmp_path):
    arrays, _ = levels([3, 4])
    columns = {name: arrays[name][:, None] for name in ("action", "reward", "done")}
    assert_episodes(convert(save(tmp_path / "data", {0: arrays | columns})), [(1, 3), (2, 4)])


def test_files_that_begin_and_end_within_an_episode(tmp_path, capsys):
    """Chunks of 5 rows: the rest of an episode is used only on request; one without an end never is."""
    arrays, last = levels([3, 4, 6, 2])
    arrays |= {"is_first": np.append(True, last[:-1]), "is_last": arrays.pop("done")}
    folder = save(tmp_path / "data", {number: cut(arrays, 5 * number, 5 * number + 5) for number in range(3)})
    assert_episodes(convert(folder, keys=NpzKeys(continued=True)), [(1, 3), (2, 2), (3, 3), (4, 2)])
    assert "converted 4 episodes" in (printed := capsys.readouterr().out) and "dropped 2 without an end" in printed
    assert_episodes(convert(folder, target=tmp_path / "b.h5"), [(1, 3), (4, 2)])


def test_the_next_file_shows_that_an_episode_continues(tmp_path, capsys):
    """Only starts are marked. File 0 does not end an episode, file 1 does; file 3 is unclear but has only one."""
    arrays, last = levels([8, 3, 4], dones=False)
    arrays["is_first"] = np.append(True, last[:-1])
    pieces = [cut(arrays, 0, 5), cut(arrays, 5, 8), cut(arrays, 8, 11), cut(arrays, 11, 15)]
    folder = save(tmp_path / "data", dict(enumerate(pieces)))
    assert_episodes(convert(folder, keys=NpzKeys(continued=True)), [(1, 3), (2, 3), (3, 4)])
    assert "dropped 1 without an end" in capsys.readouterr().out


def test_a_folder_in_which_no_episode_ends_is_refused(tmp_path):
    arrays, last = levels([6], dones=False)
    with pytest.raises(UserError, match="no episode ends in any of 1 files"):
        convert(save(tmp_path / "data", {0: arrays | {"is_last": last & False}}))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_one_number_cannot_cover_several_episodes(tmp_path):
    arrays, _ = levels([3, 4])
    with pytest.raises(UserError, match="has one 'is_red' for 2 episodes; expected one per step"):
        convert(save(tmp_path / "data", {0: arrays | {"is_red": np.array(1)}}), infos=("is_red",))


def test_arrays_that_may_mark_ends_are_named(tmp_path, capsys):
    arrays, last = levels([3, 4])
    convert(save(tmp_path / "data", {0: arrays | {"my_ends": last}, 1: arrays}))
    assert "ignored 'my_ends' in 1 files, which may mark ends of episodes" in capsys.readouterr().out


def chunk(lengths, rows):
    """Episodes with these numbers of steps, one extra row each, in one of Dreamer's orders; and their content."""
    made = [dreamer(seed, steps) for seed, steps in enumerate(lengths)]
    held = [np.concatenate([episode[part] for episode in made]) for part in (1, 2, 3)]
    arrays = {name: np.concatenate([episode[0][name] for episode in made]) for name in made[0][0]}
    last = np.isin(np.arange(len(arrays["reward"])), np.cumsum(np.array(lengths) + 1) - 1)
    if rows == "replay":  # each row has the action taken on its image; the last row has none
        arrays["action"] = np.roll(arrays["action"], -1, axis=0)
    return arrays | {"is_first": np.roll(last, 1), "is_last": last, "is_terminal": last & False}, held


@pytest.mark.parametrize(("made", "rows"), [("arrivals", "arrivals"), ("arrivals", "auto"), ("replay", "replay")])
def test_rows_of_several_episodes(tmp_path, made, rows):
    """Every episode has one more row than steps; no action or reward leaks into the next one."""
    arrays, held = chunk([5, 3, 4], made)
    found = everything(convert(save(tmp_path / "data", {0: arrays}), keys=dreamer_keys(rows)))
    for name, expected in zip(("observations", "actions", "rewards"), held, strict=True):
        np.testing.assert_array_equal(found[name], expected)
    assert np.flatnonzero(found["timeouts"]).tolist() == [4, 7, 11]


def test_a_reward_without_an_action_came_with_its_image(tmp_path):
    arrays, (observations, actions, _) = chunk([5, 3], "replay")
    folder = save(tmp_path / "data", {0: arrays})
    with pytest.raises(UserError, match="has a reward in row 5 of 10, in which no action was taken: rewards came with"):
        convert(folder, keys=dreamer_keys("steps"))
    arrays["reward"][[5, 9]] = 0
    found = everything(convert(save(folder, {0: arrays}), keys=dreamer_keys("steps")))
    np.testing.assert_array_equal(found["observations"], observations)
    np.testing.assert_array_equal(found["actions"], actions)
    with pytest.raises(UserError, match="does not show whether an action"):
        convert(folder, keys=dreamer_keys("auto"))


def test_images_with_time_last(tmp_path):
    arrays, observations, *_ = dreamer(1)
    arrays["image_t"] = arrays.pop("image").transpose(1, 2, 3, 0)
    keys = replace(dreamer_keys("auto"), observations=("image", "image_t"), time_last=("image_t",))
    np.testing.assert_array_equal(
        everything(convert(save(tmp_path / "data", {0: arrays}), keys=keys))["observations"], observations
    )
