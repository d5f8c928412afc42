"""Pickles and Minari datasets: converted once, to the same episodes."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from MuJoCo import formats
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
    """A Minari dataset of these episodes, in which each has one observation more; ``changes`` are for episode 3."""
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
    np.testing.assert_allclose(file.load()[0], file.normalisation.apply(stacked["observations"]))
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


def test_a_read_only_folder_is_converted_elsewhere(tmp_path, monkeypatch):
    """Root may write anywhere, so what a folder answers is made up."""
    (given := tmp_path / "given").mkdir()
    source, own, made = write_pickle(given, episodes(HOPPER)), tmp_path / "own", episodes(HOPPER)
    monkeypatch.setattr(formats, "DATA_DIRECTORY", own)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != given)
    assert_same(open_data(TASK, source), made)
    assert list(given.iterdir()) == [source] and len(list(own.glob("*.h5"))) == 1
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_same(open_data(TASK, source), made)  # what is complete is used
    shutil.rmtree(own)
    with pytest.raises(UserError, match="is not writable; name another folder"):
        open_data(TASK, source)


def test_pickles_of_numpy_1(tmp_path):
    """Its arrays name a module that has moved since."""
    content = pickle.dumps(episodes(HOPPER), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    (tmp_path / "hopper-medium-v2.pkl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's for its old name
        assert_same(open_data(TASK, tmp_path), episodes(HOPPER))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (episodes(HOPPER)[0], "does not hold a list of episodes"),
        ([], "holds no episode"),
        (
            [{"observations": np.zeros((2, 11)), "actions": np.zeros((2, 3))}],
            "episode 0 of .* has no rewards, terminals",
        ),
        ([episodes(HOPPER)[0] | {"rewards": np.zeros(3)}], "lengths that do not fit .*observations 7, .*rewards 3"),
        ([*episodes(HOPPER), episodes(HOPPER)[0] | {"rewards": np.full(7, np.nan)}], "episode 6 of .*not finite"),
        ([episodes(HOPPER)[0] | {"observations": np.array([None] * 7)}], "'observations' are not numbers"),
        ([Harmful()], "pickle that holds .*system is not read"),
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
    with pytest.raises(UserError, match="hopper-medium-v2.pkl' is damaged or no pickle"):
        open_data(TASK, tmp_path)


def test_minari_by_each_of_its_places(tmp_path, capsys):
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
        ({"observations": np.zeros((30, 11))}, "lengths that do not fit .*observations 30, actions 30"),
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
    with pytest.raises(UserError, match="no Minari dataset: it has no file"):
        open_data(TASK, tmp_path)
