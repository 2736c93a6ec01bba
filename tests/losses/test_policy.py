"""Policy losses: values derived by hand, gradients where nothing has changed, and that no cut of the step matters."""

import math
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tuneline.losses.policy import (
    CISPO_CAP,
    CLIPPED_LOSS_TYPES,
    IMPORTANCE_SAMPLING_LEVELS,
    KL_ESTIMATORS,
    LOSS_TYPES,
    check_policy_options,
    kl_penalty,
    num_items,
    policy_loss,
    token_weights,
)

# Two completions of three and two tokens, one good and one bad; their log-probabilities under the old policy, the
# policy and the reference.
IDS = torch.tensor([0, 0, 0, 1, 1])
ADVANTAGES = torch.tensor([1.0, -1.0], dtype=torch.float64)
OLD = torch.tensor([-1.0, -2.0, -3.0, -0.5, -1.0], dtype=torch.float64)
NEW = torch.tensor([-0.7, -2.2, -2.5, -0.9, -0.8], dtype=torch.float64)
REF = torch.tensor([-1.1, -2.0, -3.0, -0.5, -1.1], dtype=torch.float64)
EVERY_LOSS = list(product(LOSS_TYPES, IMPORTANCE_SAMPLING_LEVELS))


def step_loss(loss_type, *, new=NEW, old=OLD, ids=IDS, advantages=ADVANTAGES, beta=0.0, corrected=True, **options):
    """The loss of a step as a trainer puts it together; completions are taken to be at most 10 tokens long."""
    loss = policy_loss(new, old, advantages[ids], ids, len(advantages), loss_type=loss_type, **options)
    losses = loss.losses
    if beta:
        reference = REF[: len(new)]
        losses = losses + beta * kl_penalty(new, reference, "k3", loss.ratios if corrected else None)
    weights = token_weights(loss_type, ids, len(advantages))
    return (weights * losses).sum() / num_items(loss_type, len(ids), len(advantages), 10)


@pytest.mark.parametrize(
    ("loss_type", "options", "golden"),
    [
        ("grpo", {}, -0.031104),
        ("bnpo", {}, -0.239466),
        ("dapo", {}, -0.239466),
        ("dr_grpo", {}, -0.059866),
        ("luspo", {}, -0.598664),
        ("sapo", {}, -0.206198),
        ("cispo", {"epsilon_high": 5.0}, 1.057500),
        ("grpo", {"delta": 1.1}, -0.003122),
        ("grpo", {"beta": 0.04}, -0.028070),
        ("dapo", {"beta": 0.04}, -0.236270),
        ("grpo", {"beta": 0.04, "corrected": False}, -0.028456),
        ("dapo", {"beta": 0.04, "corrected": False}, -0.236818),
        ("grpo", {"importance_sampling_level": "sequence"}, -0.147581),
        ("dapo", {"importance_sampling_level": "sequence"}, -0.358065),
        ("dr_grpo", {"importance_sampling_level": "sequence"}, -0.089516),
        ("luspo", {"importance_sampling_level": "sequence"}, -0.895163),
        ("sapo", {"importance_sampling_level": "sequence"}, -0.205412),
        ("cispo", {"importance_sampling_level": "sequence"}, 1.011470),
        ("vespo", {}, 0.036272),
    ],
)
def test_losses_of_a_worked_step(loss_type, options, golden):
    assert round(step_loss(loss_type, **options).item(), 6) == golden


def test_the_cap_of_cispo_clips_good_completions_alone():
    # one and a half times as likely, and half as likely, of good and of bad completions
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    found = policy_loss(
        ratios.log(), torch.zeros(4), advantages, torch.arange(4), 4, loss_type="cispo", epsilon_high=1.2
    )
    assert found.is_clipped_high.tolist() == [True, False, False, False]
    assert not found.is_clipped_low.any()


def test_the_worked_ratios_and_weights():
    # means of the log-ratios: (0.3 - 0.2 + 0.5) / 3 = 0.2 and (-0.4 + 0.2) / 2 = -0.1
    loss = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, importance_sampling_level="sequence")
    assert_close(loss.ratios, torch.tensor([math.exp(0.2), math.exp(-0.1)], dtype=torch.float64)[IDS])
    # sums 0.6 and -0.2: phi is e^(k s - lambda (e^s - 1)), with k, lambda 2 and 3 where A >= 0 and 3 and 2 elsewhere
    phi = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type="vespo").phi
    by_hand = [math.exp(1.2 - 3 * math.expm1(0.6)), math.exp(-0.6 - 2 * math.expm1(-0.2))]
    assert [round(value, 6) for value in by_hand] == [0.281857, 0.788627]
    assert_close(phi, torch.tensor(by_hand, dtype=torch.float64)[IDS])


def test_token_clipping_by_hand():
    # good: min(1.3499, 1.2), min(0.8187, 0.8187), min(1.6487, 1.2); bad: -max(0.6703, 0.8), -max(1.2214, 1.2)
    expected = [-1.2, -math.exp(-0.2), -1.2, 0.8, math.exp(0.2)]
    loss = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type="grpo")
    assert_close(loss.losses, torch.tensor(expected, dtype=torch.float64))
    assert loss.is_clipped_high.tolist() == [True, False, True, False, False]
    assert loss.is_clipped_low.tolist() == [False, False, False, True, False]


def test_epsilon_high_moves_the_upper_bound_alone():
    loss = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type="grpo", epsilon_high=0.4)
    assert_close(loss.losses[:4], torch.tensor([-math.exp(0.3), -math.exp(-0.2), -1.4, 0.8], dtype=torch.float64))


def test_delta_bounds_the_ratio_of_bad_tokens():
    old, new = torch.zeros(2), torch.tensor([3.0, 3.0])
    advantages, ids = torch.tensor([1.0, -1.0]), torch.tensor([0, 1])
    assert_close(policy_loss(new, old, advantages, ids, 2).losses, torch.tensor([-1.2, math.exp(3)]))
    assert_close(policy_loss(new, old, advantages, ids, 2, delta=4.0).losses, torch.tensor([-1.2, 4.0]))


def test_gmpo_by_hand():
    # log-ratios 0.3 -0.2 0.5 and -0.4 0.2, clipped at 0.25 where the advantage pushes: 0.25 -0.2 0.25 and -0.25 0.2
    ratios = [math.exp(0.3 / 3), math.exp(-0.05 / 2)]
    loss = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type="gmpo", epsilon=0.25)
    assert_close(loss.losses, torch.tensor([-ratios[0], ratios[1]], dtype=torch.float64)[IDS])
    assert loss.is_clipped_high.tolist() == [True, False, True, False, False]
    assert loss.is_clipped_low.tolist() == [False, False, False, True, False]
    assert_close(step_loss("gmpo", epsilon=0.25).item(), (ratios[1] - ratios[0]) / 2)


def test_gmpo_leaves_masked_tokens_out_of_the_mean():
    mask = torch.tensor([True, True, False, False, False])
    loss = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type="gmpo", epsilon=0.25, mask=mask)
    # of the first sequence 0.25 and -0.2 remain; of the second nothing, which is no loss at all
    assert_close(loss.losses, torch.tensor([-math.exp(0.05 / 2)] * 3 + [0.0] * 2, dtype=torch.float64))


def test_cispo_caps_the_ratio_at_five_unless_told_otherwise():
    old, new, ids = torch.zeros(2), torch.tensor([0.5, 3.0]), torch.tensor([0, 0])
    loss = policy_loss(new, old, torch.ones(2), ids, 1, loss_type="cispo")
    assert_close(loss.losses, torch.tensor([-math.exp(0.5) * 0.5, -CISPO_CAP * 3.0]))
    assert loss.is_clipped_high.tolist() == [False, True]
    loss = policy_loss(new, old, torch.ones(2), ids, 1, loss_type="cispo", epsilon_high=2.0)
    assert_close(loss.losses, torch.tensor([-math.exp(0.5) * 0.5, -6.0]))


def test_the_clip_of_leave_one_out_is_on_the_whole_sequence():
    # sums of the log-ratios 0.6 and -0.2: the first ratio, 1.8221, counts as 1.2
    loss = step_loss("grpo", importance_sampling_level="sequence_sum")
    assert_close(loss.item(), (-1.2 + math.exp(-0.2)) / 2)


@pytest.mark.parametrize(("loss_type", "level"), EVERY_LOSS)
def test_where_nothing_has_changed_the_gradient_is_that_of_reinforce_with_a_baseline(loss_type, level):
    new = OLD.clone().requires_grad_()
    loss = policy_loss(new, OLD, ADVANTAGES[IDS], IDS, 2, loss_type=loss_type, importance_sampling_level=level)
    assert (loss.ratios == 1).all()
    assert not (loss.is_clipped_low | loss.is_clipped_high).any()
    if loss_type in (*CLIPPED_LOSS_TYPES, "gmpo"):
        assert_close(loss.losses, -ADVANTAGES[IDS], rtol=0, atol=0)
    if loss_type == "vespo":
        assert (loss.phi == 1).all()
    weights = token_weights(loss_type, IDS, 2).double()
    (weights * loss.losses).sum().backward()
    expected = -weights * ADVANTAGES[IDS]
    if level == "sequence_sum" and loss_type not in ("cispo", "vespo", "gmpo"):
        # the ratio moves with the sum over the sequence, not its mean, and stands at each of its targets
        expected = expected * torch.tensor([3.0, 2.0], dtype=torch.float64)[IDS]
    assert_close(new.grad, expected)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_an_unchanged_policy_has_exactly_no_divergence(estimator):
    logprobs = torch.randn(100) * 5
    assert (kl_penalty(logprobs, logprobs.clone(), estimator) == 0).all()


def test_kl_estimators_by_hand():
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.8])
    assert_close(kl_penalty(logprobs, ref_logprobs, "k1"), torch.tensor([0.5, -0.2]))
    assert_close(kl_penalty(logprobs, ref_logprobs, "k2"), torch.tensor([0.125, 0.02]))
    k3 = torch.tensor([math.exp(-0.5) - 0.5, math.exp(0.2) - 1.2])
    assert_close(kl_penalty(logprobs, ref_logprobs, "k3"), k3)
    assert_close(kl_penalty(logprobs, ref_logprobs, "k3", torch.tensor([2.0, 0.5])), k3 * torch.tensor([2.0, 0.5]))


def expected_gradient(estimator, *, is_corrected, is_on_policy):
    """Of the expected penalty over all five tokens of a vocabulary, with respect to the policy's logits; and that of
    the divergences it may stand for: policy to reference, and back."""
    logits, old_logits, ref_logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    logprobs, ref_logprobs = logits.log_softmax(0), ref_logits.log_softmax(0)
    old_logprobs = logprobs.detach() if is_on_policy else old_logits.log_softmax(0)
    ratios = (logprobs - old_logprobs).exp() if is_corrected else None
    penalty = (old_logprobs.exp() * kl_penalty(logprobs, ref_logprobs, estimator, ratios)).sum()
    backward = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    forward = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum()
    return [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (penalty, backward, forward)]


@pytest.mark.parametrize(("estimator", "is_on_policy"), list(product(("k1", "k3"), (True, False))))
def test_the_ratio_makes_the_gradient_that_of_the_divergence(estimator, is_on_policy):
    gradient, divergence, _ = expected_gradient(estimator, is_corrected=True, is_on_policy=is_on_policy)
    assert_close(gradient, divergence)


def test_gradients_of_the_estimators_without_the_ratio():
    gradients = {name: expected_gradient(name, is_corrected=False, is_on_policy=True) for name in KL_ESTIMATORS}
    assert_close(gradients["k1"][0], torch.zeros(5, dtype=torch.float64))
    assert_close(gradients["k2"][0], gradients["k2"][1])
    assert_close(gradients["k3"][0], gradients["k3"][2])


def random_step(num_sequences=7):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (num_sequences,), generator=generator)
    ids = torch.arange(num_sequences).repeat_interleave(lengths)
    old = -3 * torch.rand(len(ids), generator=generator, dtype=torch.float64)
    new = old + 0.4 * torch.randn(len(ids), generator=generator, dtype=torch.float64)
    advantages = torch.randn(num_sequences, generator=generator, dtype=torch.float64)
    return ids, old, new, advantages


@pytest.mark.parametrize(("loss_type", "level"), EVERY_LOSS)
def test_no_loss_depends_on_the_order_of_targets(loss_type, level):
    ids, old, new, advantages = random_step()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    options = {"advantages": advantages, "importance_sampling_level": level}
    expected = step_loss(loss_type, new=new, old=old, ids=ids, **options)
    assert_close(step_loss(loss_type, new=new[order], old=old[order], ids=ids[order], **options), expected)


@pytest.mark.parametrize(("loss_type", "level"), EVERY_LOSS)
def test_no_loss_depends_on_how_the_step_is_cut(loss_type, level):
    ids, old, new, advantages = random_step()
    whole = new.clone().requires_grad_()
    expected = step_loss(loss_type, new=whole, old=old, ids=ids, advantages=advantages, importance_sampling_level=level)
    expected.backward()
    cut, total = new.clone().requires_grad_(), 0.0
    for sequences in ([0, 1, 2, 3], [4], [5, 6]):
        where = torch.isin(ids, torch.tensor(sequences))
        part_ids, count = ids[where] - sequences[0], len(sequences)
        loss = policy_loss(
            cut[where],
            old[where],
            advantages[ids[where]],
            part_ids,
            count,
            loss_type=loss_type,
            importance_sampling_level=level,
        )
        part = (token_weights(loss_type, part_ids, count) * loss.losses).sum()
        part = part / num_items(loss_type, len(ids), len(advantages), 10)
        part.backward()
        total += part.item()
    assert_close(total, expected.item())
    assert_close(cut.grad, whole.grad)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_sequence_without_targets_costs_nothing_and_breaks_nothing(loss_type):
    advantages = torch.tensor([1.0, -1.0, 5.0], dtype=torch.float64)
    loss = policy_loss(NEW, OLD, advantages[IDS], IDS, 3, loss_type=loss_type, importance_sampling_level="sequence")
    alone = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type=loss_type, importance_sampling_level="sequence")
    assert_close(loss.losses, alone.losses)
    none = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    empty = policy_loss(none, none.detach(), none.detach(), IDS[:0], 3, loss_type=loss_type)
    total = (token_weights(loss_type, IDS[:0], 3) * empty.losses).sum()
    assert total.item() == 0
    total.backward()


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name not in ("vespo", "gmpo")])
def test_masks_and_the_samplers_ratios_multiply_the_loss(loss_type):
    mask = torch.tensor([True, False, True, True, False])
    ratios = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    plain = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type=loss_type)
    both = policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, loss_type=loss_type, mask=mask, sampler_ratios=ratios)
    assert_close(both.losses, plain.losses * mask * ratios)


def test_vespo_takes_the_samplers_ratio_into_the_weight_of_the_sequence():
    tokens = torch.tensor([1.1, 1.0, 0.9, 1.5, 1.0], dtype=torch.float64)
    products = torch.tensor([1.1 * 0.9, 1.5], dtype=torch.float64)
    sums = torch.tensor([0.6, -0.2], dtype=torch.float64) + products.log()
    k, scale = torch.tensor([[2.0, 3.0], [3.0, 2.0]], dtype=torch.float64)
    expected = torch.exp(k * sums - scale * torch.expm1(sums))[IDS]
    arguments = (NEW, OLD, ADVANTAGES[IDS], IDS, 2)
    by_token = policy_loss(*arguments, loss_type="vespo", sampler_ratios=tokens)
    by_sequence = policy_loss(
        *arguments, loss_type="vespo", sampler_ratios=products[IDS], sampler_ratio_level="sequence"
    )
    assert_close(by_token.phi, expected)
    assert_close(by_sequence.phi, expected)


def test_the_extremes_of_vespo_are_weights_of_zero():
    old, ids = torch.zeros(4), torch.tensor([0, 0, 1, 1])
    new = torch.tensor([300.0, 300.0, -300.0, -300.0])
    phi = policy_loss(new, old, torch.ones(4), ids, 2, loss_type="vespo").phi
    assert_close(phi, torch.zeros(4), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss_type", "level"), EVERY_LOSS)
def test_ratios_beyond_a_floats_range_leave_loss_and_gradient_finite(loss_type, level):
    old = torch.full((5,), -120.0)
    new = torch.tensor([-1e-3, -200.0, -1e-3, -1e-3, -1e-3], requires_grad=True)  # e^89 is infinite
    advantages = torch.tensor([1.0, -1.0])
    for sign in (1, -1):
        loss = policy_loss(
            new, old, sign * advantages[IDS], IDS, 2, loss_type=loss_type, importance_sampling_level=level
        )
        new.grad = None
        loss.losses.sum().backward()
        assert torch.isfinite(loss.losses).all()
        assert torch.isfinite(new.grad).all()


def test_advantages_may_differ_within_a_sequence():
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    for loss_type in LOSS_TYPES:
        losses = policy_loss(OLD, OLD, advantages, IDS, 2, loss_type=loss_type).losses
        assert_close(
            losses.sign().nan_to_num(), (-advantages).sign() * (OLD.sign() if loss_type in ("cispo", "vespo") else 1)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo' is unknown; use one of grpo"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level='word' is unknown"),
        ({"epsilon": -0.1}, r"epsilon=-0.1 must lie in \[0, 1\]"),
        ({"epsilon_high": -0.1}, "epsilon_high=-0.1 must not be negative"),
        ({"loss_type": "cispo", "epsilon_high": 0.2}, "epsilon_high=0.2 is the largest ratio itself"),
        ({"loss_type": "sapo", "delta": 2.0}, "delta=2.0 is not read with loss_type='sapo'"),
        ({"delta": 0.9}, "delta=0.9 must be at least 1"),
        ({"sapo_temperature_neg": 0.0}, "sapo_temperature_neg=0.0 must be above 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, **options)
    with pytest.raises(ValueError, match=message):
        check_policy_options(**{"loss_type": "grpo", **options})


def test_unknown_names_are_refused_everywhere():
    with pytest.raises(ValueError, match="loss_type='ppo'"):
        token_weights("ppo", IDS, 2)
    with pytest.raises(ValueError, match="loss_type='ppo'"):
        num_items("ppo", 5, 2, 10)
    with pytest.raises(ValueError, match="sampler_ratio_level='word'"):
        policy_loss(NEW, OLD, ADVANTAGES[IDS], IDS, 2, sampler_ratios=torch.ones(5), sampler_ratio_level="word")
    with pytest.raises(ValueError, match="estimator='k4'"):
        kl_penalty(NEW, REF, "k4")
