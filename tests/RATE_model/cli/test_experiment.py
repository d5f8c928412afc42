"""Planning a run: the number of optimizer steps, and the learning rate schedule."""

from types import SimpleNamespace

import numpy as np
import pytest

from RATE_model.cli.experiment import plan
from RATE_model.cli.settings import CurriculumOptions, TrainOptions
from RATE_model.data.loader import EpochSampler


class Windows:
    """The part of a dataset that planning uses: `count` windows, half with `long` steps, half with a third of that."""

    def __init__(self, count: int, long: int) -> None:
        lengths = np.where(np.arange(count) % 2, long, long // 3)
        self.windows = np.stack([np.zeros(count), np.zeros(count), lengths], axis=1).astype(np.int64)

    def __len__(self) -> int:
        return len(self.windows)


def schedule(stages=(1, 2, 3), count=100, curr="false", curriculum=None, **options):
    """The schedule for segments of 10 steps."""
    train = TrainOptions(**{"epochs": 4, "batch_size": 20, "warmup_steps": 3, **options})
    model = SimpleNamespace(context_length=10)
    return plan(
        train,
        CurriculumOptions(curr, **(curriculum or {})),
        model,
        lambda s: (Windows(count, 10 * s), None),
        stages,
        10,
    )


def test_the_decay_ends_with_the_last_optimizer_step():
    curriculum, rate = schedule()
    assert list(curriculum.stages) == [3] and list(curriculum.epochs) == [4]
    assert rate.decay_start + rate.decay_steps == 4 * 5 - 1
    assert rate.factor(19) == pytest.approx(0.1) and rate.factor(18) > 0.1


def test_adaptive_curriculum_decays_on_request():
    curriculum, rate = schedule(curr="adaptive", curriculum={"anneal_batches": 7, "streak": 2}, bptt_segments=0)
    assert list(curriculum.stages) == [1, 2, 3] and curriculum.streak == 2 and curriculum.anneal_batches == 7
    assert rate.factor(1000) == 1
    rate.start_decay(1000)
    assert rate.factor(1000 + 7 * 3) == 0 < rate.factor(1000 + 7 * 3 - 1)


def test_every_gradient_window_is_a_step():
    _, rate = schedule(bptt_segments=0)
    assert rate.decay_start + rate.decay_steps == 4 * 5 * 3 - 1


def test_stages_add_up():
    curriculum, rate = schedule(stages=(1, 2), curr="true", bptt_segments=0)
    assert curriculum.stages == [1, 2]
    assert rate.decay_start + rate.decay_steps == 4 * 5 * (1 + 2) - 1


def test_tokens_become_steps():
    """A step sees 20 windows of 20 environment steps on average: 2,000 of them are 5 steps."""
    _, rate = schedule(warmup_tokens=2000, final_tokens=6000)
    assert rate.decay_start == 5
    assert rate.decay_start + rate.decay_steps == 14
    assert rate.factor(0) == pytest.approx(1 / 5) and rate.factor(100) == pytest.approx(0.1)


def test_tokens_count_per_gradient_window():
    _, rate = schedule(warmup_tokens=2000, final_tokens=6000, bptt_segments=0)
    assert rate.decay_start == 15


def test_a_short_epoch_has_fewer_steps():
    _, rate = schedule(epoch_batches=2, warmup_tokens=400)
    assert rate.decay_start == 1
    assert rate.decay_start + rate.decay_steps == 4 * 2 - 1


def test_a_short_epoch_draws_from_all_windows():
    sampler = EpochSampler(100, 20, seed=1, max_batches=2)
    drawn = [np.concatenate(sampler.batches(epoch)) for epoch in range(20)]
    assert len(sampler) == 2 and all(len(np.unique(epoch)) == 40 for epoch in drawn)
    assert len(np.unique(np.concatenate(drawn))) == 100
    positions = [(epoch, batch) for (epoch, batch, _), _ in zip(sampler.iterate_from(0, 1), range(4), strict=False)]
    assert positions == [(0, 1), (1, 0), (1, 1), (2, 0)]
