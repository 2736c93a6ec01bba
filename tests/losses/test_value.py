"""The value function's loss, by hand."""

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.value import value_loss


def test_the_larger_of_two_errors_counts():
    # old value 0, range 0.2; returns 1
    #   0.1: within the range, (0.9)^2 / 2
    #   0.5: held at 0.2, (0.8)^2 / 2 > (0.5)^2 / 2: clipped
    #  -0.5: held at -0.2, (1.2)^2 / 2 < (1.5)^2 / 2: it went the wrong way, and counts whole
    values = torch.tensor([0.1, 0.5, -0.5], requires_grad=True)
    found = value_loss(values, torch.zeros(3), torch.ones(3), cliprange_value=0.2)
    assert_close(found.losses, torch.tensor([0.405, 0.32, 1.125]))
    assert found.is_clipped.tolist() == [False, True, False]
    found.losses.sum().backward()
    assert_close(values.grad, torch.tensor([-0.9, 0.0, -1.5]))


def test_without_a_range_it_is_half_the_squared_error():
    found = value_loss(torch.tensor([0.5, 9.0]), torch.zeros(2), torch.ones(2), cliprange_value=None)
    assert_close(found.losses, torch.tensor([0.125, 32.0]))
    assert not found.is_clipped.any()


def test_a_range_of_nothing_is_refused():
    with pytest.raises(ValueError, match="cliprange_value=0"):
        value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), cliprange_value=0)
