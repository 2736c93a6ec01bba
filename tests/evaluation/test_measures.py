import math

import pytest

from tuneline.evaluation.divergence import Divergences
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.evaluation.measures import (
    Answers,
    ScoredPairs,
    accuracy_by_task,
    flat_metrics,
    metric_names,
    policy_measures,
    reward_model_measures,
)
from tuneline.evaluation.sampling import Completion


def completions(*lengths, cut_off=()):
    return [Completion([5] * n, "x", finished=i not in cut_off) for i, n in enumerate(lengths)]


def test_a_policy_is_measured_against_the_baseline_prompt_by_prompt():
    baseline = Answers(completions(1, 2, 3, 4), [True, False, False, None], [0.0, 1.0, 2.0, 3.0])
    policy = Answers(
        completions(2, 2, 2, 4, cut_off=[3]),
        [True, True, False, None],
        [1.0, 1.0, 1.0, 4.0],
        Divergences([1.0, 2.0, -1.0, 0.0], [0.5, 0.5, 0.5, 0.5]),
    )
    measures = policy_measures(policy, baseline, seed=0)
    assert measures["accuracy"] == wilson_interval(2, 3)  # the last prompt has no solution
    assert measures["accuracy_gain"].estimate == pytest.approx(1 / 3)
    assert measures["win_rate_verifier"] == wilson_interval(2, 3)  # a tie, a win, a tie
    assert measures["win_rate_reward"] == wilson_interval(2.5, 4)  # a win, a tie, a loss, a win
    assert measures["reward"].estimate == 1.75
    assert measures["kl"].estimate == 0.5
    assert measures["kl_exact"] == (0.5, 0.5, 0.5)
    assert measures["completion_length"] == 2.5
    assert measures["share_cut_off"] == 0.25


def test_what_cannot_be_measured_is_left_out():
    answers = Answers(completions(1, 3), [None, None])
    assert policy_measures(answers, None, seed=0) == {"completion_length": 2.0, "share_cut_off": 0.0}


def test_accuracy_by_task_counts_prompts_with_a_solution():
    found = accuracy_by_task([True, False, None, True], ["b", "b", "c", "a"])
    assert found == {"a": wilson_interval(1, 1), "b": wilson_interval(1, 2)}
    assert accuracy_by_task([True], [None]) == {}


def test_a_reward_model_that_reads_length_alone_is_seen_through():
    pairs = ScoredPairs([5.0, 1.0, 4.0], [2.0, 3.0, 1.0], [5, 1, 4], [2, 3, 1])  # the score is the length
    measures = reward_model_measures(pairs)
    assert measures["pairwise_accuracy"].estimate == pytest.approx(2 / 3)
    assert measures["length_pearson"] == pytest.approx(1)
    assert measures["length_spearman"] == pytest.approx(1)
    assert measures["prefers_longer"].estimate == 1
    assert measures["longer_is_chosen"] == pytest.approx(2 / 3)


def test_flat_metrics_round_and_leave_out_nan():
    metrics = flat_metrics({"a": Interval(1 / 3, 0.1, 0.5), "b": math.nan, "c": 2.0}, "sft")
    assert metrics == {"sft/a": 0.33333333, "sft/a_low": 0.1, "sft/a_high": 0.5, "sft/c": 2.0}
    assert flat_metrics({"a": 1.0}, "sft", "/sorting") == {"sft/a/sorting": 1.0}


def test_names_from_data_become_plain_and_stay_different():
    assert metric_names(["sorting", "a b", "a/b", "<script>", ""]) == {
        "sorting": "sorting",
        "a b": "a_b",
        "a/b": "a_b_2",
        "<script>": "_script_",
        "": "_",
    }
