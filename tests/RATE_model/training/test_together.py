"""Several processes train as one: the same losses for any split of a batch."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes, rollout, rollout_alternating
from RATE_model.agent import Agent
from RATE_model.cli.settings import ModelOptions, TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.selection import strided_windows
from RATE_model.memories import MODES
from RATE_model.objectives.auxiliary import Auxiliary
from RATE_model.training.optimization import RisingCosine
from RATE_model.training.trainer import Trainer, accuracy, last_steps_right
from tests.groups import in_group
from tests.RATE_model.training.test_stored_states import make_data
from tests.small_models import VECTOR, K, N, small_model
from TMaze_new.TMaze_new_src.env import TMazeVectorEnv

BATCHES = 20
# The data has 23 windows; an epoch's last batch has two, for up to three processes.
BATCH_SIZE = 7
OBJECTIVES = ("next_latent", "return", "infos/place", "infos/phase")
SETTINGS = {
    "whole": {"bptt_segments": -1},
    "windows": {"bptt_segments": 0},
    "parts": {"bptt_segments": 0, "accumulate": 3},
    "burnt in": {"bptt_segments": 1, "burn_in": K + 1},
    "curriculum": {"bptt_segments": 0, "curriculum": True},
    "stored": {"bptt_segments": 0, "window_state": "stored", "accumulate": 2},
    "objectives": {"bptt_segments": 0, "accumulate": 2, "burn_in": K + 1, "aux": OBJECTIVES, "aux_weight": (0.3,)},
}


def agent(mode: str) -> Agent:
    torch.manual_seed(3)
    config = ModelOptions(model_mode=mode, d_model=16, dropout=0.0).agent_config(context_length=K, segments=N)
    return Agent(config, VECTOR)


def in_float64(batch: Batch) -> Batch:
    assert isinstance(batch.observations, torch.Tensor)
    return replace(batch, observations=batch.observations.double(), rtg=batch.rtg.double())


def stages(data: WindowDataset, batches: int) -> list[tuple[WindowDataset, int]]:
    """Windows of one segment, of two, ..., then all data; and the batches of each stage."""
    (file,) = data.files
    lengths = range(K, data.size, K)
    shorter = [data.with_windows(strided_windows(0, file, size, 1), size=size) for size in lengths]
    return [(stage, -(-batches // (len(shorter) + 1))) for stage in (*shorter, data)]


def losses(data: WindowDataset, mode: str, batches: int, *, curriculum: bool = False, **options) -> list[float]:
    """Losses, gradient norms and metrics of some batches and a validation."""

    def metrics(logits, batch):
        return accuracy(logits, batch) | {"train_last": last_steps_right(logits, batch, 2)}

    options = TrainOptions(**dict(learning_rate=1e-3, batch_size=BATCH_SIZE) | options)
    model, auxiliary = agent(mode), None
    if options.aux:
        data = data.with_infos(["place", "phase"])
        auxiliary = Auxiliary.of(options.aux, options.aux_weight, model, data)
    trainer = Trainer(model, options, RisingCosine(50, 5000, 0.1), metrics=metrics, auxiliary=auxiliary)
    found = []
    for stage, count in stages(data, batches) if curriculum else [(data, batches)]:
        trainer.begin_stage(stage)
        loader = make_loader(stage, EpochSampler(len(stage), BATCH_SIZE, seed=1))
        for _, (_, _, batch) in zip(range(count), loader, strict=False):
            found += map(float, trainer.train_batch(in_float64(batch)).values())
        trainer.end_stage()
    validation = make_loader(data, EpochSampler(len(data), BATCH_SIZE, seed=1, shuffle=False), end_epoch=1)
    return found + list(trainer.validate(in_float64(batch) for _, _, batch in validation).values())


def has_memory(mode: str) -> bool:
    return agent(mode).memory.has_memory


def assert_equal(data: WindowDataset, mode: str, setting: str, sizes: tuple[int, ...], batches: int) -> None:
    work = partial(losses, data, mode, batches, **SETTINGS[setting])
    alone = work()
    for size in sizes:
        for found in in_group(size, work):
            assert found == pytest.approx(alone, rel=1e-6, abs=1e-6), (mode, setting, size)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Iterator[WindowDataset]:
    """Use float64, so that the order of sums matters little."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield make_data(tmp_path)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("mode", "setting"),
    [
        ("RATE", "windows"),
        ("DT", "whole"),
        ("TrXL", "stored"),
        ("GRU", "burnt in"),
        ("MLP", "parts"),
        ("LSTM", "curriculum"),
        ("RMT", "objectives"),
        ("kNN", "parts"),
        ("Retrieval", "stored"),
    ],
)
def test_three_processes_have_the_losses_of_one(data, mode, setting):
    assert_equal(data, mode, setting, (3,), 5)


def covering() -> list[tuple[str, str]]:
    """RATE in every setting, and every mode in one setting. All pairs would take five times as long."""
    turns = zip(MODES, itertools.cycle(SETTINGS), strict=False)
    return list(dict.fromkeys([*(("RATE", setting) for setting in SETTINGS), *turns]))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "setting"), covering())
def test_any_number_of_processes_has_the_losses_of_one(data, mode, setting):
    if SETTINGS[setting].get("window_state") == "stored" and not has_memory(mode):
        setting = "whole"  # it has no state
    assert_equal(data, mode, setting, (2, 3), BATCHES)


@pytest.mark.parametrize("in_turns", [False, True])
def test_episodes_are_those_of_one_process(in_turns):
    def play() -> list[list[float]]:
        model = small_model()
        lengths = np.array([[5, 9, 3], [7, 4, 30]])
        mazes = [TMazeVectorEnv(3, steps - 2, max_steps=steps) for steps in lengths]
        actors, seeds = [Actor(model, 3, 1.0) for _ in mazes], [np.arange(3), np.arange(3, 6)]
        if in_turns:
            played = rollout_alternating(actors, mazes, seeds=seeds, max_steps=30)
        else:
            parts = zip(actors, mazes, seeds, strict=True)
            played = Episodes.joined([rollout(actor, maze, seeds=own, max_steps=30) for actor, maze, own in parts])
        return [played.returns.tolist(), played.lengths.tolist(), played.last_rewards.tolist()]

    assert in_group(3, play) == [play()] * 3
