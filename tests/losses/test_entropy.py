"""Entropy: the tokens above a quantile, and the bonus."""

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.entropy import AdaptiveEntropyCoefficient, entropy_bonus, entropy_threshold, top_entropy_mask
from tuneline.losses.policy import LOSS_TYPES, num_items, policy_loss, token_weights

TENTHS = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, [0.9, 1.0]),  # the quantile 0.8 lies at rank 7.2 of 0 to 9
        (0.5, [0.6, 0.7, 0.8, 0.9, 1.0]),
        (1.0, TENTHS.tolist()),
        (0.0, [1.0]),
    ],
)
def test_the_share_of_tokens_with_the_highest_entropy(share, expected):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    entropies = TENTHS[order]
    kept = entropies[top_entropy_mask(entropies, entropy_threshold(entropies, share))]
    assert_close(kept.sort().values, torch.tensor(expected))


@pytest.mark.parametrize("size", [1, 2, 3, 11, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.8, 0.9, 1.0])
def test_the_threshold_is_the_quantile(size, share):
    entropies = torch.rand(size, generator=torch.Generator().manual_seed(size)) * 8
    expected = torch.quantile(entropies.double(), 1 - share).float()
    assert_close(entropy_threshold(entropies, share), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_single_token_is_always_kept(share):
    entropies = torch.tensor([0.7])
    assert top_entropy_mask(entropies, entropy_threshold(entropies, share)).tolist() == [True]


def test_without_any_token_there_is_no_threshold():
    assert entropy_threshold(torch.zeros(0), 0.2).item() == math.inf
    assert top_entropy_mask(torch.zeros(0), math.inf).tolist() == []


def test_equal_entropies_are_all_kept_even_zero():
    for value in (0.0, -0.0, 1e-30, 3.5):
        entropies = torch.full((5,), value)
        assert top_entropy_mask(entropies, entropy_threshold(entropies, 0.2)).all()


def test_rounding_below_zero_counts_as_zero():
    entropies = torch.tensor([-1e-7, 0.0, -1e-9, 2.0])
    assert top_entropy_mask(entropies, entropy_threshold(entropies, 1.0)).all()
    assert top_entropy_mask(entropies, entropy_threshold(entropies, 0.0)).tolist() == [False, False, False, True]


def test_the_threshold_over_processes_is_that_of_all_their_tokens():
    parts = [TENTHS[:3], TENTHS[3:3], TENTHS[3:]]
    barrier, brought = threading.Barrier(len(parts)), {}

    def threshold_of(rank):
        """A thread stands for a process."""

        def sum_over_processes(counts):
            brought[rank] = counts
            barrier.wait(timeout=30)
            total = sum(brought.values())
            barrier.wait(timeout=30)  # all have read before any brings its next
            return total

        return entropy_threshold(parts[rank], 0.3, sum_over_processes)

    with ThreadPoolExecutor(len(parts)) as pool:
        thresholds = list(pool.map(threshold_of, range(len(parts))))
    assert_close(torch.stack(thresholds), torch.full((3,), 0.73))  # rank 6.3, between 0.7 and 0.8


@pytest.mark.slow
def test_more_tokens_than_torch_quantile_takes():
    entropies = torch.arange(2**24 + 5, 0, -1, dtype=torch.float32).clamp(max=2**24)
    with pytest.raises(RuntimeError):
        torch.quantile(entropies, 0.5)
    assert entropy_threshold(entropies, 0.5).item() == 2**23 + 3  # the middle of 1 to 2^24 + 5


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"top_entropy_quantile=1\.2"):
        entropy_threshold(TENTHS, 1.2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_bonus_is_the_coefficient_times_the_mean_entropy_for_every_loss(loss_type):
    ids = torch.tensor([0, 0, 0, 1])
    logprobs = torch.tensor([-1.0, -0.5, -2.0, -0.1])
    entropies = torch.tensor([0.4, 1.2, 0.8, 2.0], requires_grad=True)
    losses = policy_loss(logprobs, logprobs, torch.ones(4), ids, 2, loss_type=loss_type).losses
    weighted = token_weights(loss_type, ids, 2) * losses
    items = num_items(loss_type, 4, 2, 10)
    bonus = entropy_bonus(entropies, 0.3, num_items=items, num_targets=4)
    assert_close((weighted + bonus).sum() / items, weighted.sum() / items - 0.3 * 1.1)
    mask = torch.tensor([True, False, False, True])
    masked = entropy_bonus(entropies, 0.3, num_items=torch.tensor(items), num_targets=torch.tensor(2), mask=mask)
    assert_close(masked.sum() / items, torch.tensor(-0.3 * 1.2))
    (masked.sum() / items).backward()
    assert_close(entropies.grad, torch.tensor([-0.15, 0.0, 0.0, -0.15]))


def test_the_adaptive_coefficient_rises_below_the_target_and_falls_above():
    control = AdaptiveEntropyCoefficient(0.01, maximum=0.02, delta=0.006, target=0.2)
    applied, coefficients = [], []
    for entropy in (0.1, 0.2, 0.15, 0.3, 0.25, 0.25, 0.25, 0.1):
        applied.append(control.applied)
        control.update(entropy)
        coefficients.append(control.coefficient)
    # nothing is known before the first step; afterwards the coefficient acts where the last entropy was low
    assert applied == pytest.approx([0, 0.016, 0.02, 0.02, 0, 0, 0, 0])
    assert coefficients == pytest.approx([0.016, 0.02, 0.02, 0.014, 0.008, 0.002, 0, 0.006])


def test_the_adaptive_coefficient_goes_on_from_where_it_was_saved():
    entropies = [0.1, 0.3, 0.15, 0.1, 0.4, 0.2]
    for num_before in (0, 3):
        whole, first, resumed = (AdaptiveEntropyCoefficient(0.01) for _ in range(3))
        for entropy in entropies[:num_before]:
            whole.update(entropy)
            first.update(entropy)
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for entropy in entropies[num_before:]:
            assert resumed.applied == whole.applied
            whole.update(entropy)
            resumed.update(entropy)
        assert resumed.state_dict() == whole.state_dict()


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"minimum=0\.5 is above"):
        AdaptiveEntropyCoefficient(minimum=0.5, maximum=0.1)
    with pytest.raises(ValueError, match="delta=0 must be above 0"):
        AdaptiveEntropyCoefficient(delta=0)
