"""Windows and batches: content, splitting and order."""

import itertools
import os

import numpy as np
import pytest
import torch

from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.maker import whole_sides
from RATE_model.data.selection import split_episodes, strided_windows, whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError

LENGTHS = np.array([4, 7, 2, 10, 7, 1])


def make_file(path, lengths=LENGTHS, shape=(3,), dtype="float32", action_shape=(), seed=0):
    """Observations, actions and rewards that identify every step."""
    rng = np.random.default_rng(seed)
    size = (len(lengths), max(lengths))
    observations = rng.integers(1, 255, (*size, *shape)).astype(dtype)
    actions = rng.integers(1, 4, (*size, *action_shape)).astype("float32" if action_shape else "uint8")
    kinds = {"observation_shape": shape, "observation_dtype": dtype, "attributes": {}}
    kinds |= {"action_shape": action_shape, "action_dtype": actions.dtype}
    infos = {"expert_action": 4 - actions}
    with TrajectoryWriter(path, **kinds) as writer:
        writer.add_episodes(observations, actions, rng.normal(size=size), lengths, infos=infos)
    return TrajectoryFile(path)


@pytest.fixture
def file(tmp_path):
    return make_file(tmp_path / "a.h5")


def test_whole_episodes(file):
    assert whole_episodes(2, file).tolist() == [[2, s, n] for s, n in zip(file.starts, file.lengths, strict=True)]
    assert whole_episodes(0, file, max_steps=7)[:, 2].tolist() == [4, 7, 2, 7, 1]
    assert whole_episodes(0, file, max_steps=7, min_steps=3)[:, 2].tolist() == [4, 7, 7]
    with pytest.raises(UserError, match=r"of 6 episodes, 5 are shorter and 1 longer \(lengths 1 to 10\)"):
        whole_episodes(0, file, max_steps=9, min_steps=8)
    with pytest.raises(UserError, match="has no episode of at least 11 steps: of 6 episodes"):
        whole_episodes(0, file, min_steps=11)


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (3, 1), (3, 3), (4, 2), (7, 5), (10, 1)])
def test_strided_windows_equal_an_obvious_loop(file, length, stride):
    expected = [
        [1, start + offset, length]
        for start, steps in zip(file.starts, file.lengths, strict=True)
        for offset in range(0, steps - length + 1, stride)
    ]
    assert strided_windows(1, file, length, stride).tolist() == expected


def test_too_long_windows_are_named(file):
    with pytest.raises(UserError, match=r"no window of 11 steps: all 6 episodes are shorter \(longest: 10 steps\)"):
        strided_windows(0, file, 11, 1)


def make_unfinished_file(path, lengths):
    """The last episode has no end."""
    steps = max(lengths)
    with TrajectoryWriter(path, observation_shape=(1,), observation_dtype="float32", attributes={}) as writer:
        padded = np.zeros((len(lengths), steps))
        writer.add_episodes(padded[..., None], padded, padded, np.array(lengths), unfinished=True)
    return TrajectoryFile(path)


def test_an_unfinished_episode_does_not_count_as_fitting(tmp_path, capsys):
    """Beside a file with episodes that fit, alone, and as the only episode."""
    long = make_unfinished_file(tmp_path / "long.h5", [20, 20, 15])
    short = make_unfinished_file(tmp_path / "short.h5", [10] * 4 + [15])
    sides = whole_sides([long, short], size=16, advice="", fraction=0.5)
    assert sorted(tuple(window) for side in sides for window in side.windows) == [(1, 10 * i, 10) for i in range(4)]
    assert "2 of 6 episodes are left out: they have 10 to 20 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none of 2 episodes has at most 16 steps .* they have 20 to 20. Do this."):
        whole_sides([long], size=16, advice="Do this.", fraction=0.5)
    with pytest.raises(UserError, match="no episode has an end. Do this."):
        whole_sides([make_unfinished_file(tmp_path / "one.h5", [9])], size=16, advice="Do this.", fraction=0.5)


def test_split_keeps_episodes_apart_and_in_place(tmp_path):
    files = [make_file(tmp_path / f"{i}.h5", np.full(50, 6), seed=i) for i in range(2)]
    windows = np.concatenate([strided_windows(i, file, 3, 1) for i, file in enumerate(files)])
    training, validation = split_episodes(windows, files, fraction=0.8, seed=0)
    assert sorted(map(tuple, np.concatenate([training, validation]))) == sorted(map(tuple, windows))

    def owners(rows):
        return {(int(f), int(start) // 6) for f, start, _ in rows}

    assert not owners(training) & owners(validation)
    assert len(owners(training)) == 80 and len(owners(validation)) == 20
    assert {index for index, _ in owners(validation)} == {0, 1}
    # Without the second file, or with other windows, no episode of the first changes sides.
    alone, _ = split_episodes(whole_episodes(0, files[0]), files[:1], fraction=0.8, seed=0)
    assert owners(alone) == {owner for owner in owners(training) if owner[0] == 0}
    other, _ = split_episodes(windows, files, fraction=0.8, seed=1)
    assert owners(other) != owners(training)


def test_an_empty_side_of_a_split_is_an_error(tmp_path):
    file = make_file(tmp_path / "a.h5", np.array([3]))
    with pytest.raises(UserError, match="too little data for a 80% : 20% split by episode.*for validation"):
        split_episodes(whole_episodes(0, file), [file], fraction=0.8, seed=0)


def obvious_batch(files, rows, size, pad):
    """Windows one by one, in lists."""
    observations, actions, rtg, valid = [], [], [], []
    for index, start, length in rows.tolist():
        o, a = files[index].read(start, start + length)
        r = files[index].returns_to_go()[start : start + length]
        missing = size - length
        o_pad = np.repeat(o[-1:] if pad == "right" else np.zeros_like(o[:1]), missing, axis=0)
        a_pad, r_pad = np.zeros((missing, *a.shape[1:]), a.dtype), np.zeros(missing)
        order = (lambda x, p: [x, p]) if pad == "right" else (lambda x, p: [p, x])
        observations.append(np.concatenate(order(o, o_pad)))
        actions.append(np.concatenate(order(a, a_pad)))
        rtg.append(np.concatenate(order(r, r_pad)))
        valid.append(np.concatenate(order(np.ones(length, bool), np.zeros(missing, bool))))
    return [np.stack(values) for values in (observations, actions, rtg, valid)]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("pad", ["right", "left"])
@pytest.mark.parametrize(
    ("shape", "dtype", "action_shape"), [((3,), "float32", ()), ((2, 4, 5), "uint8", ()), ((3,), "float32", (2,))]
)
def test_batches_equal_an_obvious_loop(tmp_path, in_memory, pad, shape, dtype, action_shape):
    files = [make_file(tmp_path / f"{i}.h5", LENGTHS + i, shape, dtype, action_shape, seed=i) for i in range(2)]
    windows = np.concatenate([whole_episodes(0, files[0]), strided_windows(1, files[1], 3, 2)])
    dataset = WindowDataset(files, windows, size=12, pad=pad, in_memory=in_memory)
    indices = np.random.default_rng(0).permutation(len(windows))[:9].tolist()
    batch = dataset.__getitems__(indices)
    observations, actions, rtg, valid = obvious_batch(files, windows[indices], 12, pad)
    assert batch.observations.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert batch.actions.dtype == (torch.float32 if action_shape else torch.int64)
    assert batch.rtg.dtype == torch.float32 and batch.valid.dtype == torch.bool
    assert batch.lengths.dtype == batch.indices.dtype == torch.int64
    np.testing.assert_array_equal(batch.observations, observations)
    np.testing.assert_array_equal(batch.actions, actions)
    np.testing.assert_allclose(batch.rtg, rtg, rtol=1e-6)
    np.testing.assert_array_equal(batch.valid, valid)
    assert batch.lengths.tolist() == windows[indices, 2].tolist() and batch.indices.tolist() == indices


@pytest.mark.parametrize("pad", ["right", "left"])
@pytest.mark.parametrize("action_shape", [(), (2,)])
def test_expert_actions_can_be_the_target(tmp_path, pad, action_shape):
    file = make_file(tmp_path / "a.h5", action_shape=action_shape)
    taken, learned = (
        WindowDataset([file], whole_episodes(0, file), size=12, pad=pad, learn=learn).__getitems__([3, 0, 5])
        for learn in ("recorded", "expert")
    )
    assert taken.labels is None and taken.targets is taken.actions
    assert learned.targets is learned.labels and learned.labels.dtype == taken.actions.dtype
    assert torch.equal(learned.actions, taken.actions), "what the model sees are the actions that were taken"
    assert torch.equal(learned.labels[learned.valid], 4 - taken.actions[taken.valid])
    assert not learned.labels[~learned.valid].any()
    moved = learned.to("cpu")
    assert torch.equal(moved.labels, learned.labels) and moved.to("meta").labels.is_meta


def test_changing_a_batch_leaves_the_data_alone(file):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    before = dataset[1].observations.clone()
    batch = dataset[1]
    batch.observations.zero_(), batch.actions.zero_(), batch.lengths.zero_()
    assert torch.equal(dataset[1].observations, before) and dataset[1].lengths.item() == 7


def test_with_windows_shares_memory(file):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    other = dataset.with_windows(whole_episodes(0, file, max_steps=4), size=5)
    assert other._observations is dataset._observations
    assert len(other) == 3 and other[0].observations.shape == (1, 5, 3)
    assert len(dataset) == 6 and dataset[0].observations.shape == (1, 10, 3)


def test_bad_windows_are_refused(tmp_path, file):
    with pytest.raises(UserError, match="window of 10 steps; at most 9 fit"):
        WindowDataset([file], whole_episodes(0, file), size=9)
    for windows in ([], [[1, 0, 1]], [[0, 30, 2]], [[0, 0, 0]], [[0, -1, 1]]):
        with pytest.raises(ValueError):
            WindowDataset([file], np.array(windows).reshape(-1, 3), size=9)
    with pytest.raises(UserError, match="different kinds of data"):
        WindowDataset([file, make_file(tmp_path / "b.h5", shape=(2,))], whole_episodes(0, file), size=10)


def test_to_another_device_keeps_lengths_on_the_cpu(file):
    batch = WindowDataset([file], whole_episodes(0, file), size=10).__getitems__([0, 3])
    moved = batch.to("meta")
    assert moved.observations.device.type == moved.valid.device.type == "meta"
    assert moved.lengths.device.type == moved.indices.device.type == "cpu" and len(moved) == 2


def test_sampler_order_is_a_function_of_seed_key_and_epoch():
    sampler = EpochSampler(100, 8, seed=3, key=1)
    epoch = sampler.batches(5)
    assert len(epoch) == len(sampler) == 13 and sorted(sum(epoch, [])) == list(range(100))
    assert [len(batch) for batch in epoch] == [8] * 12 + [4]
    np.random.seed(0)
    assert EpochSampler(100, 8, seed=3, key=1).batches(5) == epoch
    for other in (EpochSampler(100, 8, 4, key=1).batches(5), EpochSampler(100, 8, 3).batches(5), sampler.batches(6)):
        assert other != epoch
    assert sum(EpochSampler(10, 4, 0, shuffle=False).batches(7), []) == list(range(10))


@pytest.mark.parametrize("batch", [0, 3, 12, 13, 27])
def test_iterating_from_the_middle(batch):
    sampler = EpochSampler(100, 8, seed=3)
    straight = list(itertools.islice(sampler.iterate_from(2, 0), 60))
    assert list(itertools.islice(sampler.iterate_from(2, batch), 30)) == straight[batch : batch + 30]


def collected(loader, count):
    items = list(itertools.islice(loader, count))
    loader.close()
    return [
        (epoch, number, batch.indices.tolist(), batch.observations, batch.rtg, batch.targets)
        for epoch, number, batch in items
    ]


def assert_same(a, b):
    assert [item[:3] for item in a] == [item[:3] for item in b]
    assert all(
        torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left[3:], right[3:], strict=True)
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_workers_change_nothing_and_resuming_is_exact(tmp_path, in_memory):
    file = make_file(tmp_path / "a.h5", np.full(40, 6), (2, 8, 8), "uint8")
    dataset = WindowDataset([file], whole_episodes(0, file), size=7, in_memory=in_memory, learn="expert")
    sampler = EpochSampler(len(dataset), 6, seed=1)  # 7 batches an epoch
    straight = collected(make_loader(dataset, sampler), 18)
    assert [item[:2] for item in straight] == [(i // 7, i % 7) for i in range(18)]
    assert_same(collected(make_loader(dataset, sampler, num_workers=2), 18), straight)
    for workers in (0, 2):
        resumed = make_loader(dataset, sampler, epoch=1, batch=3, num_workers=workers)
        assert_same(collected(resumed, 8), straight[10:])
        rest = list(make_loader(dataset, sampler, epoch=1, batch=5, end_epoch=2, num_workers=workers))
        assert [item[:2] for item in rest] == [(1, 5), (1, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_global_randomness_alone(file, workers):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    collected(make_loader(dataset, EpochSampler(len(dataset), 2, 0), num_workers=workers), 5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts children through /proc")
def test_closing_the_loader_ends_its_workers(file):
    import multiprocessing

    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    loader = make_loader(dataset, EpochSampler(len(dataset), 2, 0), num_workers=2)
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert len(multiprocessing.active_children()) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches(file, workers):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10, learn="expert")
    loader = make_loader(dataset, EpochSampler(len(dataset), 2, 0), num_workers=workers, pin_memory=True)
    _, _, batch = next(loader)
    loader.close()
    assert isinstance(batch, Batch) and batch.observations.is_pinned() and batch.labels.is_pinned()
    assert batch.lengths.device.type == "cpu"


def test_up_to_keeps_windows_that_fit(file):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    short = dataset.up_to(4)
    assert short.windows[:, 2].tolist() == [4, 2, 1] and short.size == 4 and len(short) == 3
    assert short.up_to(10).windows.tolist() == short.windows.tolist(), "what was left out stays out"
    whole, part = dataset.__getitems__([0, 2, 5]), short.__getitems__([0, 1, 2])
    for name in ("observations", "actions", "rtg", "valid"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:, :4]), name
    assert dataset.up_to(10).windows.tolist() == dataset.windows.tolist() and dataset.size == 10
    with pytest.raises(ValueError, match="non-empty"):
        dataset.up_to(0)


def test_cut_to_keeps_the_first_steps_of_windows(file):
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    begun = dataset.cut_to(3)
    assert begun.windows[:, 2].tolist() == np.minimum(dataset.windows[:, 2], 3).tolist() and begun.size == 3
    numbers = list(range(len(dataset)))
    whole, part = dataset.__getitems__(numbers), begun.__getitems__(numbers)
    assert torch.equal(part.valid, whole.valid[:, :3])
    for name in ("observations", "actions", "rtg"):  # returns of the whole episode
        assert torch.equal(getattr(part, name)[part.valid], getattr(whole, name)[:, :3][part.valid]), name


def test_different_data_has_different_fingerprints(tmp_path):
    file = make_file(tmp_path / "a.h5")
    dataset = WindowDataset([file], whole_episodes(0, file), size=10)
    same = make_file(tmp_path / "b.h5")
    assert WindowDataset([same], whole_episodes(0, same), size=10).fingerprint == dataset.fingerprint
    other = make_file(tmp_path / "c.h5", seed=1)
    assert WindowDataset([other], whole_episodes(0, other), size=10).fingerprint != dataset.fingerprint
    assert dataset.up_to(7).fingerprint != dataset.fingerprint
    learned = WindowDataset([file], whole_episodes(0, file), size=10, learn="expert")
    assert learned.fingerprint != dataset.fingerprint
