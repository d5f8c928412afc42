"""Trajectory files: round trips, D4RL's own files, and errors for damaged ones."""

import multiprocessing
import os
import pickle
import sys

import h5py
import numpy as np
import pytest

from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError

LENGTHS = np.array([3, 1, 5, 2])
TERMINALS = np.array([True, False, True, False])


def episodes(observation_shape=(4,), dtype="float32", seed=0):
    """A padded batch of four episodes of the lengths above; the padding is NaN where it can be."""
    rng = np.random.default_rng(seed)
    observations = rng.integers(0, 255, (4, 5, *observation_shape)).astype(dtype)
    rewards = rng.normal(size=(4, 5))
    rewards[np.arange(5) >= LENGTHS[:, None]] = np.nan
    return observations, rng.integers(0, 4, (4, 5)), rewards


def write(path, observation_shape=(4,), dtype="float32", **options):
    observations, actions, rewards = episodes(observation_shape, dtype)
    options.setdefault("attributes", {"environment": "Test-v0", "parameters": {"size": 3}, "seeds": [1, 2]})
    with TrajectoryWriter(path, observation_shape=observation_shape, observation_dtype=dtype, **options) as writer:
        writer.add_episodes(observations, actions, rewards, LENGTHS, TERMINALS, {"seed": actions * 7})
    return path


def edit(path, **changes):
    """Deliberately replace arrays of a file; None deletes."""
    with h5py.File(path, "r+") as file:
        file.pop("checksums", None)
        for name, values in changes.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values


@pytest.mark.parametrize(("shape", "dtype"), [((4,), "float32"), ((3, 8, 9), "uint8"), ((2, 2), "float32")])
def test_what_is_written_is_read_back(tmp_path, shape, dtype):
    file = TrajectoryFile(write(tmp_path / "a" / "data.h5", shape, dtype))
    observations, actions, rewards = episodes(shape, dtype)
    assert file.lengths.tolist() == LENGTHS.tolist()
    assert file.starts.tolist() == [0, 3, 4, 9]
    assert file.discrete and file.observation_shape == shape and file.observation_dtype == np.dtype(dtype)
    for episode, (start, length) in enumerate(zip(file.starts, file.lengths, strict=True)):
        read_observations, read_actions = file.read(start, start + length)
        assert read_observations.dtype == np.dtype(dtype) and read_actions.dtype == np.int64
        np.testing.assert_array_equal(read_observations, observations[episode, :length])
        np.testing.assert_array_equal(read_actions, actions[episode, :length])
        np.testing.assert_allclose(file.rewards[start : start + length], rewards[episode, :length], rtol=1e-6)
    with h5py.File(file.path) as raw:
        assert np.flatnonzero(raw["terminals"]).tolist() == [2, 8]
        assert np.flatnonzero(raw["timeouts"]).tolist() == [3, 10]
        assert raw["infos/seed"].shape == (11,)


@pytest.mark.parametrize("index_frames", [False, True])
def test_images_stored_with_channels_last_are_read_with_channels_first(tmp_path, index_frames):
    paths = [tmp_path / "first.h5", tmp_path / "last.h5"]
    for path, last in zip(paths, (False, True), strict=True):
        write(path, (3, 8, 9), "uint8", channels_last=last, level=9, index_frames=index_frames)
    first, last = (TrajectoryFile(path, observation_shape=(3, 8, 9)) for path in paths)
    with h5py.File(paths[1]) as raw:
        assert raw["observations"].shape == (11, 8, 9, 3)
    for found, expected in ((last.read(2, 7), first.read(2, 7)), (last.load(), first.load())):
        assert found[0].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found[0], expected[0])
    if index_frames:
        np.testing.assert_array_equal(last.frames()[0], first.frames()[0])
    assert last.num_bytes == first.num_bytes


def test_attributes_describe_the_data(tmp_path):
    attributes = TrajectoryFile(write(tmp_path / "data.h5")).attributes
    returns = [np.nansum(row) for row in episodes()[2]]
    assert attributes["environment"] == "Test-v0"
    assert attributes["parameters"] == {"size": 3} and attributes["seeds"] == [1, 2]
    assert attributes["num_episodes"] == 4 and attributes["num_steps"] == 11
    assert attributes["length_mean"] == 2.75 and attributes["length_min"] == 1 and attributes["length_max"] == 5
    assert attributes["return_mean"] == pytest.approx(np.mean(returns))
    assert attributes["return_std"] == pytest.approx(np.std(returns))
    assert attributes["return_min"] == pytest.approx(min(returns))
    assert attributes["return_max"] == pytest.approx(max(returns))
    assert attributes["versions"]["numpy"] == np.__version__


def test_an_unfinished_episode_is_not_in_the_statistics(tmp_path):
    kinds = {"observation_shape": (4,), "observation_dtype": "float32", "attributes": {}}
    observations, actions, rewards = (np.nan_to_num(values) for values in episodes())
    with TrajectoryWriter(tmp_path / "data.h5", **kinds) as writer:
        writer.add_episodes(observations, actions, rewards, LENGTHS, unfinished=True)
        with pytest.raises(ValueError, match="nothing can follow an unfinished episode"):
            writer.add_episodes(observations, actions, rewards, LENGTHS)
    file = TrajectoryFile(tmp_path / "data.h5")
    assert file.whole.tolist() == [True, True, True, False] and file.lengths.tolist() == list(LENGTHS)
    whole = [np.sum(row[:length]) for row, length in zip(rewards[:-1], LENGTHS, strict=False)]
    assert file.attributes["num_episodes"] == 4 and file.attributes["num_steps"] == sum(LENGTHS)
    assert file.attributes["return_mean"] == pytest.approx(np.mean(whole))
    assert file.attributes["length_mean"] == np.mean(LENGTHS[:-1])
    with h5py.File(tmp_path / "data.h5") as raw:
        assert (raw["terminals"][:] | raw["timeouts"][:]).sum() == 3
    with TrajectoryWriter(tmp_path / "tail.h5", **kinds) as writer:
        writer.add_episode(observations[0], actions[0], rewards[0], terminal=False, unfinished=True)
    tail = TrajectoryFile(tmp_path / "tail.h5")
    assert tail.whole.tolist() == [False] and "return_mean" not in tail.attributes


def test_the_same_data_gives_the_same_file(tmp_path):
    assert write(tmp_path / "a.h5").read_bytes() == write(tmp_path / "b.h5").read_bytes()


def test_many_small_additions_equal_one_large(tmp_path):
    """More frames than several chunks, added one episode at a time and all at once."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 20, size=30)
    frames = rng.integers(0, 255, (30, 20, 3, 6, 6), dtype=np.uint8)
    actions, rewards = rng.normal(size=(30, 20, 2)), rng.normal(size=(30, 20))
    kinds = {"observation_shape": (3, 6, 6), "observation_dtype": np.uint8}
    kinds |= {"action_shape": (2,), "action_dtype": "float32", "attributes": {}}
    with TrajectoryWriter(tmp_path / "one.h5", **kinds) as writer:
        writer.add_episodes(frames, actions, rewards, lengths)
    with TrajectoryWriter(tmp_path / "many.h5", **kinds) as writer:
        for e, n in enumerate(lengths):
            writer.add_episode(frames[e, :n], actions[e, :n], rewards[e, :n], terminal=True)
    one, many = (TrajectoryFile(tmp_path / name, action_size=2) for name in ("one.h5", "many.h5"))
    assert one.num_steps == lengths.sum() and one.lengths.tolist() == many.lengths.tolist() == lengths.tolist()
    for a, b in zip((*one.load(), one.rewards), (*many.load(), many.rewards), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.load()[0], np.concatenate([frames[e, :n] for e, n in enumerate(lengths)]))
    with h5py.File(one.path) as raw:
        assert raw["observations"].chunks == (30, 3, 6, 6)
        assert raw["observations"].id.get_create_plist().get_filter(0)[0] == 32015  # zstd


def test_returns_to_go_equal_an_obvious_loop(tmp_path):
    file = TrajectoryFile(write(tmp_path / "data.h5"))
    expected = []
    for start, length in zip(file.starts, file.lengths, strict=True):
        expected += [sum(file.rewards[step : start + length]) for step in range(start, start + length)]
    assert file.returns_to_go().dtype == np.float32
    np.testing.assert_allclose(file.returns_to_go(), expected, atol=1e-6)


@pytest.mark.parametrize("timeouts", [True, False])
def test_a_d4rl_file_opens(tmp_path, timeouts):
    """As made by D4RL: gzip, some float64, no attributes, extra keys, an unfinished last episode."""
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(20, 11)), "actions": rng.normal(size=(20, 3)).astype("float32")}
    arrays |= {"rewards": rng.normal(size=20), "terminals": np.arange(20) == 6}
    after = np.concatenate([arrays["observations"][1:], rng.normal(size=(1, 11))])
    after[[6, 15]] = rng.normal(size=(2, 11))  # the observation before the reset
    arrays |= {"next_observations": after if timeouts else arrays["observations"][[*range(1, 20), 0]]}
    arrays |= {"infos/qpos": rng.normal(size=(20, 6))}
    if timeouts:
        arrays["timeouts"] = np.arange(20) == 15
    with h5py.File(tmp_path / "hopper.hdf5", "w") as raw:
        for name, values in arrays.items():
            raw.create_dataset(name, data=values, compression="gzip")
        raw["metadata/algorithm"] = "SAC"
    file = TrajectoryFile(tmp_path / "hopper.hdf5", observation_shape=(11,), observation_dtype="float32", action_size=3)
    assert file.lengths.tolist() == ([7, 9, 4] if timeouts else [7, 13])
    observations, actions = file.load()
    assert observations.dtype == actions.dtype == file.rewards.dtype == np.float32 and not file.discrete
    np.testing.assert_allclose(observations, arrays["observations"], rtol=1e-6)
    np.testing.assert_array_equal(actions, arrays["actions"])
    assert file.attributes == {}


def test_an_exception_keeps_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "data.h5")
    before = path.read_bytes()
    kinds = {"observation_shape": (4,), "observation_dtype": "float32", "attributes": {}}
    with pytest.raises(KeyboardInterrupt), TrajectoryWriter(path, **kinds) as writer:
        writer.add_episodes(*episodes(seed=1), LENGTHS)
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="no episode"), TrajectoryWriter(tmp_path / "none.h5", **kinds):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]


def test_an_unwritable_path_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*data.h5"):
        write(tmp_path / "file" / "data.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": np.zeros((4, 5, 3), "float32")}, "observations have shape"),
        ({"rewards": np.full((4, 5), np.nan)}, "rewards are not finite"),
        ({"lengths": np.array([1, 2, 3, 6])}, "lengths must be non-empty and between 1 and 5"),
        ({"lengths": np.array([1, 2, 3, 0])}, "lengths must be non-empty and between 1 and 5"),
    ],
)
def test_the_writer_refuses_bad_data(tmp_path, change, message):
    data = dict(zip(("observations", "actions", "rewards"), episodes(), strict=True)) | {"lengths": LENGTHS} | change
    kinds = {"observation_shape": (4,), "observation_dtype": "float32", "attributes": {}}
    with pytest.raises(ValueError, match=message), TrajectoryWriter(tmp_path / "data.h5", **kinds) as writer:
        writer.add_episodes(**data)


def damaged(path, kind):
    """Damage a good file in the given way."""
    nan, bad_action = np.zeros(11, "float32"), np.zeros(11, np.int64)
    nan[4], bad_action[4] = np.nan, 4
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "not HDF5":
        path.write_text("a page that says 404\n" * 100)
    elif kind == "no steps":
        edit(
            path,
            **{
                name: np.zeros((0, *shape))
                for name, shape in {"observations": (4,), "rewards": (), "terminals": (), "timeouts": ()}.items()
            },
            actions=np.zeros(0, np.int64),
        )
    else:
        edit(path, **{
            "no rewards": {"rewards": None},
            "lengths": {"rewards": np.zeros(10)},
            "shape": {"observations": np.zeros((11, 5), "float32")},
            "flat": {"observations": np.zeros(11, "float32")},
            "type": {"observations": np.zeros((11, 4), "int32")},
            "text": {"rewards": np.array([b"a"] * 11)},
            "two-dimensional rewards": {"rewards": np.zeros((11, 2))},
            "NaN reward": {"rewards": nan},
            "inf observation": {"observations": np.where(nan[:, None] == 0, np.zeros((11, 4)), np.inf)},
            "beyond float32": {"observations": np.full((11, 4), 1e300)},
            "action": {"actions": bad_action},
            "negative action": {"actions": -bad_action},
            "float actions": {"actions": np.zeros(11, "float32")},
            "group": {"rewards": None, "rewards/x": np.zeros(11)},
        }[kind])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("zero bytes", "is an empty file"),
        ("truncated", "truncated"),
        ("not HDF5", "not an HDF5 file"),
        ("no steps", "no episode"),
        ("no rewards", r"has no rewards \(available: actions, infos, observations, terminals, timeouts\)"),
        ("lengths", "different lengths .*rewards 10"),
        ("shape", r"'observations' have shape \(5,\); expected \(4,\)"),
        ("flat", r"'observations' have shape \(\); expected \(4,\)"),
        ("type", "'observations' have type int32; expected float"),
        ("text", r"'rewards' has type \|S1"),
        ("two-dimensional rewards", r"'rewards' has shape \(11, 2\)"),
        ("NaN reward", "NaN or infinite value in 'rewards' .first at step 4 of 11"),
        ("inf observation", "NaN or infinite value in 'observations' .first at step 4 of 11"),
        ("beyond float32", "NaN or infinite value in 'observations' .first at step 0"),
        ("action", "has action 4 in 'actions' at step 4 of 11; allowed is 0 to 3"),
        ("negative action", "has action -4 in 'actions' at step 4 of 11; allowed is 0 to 3"),
        ("float actions", "expected one integer"),
        ("group", "'rewards' is not an array"),
    ],
)
def test_damage_is_named(tmp_path, kind, message):
    path = write(tmp_path / "data.h5")
    damaged(path, kind)
    with pytest.raises(UserError, match=message) as error:
        TrajectoryFile(
            path, observation_shape=(4,), observation_dtype="float32", num_actions=4, hint="Run `make data`."
        )
    assert str(path) in str(error.value) and str(error.value).endswith("Run `make data`.")


EXPERT = "infos/expert_action"


def test_expert_actions_are_read(tmp_path):
    path = write(tmp_path / "data.h5")
    edit(path, **{EXPERT: np.arange(11, dtype="uint8") % 4})
    actions = TrajectoryFile(path, num_actions=4).expert_actions()
    assert actions.dtype == np.int64 and actions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, f"has no '{EXPERT}': the expert's actions are unknown"),
        (np.full(11, 4), f"has action 4 in '{EXPERT}' at step 0 of 11; allowed is 0 to 3"),
        (np.zeros(10, int), f"is damaged: '{EXPERT}' differs from 'actions'"),
        (np.zeros(11), f"is damaged: '{EXPERT}' differs from 'actions'"),
        (np.int64(3), f"is damaged: '{EXPERT}' differs from 'actions'"),
        (np.array([b"a"] * 11), f"is damaged: '{EXPERT}' differs from 'actions'"),
        ("a group", f"is damaged: '{EXPERT}' differs from 'actions'"),
    ],
)
def test_missing_or_damaged_expert_actions_are_an_error(tmp_path, values, message):
    path = write(tmp_path / "data.h5")
    edit(path, **({f"{EXPERT}/x": np.zeros(11)} if isinstance(values, str) else {EXPERT: values}))
    file = TrajectoryFile(path, num_actions=4, hint="Run `make data`.")
    with pytest.raises(UserError, match=message) as error:
        file.expert_actions()
    assert str(path) in str(error.value)
    assert ("--learn recorded" if values is None else "Run `make data`.") in str(error.value)


def test_non_finite_expert_actions_are_an_error(tmp_path):
    path = write(tmp_path / "data.h5")
    edit(path, actions=np.zeros((11, 2), "float32"), **{EXPERT: np.full((11, 2), np.nan)})
    with pytest.raises(UserError, match=f"NaN or infinite value in '{EXPERT}'"):
        TrajectoryFile(path, action_size=2).expert_actions()


def test_wrong_kinds_are_named(tmp_path):
    path = write(tmp_path / "images.h5", (3, 8, 8), "uint8")
    with pytest.raises(UserError, match="have type uint8; expected float"):
        TrajectoryFile(path, observation_dtype="float32")
    with pytest.raises(UserError, match="expected 2 floats"):
        TrajectoryFile(path, action_size=2)


def test_damaged_image_content_is_named_when_read(tmp_path):
    rng = np.random.default_rng(0)
    kinds = {"observation_shape": (64, 64), "observation_dtype": "uint8", "attributes": {}}
    with TrajectoryWriter(tmp_path / "data.h5", **kinds) as writer:
        frames = rng.integers(0, 255, (1, 60, 64, 64), dtype=np.uint8)
        writer.add_episodes(frames, np.zeros((1, 60), int), np.zeros((1, 60)), np.array([60]))
    with h5py.File(tmp_path / "data.h5") as raw:
        chunk = raw["observations"].id.get_chunk_info(1)
    content = bytearray((tmp_path / "data.h5").read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 1000] = bytes(1000)
    (tmp_path / "data.h5").write_bytes(content)
    file = TrajectoryFile(tmp_path / "data.h5")
    np.testing.assert_array_equal(file.read(0, 30)[0], frames[0, :30])
    with pytest.raises(UserError, match="'observations' differs from its checksum within steps 30 to 59 .episode 0."):
        file.read(30, 60)


def test_zstd_without_its_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "images.h5", (3, 8, 8), "uint8")
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UserError, match="pip install hdf5plugin"):
        TrajectoryFile(path)
    with pytest.raises(UserError, match="pip install hdf5plugin"):
        write(tmp_path / "other.h5", (3, 8, 8), "uint8")
    TrajectoryFile(write(tmp_path / "vectors.h5"))  # needs no plugin


def _read_in_child(file, queue):
    queue.put((file.read(3, 9)[0], file._process))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_in_another_process(tmp_path, method):
    file = TrajectoryFile(write(tmp_path / "data.h5", (3, 8, 9), "uint8"))
    expected, _ = file.read(3, 9)  # the parent's handle is open now
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(file, queue))
    child.start()
    observations, opened_by = queue.get(timeout=200)
    np.testing.assert_array_equal(observations, expected)
    assert opened_by == child.pid  # not a handle inherited by the fork
    child.join()
    np.testing.assert_array_equal(file.read(3, 9)[0], expected)


def test_pickling_and_closing_drop_the_handle(tmp_path):
    file = TrajectoryFile(write(tmp_path / "data.h5"))
    expected, _ = file.load()
    copy = pickle.loads(pickle.dumps(file))
    file.close()
    np.testing.assert_array_equal(copy.load()[0], expected)
    np.testing.assert_array_equal(file.load()[0], expected)


@pytest.mark.parametrize("again", ["closed", "pickled"])
def test_a_file_replaced_while_in_use_is_refused(tmp_path, again):
    """It would be read with the episodes and the checksums of another."""
    path = write(tmp_path / "data.h5")
    with TrajectoryFile(path) as file:
        file.load()
    other = write(tmp_path / "other.h5", attributes={"environment": "Test-v1"})
    os.replace(other, path)
    with pytest.raises(UserError, match=rf"^trajectory file '{path}' was changed or replaced[^\n]*$"):
        (file if again == "closed" else pickle.loads(pickle.dumps(file))).load()


def test_a_directory_is_told(tmp_path):
    with pytest.raises(UserError, match="is a directory, not a file"):
        TrajectoryFile(tmp_path)


def test_a_file_with_missing_end_marks_is_refused(tmp_path):
    path = write(tmp_path / "data.h5")
    edit(path, terminals=np.zeros(11, dtype=bool))
    with pytest.raises(UserError, match="is damaged: written with 4 episodes, but its end marks show 2"):
        TrajectoryFile(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["format_version"]  # a third-party file, whose attributes are unspecified
    assert TrajectoryFile(path).num_episodes == 2
