import math

import pytest

from tuneline.evaluation.intervals import (
    bootstrap_interval,
    pearson,
    spearman,
    wilson_interval,
    win_rate,
)


def test_wilson_interval_of_81_in_263_is_that_of_newcombe_1998():
    # Newcombe 1998 (Statistics in Medicine 17:857-872), table I, method 3: 81/263 gives 0.2553 to 0.3662
    interval = wilson_interval(81, 263)
    assert interval == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_at_the_ends_has_a_width():
    # p = 0: both centre and half-width are z²/2n / (1 + z²/n), so it runs from 0 to z²/(n + z²) = 3.8415/13.8415
    assert wilson_interval(0, 10) == pytest.approx((0, 0, 0.27753), abs=1e-5)
    assert all(wilson_interval(0, n).low == 0 and wilson_interval(n, n).high == 1 for n in range(1, 200))
    assert wilson_interval(10, 10) == pytest.approx((1, 0.72247, 1), abs=1e-5)


def test_wilson_interval_is_symmetric_under_exchange_of_success_and_failure():
    own, other = wilson_interval(3, 17), wilson_interval(14, 17)
    assert (1 - own.high, 1 - own.low) == pytest.approx((other.low, other.high))


def test_no_trials_give_nan():
    assert all(map(math.isnan, wilson_interval(0, 0)))
    assert all(map(math.isnan, bootstrap_interval([], seed=1)))


def test_win_rate_counts_ties_half():
    # a win, a loss, two ties: (1 + 0 + 2 · 0.5) / 4
    interval = win_rate([2, 1, 5, 5], [1, 2, 5, 5])
    assert interval.estimate == 0.5
    assert interval == wilson_interval(2, 4)


def test_bootstrap_repeats_with_its_seed_and_covers_the_mean():
    values = [float(i % 7) for i in range(100)]
    interval = bootstrap_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3)
    assert interval != bootstrap_interval(values, seed=4)
    # the standard error of the mean is 2.0 / 10, so the interval is about ± 0.39
    assert interval.low == pytest.approx(interval.estimate - 0.39, abs=0.06)
    assert interval.high == pytest.approx(interval.estimate + 0.39, abs=0.06)


def test_bootstrap_of_a_constant_has_no_width():
    assert bootstrap_interval([2.5] * 9, seed=0) == (2.5, 2.5, 2.5)


def test_pearson_of_a_hand_made_example():
    # x - 2 = (-1, 0, 1), y - 3 = (-2, 1, 1): 3 / sqrt(2 · 6)
    assert pearson([1, 2, 3], [1, 4, 4]) == pytest.approx(3 / math.sqrt(12))
    assert pearson([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)


def test_spearman_sees_ranks_alone_and_shares_them_among_ties():
    assert spearman([1, 10, 100], [0.1, 0.2, 0.3]) == pytest.approx(1)
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): deviations (-1.5, 0, 0, 1.5) and (-1.5, -0.5, 0.5, 1.5)
    assert spearman([1, 2, 2, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1], [1]), ([], [])])
def test_correlation_with_a_constant_is_nan(x, y):
    assert math.isnan(pearson(x, y))
    assert math.isnan(spearman(x, y))
