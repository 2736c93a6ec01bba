"""From what policies answered and how a reward model scored it to measures by name, most of them with an interval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tuneline.evaluation.best_of_n import kl_bound, mean_expected_best
from tuneline.evaluation.divergence import Divergences
from tuneline.evaluation.intervals import Interval, bootstrap_interval, pearson, spearman, wilson_interval, win_rate
from tuneline.evaluation.pass_at_k import mean_pass_at_k
from tuneline.evaluation.preferences import calibration, pairwise_accuracy, preference_for_longer
from tuneline.evaluation.sampling import Completion

Measures = dict[str, float | Interval]


@dataclass(frozen=True)
class Answers:
    """What a policy answered to the test prompts; every list is (prompts,), in the order of the prompts."""

    completions: list[Completion]
    correct: list[bool | None]  # None where no solution is known
    rewards: list[float] | None = None  # by the reward model, if there is one
    divergences: Divergences | None = None  # from the baseline; of completions sampled at temperature 1
    all_correct: list[list[bool | None]] = field(default_factory=list)  # of all completions; empty where one was drawn


@dataclass(frozen=True)
class Draws:
    """Many completions a prompt of one policy, drawn at temperature 1; every list is (prompts, completions)."""

    completions: list[list[Completion]]
    correct: list[list[bool | None]]  # None where no solution is known
    rewards: list[list[float]] = field(default_factory=list)  # by the reward model, once it was asked


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of a known preference with the scores of a reward model; every list is (pairs,)."""

    chosen_scores: list[float]
    rejected_scores: list[float]
    chosen_lengths: list[int]  # of the completions, in tokens
    rejected_lengths: list[int]
    tasks: list[str | None] = field(default_factory=list)  # empty where none is known


def policy_measures(answers: Answers, baseline: Answers | None, seed: int, pass_at: Sequence[int] = ()) -> Measures:
    """All that is measured of a policy over the whole test set; what cannot be is left out.

    Args:
        baseline: what the policy is compared with; None for the baseline itself.
        seed: of the bootstrap.
        pass_at: which pass@k to estimate.
    """
    lengths = [completion.num_tokens for completion in answers.completions]
    num_cut_off = sum(not completion.finished for completion in answers.completions)
    measures: Measures = {}
    verified = [i for i, correct in enumerate(answers.correct) if correct is not None]
    if verified:
        measures["accuracy"] = accuracy(answers.correct)
        drawn = answers.all_correct or [[correct] for correct in answers.correct]
        known = [[bool(correct) for correct in drawn[i]] for i in verified]
        measures |= {f"pass_at_{k}": mean_pass_at_k(known, k, seed) for k in pass_at}
    if verified and baseline is not None:
        own, other = ([float(bool(side.correct[i])) for i in verified] for side in (answers, baseline))
        measures["accuracy_gain"] = bootstrap_interval([a - b for a, b in zip(own, other, strict=True)], seed)
        measures["win_rate_verifier"] = win_rate(own, other)
    if answers.rewards is not None:
        measures["reward"] = bootstrap_interval(answers.rewards, seed)
    if answers.rewards is not None and baseline is not None and baseline.rewards is not None:
        measures["win_rate_reward"] = win_rate(answers.rewards, baseline.rewards)
    if answers.divergences is not None:
        measures["kl"] = bootstrap_interval(answers.divergences.log_ratios, seed)
        measures["kl_exact"] = bootstrap_interval(answers.divergences.exact, seed)
    measures["completion_length"] = math.fsum(lengths) / len(lengths)
    measures["share_cut_off"] = num_cut_off / len(lengths)
    return measures


def best_of_n_measures(draws: Draws, n: int, seed: int) -> Measures:
    """What the policy's answers are worth when the best of n is taken, by the reward model.

    Args:
        draws: with rewards, at least n completions a prompt; each n is estimated from all of them.
        seed: of the bootstrap.
    """
    verified = [i for i, outcomes in enumerate(draws.correct) if any(outcome is not None for outcome in outcomes)]
    measures: Measures = {}
    if verified:
        right = [[float(bool(outcome)) for outcome in draws.correct[i]] for i in verified]
        measures["accuracy"] = mean_expected_best(right, [draws.rewards[i] for i in verified], n, seed)
    measures["reward"] = mean_expected_best(draws.rewards, draws.rewards, n, seed)
    measures["kl_bound"] = kl_bound(n)
    return measures


def accuracy(correct: Iterable[bool | None]) -> Interval:
    """Share of right answers among those whose solution is known."""
    verified = [bool(outcome) for outcome in correct if outcome is not None]
    return wilson_interval(sum(verified), len(verified))


def accuracy_by_task(correct: Sequence[bool | None], tasks: Sequence[str | None]) -> dict[str, Interval]:
    """Accuracy on the prompts of each task with a known solution, tasks in alphabetical order."""
    names = sorted({task for task, outcome in zip(tasks, correct, strict=True) if task and outcome is not None})
    return {name: accuracy(c for c, task in zip(correct, tasks, strict=True) if task == name) for name in names}


def pairwise_accuracy_by_task(pairs: ScoredPairs) -> dict[str, Interval]:
    """Pairwise accuracy for each task, tasks in alphabetical order."""
    by_task: dict[str, list[tuple[float, float]]] = {}
    for task, chosen, rejected in zip(pairs.tasks, pairs.chosen_scores, pairs.rejected_scores, strict=False):
        if task is not None:
            by_task.setdefault(task, []).append((chosen, rejected))
    return {task: pairwise_accuracy(*zip(*by_task[task], strict=True)) for task in sorted(by_task)}


def reward_model_measures(pairs: ScoredPairs) -> Measures:
    """All that is measured of a reward model on pairs."""
    scores = pairs.chosen_scores + pairs.rejected_scores
    lengths = pairs.chosen_lengths + pairs.rejected_lengths
    sides = pairs.chosen_scores, pairs.rejected_scores
    both_lengths = pairs.chosen_lengths, pairs.rejected_lengths
    return {
        "pairwise_accuracy": pairwise_accuracy(*sides),
        "calibration_error": calibration(*sides).error,
        "length_pearson": pearson(scores, lengths),
        "length_spearman": spearman(scores, lengths),
        "prefers_longer": preference_for_longer(*sides, *both_lengths),
        "longer_is_chosen": preference_for_longer([1.0] * len(sides[0]), [0.0] * len(sides[1]), *both_lengths).estimate,
    }


def flat_metrics(measures: Mapping[str, float | Interval], prefix: str, suffix: str = "") -> dict[str, float]:
    """Measures as plain numbers, `PREFIX/NAME` with `PREFIX/NAME_low` and `PREFIX/NAME_high`; nan is left out.

    Eight significant digits: more than any reader needs, and fewer than those in which summation order shows.
    """
    metrics = {}
    for name, measure in measures.items():
        values = measure if isinstance(measure, Interval) else (measure,)
        for end, value in zip(("", "_low", "_high"), values, strict=False):
            if not math.isnan(value):
                metrics[f"{prefix}/{name}{end}{suffix}"] = float(f"{value:.8g}")
    return metrics


def metric_names(names: Sequence[str]) -> dict[str, str]:
    """Names from data as parts of metric names: letters, digits, `_`, `.` and `-`; different names stay different."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:60] or "_"
        taken, number, candidate = set(found.values()), 1, plain
        while candidate in taken:
            number += 1
            candidate = f"{plain}_{number}"
        found[name] = candidate
    return found
