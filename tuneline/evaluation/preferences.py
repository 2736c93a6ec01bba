"""How well scores rank pairs whose preferred answer is known: accuracy, calibration, bias towards length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tuneline.evaluation.intervals import Interval, wilson_interval, win_rate


class Bin(NamedTuple):
    """Pairs of which the model is about equally sure."""

    low: float  # of confidence
    high: float
    num_pairs: int
    confidence: float  # mean over the pairs; nan in an empty bin
    accuracy: float  # share ranked rightly, ties half; nan in an empty bin


class Calibration(NamedTuple):
    """Whether a reward model is as often right as it is sure."""

    error: float  # expected calibration error, from 0 to 1
    bins: list[Bin]


def pairwise_accuracy(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> Interval:
    """Share of pairs whose chosen answer scores higher, ties half, with a Wilson interval."""
    return win_rate(chosen_scores, rejected_scores)


def calibration(chosen_scores: Sequence[float], rejected_scores: Sequence[float], num_bins: int = 10) -> Calibration:
    """Reliability bins and expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    The model's probability that an answer is preferred is sigmoid(score difference) (Bradley and Terry 1952). Its
    confidence in a pair is the probability of the answer it ranks first, from 0.5 to 1, which `num_bins` bins of equal
    width divide; the error is the mean over pairs of |accuracy - confidence| of their bin.

    Args:
        chosen_scores, rejected_scores: (pairs,)
    """
    margins = np.asarray(chosen_scores, dtype=np.float64) - np.asarray(rejected_scores, dtype=np.float64)
    confidences = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    edges = np.linspace(0.5, 1, num_bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidences, side="right") - 1, 0, num_bins - 1)
    bins = []
    for i in range(num_bins):
        inside = bin_of == i
        count = int(inside.sum())
        mean_confidence = math.fsum(confidences[inside]) / count if count else math.nan
        accuracy = math.fsum(right[inside]) / count if count else math.nan
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, mean_confidence, accuracy))
    if not margins.size:
        return Calibration(math.nan, bins)
    error = math.fsum(b.num_pairs * abs(b.accuracy - b.confidence) for b in bins if b.num_pairs) / margins.size
    return Calibration(error, bins)


def preference_for_longer(
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    chosen_lengths: Sequence[int],
    rejected_lengths: Sequence[int],
) -> Interval:
    """Share of the pairs of unequal length whose longer answer scores higher, ties half, with a Wilson interval.

    Against the share of pairs in which the longer answer is the chosen one, it tells a bias from what the data hold.
    """
    outcomes = [
        0.5 if chosen == rejected else float((chosen > rejected) == (length > other_length))
        for chosen, rejected, length, other_length in zip(
            chosen_scores, rejected_scores, chosen_lengths, rejected_lengths, strict=True
        )
        if length != other_length
    ]
    return wilson_interval(sum(outcomes), len(outcomes))
