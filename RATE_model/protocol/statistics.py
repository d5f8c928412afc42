"""Rates, means and ranks with confidence intervals.

    Wilson interval           Wilson 1927; recommended by Newcombe 1998 and by Brown, Cai and DasGupta 2001
    interquartile mean (IQM), performance profile, stratified bootstrap
                              Agarwal et al. 2021 (arXiv 2108.13264)
    resampling n - 1 of n     Rao and Wu 1988; otherwise intervals of three seeds are a fifth too narrow
    widening by t / z         Hesterberg 2015, "expanded percentile interval"; otherwise they are narrower still
    crossed standard error    two-way analysis of variance with random effects, Cornfield and Tukey 1956

An interval describes what was resampled: an interval over episodes describes these agents in other episodes, an
interval over seeds describes other seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
# Maps samples (..., n) to (..., any shape).
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval: numbers, or arrays of the same shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def wilson(successes: np.ndarray | int, trials: np.ndarray | int, *, confidence: float = CONFIDENCE) -> Interval:
    """A success rate and its Wilson score interval.

    Args:
        successes, trials: integers with shapes that broadcast; at least one trial each.
        confidence: of the two-sided interval.
    """
    trials = np.asarray(trials, dtype=np.float64)
    rate, z = np.asarray(successes) / trials, _quantile(confidence)
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return Interval(rate, np.clip(centre - half, 0, rate), np.clip(centre + half, rate, 1))


def interquartile_mean(samples: np.ndarray) -> np.ndarray:
    """Mean of the middle half, over the last axis.

    Samples that are partly in it count in part, so the mean does not depend on how often each of n samples is repeated,
    and resamples of another size compare with it.
    """
    ordered, n = np.sort(samples, axis=-1), samples.shape[-1]
    ends = np.arange(n + 1)
    inside = np.clip(np.minimum(ends[1:], 0.75 * n) - np.maximum(ends[:-1], 0.25 * n), 0, None)
    return ordered @ (inside / inside.sum())


def mean(samples: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return samples.mean(-1)


def crossed_error(values: np.ndarray) -> float:
    """The standard error of the mean over seeds that play the same episodes, (S, E); NaN for a single value.

    Other seeds and other episodes would give another mean, so both count. Pooling all values as if they were
    independent would ignore that a good seed is good in all of its episodes. With a single seed, or a single episode,
    only the other varies.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, episodes = values.shape
    if 1 in values.shape:
        return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")
    of_seeds, of_episodes = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = ((values - of_seeds - of_episodes + values.mean()) ** 2).sum() / ((seeds - 1) * (episodes - 1))
    variance = episodes * of_seeds.var(ddof=1) + seeds * of_episodes.var(ddof=1) - rest
    return float(np.sqrt(max(variance, rest) / values.size))


def performance_profile(thresholds: np.ndarray) -> Statistic:
    """The statistic "share of samples above each threshold": (..., n) to (..., thresholds)."""
    return lambda samples: (samples[..., None, :] > np.asarray(thresholds)[:, None]).mean(-1)


def bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic of all samples, with a widened percentile interval of the stratified bootstrap.

    It may reach beyond the range that samples can have.

    Args:
        strata: (n,) each, n at least 2: tasks with a score per seed, or seeds with an outcome per episode. Samples are
            resampled within each stratum; the strata are fixed.
        statistic: maps the samples of all strata, concatenated.
        confidence: of the two-sided interval.
        resamples: number of resamples; the noise of the interval falls with their square root.
        seed: of the resampling.

    Raises:
        ValueError: a stratum has fewer than two samples.
    """
    strata = [np.asarray(samples, dtype=np.float64) for samples in strata]
    draws = np.concatenate([_resampled(samples, resamples, (seed, row)) for row, samples in enumerate(strata)], axis=-1)
    low, high = _percentiles(statistic(draws), confidence)
    value, z = statistic(np.concatenate(strata)), _quantile(confidence)
    wider = _student(z, sum(map(len, strata)) - len(strata)) / z
    return Interval(value, value + wider * (low - value), value + wider * (high - value))


def mean_ranks(
    scores: np.ndarray, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean rank of every method over tasks: 1 is best, ties share a rank.

    The mean over all resamples of seeds (Agarwal et al. 2021, arXiv 2108.13264). Resamples of few seeds tie more often
    than the seeds themselves, whose ranks can lie outside the interval; they also draw means towards the middle.

    Args:
        scores: (methods, tasks, seeds), higher is better; a method's score in a task is its mean over seeds.
        confidence, resamples, seed: of the bootstrap over seeds, independent for each method and task.

    Returns:
        (methods,) each.
    """
    methods, tasks, _ = scores.shape
    flat = scores.reshape(methods * tasks, -1)
    draws = np.stack([_resampled(samples, resamples, (seed, row)).mean(-1) for row, samples in enumerate(flat)], -1)
    ranks = _ranks(draws.reshape(-1, methods, tasks))
    return Interval(ranks.mean(axis=0), *_percentiles(ranks, confidence))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Mean ranks (..., methods) of scores (..., methods, tasks)."""
    other, own = scores[..., None, :, :], scores[..., :, None, :]
    return ((other > own).sum(-2) + ((other == own).sum(-2) + 1) / 2).mean(-1)


def _resampled(samples: np.ndarray, resamples: int, seed: tuple[int, int]) -> np.ndarray:
    """(resamples, n - 1) draws with replacement from (n,) samples, so the variance of their mean is s^2 / n."""
    if len(samples) < 2:
        raise ValueError("a stratum needs at least two samples to estimate the variance")
    generator = np.random.default_rng(seed)
    return samples[generator.integers(len(samples), size=(resamples, len(samples) - 1))]


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _quantile(confidence: float) -> float:
    """z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _student(z: float, degrees: int) -> float:
    """Student's t of the level at which a normal variate is z, by its expansion in 1 / degrees of freedom.

    Abramowitz and Stegun 1964, 26.7.5; 3 % too small for two degrees of freedom at 95 %, exact for many.
    """
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
