"""Numbers that adapt over a run: the KL coefficient, and the moments of the scores."""

import json

import pytest
import torch
from torch.testing import assert_close

from tuneline.controllers import AdaptiveKLController, FixedKLController
from tuneline.running_moments import RunningMoments


def test_the_coefficient_follows_the_kl():
    controller = AdaptiveKLController(0.2, target=6, horizon=10_000)
    controller.update(6.6, n_steps=100)  # a tenth above: 0.2 * (1 + 0.1 * 0.01)
    assert controller.value == pytest.approx(0.2 * 1.001)
    controller.update(60, n_steps=100)  # bounded at a fifth
    assert controller.value == pytest.approx(0.2 * 1.001 * 1.002)
    controller.update(0, n_steps=100)
    assert controller.value == pytest.approx(0.2 * 1.001 * 1.002 * 0.998)


def test_a_generation_above_the_horizon_does_not_turn_the_sign():
    controller = AdaptiveKLController(0.2, target=6, horizon=10)
    controller.update(0, n_steps=1000)
    assert controller.value == 0


@pytest.mark.parametrize("options", [{"target": 0, "horizon": 1}, {"target": 1, "horizon": 0}])
def test_a_target_or_horizon_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="must be above 0"):
        AdaptiveKLController(0.2, **options)


def test_a_controller_is_restored_exactly():
    controller, other = (AdaptiveKLController(0.2, target=6, horizon=997) for _ in range(2))
    for kl in (5.5, 7.25, 6.0):
        controller.update(kl, n_steps=13)
    other.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert other.value == controller.value


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.05)
    controller.update(100.0, n_steps=100)
    assert controller.value == 0.05
    controller.load_state_dict({"value": 0.1})
    assert controller.value == 0.1


def test_moments_of_a_worked_run():
    moments = RunningMoments()
    assert (moments.mean, moments.std, moments.count) == (0, 1, 0)
    assert moments.update(torch.tensor([2.0, 4.0])) == pytest.approx((3.0, 2**0.5))
    assert moments.update(torch.tensor([[6.0, float("nan")]])) == (6.0, 0.0)
    assert (moments.mean, moments.std, moments.count) == pytest.approx((4.0, 2.0, 3))  # of 2, 4, 6


def test_running_moments_are_those_of_all_values():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = RunningMoments()
    for part in values.split([1, 10, 400, 589]):
        moments.update(part)
    assert_close(moments.mean, float(values.double().mean()))
    assert_close(moments.std, float(values.double().std()))


def test_moments_are_taken_over_all_processes():
    whole, alone = RunningMoments(), RunningMoments()
    values = torch.tensor([1.0, 5.0, 9.0, 2.0])
    batch = whole.update(values)
    others = values[2:].double()
    added = iter([torch.stack([others.sum(), torch.tensor(2.0)]), (others - values.mean()).square().sum()[None]])
    assert alone.update(values[:2], reduce=lambda sums: sums + next(added)) == pytest.approx(batch)
    assert alone.state_dict() == pytest.approx(whole.state_dict())


def test_values_that_are_all_alike_scale_nothing():
    for count in range(1, 50):
        moments = RunningMoments()
        moments.update(torch.full((count,), 0.1))
        moments.update(torch.full((3,), 0.1))
        assert moments.std == 1.0


def test_moments_are_restored_exactly():
    moments, other = RunningMoments(), RunningMoments()
    for _ in range(3):
        moments.update(torch.randn(7))
    other.load_state_dict(json.loads(json.dumps(moments.state_dict())))
    following = torch.randn(4)
    assert moments.update(following) == other.update(following)
    assert moments.state_dict() == other.state_dict()
