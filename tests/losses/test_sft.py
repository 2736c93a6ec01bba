"""Losses of supervised fine-tuning: values derived by hand and gradients."""

import math

import torch
from torch.testing import assert_close

from tuneline.losses.sft import dft_loss, nll_loss


def test_nll_is_the_negative_log_probability():
    assert_close(nll_loss(torch.tensor([0.5, 0.25]).log()), torch.tensor([math.log(2), math.log(4)]))


def test_dft_halves_the_loss_of_a_token_of_probability_one_half():
    logprobs = torch.zeros(1, 2).log_softmax(1)[:, 0]  # two equally likely tokens
    assert_close(dft_loss(logprobs), nll_loss(logprobs) / 2)


def test_gradient_of_dft_is_minus_the_probability():
    # the weight is held constant: d/dlogp (-p logp) = -p, where without that it would be -p (1 + logp)
    logprobs = torch.tensor([0.5, 0.25]).log().requires_grad_()
    dft_loss(logprobs).sum().backward()
    assert_close(logprobs.grad, torch.tensor([-0.5, -0.25]))


def test_gradient_of_nll_is_minus_one():
    logprobs = torch.tensor([-0.1, -9.0], requires_grad=True)
    nll_loss(logprobs).sum().backward()
    assert_close(logprobs.grad, torch.tensor([-1.0, -1.0]))
