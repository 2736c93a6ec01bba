"""Divergences of distillation: values by hand, slopes against autograd, tokens that are ruled out."""

import math

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.distillation import generalized_jsd, generalized_jsd_and_slopes, jsd_on_support

BETAS = (0.0, 0.1, 0.5, 1.0)


def test_values_by_hand():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    mixture = (0.25 * 0.9 + 0.75 * 0.5, 0.25 * 0.1 + 0.75 * 0.5)
    of_teacher = 0.9 * math.log(0.9 / mixture[0]) + 0.1 * math.log(0.1 / mixture[1])
    of_student = 0.5 * math.log(0.5 / mixture[0]) + 0.5 * math.log(0.5 / mixture[1])
    for beta, expected in ((0.0, forward), (1.0, reverse), (0.25, 0.25 * of_teacher + 0.75 * of_student)):
        assert generalized_jsd(student, teacher, beta).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_slopes_are_those_of_autograd(beta):
    torch.manual_seed(0)
    logits = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 11, dtype=torch.float64).mul(2).log_softmax(-1)
    values = generalized_jsd(logits.log_softmax(-1), teacher, beta)
    (expected,) = torch.autograd.grad(values.sum(), logits)
    found = generalized_jsd_and_slopes(logits.detach().log_softmax(-1), teacher, beta)
    assert_close(found.values, values.detach())
    assert_close(found.slopes, expected)
    assert (found.values > 0).all()


@pytest.mark.parametrize("beta", BETAS)
def test_like_distributions_have_no_divergence_and_no_slope(beta):
    logprobs = torch.randn(3, 7, dtype=torch.float64).log_softmax(-1)
    found = generalized_jsd_and_slopes(logprobs, logprobs, beta)
    assert_close(found.values, torch.zeros(3, dtype=torch.float64))
    assert_close(found.slopes, torch.zeros(3, 7, dtype=torch.float64))


@pytest.mark.parametrize("beta", BETAS)
def test_tokens_that_both_rule_out_change_nothing(beta):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64).log_softmax(-1)
    nothing = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    wider = [torch.cat([one, nothing], -1) for one in (student, teacher)]
    assert_close(generalized_jsd(*wider, beta), generalized_jsd(student, teacher, beta))
    found = generalized_jsd_and_slopes(*wider, beta)
    assert found.slopes.isfinite().all()
    assert not found.slopes[:, 7:].any()


def test_values_are_trls():
    gkd = pytest.importorskip("trl.experimental.gkd", reason="parity is measured against TRL")
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 13)
    for beta in BETAS:
        theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.7, reduction="none")
        ours = generalized_jsd((student[0] / 0.7).log_softmax(-1), (teacher[0] / 0.7).log_softmax(-1), beta)
        assert_close(ours, theirs[0].sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("add_tail", [True, False])
def test_a_few_tokens_and_a_tail_are_a_distribution_of_their_own(beta, add_tail):
    student, teacher = torch.tensor([[0.5, 0.2, 0.2, 0.1]]), torch.tensor([[0.1, 0.6, 0.1, 0.2]])
    known = [1, 0]
    rest = ([0.3], [0.3]) if add_tail else ([], [])
    both = [
        torch.tensor([[*one[0, known].tolist(), *left]]) for one, left in zip((student, teacher), rest, strict=True)
    ]
    expected = generalized_jsd(*[(one / one.sum()).log() for one in both], beta)
    found = jsd_on_support(student[:, known].log(), teacher[:, known].log(), beta, add_tail=add_tail)
    assert_close(found, expected)


@pytest.mark.parametrize("beta", BETAS)
def test_an_empty_place_changes_nothing(beta):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 9).log_softmax(-1)
    wider = (student[:, :3], torch.cat([teacher[:, :2], torch.full((3, 1), -torch.inf)], -1))
    found = jsd_on_support(*wider, beta, add_tail=True)
    assert_close(found, jsd_on_support(student[:, :2], teacher[:, :2], beta, add_tail=True))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("add_tail", [True, False])
def test_values_on_few_tokens_are_trls(beta, add_tail):
    module = "trl.experimental.server_distillation.server_distillation_trainer"
    theirs = pytest.importorskip(module, reason="parity is measured against TRL")
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 6, 9).log_softmax(-1)[..., :3]
    mask = torch.ones_like(student, dtype=torch.bool)
    if add_tail:
        p, mask_of_all = theirs._add_tail_bucket(student, mask)
        q, _ = theirs._add_tail_bucket(teacher, mask)
    else:
        p, q = (one - one.logsumexp(-1, keepdim=True) for one in (student, teacher))
        mask_of_all = mask
    expected = theirs._jsd_divergence(p, q, beta, mask_of_all).sum(-1)
    assert_close(jsd_on_support(student, teacher, beta, add_tail=add_tail), expected, rtol=1e-5, atol=1e-6)
