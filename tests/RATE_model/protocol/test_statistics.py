"""Statistics: published worked examples, and coverage of the intervals."""

import numpy as np
import pytest

from RATE_model.protocol.statistics import (
    bootstrap,
    crossed_error,
    interquartile_mean,
    mean,
    mean_ranks,
    performance_profile,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_examples(successes, trials, low, high):
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3."""
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    opposite = wilson(trials - successes, trials)
    assert (opposite.low, opposite.high) == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


def test_wilson_takes_arrays():
    interval = wilson(np.array([0, 50, 100]), 100)
    assert interval.value.tolist() == [0, 0.5, 1] and interval.low[0] == 0 and interval.high[2] == 1
    assert np.all(interval.low <= interval.value) and np.all(interval.value <= interval.high)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6], 6.5), ([1, 3, 5, 7, 9, 11, 13, 15, 17], 9), ([2, 4, 9], 4.5)],
)
def test_interquartile_mean_of_textbook_examples(samples, expected):
    assert interquartile_mean(np.array(samples, dtype=float)) == pytest.approx(expected)
    assert interquartile_mean(np.tile(samples[::-1], (2, 1)).astype(float)).tolist() == pytest.approx([expected] * 2)


def test_interval_of_tasks_without_spread_is_their_interquartile_mean():
    """Resamples are smaller than the samples, which must not matter."""
    found = bootstrap([np.zeros(3), np.zeros(3), np.ones(3)], interquartile_mean)
    assert found.value == pytest.approx(1 / 6) and found.low == found.high == pytest.approx(1 / 6)


def test_performance_profile_counts_scores_above():
    profile = performance_profile(np.array([-1.0, 0.0, 0.5, 1.0]))
    assert profile(np.array([0.0, 0.5, 0.5, 1.0])).tolist() == [1, 0.75, 0.25, 0]
    interval = bootstrap([np.array([0.0, 0.5, 1.0])], profile)
    assert interval.low.shape == interval.value.shape == (4,)


def test_ranks_share_ties_and_average_tasks():
    scores = np.array([[1.0, 0.0], [0.5, 1.0], [0.5, 0.0]])[:, :, None].repeat(3, axis=2)
    ranks = mean_ranks(scores)
    assert ranks.value.tolist() == [1.75, 1.75, 2.5]
    assert ranks.low.tolist() == ranks.high.tolist() == ranks.value.tolist()  # equal seeds give an empty interval


def test_mean_ranks_lie_in_their_intervals():
    """Also where resampling makes ties: one method never fails, three others fail with one seed in each of 12 tasks."""
    scores = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])[:, None, :]
    ranks = mean_ranks(scores.repeat(12, axis=1))
    assert np.all((ranks.low <= ranks.value) & (ranks.value <= ranks.high))
    assert ranks.value[0] < ranks.value[1:].min()


def test_mean_ranks_are_means_over_resamples():
    """Half of the resamples of the first method are better than the second's, half are worse."""
    ranks = mean_ranks(np.array([[[1.0, 0.0]], [[0.5, 0.5]]]))
    assert ranks.value == pytest.approx([1.5, 1.5], abs=0.05)
    assert ranks.low.tolist() == [1, 1] and ranks.high.tolist() == [2, 2]


def test_bootstrap_refuses_a_single_sample():
    with pytest.raises(ValueError, match="at least two samples"):
        bootstrap([np.array([1.0])])


def covered(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.73, 0.95])
def test_wilson_intervals_contain_the_truth(rate):
    successes = np.random.default_rng(0).binomial(300, rate, size=1000)
    interval = wilson(successes, 300)
    assert 0.93 <= np.mean((interval.low <= rate) & (rate <= interval.high)) <= 0.97


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
@pytest.mark.parametrize(("tasks", "seeds"), [(10, 3), (5, 5)])
def test_bootstrap_intervals_over_seeds_contain_the_truth(statistic, tasks, seeds):
    """Scores lie symmetrically about 0.5, which is then both their mean and their interquartile mean."""
    rng, centres = np.random.default_rng(tasks), np.linspace(0, 1, tasks)[:, None]
    samples = centres + rng.normal(0, 0.3, size=(1000, tasks, seeds))
    intervals = [bootstrap(list(sample), statistic, resamples=400, seed=n) for n, sample in enumerate(samples)]
    assert 0.93 <= covered(intervals, 0.5) <= 0.97


def test_bootstrap_intervals_over_episodes_contain_the_truth():
    """Three agents of different skill, a hundred episodes of five decisions each."""
    outcomes = np.random.default_rng(0).binomial(5, [[0.6], [0.8], [0.9]], size=(1000, 3, 100)) / 5
    intervals = [bootstrap(list(sample), mean, resamples=400, seed=n) for n, sample in enumerate(outcomes)]
    assert 0.93 <= covered(intervals, 2.3 / 3) <= 0.97


def test_crossed_error_counts_seeds_and_episodes():
    """Against the spread of the mean when seeds and episodes are drawn again, many times."""
    rng, found = np.random.default_rng(0), []
    for of_seeds, of_episodes in ((2.0, 0.0), (0.0, 2.0), (1.0, 1.0), (0.0, 0.0)):
        draws = (
            of_seeds * rng.normal(size=(4000, 5, 1))
            + of_episodes * rng.normal(size=(4000, 1, 10))
            + rng.normal(size=(4000, 5, 10))
        )
        errors = np.array([crossed_error(values) for values in draws])
        found.append(np.sqrt((errors**2).mean()) / draws.mean((1, 2)).std())
    np.testing.assert_allclose(found[:3], 1, atol=0.05)
    assert 1 <= found[3] < 1.2, "a variance is never below that of independent values"
    row = rng.normal(size=10)
    assert crossed_error(row[None]) == crossed_error(row[:, None]) == pytest.approx(row.std(ddof=1) / np.sqrt(10))
    assert np.isnan(crossed_error(np.ones((1, 1))))
