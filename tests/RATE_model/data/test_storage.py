"""Data on unusual machines: full disks, no locks, few file handles, odd names."""

import errno
import os
import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from RATE_model.data import hdf5
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError


def make(path, episodes=40):
    rng = np.random.default_rng(0)
    with TrajectoryWriter(path, observation_shape=(3, 16, 16), observation_dtype="uint8", attributes={}) as file:
        for _ in range(episodes):
            images = rng.integers(0, 255, (30, 3, 16, 16), dtype=np.uint8)
            file.add_episode(images, np.zeros(30, int), np.zeros(30), terminal=True)
    return path


@contextmanager
def limited(kind, value):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize("limit", [0, 100, 50_000, 900_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path, limit, capfd):
    """Whether the first byte fails or a later one."""
    make(tmp_path / "fits.h5", episodes=1)
    with limited(resource.RLIMIT_FSIZE, limit), pytest.raises(UserError) as error:
        make(tmp_path / "data" / "new.h5")
    assert str(error.value) == (
        f"cannot write '{tmp_path}/data/new.h5': File too large; raise the limit on the size of a file (ulimit -f)."
    )
    assert list((tmp_path / "data").iterdir()) == []
    assert capfd.readouterr() == ("", "")  # HDF5 would write thousands of lines
    make(tmp_path / "data" / "new.h5")  # and would be unusable from then on


def test_a_full_disk_error_suggests_a_fix(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space there, or name another folder"):
        make(tmp_path / "data.h5", episodes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_data_is_read_without_file_locks(tmp_path, monkeypatch, capsys, number):
    path = make(tmp_path / "data.h5", episodes=2)

    def without_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hdf5.fcntl, "flock", without_locks)
    monkeypatch.setattr(hdf5, "_WARNED", set())
    for _ in range(2):
        assert TrajectoryFile(path).num_episodes == 2
    assert capsys.readouterr().out.count(f"'{tmp_path}' is on a file system without locks") == 1


def test_a_file_being_written_is_not_read(tmp_path):
    path = make(tmp_path / "data.h5", episodes=2)
    with h5py.File(path, "r+"), pytest.raises(UserError, match="cannot be read: another process is writing it"):
        TrajectoryFile(path, hint="Delete it.")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_good_data_is_not_called_damaged(tmp_path, monkeypatch, number):
    path = make(tmp_path / "data.h5", episodes=2)
    with TrajectoryFile(path, hint="Delete it.") as file:
        pass

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hdf5.os, "open" if number != errno.EIO else "preadv", refused)
    for use in (lambda: TrajectoryFile(path, hint="Delete it."), file.load, lambda: hdf5.attributes_of(path)):
        with pytest.raises(UserError, match="cannot be read") as error:
            use()
        assert "damaged" not in str(error.value) and "Delete" not in str(error.value)


def test_too_few_file_handles_name_the_limit(tmp_path):
    path = make(tmp_path / "data.h5", episodes=2)
    os.close(lowest := os.open(path, os.O_RDONLY))
    with limited(resource.RLIMIT_NOFILE, lowest), pytest.raises(UserError, match="Too many open files; .*ulimit -n"):
        TrajectoryFile(path)


def test_a_refused_file_is_closed(tmp_path):
    """At once, since its error would keep it alive."""
    path, before = make(tmp_path / "data.h5", episodes=2), len(os.listdir("/dev/fd"))
    with pytest.raises(UserError, match="have shape") as error:
        TrajectoryFile(path, observation_shape=(1,))
    assert len(os.listdir("/dev/fd")) == before, error


@pytest.mark.parametrize("name", [b"\xff\xfe", "\u00e9\u4e2d".encode(), b"a b\nc"])
def test_folders_may_have_any_name(tmp_path, name):
    path = make(tmp_path / os.fsdecode(name) / "data.h5", episodes=2)
    assert TrajectoryFile(path).load()[0].shape == (60, 3, 16, 16)


def test_too_long_names_are_an_error(tmp_path):
    path = tmp_path / f"{'x' * 300}.h5"
    with pytest.raises(UserError, match="File name too long; give a shorter name"):
        TrajectoryFile(path)
    with pytest.raises(UserError, match="File name too long; give a shorter name"):
        make(path)
