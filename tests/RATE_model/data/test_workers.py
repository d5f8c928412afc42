"""Failures of loader processes end in one line, or training continues without workers."""

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch

from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.frames import Frames, FrameStack
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.selection import whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.workers import worker_failures
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    kinds = dict(observation_shape=(3, 8, 8), observation_dtype="uint8", attributes={}, compress=False)
    with TrajectoryWriter(tmp_path / "data.h5", **kinds) as writer:
        for _ in range(20):
            images = rng.integers(0, 255, (30, 3, 8, 8), dtype=np.uint8)
            writer.add_episode(images, rng.integers(0, 4, 30), rng.normal(size=30), terminal=True)
    return tmp_path / "data.h5"


def batches(path, workers, **options):
    file = TrajectoryFile(path)
    dataset = WindowDataset([file], whole_episodes(0, file), size=30, in_memory=False)
    with worker_failures():
        yield from make_loader(dataset, EpochSampler(20, 4, seed=0), num_workers=workers, end_epoch=2, **options)


def assert_equal(left, right):
    left, right = list(left), list(right)
    assert [item[:2] for item in left] == [item[:2] for item in right]
    for (_, _, a), (_, _, b) in zip(left, right, strict=True):
        assert torch.equal(a.observations, b.observations) and torch.equal(a.rtg, b.rtg)


@pytest.mark.parametrize("fitting", [0, 3])
def test_too_little_shared_memory_falls_back_to_no_workers(path, monkeypatch, capsys, fitting):
    share, shared = Batch.share_memory_, []

    def full(self):
        shared.append(None)  # in each process
        if len(shared) > fitting:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return share(self)

    monkeypatch.setattr(Batch, "share_memory_", full)
    assert_equal(batches(path, 2), batches(path, 0))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "--num_workers 2: unable to allocate shared memory" in out
    assert multiprocessing.active_children() == []


def test_a_file_replaced_before_a_worker_opens_it_is_refused(path):
    file = TrajectoryFile(path)
    dataset = WindowDataset([file], whole_episodes(0, file), size=30, in_memory=False)
    copy = path.with_name("copy.h5")
    shutil.copyfile(path, copy)
    os.replace(copy, path)
    with pytest.raises(UserError, match=rf"'{path}' was changed or replaced"):
        list(make_loader(dataset, EpochSampler(20, 4, seed=0), num_workers=2, end_epoch=1))


def handles_with_free(count):
    """Limit file handles so that `count` of them are free."""
    taken, limit = {int(name) for name in os.listdir("/dev/fd")}, 0
    while count:
        count -= limit not in taken
        limit += 1
    return limit


def test_too_few_file_handles_are_detected_early(path, capsys):
    expected = list(batches(path, 0))
    before, limit = resource.getrlimit(resource.RLIMIT_NOFILE), handles_with_free(15)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        found = list(batches(path, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert_equal(found, expected)
    assert f"open files are needed but only {limit} allowed (ulimit -n)" in capsys.readouterr().out


def test_a_killed_worker_is_reported_in_one_line(path):
    loader = batches(path, 2)
    next(loader)
    with pytest.raises(UserError, match="a loader process ended .*--resume auto") as error:
        # Torch may raise outside the loader, which then stays open, and the other worker alive.
        with worker_failures(), contextlib.closing(loader):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            list(loader)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


def test_a_batch_that_cannot_be_sent_is_not_waited_for(path, monkeypatch):
    def unsendable(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Batch, "__reduce__", unsendable)
    with pytest.raises(UserError, match=r"a loader process ended .*(ulimit -n|unexpectedly)"):
        list(batches(path, 2))


def test_damage_in_a_worker_is_reported_in_one_line(path):
    import h5py

    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(7)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(64))
    with pytest.raises(UserError, match=r"data.h5' is damaged: 'observations' .*\(episode 7\)") as error:
        list(batches(path, 2))
    assert "\n" not in str(error.value)


def test_shared_images_are_moved_to_shared_memory():
    frames = Frames(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.int64)).share_memory_()
    assert frames.images.is_shared() and frames.index.is_shared()
    assert FrameStack(torch.zeros(1, 5, 1, 2, 2, dtype=torch.uint8), 2).share_memory_().frames.is_shared()
