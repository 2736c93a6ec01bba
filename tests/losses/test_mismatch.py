"""Corrections for a sampler that is not the policy."""

import math

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.mismatch import MISMATCH_MODES, mismatch_weights, off_policy_mask

IDS = torch.tensor([0, 0, 0, 1, 1])
OLD = torch.tensor([-1.0, -2.0, -3.0, -0.5, -1.0])
# ratios of tokens 2, 1, 0.25 and 4, 1.25; of sequences 0.5 and 5
SAMPLER = OLD - torch.tensor([2.0, 1.0, 0.25, 4.0, 1.25]).log()


@pytest.mark.parametrize(
    ("mode", "clip_max", "clip_min", "expected"),
    [
        ("token_truncate", 3.0, None, [2.0, 1.0, 0.25, 3.0, 1.25]),
        ("token_truncate", 3.0, 0.5, [2.0, 1.0, 0.5, 3.0, 1.25]),
        ("token_mask", 3.0, None, [2.0, 1.0, 0.25, 0.0, 1.25]),
        ("token_mask", 3.0, 0.5, [2.0, 1.0, 0.0, 0.0, 1.25]),
        ("token_mask", None, 0.5, [2.0, 1.0, 0.0, 4.0, 1.25]),
        ("sequence_truncate", 3.0, None, [0.5, 0.5, 0.5, 3.0, 3.0]),
        ("sequence_truncate", 3.0, 0.75, [0.75, 0.75, 0.75, 3.0, 3.0]),
        ("sequence_mask", 3.0, None, [0.5, 0.5, 0.5, 0.0, 0.0]),
        ("sequence_mask", 6.0, 0.75, [0.0, 0.0, 0.0, 5.0, 5.0]),
    ],
)
def test_weights_by_hand(mode, clip_max, clip_min, expected):
    weights = mismatch_weights(OLD, SAMPLER, IDS, 2, mode=mode, clip_max=clip_max, clip_min=clip_min)
    assert_close(weights, torch.tensor(expected))


@pytest.mark.parametrize("mode", MISMATCH_MODES)
def test_a_missing_log_probability_counts_as_agreement(mode):
    missing = torch.full_like(OLD, math.nan)
    assert (mismatch_weights(OLD, missing, IDS, 2, mode=mode) == 1).all()
    some = torch.where(torch.tensor([False, True, False, False, True]), math.nan, OLD)
    assert (mismatch_weights(OLD, some, IDS, 2, mode=mode) == 1).all()


@pytest.mark.parametrize("mode", MISMATCH_MODES)
def test_weights_are_held_constant_and_do_not_depend_on_the_order(mode):
    old = OLD.clone().requires_grad_()
    weights = mismatch_weights(old, SAMPLER, IDS, 2, mode=mode)
    assert not weights.requires_grad
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = mismatch_weights(OLD[order], SAMPLER[order], IDS[order], 2, mode=mode)
    assert_close(shuffled, weights[order])


def test_a_ratio_too_large_for_a_float_is_bounded_too():
    far = OLD - 200
    assert (mismatch_weights(OLD, far, IDS, 2, mode="sequence_mask") == 0).all()
    assert (mismatch_weights(OLD, far, IDS, 2, mode="sequence_truncate") == 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "word_mask"}, "mode='word_mask' is no correction"),
        ({"mode": "token_mask", "clip_max": None}, "both None"),
        ({"mode": "token_mask", "clip_max": 0.5}, "clip_max=0.5 must be at least 1"),
        ({"mode": "token_mask", "clip_min": 1.5}, r"clip_min=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mismatch_weights(OLD, SAMPLER, IDS, 2, **options)


def test_far_and_unwanted_sequences_are_left_out():
    # mean of sampler minus policy: 0.3 for the first, 0.6 for the second
    sampler = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0])
    logprobs = sampler - torch.tensor([0.1, 0.5, 0.3, 1.0, 0.2])
    ids = IDS

    def kept(advantages, threshold):
        mask = off_policy_mask(logprobs, sampler, torch.tensor(advantages)[ids], ids, 2, threshold=threshold)
        assert mask.dtype == torch.bool
        return [mask[ids == i].unique().tolist() for i in range(2)]

    assert kept([1.0, 1.0], 0.1) == [[True], [True]]  # wanted ones always count
    assert kept([0.0, 0.0], 0.1) == [[True], [True]]
    assert kept([-1.0, -1.0], 0.1) == [[False], [False]]
    assert kept([-1.0, -1.0], 0.5) == [[True], [False]]
    assert kept([-1.0, 1.0], 0.1) == [[False], [True]]
    assert kept([-1.0, -1.0], 0.7) == [[True], [True]]


def test_a_missing_log_probability_is_no_evidence_of_distance():
    sampler = torch.tensor([-1.0, math.nan, -1.0, -1.0, math.nan])
    logprobs = torch.tensor([-1.1, -9.0, -1.1, -2.0, -9.0])
    mask = off_policy_mask(logprobs, sampler, -torch.ones(5), IDS, 2, threshold=0.2)
    assert mask.tolist() == [True, True, True, False, False]  # means 0.2 / 3 and 1 / 2


def test_the_mask_passes_no_gradient():
    logprobs = OLD.clone().requires_grad_()
    assert not off_policy_mask(logprobs, SAMPLER, torch.ones(5), IDS, 2, threshold=0.1).requires_grad
