from itertools import combinations

import pytest

from tuneline.evaluation.pass_at_k import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 2), (6, 1, 6), (8, 3, 4)])
def test_the_estimate_is_the_share_of_subsets_with_a_right_completion(n, c, k):
    outcomes = [True] * c + [False] * (n - c)
    subsets = list(combinations(outcomes, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_many_completions_are_estimated_without_overflow():
    assert 0.7 < pass_at_k(10_000, 100, 120) < 0.71  # about 1 - 0.99 ** 120 = 0.7006, and without replacement more


def test_fewer_completions_than_k_are_refused():
    with pytest.raises(ValueError, match="pass@4 needs at least 4"):
        pass_at_k(3, 1, 4)


def test_pass_at_one_is_the_mean_share_of_right_completions_and_its_interval_holds_it():
    correct = [[True, False], [False, False], [True, True], [False, True]]
    estimate, low, high = mean_pass_at_k(correct, 1, seed=0)
    assert estimate == 0.5
    assert low < 0.5 < high
    assert mean_pass_at_k(correct, 2, seed=0).estimate == 0.75
