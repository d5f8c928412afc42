"""Linear probes: ridge regression from hidden states to arrays of the data, trained and scored on different episodes.

Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes" (arXiv 1610.01644).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from RATE_model.objectives.privileged import Privileged
from RATE_model.protocol.statistics import Interval

MAX_ROWS = 20_000  # for training, and for scoring; evenly spaced
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # per row, for features of variance 1
_CHOOSING = 5  # every fifth training episode is used to choose the penalty
_RESAMPLES = 1000


@dataclass(frozen=True)
class Sample:
    """N rows: features (N, d), an array of infos (N, n), and the episode of each, (N,) int64."""

    features: np.ndarray
    rows: np.ndarray
    episode: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Sample:
        return Sample(self.features[chosen], self.rows[chosen], self.episode[chosen])

    def thinned(self) -> Sample:
        """At most `MAX_ROWS` evenly spaced rows."""
        return self[np.linspace(0, len(self.rows) - 1, min(len(self.rows), MAX_ROWS)).astype(int)]


class Probe:
    """A linear map from features to an array of infos, fitted in closed form.

    Targets are normalised real numbers, or one-hot vectors of classes, of which the largest output is chosen. The
    penalty is the best of a few on a fifth of the training episodes.

    Args:
        kind: the array, described by the training data.
        training: training rows.
    """

    def __init__(self, kind: Privileged, training: Sample) -> None:
        self._kind = kind
        training = training.thinned()
        _, number = np.unique(training.episode, return_inverse=True)
        aside = np.equal(number % _CHOOSING, _CHOOSING - 1)
        penalty = _PENALTIES[2]
        if aside.any() and not aside.all():
            scores = []
            for each in _PENALTIES:
                self._fit(training[~aside], each)
                scores.append(self._share(training[aside]).sum(0))
            penalty = _PENALTIES[int(np.argmax([right / max(counted, 1e-12) for right, counted in scores]))]
        self._fit(training, penalty)

    def score(self, held_out: Sample) -> Interval:
        """R2 of real numbers, or accuracy of classes, with a 95 % interval over episodes.

        NaN if no number is known; the interval also if there is only one episode.
        """
        right, counted = self._share(held_out.thinned()).T
        value = np.array(right.sum() / counted.sum() if counted.sum() > 0 else np.nan)
        if len(right) < 2 or np.isnan(value):
            return Interval(value, np.array(np.nan), np.array(np.nan))
        draws = np.random.default_rng(0).integers(len(right), size=(_RESAMPLES, len(right)))
        resampled = right[draws].sum(1) / np.maximum(counted[draws].sum(1), 1e-12)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return Interval(value, np.array(low), np.array(high))

    def _targets(self, rows: np.ndarray) -> np.ndarray:
        return self._kind.inputs(torch.from_numpy(rows)).numpy().astype(np.float64)

    def _known(self, rows: np.ndarray) -> np.ndarray:
        """Mask of known numbers, (N, n) bool."""
        return np.isin(rows, self._kind.values.numpy()) if self._kind.kind.classes else np.isfinite(rows)

    def _fit(self, sample: Sample, penalty: float) -> None:
        """Fit each number of the array on the rows in which it is known, if any."""
        features, targets = sample.features.astype(np.float64), self._targets(sample.rows)
        outputs = targets.shape[1]
        self._weights, self._constant = np.zeros((features.shape[1], outputs)), np.zeros(outputs)
        self._mean = np.zeros(outputs)
        known = self._known(sample.rows)
        known = np.repeat(known, outputs // known.shape[1], axis=1)  # each number has one output per class
        masks, group = np.unique(known, axis=1, return_inverse=True)
        for number, mask in enumerate(masks.T):
            if mask.any():
                self._fit_some(np.flatnonzero(group.reshape(-1) == number), features[mask], targets[mask], penalty)

    def _fit_some(self, columns: np.ndarray, features: np.ndarray, targets: np.ndarray, penalty: float) -> None:
        """Fit some outputs on rows in which all of them are known."""
        mean, deviation = features.mean(0), features.std(0)
        scale = np.where(deviation > 1e-8, deviation, np.inf)  # constant features get weight 0
        self._mean[columns] = targets[:, columns].mean(0)
        x, y = (features - mean) / scale, targets[:, columns] - self._mean[columns]
        count, width = x.shape
        if width <= count:
            weights = np.linalg.solve(x.T @ x + count * penalty * np.eye(width), x.T @ y)
        else:
            weights = x.T @ np.linalg.solve(x @ x.T + count * penalty * np.eye(count), y)
        self._weights[:, columns] = weights / scale[:, None]
        self._constant[columns] = self._mean[columns] - mean @ self._weights[:, columns]

    def _share(self, sample: Sample) -> np.ndarray:
        """(E, 2) per episode: explained part and total. The ratio of their sums is the score."""
        outputs = sample.features @ self._weights + self._constant
        targets, known = self._targets(sample.rows), self._known(sample.rows)
        kind = self._kind.kind
        if kind.classes:
            shape = (len(outputs), kind.width, kind.classes)
            found = outputs.reshape(shape).argmax(-1) == targets.reshape(shape).argmax(-1)
            share = np.stack([(found & known).sum(1), known.sum(1)], axis=1).astype(np.float64)
        else:
            baseline = np.where(known, (targets - self._mean) ** 2, 0).sum(1)
            share = np.stack([baseline - np.where(known, (targets - outputs) ** 2, 0).sum(1), baseline], axis=1)
        _, number = np.unique(sample.episode, return_inverse=True)
        summed = np.zeros((number.max() + 1, 2))
        np.add.at(summed, number, share)
        return summed


def baseline(kind: Privileged, training: np.ndarray, held_out: np.ndarray) -> float:
    """The score without any input: 0 for real numbers; for classes, that of the most frequent training class."""
    if not kind.kind.classes:
        return 0.0
    frequent = []
    for column in training.T:
        values, counts = np.unique(column, return_counts=True)
        frequent.append(values[counts.argmax()])
    known = np.isin(held_out, kind.values.numpy())
    return float((held_out == np.array(frequent))[known].mean()) if known.any() else 0.0
