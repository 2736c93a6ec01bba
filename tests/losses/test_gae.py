"""Credit for single tokens: hand-derived values, a plain loop, sequences of any length and order."""

import math

import pytest
import torch
from torch.testing import assert_close

from tuneline.gae import gae, length_adaptive_lam, token_rewards, whiten

ONE = torch.zeros(3, dtype=torch.long)


def plain_gae(rewards, values, gamma, lam):
    """The recursion as the paper has it, over one sequence."""
    advantages, following, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following = reward + gamma * next_value - value + gamma * lam * following
        next_value = value
        advantages.insert(0, following)
    return advantages


def test_advantages_of_a_worked_sequence():
    # gamma = lam = 1/2; from the end: d_3 = 1 - 0.4 = 0.6; d_2 = 0 + 0.5 * 0.4 - 0.2 = 0; d_1 = 0 + 0.5 * 0.2 - 0.5
    # A_3 = 0.6, A_2 = 0 + 0.25 * 0.6 = 0.15, A_1 = -0.4 + 0.25 * 0.15 = -0.3625
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.2, 0.4])
    found = gae(rewards, values, ONE, 1, gamma=0.5, lam=0.5)
    assert_close(found.advantages, torch.tensor([-0.3625, 0.15, 0.6]))
    assert_close(found.returns, torch.tensor([0.1375, 0.35, 1.0]))


def test_at_lam_one_the_returns_are_the_discounted_rewards_whatever_the_values():
    rewards = torch.tensor([1.0, 2.0, 4.0])
    found = gae(rewards, torch.tensor([9.0, -3.0, 0.7]), ONE, 1, gamma=0.5, lam=1.0)
    assert_close(found.returns, torch.tensor([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0]))


def test_at_lam_zero_an_advantage_is_one_step_of_surprise():
    rewards, values = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.5, 1.0])
    found = gae(rewards, values, ONE, 1, gamma=1.0, lam=0.0)
    assert_close(found.advantages, torch.tensor([1 + 1.5 - 0.5, 1.0 - 1.5, 2.0 - 1.0]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_sequences_of_any_length_agree_with_the_plain_loop(gamma, lam):
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 2, 3, 4, 5, 8, 0, 9, 31, 64, 65]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rewards, values = torch.randn(2, len(ids), generator=generator)
    found = gae(rewards, values, ids, len(lengths), gamma=gamma, lam=lam)
    for number in range(len(lengths)):
        own = ids == number
        expected = torch.tensor(plain_gae(rewards[own].tolist(), values[own].tolist(), gamma, lam))
        assert_close(found.advantages[own], expected, rtol=1e-6, atol=1e-6)
        assert_close(found.returns[own], expected + values[own], rtol=1e-6, atol=1e-6)


def test_a_lam_for_each_sequence_and_targets_in_any_order_of_sequences():
    ids = torch.tensor([1, 0, 1, 0, 0])  # each sequence's own targets are in order
    rewards, values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    found = gae(rewards, values, ids, 2, gamma=1.0, lam=torch.tensor([0.9, 0.1]))
    for number, lam in ((0, 0.9), (1, 0.1)):
        own = ids == number
        expected = plain_gae(rewards[own].tolist(), values[own].tolist(), 1.0, lam)
        assert_close(found.advantages[own], torch.tensor(expected))


def test_nothing_comes_of_nothing():
    empty = torch.empty(0)
    assert len(gae(empty, empty, empty.long(), 0, gamma=1.0, lam=0.95).advantages) == 0
    assert len(gae(empty, empty, empty.long(), 2, gamma=1.0, lam=0.95).advantages) == 0


def test_lam_by_the_length_of_the_completion():
    # 1 - 1 / (0.05 * 100) = 0.8; at 20 tokens it is 0, and below it would be negative
    assert_close(length_adaptive_lam(torch.tensor([100, 20, 1, 0]), 0.05), torch.tensor([0.8, 0, 0, 0]).double())
    with pytest.raises(ValueError, match="alpha=0"):
        length_adaptive_lam(torch.tensor([1]), 0)


def test_the_score_comes_at_the_last_target_and_the_penalty_at_each():
    ids = torch.tensor([0, 0, 2, 2, 2])
    kl = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0])
    found = token_rewards(torch.tensor([3.0, 100.0, -1.0]), kl, ids, 3, kl_coef=0.1)  # the second has no target
    assert_close(found, torch.tensor([-0.1, 0.1 + 3.0, -0.05, 0.0, -0.2 - 1.0]))


def test_whitened_values_of_a_worked_batch():
    # the counted 1, 2, 6 have mean 3 and variance (4 + 1 + 9) / 2 = 7
    values, mask = torch.tensor([1.0, 50.0, 2.0, 6.0]), torch.tensor([1, 0, 1, 1])
    assert_close(whiten(values, mask), torch.tensor([-2.0, 0.0, -1.0, 3.0]) / math.sqrt(7))
    kept = torch.tensor([-2.0, 0.0, -1.0, 3.0]) / math.sqrt(7) + 3.0 * mask
    assert_close(whiten(values, mask, shift_mean=False), kept)


def test_values_are_whitened_over_all_processes():
    whole, mask = torch.randn(11, generator=torch.Generator().manual_seed(0)), torch.ones(11)
    others = whole[4:].double()
    whitened = whiten(whole, mask)
    mean = whole.double().mean()
    added = iter([torch.stack([others.sum(), torch.tensor(7.0).double()]), (others - mean).square().sum()[None]])
    assert_close(whiten(whole[:4], mask[:4], reduce=lambda sums: sums + next(added)), whitened[:4])


@pytest.mark.parametrize("values", [[2.0], [0.1] * 7, []])
def test_values_that_are_all_alike_whiten_to_nothing(values):
    assert_close(whiten(torch.tensor(values), torch.ones(len(values))), torch.zeros(len(values)), rtol=0, atol=1e-9)


def test_what_does_not_count_may_be_anything():
    assert whiten(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([1, 0, 1])).isfinite().all()
