"""Intervals: percentile bootstrap over rows (Efron 1979), seeded.

Invariant: the same values, confidence and seed give the same interval; rows are resampled whole, so paired values stay
paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 17
_CHUNK = 2_000_000  # drawn indices held at once


@dataclass(frozen=True)
class Interval:
    """A mean, or a ratio of sums, over `n` rows with its confidence bounds."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: list[float], confidence_percent: float, *, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Mean and percentile interval of `values`; None if there are none."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    means = _resampled_means(array, resamples, seed)
    tail = (100 - confidence_percent) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(array.mean()), float(low), float(high), len(values))


def ratio(
    values: Sequence[float], weights: Sequence[float], confidence_percent: float, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:  # fmt: skip
    """Sum of `values` over sum of `weights` (all above 0), with the percentile interval over rows kept whole; None if there are none."""
    if not values:
        return None
    above, below = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    drawn = _resampled_means(above, resamples, seed) / _resampled_means(below, resamples, seed)
    tail = (100 - confidence_percent) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), len(values))


def paired_differences(scores: dict[str, float], reference: dict[str, float]) -> list[float]:
    """Score minus reference score of every row that both have, in the order of `scores`."""
    return [score - reference[row] for row, score in scores.items() if row in reference]


def _resampled_means(array: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    n = len(array)
    at_once = max(1, _CHUNK // n)
    counts = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    return np.concatenate([array[generator.integers(0, n, size=(count, n))].mean(axis=1) for count in counts])
