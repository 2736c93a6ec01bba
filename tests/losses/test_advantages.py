"""Advantages: worked groups, groups of any size and order, rewards that are missing."""

import math
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tuneline.advantages import (
    AGGREGATIONS,
    SCALE_REWARDS,
    combine_rewards,
    group_advantages,
    group_deviations,
    has_spread,
    leave_one_out,
    multi_reward_advantages,
)

NAN = math.nan
# Two groups of four. The first has mean 1 and deviation sqrt((0 + 4 + 1 + 1) / 3) = sqrt(2).
REWARDS = torch.tensor([1.0, 3.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_group_advantages_of_a_worked_batch():
    expected = torch.tensor([0, 1.4141, -0.7071, -0.7071, 0, 0, 0, 0])
    assert_close(group_advantages(REWARDS, GROUPS), expected, rtol=0, atol=5e-5)
    exact = torch.tensor([0.0, 2.0, -1.0, -1.0]) / (math.sqrt(2) + 1e-4)
    assert_close(group_advantages(REWARDS, GROUPS)[:4], exact)


def test_advantages_in_the_unit_of_the_reward():
    expected = torch.tensor([0.0, 2.0, -1.0, -1.0, 0, 0, 0, 0])
    assert_close(group_advantages(REWARDS, GROUPS, scale_rewards="none"), expected)


def test_the_deviation_of_the_batch():
    # mean 1.5, squares 0.25 2.25 2.25 2.25 and four of 0.25: 8 / 7
    expected = torch.tensor([0.0, 2.0, -1.0, -1.0, 0, 0, 0, 0]) / (math.sqrt(8 / 7) + 1e-4)
    assert_close(group_advantages(REWARDS, GROUPS, scale_rewards="batch"), expected)


def test_leave_one_out_of_a_worked_batch():
    expected = torch.tensor([0.0, 2 + 2 / 3, -1 - 1 / 3, -1 - 1 / 3, 0, 0, 0, 0])
    assert_close(leave_one_out(REWARDS, GROUPS), expected)


def test_normalized_leave_one_out():
    advantages = leave_one_out(REWARDS, GROUPS, normalize=True)
    plain = leave_one_out(REWARDS, GROUPS).double()
    assert_close(advantages, ((plain - plain.mean()) / (plain.std() + 1e-4)).float())


EVERY_WAY = [
    *(
        lambda rewards, groups, scale=scale: group_advantages(rewards, groups, scale_rewards=scale)
        for scale in SCALE_REWARDS
    ),
    leave_one_out,
    lambda rewards, groups: leave_one_out(rewards, groups, normalize=True),
]


@pytest.mark.parametrize("advantages_of", EVERY_WAY)
def test_groups_may_have_any_size_order_and_name(advantages_of):
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([7, -3, 7, 7, 40, -3, 7, 12, 12, 12])
    rewards = torch.randn(10, generator=generator)
    order = torch.randperm(10, generator=generator)
    assert_close(advantages_of(rewards[order], groups[order]), advantages_of(rewards, groups)[order])
    assert advantages_of(rewards, groups)[4] == 0  # alone in its group


@pytest.mark.parametrize("advantages_of", [*EVERY_WAY[:2], *EVERY_WAY[2:4]])
def test_without_spread_the_advantage_is_exactly_zero(advantages_of):
    # a mean of seven times 0.1 is not 0.1 in floating point
    rewards = torch.cat([torch.full((7,), 0.1), torch.tensor([0.0, 1.0])])
    groups = torch.tensor([0] * 7 + [1] * 2)
    assert (advantages_of(rewards, groups)[:7] == 0).all()
    assert (advantages_of(rewards, groups)[7:] != 0).all()


def test_a_missing_reward_leaves_the_baseline_to_the_others():
    rewards = torch.tensor([1.0, NAN, 3.0, NAN, 5.0, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert_close(group_advantages(rewards, groups, scale_rewards="none"), torch.tensor([-1.0, 0, 1, 0, 0, 0]))
    exact = 1 / (math.sqrt(2) + 1e-4)
    assert_close(group_advantages(rewards, groups), torch.tensor([-exact, 0, exact, 0, 0, 0]))
    assert_close(leave_one_out(rewards, groups), torch.tensor([-2.0, 0, 2, 0, 0, 0]))
    # the one that is alone has no baseline, and takes no part in the normalisation
    assert_close(
        leave_one_out(rewards, groups, normalize=True),
        torch.tensor([-2.0, 0, 2, 0, 0, 0]) / (math.sqrt(8) + 1e-4),
    )


def test_rewards_that_are_all_missing_give_no_advantage():
    for advantages_of in EVERY_WAY:
        assert (advantages_of(torch.full((4,), NAN), torch.tensor([0, 0, 1, 1])) == 0).all()


def test_combined_rewards_are_a_weighted_sum_of_what_there_is():
    rewards = torch.tensor([[1.0, 2.0], [NAN, 2.0], [1.0, NAN], [NAN, NAN]])
    combined = combine_rewards(rewards, torch.tensor([0.7, 0.3]))
    assert_close(combined, torch.tensor([1.3, 0.6, 0.7, NAN]), equal_nan=True)


def test_two_rewards_summed_then_normalized():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 2.0], [NAN, NAN], [0.0, 0.0]])
    groups, weights = torch.tensor([0, 0, 0, 0]), torch.tensor([2.0, 0.5])
    expected = group_advantages(torch.tensor([2.0, 1.0, NAN, 0.0]), groups)
    assert_close(multi_reward_advantages(rewards, groups, weights), expected)
    assert expected[2] == 0


def test_two_rewards_normalized_then_summed():
    # in the first group each reward has deviation sqrt(1/2), in the second only the second reward differs
    rewards = torch.tensor([[1.0, 100.0], [0.0, 300.0], [1.0, 0.0], [1.0, 8.0]], dtype=torch.float64)
    groups, weights = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 2.0])

    def half(spread):
        return spread / 2 / (spread / math.sqrt(2) + 1e-4)

    sums = torch.tensor([half(1) - 2 * half(200), -half(1) + 2 * half(200), -2 * half(8), 2 * half(8)]).double()
    expected = sums / (sums.std() + 1e-4)
    actual = multi_reward_advantages(rewards, groups, weights, aggregation="normalize_then_sum")
    assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_missing_reward_among_normalized_ones_counts_nothing():
    rewards = torch.tensor([[1.0, NAN], [0.0, 1.0], [0.0, 0.0], [NAN, NAN]])
    groups, weights = torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 1.0])
    actual = multi_reward_advantages(rewards, groups, weights, aggregation="normalize_then_sum")
    first, second = torch.tensor([2.0, -1.0, -1.0]) / 3, torch.tensor([0.0, 0.5, -0.5])
    sums = first / (math.sqrt(1 / 3) + 1e-4) + second / (math.sqrt(1 / 2) + 1e-4)
    assert_close(actual[:3], (sums - sums.mean()) / (sums.std() + 1e-4))
    assert actual[3] == 0


def test_the_parts_of_one_rollout_share_its_advantage_and_count_once():
    # the second rollout was trained on in two parts
    advantages = group_advantages(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), scale_rewards="none")
    assert advantages[torch.tensor([0, 1, 1])].tolist() == [-1.0, 1.0, 1.0]


def test_spread_and_deviation():
    rewards = torch.tensor([1.0, 1.0, NAN, 2.0, 4.0, 3.0, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    assert has_spread(rewards, groups).tolist() == [False, False, False, True, True, False, False]
    assert_close(group_deviations(rewards, groups), torch.tensor([0, 0, 0, math.sqrt(2), math.sqrt(2), 0, 0]))


def test_unknown_names_and_pairs_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="scale_rewards='std' is unknown"):
        group_advantages(REWARDS, GROUPS, scale_rewards="std")
    rewards, weights = REWARDS[:, None], torch.ones(1)
    with pytest.raises(ValueError, match="aggregation='mean' is unknown"):
        multi_reward_advantages(rewards, GROUPS, weights, aggregation="mean")
    with pytest.raises(ValueError, match="scale_rewards='none' has no effect"):
        multi_reward_advantages(rewards, GROUPS, weights, scale_rewards="none", aggregation="normalize_then_sum")
    for scale, aggregation in product(("group",), AGGREGATIONS):
        assert multi_reward_advantages(
            rewards, GROUPS, weights, scale_rewards=scale, aggregation=aggregation
        ).shape == (8,)
