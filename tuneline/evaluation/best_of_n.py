"""Best-of-n: of n completions the one that a reward model likes best, the baseline that costs no training.

Every n up to the number of completions that were drawn is estimated from all of them: the mean over all subsets of n,
a U-statistic, unbiased as one subset is and of less variance. Sorting makes it exact: of the C(m, n) subsets of m
completions, C(i - 1, n - 1) have the i-th smallest reward as their largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tuneline.evaluation.intervals import Interval, bootstrap_interval


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, in nats: at most so far is best-of-n from the policy that is sampled.

    The divergence itself where no completion is likely to be drawn twice (Stiennon et al. 2020, arXiv:2009.01325);
    above it where some are (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def expected_best(values: Sequence[float], rewards: Sequence[float], n: int) -> float:
    """The mean of what the completion of the highest reward is worth, over all subsets of n completions.

    Of completions with equal rewards each is the best equally often.

    Args:
        values: (completions,), what each is worth: its reward, or 1 for a right one.
        rewards: (completions,), what is chosen by.
        n: from 1 to the number of completions.
    """
    num_drawn = len(rewards)
    if not 1 <= n <= num_drawn:
        raise ValueError(
            f"best of {n} needs at least {n} completions a prompt, and n at least 1; there are {num_drawn}"
        )
    sorted_rewards, place = np.unique(np.asarray(rewards, dtype=np.float64), return_inverse=True)
    counts = np.bincount(place, minlength=len(sorted_rewards))
    means = np.bincount(place, weights=np.asarray(values, dtype=np.float64)) / counts
    at_most = [0, *np.cumsum(counts).tolist()]  # how many completions have no higher reward
    subsets = [math.comb(count, n) for count in at_most]
    shares = ((high - low) / subsets[-1] for low, high in pairwise(subsets))
    return math.fsum(share * mean for share, mean in zip(shares, means.tolist(), strict=True))


def mean_expected_best(
    values: Sequence[Sequence[float]], rewards: Sequence[Sequence[float]], n: int, seed: int
) -> Interval:
    """The mean over prompts, with a bootstrap interval over prompts.

    Args:
        values, rewards: (prompts, completions)
        seed: of the bootstrap.
    """
    return bootstrap_interval([expected_best(v, r, n) for v, r in zip(values, rewards, strict=True)], seed)
