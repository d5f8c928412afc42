"""Trajectory files made in parts do not depend on the number of processes or on interruptions."""

import functools
import multiprocessing
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from RATE_model.data.parts import FileOptions, Job, make_in_parts, make_until
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError

SHAPE = (3, 4, 4)
RECIPE = {"game": "counting", "speed": 2, "mix": ["a", "b"]}


def play(log, wait, writer, first, count):
    """Deterministic episodes of 5 to 7 steps; every second one ends in a terminal state."""
    with open(log, "a") as file:
        file.write(f"{first} ")
    time.sleep(wait if first else 0)
    for number in range(first, first + count):
        rng, steps = np.random.default_rng(number), 5 + number % 3
        observations = rng.integers(0, 256, (steps, *SHAPE), dtype=np.uint8)
        infos = {"number": np.full(steps, number), "place": rng.normal(size=(steps, 2))}
        writer.add_episode(
            observations, rng.integers(0, 4, steps), rng.normal(size=steps), terminal=number % 2, infos=infos
        )


def make(folder, name="data.h5", episodes=10, *, wait=0.0, recipe=RECIPE, workers=1, **options):
    layout = {"observation_shape": SHAPE, "observation_dtype": "uint8", "channels_last": True}
    job = Job(functools.partial(play, folder / "log", wait), layout, recipe, 4)
    return make_in_parts(job, episodes, folder / name, attributes={"maker": "test"}, workers=workers, **options)


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


def test_the_content_does_not_depend_on_the_processes(tmp_path):
    path = make(tmp_path)
    file = TrajectoryFile(path)
    assert file.lengths.tolist() == [5 + number % 3 for number in range(10)]
    assert file.attributes["maker"] == "test" and file.attributes["mix"] == ["a", "b"]
    expected = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    np.testing.assert_array_equal(file.read(0, 5)[0], expected)
    with h5py.File(path) as raw:
        ends = file.starts + file.lengths - 1
        assert np.flatnonzero(raw["timeouts"]).tolist() == ends[::2].tolist()
        assert np.flatnonzero(raw["terminals"]).tolist() == ends[1::2].tolist()
        assert sorted(raw["infos"]) == ["number", "place"] and raw["infos/number"][-1] == 9
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.h5", "log"]
    assert_same_content(make(tmp_path, "two.h5", workers=2), path)


def test_finished_parts_are_reused(tmp_path, capsys):
    whole = make(tmp_path, "whole.h5")
    parts = tmp_path / "data.h5.parts"
    process = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path,), kwargs={"wait": 100})
    process.start()
    while not (parts / "part_00000.h5").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "data.h5").exists()
    (tmp_path / "log").write_text("")
    assert_same_content(make(tmp_path), whole)
    assert (tmp_path / "log").read_text() == "4 8 " and "resuming with 1 of 3 parts" in capsys.readouterr().out
    assert not parts.exists()


@pytest.mark.parametrize("change", [{"recipe": {**RECIPE, "speed": 3}}, {"damage": True}, {"episodes": 3}])
def test_parts_of_another_recipe_are_made_again(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("RATE_model.data.parts._join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make(tmp_path)
    if change.pop("damage", False):
        for part in (tmp_path / "data.h5.parts").iterdir():
            part.write_bytes(part.read_bytes()[:1000])
    (tmp_path / "log").write_text("")
    make(tmp_path, **change)
    assert (tmp_path / "log").read_text() == ("0 " if "episodes" in change else "0 4 8 ")


def test_a_file_is_replaced_only_when_asked(tmp_path):
    path = make(tmp_path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"data.h5' exists; add --overwrite true"):
        make(tmp_path, episodes=4)
    assert path.read_bytes() == before
    make(tmp_path, episodes=4, overwrite=True)
    assert TrajectoryFile(path).num_episodes == 4
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a directory"):
        make(tmp_path, "file/data.h5")


def make_steps(folder, name="data.h5", steps=20, *, wait=0.0, workers=1, levels=None, **options):
    layout = {"observation_shape": SHAPE, "observation_dtype": "uint8"}
    job = Job(functools.partial(play, folder / "log", wait), layout, RECIPE, 1)
    return make_until(
        job, steps, folder / name, attributes={"seen": [] if levels is None else levels}, workers=workers, **options
    )


def test_episodes_are_made_until_there_are_enough_steps(tmp_path):
    lengths = []
    path = make_steps(tmp_path, levels=lengths, on_join=lambda episode: lengths.append(len(episode["rewards"])))
    file = TrajectoryFile(path)  # of episodes of 5, 6, 7, 5, ... steps
    assert file.lengths.tolist() == [5, 6, 7, 2] == lengths
    with h5py.File(path) as raw:
        assert np.flatnonzero(raw["terminals"]).tolist() == [10], "the last episode is cut and does not end"
        assert np.flatnonzero(raw["timeouts"]).tolist() == [4, 17]
    assert file.whole.tolist() == [True, True, True, False] and file.attributes["length_max"] == 7
    exact = TrajectoryFile(make_steps(tmp_path, "exact.h5", 18))
    assert exact.lengths.tolist() == [5, 6, 7] and exact.whole.all()
    assert_same_content(make_steps(tmp_path, "two.h5", workers=2), make_steps(tmp_path, "one.h5"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.h5", "exact.h5", "log", "one.h5", "two.h5"]


def test_finished_parts_of_make_until_are_reused(tmp_path, capsys):
    whole = make_steps(tmp_path, "whole.h5")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("RATE_model.data.parts._join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make_steps(tmp_path)
    parts = sorted((tmp_path / "data.h5.parts").iterdir())
    assert len(parts) == 4
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:1000])
    (tmp_path / "log").write_text("")
    assert_same_content(make_steps(tmp_path), whole)
    assert (tmp_path / "log").read_text() == "1 2 " and "resuming with 3 parts" in capsys.readouterr().out


def test_two_processes_make_one_file(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=make_steps, args=(tmp_path,), kwargs={"wait": 0.1}) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "0 1 2 3 "
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.h5", "log"]
    with pytest.raises(UserError, match=r"data.h5' exists; add --overwrite true"):
        make_steps(tmp_path)


def test_a_file_needs_an_hdf5_name():
    for name in ("a.h5", "a.hdf5"):
        FileOptions(output=Path(name)).validate()
    with pytest.raises(UserError, match="--output 'a.npz': the name must end in .h5 or .hdf5"):
        FileOptions(output=Path("a.npz")).validate()
