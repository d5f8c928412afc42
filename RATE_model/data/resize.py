"""Image resizing with NumPy only: bit-identical to OpenCV's bilinear interpolation, and area averages."""

from __future__ import annotations

import functools

import numpy as np

_BITS = 11  # bits of a weight
_ONE = 2**_BITS


class Bilinear:
    """Two-tap bilinear interpolation in the integer arithmetic of OpenCV's INTER_LINEAR for uint8.

    A row is interpolated with 11-bit weights; the sums lose 4 bits, then 16 in each row's contribution to a pixel and,
    rounded, the remaining 2.

    Args:
        source: (height, width) of the input.
        target: (height, width) of the output.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        height, width = source
        self._height = target[0]
        upper, lower, self._lower_weight = _taps(height, target[0])
        left, right, self._right_weight = _taps(width, target[1])
        rows = np.concatenate([upper, lower])
        starts = np.arange(3)[:, None, None] * (height * width) + rows[:, None] * width
        self._left, self._right = starts + left, starts + right  # in the flattened image
        self._lower_weight = self._lower_weight[:, None]
        self._upper_weight = _ONE - self._lower_weight

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize (3, H, W) uint8, contiguous, to (3, h, w) uint8."""
        flat = image.reshape(-1)
        sums = flat.take(self._left, mode="clip").astype(np.int32)  # clip: the other modes check every index
        steps = flat.take(self._right, mode="clip").astype(np.int32)
        steps -= sums
        steps *= self._right_weight
        sums <<= _BITS
        sums += steps
        sums >>= 4
        upper, lower = sums[:, : self._height], sums[:, self._height :]
        upper *= self._upper_weight
        lower *= self._lower_weight
        sums >>= 16
        upper += lower
        upper += 2
        upper >>= 2
        return upper.astype(np.uint8)


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``target`` positions on an axis of ``size`` pixels: the two nearest and the weight of the second.

    All (target,): int64, int64, int32 from 0 to 2048.
    """
    centres = (np.arange(target) + 0.5) * (size / target) - 0.5
    first = np.floor(centres).astype(np.int64)
    weight = np.where((first < 0) | (first >= size - 1), 0, centres - first).astype(np.float32)
    first = first.clip(0, size - 1)
    return first, np.minimum(first + 1, size - 1), np.rint(weight * _ONE).astype(np.int32)


def area_mean(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey picture (H, W) uint8 averaged down to ``size``, (h, w) uint8."""
    rows, columns = (_areas(*lengths) for lengths in zip(picture.shape, size, strict=True))
    return np.rint(_mean(_mean(picture.astype(np.float32), *rows).T, *columns)).astype(np.uint8).T


@functools.cache
def _areas(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``old`` rows covered by each of the ``new`` rows, (n, new) int64, and their weights, (n, new, 1) float32."""
    edges = np.arange(new + 1) * (old / new)
    covered = edges[:-1].astype(np.int64) + np.arange(int(np.ceil(old / new)) + 1)[:, None]
    overlap = np.minimum(edges[1:], covered + 1) - np.maximum(edges[:-1], covered)
    return np.minimum(covered, old - 1), (overlap.clip(min=0) * (new / old)).astype(np.float32)[:, :, None]


def _mean(picture: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of rows, without matrix products, whose threads cost more than they gain at this size."""
    picture = np.ascontiguousarray(picture)
    mean = picture[rows[0]] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        mean += picture[row] * weight
    return mean
