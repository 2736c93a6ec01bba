import math

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.unpaired import bco_loss, divergence_from_mismatches, kto_loss

# log-ratios of 1 for the desirable completion and -0.5 for the other
LOGPS, REF_LOGPS = torch.tensor([-10.0, -12.0]), torch.tensor([-11.0, -11.5])
IS_DESIRABLE = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("kto", [0.480011, 0.482507]), ("apo_zero_unpaired", [0.475021, 0.487503])]
)
def test_kto_golden_numbers(loss_type, expected):
    found = kto_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, torch.tensor(0.2), beta=0.1, loss_type=loss_type)
    assert_close(found.losses, torch.tensor(expected), atol=1e-6, rtol=0)
    assert_close(found.rewards, torch.tensor([0.1, -0.05]))


def test_a_policy_that_has_not_left_the_reference_loses_a_half():
    found = kto_loss(LOGPS, LOGPS, IS_DESIRABLE, torch.tensor(0.0))
    assert_close(found.losses, torch.tensor([0.5, 0.5]))  # sigmoid(0)


def test_weights_multiply_the_losses_of_their_kind_alone():
    plain = kto_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, torch.tensor(0.2)).losses
    weighted = kto_loss(
        LOGPS, REF_LOGPS, IS_DESIRABLE, torch.tensor(0.2), desirable_weight=3.0, undesirable_weight=0.5
    ).losses
    assert_close(weighted, plain * torch.tensor([3.0, 0.5]))


def test_the_gradient_pulls_up_what_is_desirable_and_is_the_slope_of_the_sigmoid():
    logps = LOGPS.clone().requires_grad_()
    kto_loss(logps, REF_LOGPS, IS_DESIRABLE, torch.tensor(0.2), beta=0.1).losses.sum().backward()
    gains = 0.1 * (torch.tensor([1.0, -0.5]) - 0.2)
    slopes = 0.1 * gains.sigmoid() * (1 - gains.sigmoid())
    assert_close(logps.grad, slopes * torch.tensor([-1.0, 1.0]))


def test_no_gradient_goes_through_the_divergence():
    kl = torch.tensor(0.2, requires_grad=True)
    found = kto_loss(LOGPS.clone().requires_grad_(), REF_LOGPS, IS_DESIRABLE, kl)
    found.losses.sum().backward()
    assert kl.grad is None


def test_far_from_the_reference_the_loss_stays_exact():
    logps = torch.tensor([150.0, -150.0]).requires_grad_()  # log-ratios at which 1 - sigmoid would be 0 in float32
    losses = kto_loss(logps, torch.zeros(2), IS_DESIRABLE, torch.tensor(0.0), beta=0.2).losses
    assert_close(losses, torch.full((2,), math.exp(-30)), rtol=1e-5, atol=0)


def test_the_estimated_divergence_is_a_mean_and_never_below_zero():
    assert_close(divergence_from_mismatches(torch.tensor(3.0), torch.tensor(4.0)), torch.tensor(0.75))
    assert_close(divergence_from_mismatches(torch.tensor(-3.0), torch.tensor(4.0)), torch.tensor(0.0))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="apo_zero_unpaired"):
        kto_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, torch.tensor(0.0), loss_type="kto_pair")


def test_bco_is_a_classifier_of_rewards_around_their_mean():
    # rewards 0.1 and -0.05, their mean 0.025, so both lie 0.075 on the right side of it
    found = bco_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, 0.025, beta=0.1)
    assert_close(found.losses, torch.full((2,), math.log1p(math.exp(-0.075))))
    assert_close(found.rewards, torch.tensor([0.1, -0.05]))


def test_density_ratios_weigh_undesirable_completions_alone():
    plain = bco_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, 0.0).losses
    weighted = bco_loss(LOGPS, REF_LOGPS, IS_DESIRABLE, 0.0, density_ratios=torch.tensor([7.0, 3.0])).losses
    assert_close(weighted, plain * torch.tensor([1.0, 3.0]))
