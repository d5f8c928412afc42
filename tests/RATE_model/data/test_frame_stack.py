"""Frame stacks stored as single frames give the same observations as a slow loop."""

import numpy as np
import pytest
import torch

from RATE_model.data.dataset import WindowDataset
from RATE_model.data.frames import FrameStack
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.selection import strided_windows
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.spec import EnvironmentSpec
from tests.small_models import rate_agent

LENGTHS = (2, 9, 1, 7)
SIZE, STACK = 6, 4


def make_file(path, *, seed=0, channels=1, side=36):
    rng = np.random.default_rng(seed)
    shape = (channels, side, side)
    with TrajectoryWriter(path, observation_shape=shape, observation_dtype="uint8", attributes={}) as writer:
        for length in LENGTHS:
            images = rng.integers(1, 255, (length, *shape)).astype(np.uint8)
            writer.add_episode(images, rng.integers(3, size=length), rng.normal(size=length), terminal=True)
    return TrajectoryFile(path)


def windows_of(files):
    """Every window of up to SIZE steps that begins at any step of an episode."""
    return np.array(
        [
            [index, step, min(SIZE, start + length - step)]
            for index, file in enumerate(files)
            for start, length in zip(file.starts, file.lengths, strict=True)
            for step in range(start, start + length)
        ]
    )


def slow_stack(file, step, stack=STACK):
    """The observation of one step: its episode's last frames, oldest first, zeros before the episode."""
    images, _ = file.load()
    start = max(begin for begin in file.starts if begin <= step)
    shown = [images[s] if s >= start else np.zeros_like(images[0]) for s in range(step - stack + 1, step + 1)]
    return np.concatenate(shown)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_observations_are_the_last_frames_of_the_episode(tmp_path, in_memory, channels):
    files = [make_file(tmp_path / f"{seed}.h5", seed=seed, channels=channels) for seed in (1, 2)]
    windows = windows_of(files)
    data = WindowDataset(files, windows, size=SIZE, in_memory=in_memory, stack=STACK)
    batch = data.__getitems__(list(range(len(windows)))[::-1])
    assert isinstance(batch.observations, FrameStack)
    assert batch.observations.frames.shape == (len(windows), SIZE + STACK - 1, channels, 36, 36)
    observations = batch.observations.dense()
    assert observations.shape == (len(windows), SIZE, STACK * channels, 36, 36)
    for row, (index, start, length) in enumerate(windows[::-1]):
        for step in range(length):
            np.testing.assert_array_equal(observations[row, step], slow_stack(files[index], start + step))


def test_views_and_slices_take_no_memory():
    stack = FrameStack(torch.arange(2 * 8).view(2, 8, 1, 1, 1), STACK)
    assert stack.dense().data_ptr() == stack.frames.data_ptr()
    for rows, steps in ((slice(None), slice(1, 3)), (slice(1, 2), slice(3, 9)), (slice(0, 1), slice(None))):
        part = stack[rows, steps]
        assert torch.equal(part.dense(), stack.dense()[rows, steps])
        assert part.frames.untyped_storage().data_ptr() == stack.frames.untyped_storage().data_ptr()


def test_frames_are_encoded_once_with_unchanged_outputs(tmp_path):
    torch.manual_seed(0)
    file = make_file(tmp_path / "a.h5")
    spec = EnvironmentSpec(observation_shape=(STACK, 36, 36), num_actions=3, observation_scale=1 / 255)
    config = RATEConfig(
        n_layer=1, n_head=2, d_model=16, d_head=8, d_inner=16,
        context_length=3, num_mem_tokens=2, mem_len=0, n_head_ca=1,
    )  # fmt: skip
    model = rate_agent(config, spec).eval()
    data = WindowDataset([file], windows_of([file]), size=SIZE, stack=STACK)
    batch = data.__getitems__([2, 5, 12])
    encoded = []
    model.encoder.observation.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    got, _ = model(batch.observations, batch.actions, batch.rtg, batch.valid)
    assert sum(encoded) == 2 * 3 * 3, "two segments of three steps in three rows"
    expected, _ = model(batch.observations.dense().contiguous(), batch.actions, batch.rtg, batch.valid)
    torch.testing.assert_close(got, expected)


def test_stacking_in_loader_workers_and_other_windows(tmp_path):
    file = make_file(tmp_path / "a.h5")
    data = WindowDataset([file], windows_of([file]), size=SIZE, in_memory=False, stack=STACK)
    data = data.with_windows(strided_windows(0, file, 3, 1), size=4)
    sampler = EpochSampler(len(data), 3, seed=0)
    for workers in (0, 1):
        batches = list(make_loader(data, sampler, end_epoch=1, num_workers=workers))
        for _, _, batch in batches:
            stacked = batch.to("cpu").observations.dense()
            for row, number in enumerate(batch.indices.tolist()):
                start = data.windows[number, 1]
                np.testing.assert_array_equal(stacked[row, 2], slow_stack(file, start + 2))


def test_padding_at_the_left_is_refused(tmp_path):
    file = make_file(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="padded on the right"):
        WindowDataset([file], windows_of([file]), size=SIZE, pad="left", stack=STACK)


def test_one_file_is_not_loaded_twice(tmp_path, monkeypatch):
    """Half a million frames are 3.5 GB once."""
    file = make_file(tmp_path / "a.h5")
    loaded = file.load()
    monkeypatch.setattr(file, "load", lambda: loaded)
    assert WindowDataset([file], windows_of([file]), size=SIZE, in_memory=True)._observations is loaded[0]
