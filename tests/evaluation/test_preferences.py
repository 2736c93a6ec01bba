import math

import pytest

from tuneline.evaluation.accuracy import exact_match
from tuneline.evaluation.preferences import calibration, pairwise_accuracy, preference_for_longer

LOG_3 = math.log(3)  # sigmoid(log 3) = 3/4


def test_pairwise_accuracy_counts_ties_half():
    assert pairwise_accuracy([1, 2, 3, 4], [0, 0, 3, 5]).estimate == (1 + 1 + 0.5 + 0) / 4


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_calibration_error():
    # four pairs with confidence 3/4, of which three are ranked rightly
    result = calibration([LOG_3, LOG_3, LOG_3, 0], [0, 0, 0, LOG_3], num_bins=4)
    assert result.error == pytest.approx(0)
    counts = [b.num_pairs for b in result.bins]
    assert counts == [0, 0, 4, 0]  # edges 0.5, 0.625, 0.75, 0.875, 1: 3/4 opens the third
    assert result.bins[2].confidence == pytest.approx(0.75)
    assert result.bins[2].accuracy == 0.75


def test_calibration_error_weighs_bins_by_their_pairs():
    # two pairs with confidence 3/4, both wrong: gap 3/4; two ties with confidence 1/2, half right: gap 0
    result = calibration([0, 0, 1, 1], [LOG_3, LOG_3, 1, 1], num_bins=2)
    assert result.error == pytest.approx(0.5 * 0.75)


def test_a_confidence_of_one_falls_in_the_last_bin():
    result = calibration([1000.0], [0.0], num_bins=5)
    assert [b.num_pairs for b in result.bins] == [0, 0, 0, 0, 1]
    assert result.error == 0


def test_calibration_of_no_pairs_is_nan():
    assert math.isnan(calibration([], []).error)


def test_preference_for_longer_leaves_out_pairs_of_equal_length():
    # longer chosen wins; longer rejected wins; longer chosen loses; equal length
    interval = preference_for_longer([2, 1, 1, 9], [1, 2, 2, 1], [5, 3, 5, 4], [3, 5, 3, 4])
    assert interval.estimate == pytest.approx(2 / 3)


def test_exact_match_ignores_white_space_alone():
    assert exact_match(" 4  2\n", "4 2")
    assert not exact_match("42", "4 2")
    assert not exact_match("Abc", "abc")
