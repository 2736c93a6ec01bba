"""Agreement, against values worked out by hand and from the literature."""

import pytest

from tuneline.collection.agreement import agreement, cohen_kappa, krippendorff_alpha, raw_agreement
from tuneline.collection.store import StoredLabel


def ratings(**by_annotator):
    """Choices in a row a character, `.` for none."""
    length = max(map(len, by_annotator.values()))
    return {
        str(i): {name: row[i] for name, row in by_annotator.items() if i < len(row) and row[i] != "."}
        for i in range(length)
    }


def test_cohen_kappa_by_hand():
    # Of 50 proposals both say yes to 20 and no to 15; p = 0.7, e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4.
    one, other = "y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(ratings(one=one, other=other), "one", "other") == pytest.approx(0.4)
    assert raw_agreement(ratings(one=one, other=other)) == pytest.approx(0.7)


def test_krippendorff_alpha_of_his_own_example_with_labels_missing():
    # Krippendorff 2011, Computing Krippendorff's alpha-reliability, part C: nominal, four observers, alpha = 0.743.
    told = ratings(A="123321412...", B="1233224125.3", C=".3332342251.", D="12332441251.")
    assert krippendorff_alpha(told) == pytest.approx(0.743, abs=5e-4)


def test_chance_is_zero_and_perfect_is_one():
    assert krippendorff_alpha(ratings(one="abab", other="abab")) == 1
    assert cohen_kappa(ratings(one="aabb", other="abab"), "one", "other") == 0
    assert krippendorff_alpha(ratings(one="ab", other="ba")) == pytest.approx(-0.5)  # 1 - 3 * 4 / 8


def test_nothing_is_said_of_what_nobody_or_one_has_labelled():
    assert raw_agreement({}) is krippendorff_alpha({}) is None
    assert krippendorff_alpha(ratings(one="ab")) is None
    assert cohen_kappa(ratings(one="a.", other=".b"), "one", "other") is None
    assert krippendorff_alpha(ratings(one="aa", other="aa")) is None  # without variety, chance agrees too


def label(pair, annotator, choice, left=None):
    return StoredLabel(pair, annotator, choice, "person", "2026-01-01", left, None)


def test_agreement_counts_pairs_of_several_leaves_skips_out_and_tells_of_the_side():
    labels = [
        label("1", "anna", "a", "a"),
        label("1", "ben", "a", "b"),
        label("2", "anna", "b", "b"),
        label("2", "ben", "skip", "a"),
        label("3", "anna", "tie", "a"),
        label("3", "ben", "b", "b"),
    ]
    told = agreement(labels)
    assert (told.num_pairs, told.num_annotators, told.raw) == (2, 2, 0.5)
    assert set(told.kappa) == {("anna", "ben")}
    assert told.left_share == 0.75  # of four preferences, ben's for pair 1 was on the right
