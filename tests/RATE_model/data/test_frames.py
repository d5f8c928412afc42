"""Deduplicated images: the same batches, outputs and gradients as dense images."""

import h5py
import numpy as np
import pytest
import torch

from RATE_model.acting.actor import Actor
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.frames import Frames
from RATE_model.data.selection import whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.spec import EnvironmentSpec
from tests.small_models import rate_agent

SHAPE = (3, 36, 36)
LENGTHS = (4, 9, 1, 7)
SPEC = EnvironmentSpec(observation_shape=SHAPE, num_actions=3, observation_scale=1 / 255)
SIZES = {"n_layer": 2, "n_head": 2, "d_model": 16, "d_head": 8, "d_inner": 16}
CONFIG = RATEConfig(**SIZES, context_length=3, num_mem_tokens=2, mem_len=0, n_head_ca=1)


def make_file(path, *, seed=0, index_frames=True, pictures=5):
    """Episodes that show one of a few images at each step, added in two calls."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (pictures, *SHAPE)).astype(np.uint8)
    with TrajectoryWriter(
        path, observation_shape=SHAPE, observation_dtype="uint8", index_frames=index_frames, attributes={}
    ) as writer:
        for length in LENGTHS:
            shown = images[rng.integers(pictures, size=length)]
            writer.add_episode(shown, rng.integers(3, size=length), rng.normal(size=length), terminal=True)
    return TrajectoryFile(path)


@pytest.fixture
def files(tmp_path):
    return [make_file(tmp_path / f"{seed}.h5", seed=seed) for seed in (1, 2)]


def test_first_seen_is_the_first_step_with_the_same_image(files):
    observations, _ = files[0].load()
    expected = [next(s for s in range(t + 1) if (observations[s] == observations[t]).all()) for t in range(21)]
    with h5py.File(files[0].path) as file:
        assert file["infos/first_seen"][:].tolist() == expected
    images, index = files[0].frames()
    assert len(images) == len(set(expected)) < 21
    np.testing.assert_array_equal(images[index], observations)


def test_a_file_without_the_index_is_read_in_full(tmp_path):
    file = make_file(tmp_path / "a.h5", index_frames=False)
    assert file.frames() is None
    assert torch.is_tensor(WindowDataset([file], whole_episodes(0, file), size=9)[0].observations)


def test_too_many_distinct_images_are_not_loaded(files, monkeypatch):
    """In total: those of each file would fit."""
    images, _ = files[0].frames()
    assert files[0].frames(images.nbytes) is not None and files[0].frames(images.nbytes - 1) is None
    windows = np.concatenate([whole_episodes(index, file) for index, file in enumerate(files)])
    both = images.nbytes + files[1].frames()[0].nbytes
    for limit, kind in ((both, Frames), (both - 1, torch.Tensor)):
        monkeypatch.setattr("RATE_model.data.dataset.IN_MEMORY_BYTES", limit)
        assert isinstance(WindowDataset(files, windows, size=9)[0].observations, kind)


@pytest.mark.parametrize("damage", ["ahead", "negative", "chain", "short"])
def test_a_damaged_index_is_named(files, damage):
    files[0].close()
    with h5py.File(files[0].path, "r+") as file:
        first = file["infos/first_seen"][:]
        del file["infos/first_seen"], file["checksums"]
        if damage == "chain":  # refers to a step that refers to another
            repeated = int(np.flatnonzero(first < np.arange(21))[0])
            first[-1] = repeated
        elif damage == "short":
            first = first[:-1]
        else:
            first[3] = 4 if damage == "ahead" else -1
        file["infos/first_seen"] = first
    with pytest.raises(UserError, match="first_seen"):
        TrajectoryFile(files[0].path).frames()


@pytest.mark.parametrize("pad", ["left", "right"])
def test_batches_equal_those_of_dense_images(files, pad):
    windows = np.concatenate([whole_episodes(index, file) for index, file in enumerate(files)])
    sparse = WindowDataset(files, windows, size=10, pad=pad)
    dense = WindowDataset(files, windows, size=10, pad=pad, in_memory=True)
    order = [6, 0, 3, 5]
    got, expected = sparse.__getitems__(order), dense.__getitems__(order)
    assert isinstance(got.observations, Frames)
    assert len(got.observations.images) <= 11
    assert torch.equal(got.observations.dense(), expected.observations)
    for name in ("actions", "rtg", "valid", "lengths", "indices"):
        assert torch.equal(getattr(got, name), getattr(expected, name))


def test_outputs_and_gradients_equal_those_of_dense_images(files):
    """Over several segments, with rows that end early, and every image encoded exactly once."""
    torch.manual_seed(0)
    spec = EnvironmentSpec(observation_shape=SHAPE, num_actions=3, observation_scale=1 / 255)
    config = RATEConfig(
        n_layer=2,
        n_head=2,
        d_model=16,
        d_head=8,
        d_inner=16,
        context_length=3,
        num_mem_tokens=2,
        mem_len=0,
        n_head_ca=1,
    )
    model = rate_agent(config, spec).double().eval()
    windows = np.concatenate([whole_episodes(index, file) for index, file in enumerate(files)])
    batches = [
        WindowDataset(files, windows, size=9, in_memory=kept).__getitems__(list(range(8))) for kept in (None, True)
    ]
    encoded = []
    model.encoder.observation.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    results = []
    for batch in batches:
        model.zero_grad()
        logits, _ = model(batch.observations, batch.actions, batch.rtg.double(), batch.valid)
        cloning_loss(SPEC, logits, batch.actions, batch.valid).backward()
        results.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        if batch is batches[0]:
            assert encoded == [len(batch.observations.images)]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-9)
    for got, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_selection_moves_and_maps():
    frames = Frames(torch.arange(6.0).view(3, 2), torch.tensor([[0, 1, 2], [2, 2, 0]]))
    assert frames[1:, :2].dense().tolist() == [[[4, 5], [4, 5]]]
    assert frames.index_select(0, torch.tensor([1])).index.tolist() == [[2, 2, 0]]
    assert frames.map(lambda images: images.sum(1)).dense().tolist() == [[1, 5, 9], [9, 9, 1]]
    assert frames.to("cpu").dense().shape == (2, 3, 2)


def test_gradients_of_repeated_images_sum_in_float32(monkeypatch):
    selected = []
    select = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda tensor, *rest: selected.append(tensor.dtype) or select(tensor, *rest)
    )
    images = torch.randn(2, 3).to(torch.bfloat16).requires_grad_()
    dense = Frames(images, torch.zeros(64, 64, dtype=torch.int64)).dense()
    assert selected == [torch.float32] and dense.dtype == torch.bfloat16 and (dense == images[0]).all()
    dense.sum().backward()
    assert images.grad.tolist() == [[4096.0] * 3, [0.0] * 3]


def test_equal_images_of_a_step_are_found():
    images = np.random.default_rng(0).integers(0, 255, (3, *SHAPE)).astype(np.uint8)
    frames = Frames.of(images[[1, 0, 1, 2, 0]])
    assert frames.index.tolist() == [[0], [1], [0], [2], [1]]
    np.testing.assert_array_equal(frames.images, images[[1, 0, 2]])


@pytest.mark.parametrize("shown", [(1, 0, 1, 1), (0, 1, 2, 3)])
def test_an_actor_encodes_shared_images_once_with_equal_results(shown):
    """If all images differ it stops looking for duplicates."""
    torch.manual_seed(0)
    model = rate_agent(CONFIG, SPEC).eval()
    images = np.random.default_rng(0).integers(0, 255, (4, *SHAPE)).astype(np.uint8)[list(shown)]
    actor, plain = Actor(model, 4, 1.0), Actor(model, 4, 1.0)
    encoded = []
    model.encoder.observation.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    for _ in range(5):
        logits = actor.observe(images)
        assert encoded.pop() == len(set(shown))
        torch.testing.assert_close(logits, plain.observe(torch.from_numpy(images)), rtol=1e-5, atol=1e-6)
        assert encoded.pop() == 4
        for each in (actor, plain):
            each.take(np.zeros(4, dtype=np.int64))
    assert actor._images_repeat == (len(set(shown)) < 4)
