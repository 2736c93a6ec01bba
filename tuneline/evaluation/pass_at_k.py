"""pass@k: the probability that at least one of k completions of a prompt is right."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.evaluation.intervals import Interval, bootstrap_interval


def pass_at_k(num_completions: int, num_correct: int, k: int) -> float:
    """The unbiased estimate for one prompt (Chen et al. 2021, arXiv:2107.03374, eq. 1): 1 - C(n - c, k) / C(n, k).

    Computed as 1 - prod(1 - k / i) for i from n - c + 1 to n, which needs no large binomial coefficients.

    Args:
        num_completions: n, at least k.
        num_correct: c, how many of them are right.
    """
    if num_completions < k:
        raise ValueError(f"pass@{k} needs at least {k} completions a prompt; there are {num_completions}")
    if num_completions - num_correct < k:
        return 1.0
    all_wrong = 1.0
    for i in range(num_completions - num_correct + 1, num_completions + 1):
        all_wrong *= 1 - k / i
    return 1 - all_wrong


def mean_pass_at_k(correct: Sequence[Sequence[bool]], k: int, seed: int) -> Interval:
    """The mean over prompts, with a bootstrap interval over prompts.

    Args:
        correct: (prompts, completions), whether each is right.
        seed: of the bootstrap.
    """
    return bootstrap_interval([pass_at_k(len(of_prompt), sum(of_prompt), k) for of_prompt in correct], seed)
