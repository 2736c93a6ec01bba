"""Estimates with 95 % intervals, and correlations: plain numbers, in double precision; what is random is seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054  # 0.975 quantile of the standard normal distribution
_NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval; all nan where there was nothing to estimate from."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: float, num_trials: int) -> Interval:
    """The score interval of a proportion (Wilson 1927, JASA 22:209-212; eq. 4 in Brown, Cai and DasGupta 2001).

    With p = successes / n and z the normal quantile, the centre is (p + z²/2n) / (1 + z²/n) and the half-width
    z / (1 + z²/n) · sqrt(p(1-p)/n + z²/4n²). Unlike p ± z·se it keeps its coverage for few trials and near 0 and 1.

    Args:
        successes: from 0 to `num_trials`; a tie may count as half. Outcomes between 0 and 1 with mean p have a variance
            of at most p(1-p), so the interval is then conservative.
    """
    if num_trials == 0:
        return Interval(math.nan, math.nan, math.nan)
    p, z2 = successes / num_trials, Z_95**2
    scale = 1 + z2 / num_trials
    centre = (p + z2 / (2 * num_trials)) / scale
    half_width = Z_95 / scale * math.sqrt(p * (1 - p) / num_trials + z2 / (4 * num_trials**2))
    low = 0.0 if p == 0 else centre - half_width  # where the two are equal, rounding leaves a trace
    high = 1.0 if p == 1 else centre + half_width
    return Interval(p, low, high)


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """The mean with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13), 2000 resamples.

    For a paired comparison give the differences of the pairs.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    means = [array[generator.integers(array.size, size=array.size)].mean() for _ in range(_NUM_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(math.fsum(array) / array.size, float(low), float(high))


def win_rate(scores: Sequence[float], other_scores: Sequence[float]) -> Interval:
    """Share of prompts on which the first of two policies scores higher, ties counting half, with a Wilson interval.

    Args:
        scores, other_scores: one value a prompt, in the same order.
    """
    pairs = list(zip(scores, other_scores, strict=True))
    wins = sum(1.0 if own > other else 0.5 if own == other else 0.0 for own, other in pairs)
    return wilson_interval(wins, len(pairs))


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Linear correlation, from -1 to 1; nan where either side is constant or has fewer than two values."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of ranks, from -1 to 1; equal values share the mean of their ranks."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; ties get the mean of the ranks that they take up."""
    _, group, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[group].tolist()
