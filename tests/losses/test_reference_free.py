import math

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.reference_free import (
    LABEL_SMOOTHING_LOSS_TYPES,
    REFERENCE_FREE_LOSS_TYPES,
    odds_ratio_loss,
    reference_free_loss,
)

CHOSEN, REJECTED = torch.tensor([-2.0, -1.0]), torch.tensor([-3.5, -1.0])


def test_the_odds_ratio_of_a_half_and_a_quarter_is_three():
    found = odds_ratio_loss(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    assert_close(found.log_odds_ratios, torch.tensor([math.log(3)]))  # 1 over 1/3
    assert_close(found.losses, torch.tensor([math.log(1 + 1 / 3)]))


def test_odds_stay_exact_and_differentiable_near_certainty_and_far_from_it():
    logps = torch.tensor([-1e-6, -30.0], requires_grad=True)
    found = odds_ratio_loss(logps[:1], logps[1:])
    # log odds are log p - log(1 - p): of 1 - 1e-6 about 13.8155, of e^-30 about -30
    assert_close(found.log_odds_ratios, torch.tensor([13.815510 + 30.0]), rtol=1e-5, atol=0)
    odds_ratio_loss(logps[1:], logps[:1]).losses.sum().backward()
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("sigmoid", math.log1p(math.exp(-0.15))),
        ("simpo", math.log1p(math.exp(-(0.15 - 0.4)))),
        ("tpo-l", math.log1p(math.exp(-(0.15 - 0.4)))),
        ("hinge", 0.85),
        ("ipo", (1.5 - 5) ** 2),
    ],
)
def test_losses_of_a_difference_of_one_and_a_half(loss_type, expected):
    losses = reference_free_loss(CHOSEN, REJECTED, beta=0.1, loss_type=loss_type, margin=0.4).losses
    assert_close(losses[0], torch.tensor(expected))


def test_smoothing_mixes_in_the_loss_of_the_pair_turned_round():
    plain, turned = (
        reference_free_loss(a, b, beta=0.1, loss_type="sigmoid").losses
        for a, b in ((CHOSEN, REJECTED), (REJECTED, CHOSEN))
    )
    smoothed = reference_free_loss(CHOSEN, REJECTED, beta=0.1, label_smoothing=0.2).losses
    assert_close(smoothed, 0.8 * plain + 0.2 * turned)


def test_the_shaped_reward_tends_to_the_logarithm_as_alpha_vanishes():
    rewards = [reference_free_loss(CHOSEN, REJECTED, beta=1.0, alpha=a).chosen_rewards for a in (0.0, 1e-6)]
    assert_close(rewards[1], rewards[0], atol=1e-5, rtol=1e-5)


def test_the_shaped_reward_by_hand():
    # p = e^-2, alpha = 0.5: (1 - e) / 0.5
    found = reference_free_loss(CHOSEN, REJECTED, beta=0.1, alpha=0.5)
    assert_close(found.chosen_rewards[0], torch.tensor(0.1 * (1 - math.e) / 0.5))


@pytest.mark.parametrize("loss_type", sorted(set(REFERENCE_FREE_LOSS_TYPES) - set(LABEL_SMOOTHING_LOSS_TYPES)))
def test_smoothing_is_refused_where_it_has_no_meaning(loss_type):
    with pytest.raises(ValueError, match="label_smoothing"):
        reference_free_loss(CHOSEN, REJECTED, beta=0.1, loss_type=loss_type, label_smoothing=0.1)
