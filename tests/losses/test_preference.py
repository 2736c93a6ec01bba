"""Preference losses: values derived by hand, identities between losses, gradients, and what is refused."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tuneline.losses.preference import (
    F_DIVERGENCE_LOSS_TYPES,
    LENGTH_NORMALIZED_LOSS_TYPES,
    LOSS_TYPES,
    dpo_loss,
    f_divergence_scores,
    length_desensitized_logps,
    wpo_weights,
)

LN2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def losses_of(policy: list[float], reference: list[float], lengths: tuple[int, int] = (5, 8), **options) -> Tensor:
    """The loss of one pair whose (chosen, rejected) log-probabilities are given, in float64."""
    values = [torch.tensor([value], dtype=torch.float64) for value in (*policy, *reference)]
    chosen_lengths, rejected_lengths = (torch.tensor([length]) for length in lengths)
    return dpo_loss(*values, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths, **options).losses


# One pair: policy (-10, -12), reference (-11, -11.5). Log-ratios c = 1 and r = -0.5, difference 1.5; beta 0.1 makes the
# rewards 0.1 and -0.05, the logit 0.15; lengths 5 and 8 make the scores a token 0.2 and -0.0625,
# their difference 0.2625. softplus(-x) is -log sigmoid(x).
WORKED = [
    ("sigmoid", 0.0, softplus(-0.15), 0.620957),
    ("sigmoid", 0.1, 0.9 * softplus(-0.15) + 0.1 * softplus(0.15), 0.635957),
    ("hinge", 0.0, 1 - 0.15, 0.85),
    ("ipo", 0.0, (0.2625 - 5) ** 2, 22.443906),
    (
        "exo_pair",
        1e-3,
        sigmoid(0.15) * (-softplus(-0.15) - math.log(0.999)) + sigmoid(-0.15) * (-softplus(0.15) - math.log(0.001)),
        2.505517,
    ),
    ("nca_pair", 0.0, softplus(-0.1) + 0.5 * softplus(0.1) + 0.5 * softplus(-0.05), 1.350825),
    ("robust", 0.1, (0.9 * softplus(-0.15) - 0.1 * softplus(0.15)) / 0.8, 0.602207),
    ("bco_pair", 0.0, softplus(-0.1) + softplus(-0.05), 1.312856),
    ("sppo_hard", 0.0, (1 - 5) ** 2 + (-0.5 + 5) ** 2, 36.25),
    ("apo_zero", 0.0, 1 - sigmoid(0.1) + sigmoid(-0.05), 0.962523),
    ("apo_down", 0.0, sigmoid(0.1) + 1 - sigmoid(0.15), 0.987549),
    ("discopop", 0.0, softplus(-0.15) * (1 - sigmoid(3)) + math.exp(-0.15) * sigmoid(3), 0.849338),
    ("sigmoid_norm", 0.0, softplus(-0.02625), 0.680108),
    ("aot", 0.1, 0.9 * softplus(-0.15) + 0.1 * softplus(0.15), 0.635957),
    ("aot_unpaired", 0.0, softplus(-0.15), 0.620957),
]


@pytest.mark.parametrize(("loss_type", "label_smoothing", "derived", "golden"), WORKED)
def test_losses_of_a_worked_pair(loss_type, label_smoothing, derived, golden):
    losses = losses_of([-10, -12], [-11, -11.5], loss_type=loss_type, label_smoothing=label_smoothing)
    assert_close(losses.item(), derived, rtol=1e-12, atol=0)
    assert round(derived, 6) == golden


def test_every_loss_type_has_a_worked_value():
    assert {loss_type for loss_type, *_ in WORKED} == set(LOSS_TYPES)


# Scores of c = 1 and r = -0.5: forward KL 1 - e^-x; Jensen-Shannon log 2 + log sigmoid(x); alpha 0.5, 2 - 2 e^(-x/2).
@pytest.mark.parametrize(
    ("f_divergence_type", "difference", "golden"),
    [
        ("forward_kl", (1 - math.exp(-1)) - (1 - math.exp(0.5)), 0.631154),
        ("js_divergence", (LN2 - softplus(-1)) - (LN2 - softplus(0.5)), 0.660652),
        ("alpha_divergence", -2 * (math.exp(-0.5) - 1) + 2 * (math.exp(0.25) - 1), 0.627691),
    ],
)
def test_f_divergences_of_the_worked_pair(f_divergence_type, difference, golden):
    losses = losses_of([-10, -12], [-11, -11.5], f_divergence_type=f_divergence_type)
    assert_close(losses.item(), softplus(-0.1 * difference), rtol=1e-12, atol=0)
    assert round(losses.item(), 6) == golden


@pytest.mark.parametrize("f_divergence_type", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_every_f_divergence_scores_like_the_log_ratio_near_the_reference(f_divergence_type):
    # f''(1) = 1 for forward KL and alpha, 1/2 for Jensen-Shannon in the form log(2t / (1 + t))
    slope = 0.5 if f_divergence_type == "js_divergence" else 1.0
    ratios = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64)
    assert_close(f_divergence_scores(ratios, f_divergence_type), slope * ratios, rtol=1e-3, atol=1e-12)


def test_alpha_divergence_tends_to_reverse_kl_and_at_zero_is_forward_kl():
    ratios = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    assert_close(f_divergence_scores(ratios, "alpha_divergence", 1.0), ratios)
    assert_close(f_divergence_scores(ratios, "alpha_divergence", 1 + 1e-5), ratios, rtol=1e-4, atol=1e-4)
    assert_close(f_divergence_scores(ratios, "alpha_divergence", 0.0), f_divergence_scores(ratios, "forward_kl"))


def test_alpha_divergence_stays_finite_far_from_the_reference():
    scores = f_divergence_scores(torch.tensor([-1e4, 1e4]), "alpha_divergence", 0.5)
    assert torch.isfinite(scores).all()


def test_dpo_loss_is_log_two_when_the_policy_is_the_reference():
    logps = torch.tensor([-3.0, -7.0])
    loss = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3)
    assert_close(loss.losses, torch.full((2,), LN2))  # the margin is 0 and -logsigmoid(0) = log 2
    assert_close(loss.chosen_rewards, torch.zeros(2))


@pytest.mark.parametrize(
    ("loss_type", "at_the_reference"),
    [
        ("sigmoid", LN2),
        ("sigmoid_norm", LN2),
        ("robust", LN2),  # (0.9 - 0.1) log 2 / 0.8
        ("hinge", 1.0),
        ("ipo", 25.0),  # (1 / 0.2)^2
        ("exo_pair", 0.5 * (-LN2 - math.log(0.9)) + 0.5 * (-LN2 - math.log(0.1))),  # KL from (1/2, 1/2) to (0.9, 0.1)
        ("nca_pair", 2 * LN2),
        ("bco_pair", 2 * LN2),
        ("sppo_hard", 50.0),
        ("aot", LN2),
        ("aot_unpaired", LN2),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("discopop", 0.5 * LN2 + 0.5),
    ],
)
def test_losses_when_the_policy_is_the_reference(loss_type, at_the_reference):
    losses = losses_of([-10, -12], [-10, -12], loss_type=loss_type, label_smoothing=0.1)
    assert_close(losses.item(), at_the_reference, rtol=1e-12, atol=0)


def test_rewards_are_beta_times_the_log_ratio_and_carry_no_gradient():
    chosen, rejected = torch.tensor([-10.0], requires_grad=True), torch.tensor([-12.0], requires_grad=True)
    loss = dpo_loss(chosen, rejected, torch.tensor([-11.0]), torch.tensor([-11.5]), f_divergence_type="forward_kl")
    assert_close(loss.chosen_rewards, torch.tensor([0.1]))
    assert_close(loss.rejected_rewards, torch.tensor([-0.05]))
    assert not loss.chosen_rewards.requires_grad
    assert not loss.rejected_rewards.requires_grad


def test_gradient_of_dpo_is_that_of_equation_seven():
    # d/dc -logsigmoid(beta (c - r)) = -beta sigmoid(beta (r - c)); with the opposite sign for r
    chosen, rejected = torch.tensor([-10.0], requires_grad=True), torch.tensor([-12.0], requires_grad=True)
    dpo_loss(chosen, rejected, torch.tensor([-11.0]), torch.tensor([-11.5])).losses.sum().backward()
    assert_close(chosen.grad, torch.tensor([-0.1 * sigmoid(-0.15)]))
    assert_close(rejected.grad, torch.tensor([0.1 * sigmoid(-0.15)]))


def a_batch(pairs: int = 6) -> tuple[list[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logps = [-20 + 5 * torch.randn(pairs, generator=generator, dtype=torch.float64) for _ in range(4)]
    lengths = torch.randint(1, 30, (2, pairs), generator=generator)
    return logps, {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_are_those_of_finite_differences(loss_type):
    (chosen, rejected, *reference), lengths = a_batch()
    inputs = (chosen.requires_grad_(), rejected.requires_grad_())

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return dpo_loss(chosen, rejected, *reference, loss_type=loss_type, label_smoothing=0.1, **lengths).losses

    assert torch.autograd.gradcheck(losses, inputs)


@pytest.mark.parametrize("f_divergence_type", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss_type", F_DIVERGENCE_LOSS_TYPES)
def test_gradients_of_f_divergences_are_those_of_finite_differences(loss_type, f_divergence_type):
    (chosen, rejected, *reference), lengths = a_batch()
    options = {"loss_type": loss_type, "f_divergence_type": f_divergence_type, "label_smoothing": 0.1, **lengths}
    scale = 0.1  # log-ratios of a few tenths: beyond, the exponentials leave little for finite differences
    reference = [
        logps.detach() + scale * (ref - logps) for logps, ref in zip((chosen, rejected), reference, strict=True)
    ]
    inputs = (chosen.requires_grad_(), rejected.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: dpo_loss(c, r, *reference, **options).losses, inputs)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if not name.startswith("aot")])
def test_the_loss_of_a_pair_does_not_depend_on_its_batch(loss_type):
    logps, lengths = a_batch()
    whole = dpo_loss(*logps, loss_type=loss_type, label_smoothing=0.1, **lengths).losses
    for i in range(len(whole)):
        alone = dpo_loss(
            *(x[i : i + 1] for x in logps),
            loss_type=loss_type,
            label_smoothing=0.1,
            **{name: x[i : i + 1] for name, x in lengths.items()},
        )
        assert_close(alone.losses[0], whole[i])


def test_aot_compares_sorted_margins_across_the_batch():
    # policy margins (3, 1) against reference margins (0, 2): sorted (1, 3) - (0, 2) = (1, 1), unsorted (3, -1)
    chosen, zeros = torch.tensor([3.0, 1.0]), torch.zeros(2)
    losses = dpo_loss(chosen, zeros, torch.tensor([0.0, 2.0]), zeros, loss_type="aot", beta=1.0).losses
    assert_close(losses, torch.full((2,), softplus(-1)))


def test_aot_unpaired_compares_sorted_ratios_across_the_batch():
    # ratios of the chosen (3, 1), of the rejected (0, 2): sorted differences (1, 1)
    zeros = torch.zeros(2)
    losses = dpo_loss(
        torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), zeros, zeros, loss_type="aot_unpaired", beta=1.0
    ).losses
    assert_close(losses, torch.full((2,), softplus(-1)))


def test_robust_loss_is_unbiased_under_flips():
    # a share eps of flipped labels: (1 - eps) robust(x) + eps robust(-x) is the loss on clean labels
    clean = losses_of([-10, -12], [-11, -11.5])
    kept = losses_of([-10, -12], [-11, -11.5], loss_type="robust", label_smoothing=0.2)
    flipped = losses_of([-12, -10], [-11.5, -11], loss_type="robust", label_smoothing=0.2)
    assert_close(0.8 * kept + 0.2 * flipped, clean)


def test_exo_loss_is_zero_where_the_policy_prefers_as_the_labels_do():
    # sigmoid(beta difference) = 1 - eps: the divergence from the labels' distribution vanishes
    eps = 0.2
    losses = losses_of([math.log((1 - eps) / eps), 0], [0, 0], loss_type="exo_pair", beta=1.0, label_smoothing=eps)
    assert_close(losses.item(), 0.0, atol=1e-12, rtol=0)


def test_losses_stay_finite_for_extreme_ratios():
    chosen = torch.tensor([-5000.0, -10.0])
    for loss_type in set(LOSS_TYPES) - {"discopop"}:  # its exponential has no bound, by definition
        lengths = {"chosen_lengths": torch.ones(2), "rejected_lengths": torch.ones(2)}
        losses = dpo_loss(
            chosen, chosen.flip(0), chosen.flip(0), chosen, loss_type=loss_type, label_smoothing=0.1, **lengths
        ).losses
        assert torch.isfinite(losses).all(), loss_type


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sft"}, "loss_type='sft' is not a preference loss; use one of sigmoid, hinge"),
        ({"f_divergence_type": "kl"}, "f_divergence_type='kl' is unknown; use one of reverse_kl"),
        ({"loss_type": "nca_pair", "f_divergence_type": "forward_kl"}, "no meaning with loss_type='nca_pair'"),
        ({"loss_type": "aot", "f_divergence_type": "js_divergence"}, "no meaning with loss_type='aot'"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"discopop_tau": -1.0}, "discopop_tau=-1.0 must be above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"label_smoothing=0.5 must lie in \[0, 0.5\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 must lie in \[0, 0.5\)"),
        ({"loss_type": "exo_pair"}, "loss_type='exo_pair' takes the logarithm of label_smoothing, which is 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(options, message):
    logps = torch.zeros(2)
    with pytest.raises(ValueError, match=message):
        dpo_loss(logps, logps, logps, logps, **options)


@pytest.mark.parametrize("loss_type", LENGTH_NORMALIZED_LOSS_TYPES)
def test_length_normalized_losses_ask_for_lengths(loss_type):
    logps = torch.zeros(2)
    with pytest.raises(ValueError, match="pass chosen_lengths and rejected_lengths"):
        dpo_loss(logps, logps, logps, logps, loss_type=loss_type)


# Two pairs: sequences 0 to 3 with 2, 3, 1 and 1 targets.
SEQUENCE_IDS = torch.tensor([0, 0, 1, 1, 1, 2, 3])


def test_wpo_weights_are_geometric_means_of_aligned_probabilities():
    # sequence 0: probabilities 1/2 and 1/8 over 1 give (1/16)^(1/2) = 1/4; sequence 1: all as likely as agreement: 1;
    # sequences 2 and 3: (1/2) / (1/4) = 2 and 1/4
    logprobs = torch.tensor([0.5, 0.125, 0.3, 0.3, 0.3, 0.5, 0.25]).log().requires_grad_()
    log_sum_sq_probs = torch.tensor([1.0, 1.0, 0.3, 0.3, 0.3, 0.25, 1.0]).log()
    weights = wpo_weights(logprobs, log_sum_sq_probs, SEQUENCE_IDS, 4)
    assert_close(weights, torch.tensor([0.25, 0.5]))
    assert not weights.requires_grad


def test_wpo_weight_of_a_uniform_policy_is_one():
    # p = 1/V: the sum of squares is V (1/V)^2 = 1/V too
    logprobs = torch.full((7,), -math.log(50))
    assert_close(wpo_weights(logprobs, logprobs.clone(), SEQUENCE_IDS, 4), torch.ones(2))


def test_length_desensitized_logps_weigh_what_is_beyond_the_shorter_completion():
    # pair 0 has 2 and 3 targets: the third of sequence 1 counts half; pair 1 has equal lengths
    logprobs = torch.tensor([-1.0, -2.0, -1.0, -1.0, -4.0, -3.0, -5.0])
    logps = length_desensitized_logps(logprobs, SEQUENCE_IDS, 4, ld_alpha=0.5)
    assert_close(logps, torch.tensor([-3.0, -4.0, -3.0, -5.0]))


@pytest.mark.parametrize(("ld_alpha", "expected"), [(1.0, [-3.0, -6.0, -3.0, -5.0]), (0.0, [-3.0, -2.0, -3.0, -5.0])])
def test_length_desensitization_goes_from_the_plain_sum_to_a_cut(ld_alpha, expected):
    logprobs = torch.tensor([-1.0, -2.0, -1.0, -1.0, -4.0, -3.0, -5.0])
    assert_close(length_desensitized_logps(logprobs, SEQUENCE_IDS, 4, ld_alpha), torch.tensor(expected))


def test_length_desensitized_logps_of_a_pair_with_an_empty_completion():
    # sequence 1 has no target, so nothing is shared and all of sequence 0 counts ld_alpha
    logps = length_desensitized_logps(torch.tensor([-1.0, -2.0]), torch.tensor([0, 0]), 2, ld_alpha=0.5)
    assert_close(logps, torch.tensor([-1.5, 0.0]))
