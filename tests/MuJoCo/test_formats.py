"""Pickles and Minari datasets: converted once, to the same episodes."""

import os
import pickle
import warnings

import h5py
import numpy as np
import pytest

from MuJoCo import dataset
from MuJoCo.dataset import open_data
from MuJoCo.tasks import HOPPER, TASKS
from RATE_model.errors import UserError
from tests.mujoco_files import TERMINAL, episodes

TASK = TASKS[6]


class Harmful:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def write_pickle(folder, content, protocol=4):
    path = folder / "hopper-medium-v2.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_minari(folder, made, order=None, **changes):
    """A Minari dataset of these episodes, each with one more observation; ``changes`` apply to episode 3."""
    path = folder / "mujoco" / "hopper" / "medium-v0" / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for number in order or range(len(made)):
            episode, steps = made[number], len(made[number]["rewards"])
            last = np.arange(steps) == steps - 1
            arrays = {
                "observations": np.concatenate([episode["observations"], np.full((1, 11), 9.0)]),
                "actions": episode["actions"].astype(np.float64),
                "rewards": episode["rewards"],
                "terminations": last & episode["terminals"].any(),
                "truncations": last & ~episode["terminals"].any(),
            }
            for name, values in (arrays | (changes if number == 3 else {})).items():
                if values is not None:
                    file[f"episode_{number}/{name}"] = values
            file[f"episode_{number}/infos/x_position"] = np.zeros(steps + 1)
    return path


def assert_same(file, made):
    """The file holds these episodes."""
    assert file.lengths.tolist() == [len(episode["rewards"]) for episode in made] and file.whole.all()
    stacked = {name: np.concatenate([episode[name] for episode in made]) for name in made[0]}
    np.testing.assert_array_equal(file.load()[0], stacked["observations"])
    np.testing.assert_array_equal(file.actions, stacked["actions"])
    np.testing.assert_array_equal(file.rewards, stacked["rewards"])
    with h5py.File(file.path) as raw:
        np.testing.assert_array_equal(raw["terminals"][:], stacked["terminals"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles(tmp_path, protocol, capsys):
    made = episodes(HOPPER)
    write_pickle(tmp_path, made, protocol)
    assert_same(open_data(TASK, tmp_path), made)
    assert "Converting" in capsys.readouterr().out
    assert_same(open_data(TASK, tmp_path), made)  # from the copy
    assert "Converting" not in capsys.readouterr().out
    changed = episodes(HOPPER, [8, 3], seed=5)
    write_pickle(tmp_path, changed, protocol)
    assert_same(open_data(TASK, tmp_path), changed)


def test_damaged_conversion_can_be_deleted_and_remade(tmp_path):
    source = write_pickle(tmp_path, episodes(HOPPER))
    converted = open_data(TASK, tmp_path).path
    with h5py.File(converted) as file:
        place = file["rewards"].id.get_chunk_info(0).byte_offset
    content = bytearray(converted.read_bytes())
    content[place] ^= 1
    converted.write_bytes(content)
    with pytest.raises(UserError, match=rf"'{converted}' is damaged.*converted from '{source}'; delete it"):
        open_data(TASK, tmp_path)


def test_pickles_of_numpy_1(tmp_path):
    """Their arrays name a module that has since moved."""
    content = pickle.dumps(episodes(HOPPER), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    (tmp_path / "hopper-medium-v2.pkl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's for its old name
        assert_same(open_data(TASK, tmp_path), episodes(HOPPER))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (episodes(HOPPER)[0], "is not a list of episodes"),
        ([], "contains no episodes"),
        (
            [{"observations": np.zeros((2, 11)), "actions": np.zeros((2, 3))}],
            "episode 0 of .* has no rewards, terminals",
        ),
        ([episodes(HOPPER)[0] | {"rewards": np.zeros(3)}], "inconsistent lengths .*observations 7, .*rewards 3"),
        ([*episodes(HOPPER), episodes(HOPPER)[0] | {"rewards": np.full(7, np.nan)}], "episode 6 of .*not finite"),
        ([episodes(HOPPER)[0] | {"observations": np.array([None] * 7)}], "'observations' is not numeric"),
        ([Harmful()], "pickle with .*system is refused"),
    ],
)
def test_bad_pickles_are_refused_and_nothing_is_left(tmp_path, content, message):
    path = write_pickle(tmp_path, content)
    with pytest.raises(UserError, match=message):
        open_data(TASK, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_pickle_is_refused(tmp_path, share):
    path = write_pickle(tmp_path, episodes(HOPPER))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="hopper-medium-v2.pkl' is damaged or not a pickle"):
        open_data(TASK, tmp_path)


def test_minari_data_is_found_by_name_or_folder(tmp_path, capsys):
    made = episodes(HOPPER, [3, 4, 5, 6, 7, 8, 9, 3, 4, 5, 6, 7])
    path = write_minari(tmp_path, made, order=[11, 10, *range(10)])  # HDF5 itself sorts 10 before 2
    for place in (tmp_path, path.parents[1], path):
        assert_same(open_data(TASK, place), made)
    assert capsys.readouterr().out.count("Converting") == 1
    assert any(TERMINAL) and not all(TERMINAL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncations": None}, "'episode_3' of .* has no truncations"),
        ({"observations": np.zeros((30, 11))}, "inconsistent lengths .*observations 30, actions 30"),
        ({"rewards": np.full(30, np.inf)}, "episode 3 of .*not finite"),
    ],
)
def test_bad_minari_datasets_are_refused_and_nothing_is_left(tmp_path, changes, message):
    path = write_minari(tmp_path, episodes(HOPPER), **changes)
    with pytest.raises(UserError, match=message):
        open_data(TASK, tmp_path)
    assert list(path.parent.iterdir()) == [path]


def test_a_minari_dataset_of_observations_in_groups_is_refused(tmp_path):
    path = write_minari(tmp_path, episodes(HOPPER))
    with h5py.File(path, "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations/position"] = np.zeros((8, 11))
    with pytest.raises(UserError, match="'observations' is a group of arrays"):
        open_data(TASK, tmp_path)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "mujoco" / "hopper" / "medium-v0").mkdir(parents=True)
    with pytest.raises(UserError, match="not a Minari dataset: it has no file"):
        open_data(TASK, tmp_path)


# --- where episodes end, and where the conversion goes ---


def test_a_pickle_may_mark_ends_otherwise(tmp_path):
    made = episodes(HOPPER)
    other = [{"dones" if name == "terminals" else name: v for name, v in episode.items()} for episode in made]
    for episode in other:
        episode["rewards"] = episode["rewards"][:, None]
        episode["dones"] = episode["dones"].astype(np.float32)[:, None]
        episode["next_observations"] = np.roll(episode["observations"], -1, axis=0)
    write_pickle(tmp_path, other)
    assert_same(open_data(TASK, tmp_path), made)


def test_pickle_episode_with_broken_successors_is_split(tmp_path, capsys):
    long = episodes(HOPPER, [30])[0]
    after = np.roll(long["observations"], -1, axis=0)
    after[12] = 7
    write_pickle(tmp_path, [long | {"next_observations": after}, *episodes(HOPPER, seed=2)])
    assert open_data(TASK, tmp_path).lengths.tolist()[:3] == [13, 17, 7]
    assert "episode 0 of '" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": np.arange(30) == 4}, "has an end at step 4 of 30: expected one episode"),
        ({"rewards": np.zeros((30, 2))}, r"has 'rewards' of shape \(30, 2\); expected one number per step"),
        ({"next_observations": np.zeros((30, 5))}, r"has 'next_observations' of shape \(30, 5\)"),
        ({"next_observations": np.zeros((30, 11))}, "is not in chronological order"),
    ],
)
def test_impossible_pickle_episode_is_refused(tmp_path, change, message):
    made = episodes(HOPPER)
    path = write_pickle(tmp_path, [*made[:3], made[3] | change])
    with pytest.raises(UserError, match=f"episode 3 of .*{message}"):
        open_data(TASK, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncations": np.arange(30) == 2}, "an end at step 2 of 30"),
        ({"rewards": np.zeros((30, 2))}, r"has 'rewards' of shape \(30, 2\)"),
    ],
)
def test_impossible_minari_episode_is_refused(tmp_path, changes, message):
    write_minari(tmp_path, episodes(HOPPER), **changes)
    with pytest.raises(UserError, match=f"'episode_3' of .*{message}"):
        open_data(TASK, tmp_path)


def test_wrong_minari_metadata_is_refused(tmp_path):
    path = write_minari(tmp_path, episodes(HOPPER))
    with h5py.File(path, "a") as file:
        file["episode_3"].attrs["total_steps"] = 31
    with pytest.raises(UserError, match="'episode_3' of .* states 31 steps but contains 30"):
        open_data(TASK, tmp_path)
    with h5py.File(path, "a") as file:
        del file["episode_3"]
        file.attrs["total_episodes"] = 6
    with pytest.raises(UserError, match="states 6 episodes but contains 5; copy it again"):
        open_data(TASK, tmp_path)


def test_columns_of_minari(tmp_path):
    made = episodes(HOPPER)
    last = np.arange(30) == 29
    columns = {"rewards": made[3]["rewards"], "terminations": last & False, "truncations": last}
    write_minari(tmp_path, made, **{name: values[:, None] for name, values in columns.items()})
    assert_same(open_data(TASK, tmp_path), made)


def test_an_episode_longer_than_the_task_allows_is_refused(tmp_path):
    write_pickle(tmp_path, [*episodes(HOPPER), episodes(HOPPER, [1001])[0]])
    with pytest.raises(UserError, match="episode 6 of .* has 1001 steps; an episode has at most 1000"):
        open_data(TASK, tmp_path)


def test_conversion_of_read_only_source_goes_elsewhere(tmp_path, monkeypatch, capsys):
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    write_pickle(source, episodes(HOPPER))
    monkeypatch.setattr(dataset, "DATA_DIRECTORY", made)
    access, read_only = os.access, {source}
    monkeypatch.setattr(os, "access", lambda path, mode: path not in read_only and access(path, mode))
    file = open_data(TASK, source)
    assert file.path.parent == made and f"to '{file.path}', once" in capsys.readouterr().out
    assert open_data(TASK, source).path == file.path and "Converting" not in capsys.readouterr().out
    named = open_data(TASK, source, tmp_path / "named")
    assert named.path.parent == tmp_path / "named" and [path.suffix for path in source.iterdir()] == [".pkl"]
    read_only |= {made}
    file.path.unlink()
    with pytest.raises(UserError, match="made' is not writable; name another folder .--data_dir"):
        open_data(TASK, source)
    read_only.clear()
    assert open_data(TASK, source).path.parent == source
