"""Checksums of trajectory files: all damage is detected and located."""

import os
import random
import subprocess
import sys

import h5py
import numpy as np
import pytest

from RATE_model.data import parts
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.hdf5 import Source
from RATE_model.data.selection import whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError

EPISODES, STEPS = 12, 30
KINDS = {
    "vectors": dict(observation_shape=(4,), observation_dtype="float32"),
    "images": dict(observation_shape=(3, 8, 8), observation_dtype="uint8"),
    "plain images": dict(observation_shape=(3, 8, 8), observation_dtype="uint8", compress=False),
    "indexed images": dict(observation_shape=(3, 8, 8), observation_dtype="uint8", index_frames=True),
}


def make(path, kind="plain images"):
    rng = np.random.default_rng(0)
    with TrajectoryWriter(path, **KINDS[kind], attributes={"seeds": [1, 2], "name": "x"}) as writer:
        for _ in range(EPISODES):
            observations = rng.integers(0, 255, (STEPS, *KINDS[kind]["observation_shape"]))
            actions, rewards = rng.integers(0, 4, STEPS), rng.normal(size=STEPS)
            infos = {"expert_action": rng.integers(0, 4, STEPS, dtype=np.uint8), "seed": np.arange(STEPS)}
            writer.add_episode(observations, actions, rewards, terminal=True, infos=infos)
    return path


def content(path):
    with TrajectoryFile(path) as file:
        arrays = [*file.load(), file.rewards, file.starts, file.expert_actions(), file.column("infos/seed")]
        arrays += file.frames() or ()
        return [array.tobytes() for array in arrays] + [file.attributes]


def chunks(path, name):
    """Where in the file the chunks of an array lie: (offset, size)."""
    with h5py.File(path) as file:
        array = file[name].id
        infos = [array.get_chunk_info(number) for number in range(array.get_num_chunks())]
    return [(info.byte_offset, info.size) for info in infos]


def change(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_detected(tmp_path, kind):
    path = make(tmp_path / "data.h5", kind)
    clean, good, draw = content(path), path.read_bytes(), random.Random(0)
    found = 0
    for _ in range(40):
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert content(path) == clean
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
    assert found > 3  # of vectors, most lie after the last step, in a chunk that is not full


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "infos/expert_action"])
@pytest.mark.parametrize("kind", ["plain images", "vectors"])
def test_zeroed_chunks_are_detected(tmp_path, kind, name):
    """HDF5's own Fletcher-32 would accept them."""
    path = make(tmp_path / "data.h5", kind)
    offset, size = chunks(path, name)[-1]
    change(path, offset, bytes(size))
    with pytest.raises(UserError, match=f"'{name}' differs from its checksum"):
        content(path)


def test_swapped_chunks_are_detected(tmp_path):
    path = make(tmp_path / "data.h5")
    (first, size), (second, _) = chunks(path, "observations")[:2]
    good = path.read_bytes()
    change(path, first, good[second : second + size])
    change(path, second, good[first : first + size])
    with pytest.raises(UserError, match="within steps 0 to 29 .episode 0.$|within steps 0 to 29 .episode 0."):
        content(path)


@pytest.mark.parametrize("text", [b'"size": 3', b"Test-v0"])
def test_changed_attributes_are_detected(tmp_path, text):
    with TrajectoryWriter(
        tmp_path / "data.h5", **KINDS["vectors"], attributes={"made": {"size": 3}, "environment": "Test-v0"}
    ) as writer:
        writer.add_episode(np.zeros((5, 4)), np.zeros(5, int), np.zeros(5), terminal=True)
    whole = (tmp_path / "data.h5").read_bytes()
    assert whole.count(text) == 1
    (tmp_path / "data.h5").write_bytes(whole.replace(text, text[:-1] + b"9"))
    with pytest.raises(UserError, match="its attributes, shapes or types do not match their checksum"):
        TrajectoryFile(tmp_path / "data.h5")


def test_damage_names_its_episodes_and_others_stay_readable(tmp_path):
    path = make(tmp_path / "data.h5")
    offset, _ = chunks(path, "observations")[7]
    change(path, offset + 5, b"\x00\xff\x00")
    file = TrajectoryFile(path)  # images are compared when they are read
    data = WindowDataset([file], whole_episodes(0, file), size=STEPS, in_memory=False)
    data.__getitems__([6, 8])
    with pytest.raises(UserError, match=rf"{path}.*'observations' .*steps 210 to 239 \(episode 7\)"):
        data[7]


def test_intact_data_is_read_once(tmp_path, monkeypatch):
    path, counted = make(tmp_path / "data.h5", "images"), 0

    def read_at(source, offset, buffer):
        nonlocal counted
        counted += buffer.nbytes
        return os.preadv(source._descriptor, [buffer], offset)

    monkeypatch.setattr(Source, "read_at", read_at)
    with TrajectoryFile(path) as file:
        file.load()
        file.load()
    assert counted < 1.5 * path.stat().st_size


def test_a_file_still_open_at_exit_is_harmless(tmp_path):
    """HDF5 would crash."""
    path = make(tmp_path / "data.h5")
    code = f"from RATE_model.data.trajectories import TrajectoryFile; file = TrajectoryFile({str(path)!r}); file.load()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")


def test_damage_to_small_arrays_names_episodes(tmp_path):
    path = make(tmp_path / "data.h5")
    change(path, chunks(path, "actions")[0][0], b"\x03\x03\x03\x03")
    with pytest.raises(UserError, match=r"'actions' differs .* steps 0 to 359 \(episodes 0 to 11\)"):
        TrajectoryFile(path)


def test_files_without_checksums_are_read_with_one_warning(tmp_path, capsys):
    path = make(tmp_path / "data.h5")
    clean = content(path)
    assert "checksums" not in capsys.readouterr().out
    with h5py.File(path, "r+") as file:
        del file["checksums"]
    assert content(path) == content(path) == clean
    assert capsys.readouterr().out.count(f"'{path}' has no checksums") == 1


def test_damaged_parts_are_not_joined(tmp_path):
    path = make(tmp_path / "part.h5")
    change(path, chunks(path, "infos/seed")[0][0], b"\x09")
    with pytest.raises(UserError, match="'infos/seed' differs from its checksum"):
        list(parts._episodes(path))


def test_equal_data_makes_equal_files(tmp_path):
    assert make(tmp_path / "a.h5").read_bytes() == make(tmp_path / "b.h5").read_bytes()
