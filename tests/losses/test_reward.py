"""The Bradley-Terry loss: values derived by hand and gradients."""

import math

import torch
from torch.testing import assert_close

from tuneline.losses.reward import reward_loss


def test_equal_scores_give_log_two():
    assert_close(reward_loss(torch.tensor([1.5]), torch.tensor([1.5])), torch.tensor([math.log(2)]))


def test_loss_is_the_log_of_the_probability_of_the_label():
    # a difference of log 3 is a probability of 3/4
    assert_close(reward_loss(torch.tensor([math.log(3)]), torch.tensor([0.0])), torch.tensor([math.log(4 / 3)]))


def test_margin_is_taken_from_the_difference():
    losses = reward_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), margin=torch.tensor([2.0, 0.0]))
    assert_close(losses, torch.tensor([math.log(2), math.log1p(math.exp(-1))]))


def test_centring_adds_the_squared_sum():
    # scores 2 and 2: log 2 + 0.01 (2 + 2)^2; scores 2 and -2 are centred already
    losses = reward_loss(torch.tensor([2.0, 2.0]), torch.tensor([2.0, -2.0]), center_rewards_coefficient=0.01)
    assert_close(losses, torch.tensor([math.log(2) + 0.16, math.log1p(math.exp(-4))]))


def test_gradients_are_those_of_finite_differences():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    margin = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: reward_loss(s[0], s[1], margin=margin, center_rewards_coefficient=0.01), (scores,)
    )


def test_extreme_scores_stay_finite():
    losses = reward_loss(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert_close(losses, torch.tensor([2e4, 0.0]))
