import math
import random
from itertools import combinations

import pytest

from tuneline.evaluation.best_of_n import expected_best, kl_bound, mean_expected_best


def by_subsets(values, rewards, n):
    """The mean over every subset; where several share the highest reward, of all of them."""
    means = []
    for subset in combinations(range(len(rewards)), n):
        best = [values[i] for i in subset if rewards[i] == max(rewards[j] for j in subset)]
        means.append(sum(best) / len(best))
    return sum(means) / len(means)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("num_rewards", [1, 3, 1000])  # few different ones: many ties
def test_the_estimate_is_the_mean_over_all_subsets(n, num_rewards):
    draw = random.Random(n * num_rewards)
    for _ in range(20):
        rewards = [float(draw.randrange(num_rewards)) for _ in range(8)]
        values = [float(draw.random() < 0.4) for _ in rewards]
        assert expected_best(values, rewards, n) == pytest.approx(by_subsets(values, rewards, n), abs=1e-12)
        assert expected_best(rewards, rewards, n) == pytest.approx(by_subsets(rewards, rewards, n), abs=1e-12)


def test_the_best_of_one_is_the_mean_and_of_all_the_best():
    values, rewards = [1.0, 0.0, 0.0, 1.0], [0.3, 0.1, 0.9, 0.2]
    assert expected_best(values, rewards, 1) == 0.5
    assert expected_best(values, rewards, 4) == 0.0  # the reward model likes the third best, and it is wrong
    assert expected_best(rewards, rewards, 4) == 0.9


def test_the_estimate_is_unbiased():
    """Over draws from a known distribution its mean is what best-of-n from that distribution is worth."""
    draw = random.Random(0)
    shares, rewards = (
        [0.5, 0.3, 0.2],
        [0.0, 1.0, 2.0],
    )  # the reward of the best of 3 is 0 with 0.5^3, 1 with 0.8^3 - 0.5^3
    expected = 1 * (0.8**3 - 0.5**3) + 2 * (1 - 0.8**3)
    found = [
        expected_best(drawn, drawn, 3) for _ in range(4000) for drawn in [draw.choices(rewards, weights=shares, k=5)]
    ]
    error = math.sqrt(sum((x - expected) ** 2 for x in found)) / len(found)
    assert abs(sum(found) / len(found) - expected) < 4 * error


def test_sixteen_completions_and_more_are_estimated_exactly():
    assert expected_best(range(16), range(16), 16) == 15
    # of 2 of 0..m-1 the larger is on average (2m - 1) / 3
    assert expected_best(range(1000), range(1000), 2) == pytest.approx(1999 / 3)


@pytest.mark.parametrize("n", [0, 5])
def test_an_n_beyond_the_completions_is_refused(n):
    with pytest.raises(ValueError, match=f"best of {n} needs"):
        expected_best([1.0] * 4, [1.0] * 4, n)


def test_the_bound_is_zero_for_one_and_grows_like_the_logarithm():
    assert [round(kl_bound(n), 3) for n in (1, 2, 4, 8, 16)] == [0, 0.193, 0.636, 1.204, 1.835]


def test_the_bound_holds_and_is_met_where_rewards_differ():
    """KL(best of n || policy) of a uniform policy over v answers: p_i = (i^n - (i - 1)^n) / v^n against 1 / v."""
    n = 4
    for v, slack in ((3, 0.2), (10_000, 1e-3)):
        shares = [(i / v) ** n - ((i - 1) / v) ** n for i in range(1, v + 1)]
        divergence = sum(p * math.log(p * v) for p in shares if p > 0)
        assert divergence <= kl_bound(n) <= divergence + slack


def test_the_mean_over_prompts_has_an_interval():
    values, rewards = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]] * 3
    estimate, low, high = mean_expected_best(values, rewards, 2, seed=0)
    assert estimate == pytest.approx(1 / 3)
    assert 0 <= low < estimate < high <= 1
