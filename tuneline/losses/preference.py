"""Losses over preference pairs: Direct Preference Optimization and its family, one value a pair.

The names are those of TRL's `loss_type`; its `sft` is a loss over tokens and stands in `tuneline.losses.sft`.
Deviation: with `sigmoid`, `label_smoothing` is honoured (conservative DPO); TRL 1.16 ignores it there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
F_DIVERGENCE_TYPES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

# An f-divergence leaves a term in log Z(x) that cancels only where the loss reads the difference of the two scores.
F_DIVERGENCE_LOSS_TYPES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
LABEL_SMOOTHING_LOSS_TYPES = ("sigmoid", "exo_pair", "robust", "aot", "aot_unpaired")
# These read the mean over the tokens of a completion where the others read the sum.
LENGTH_NORMALIZED_LOSS_TYPES = ("ipo", "sigmoid_norm")
# These match quantiles of the batch: no value belongs to one pair, and all depend on which pairs share a batch.
SORTING_LOSS_TYPES = ("aot", "aot_unpaired")


class PreferenceLoss(NamedTuple):
    """The loss of each pair, and the implicit rewards: beta times the log-ratio of policy and reference, detached."""

    losses: Tensor  # (pairs,)
    chosen_rewards: Tensor  # (pairs,)
    rejected_rewards: Tensor  # (pairs,)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
    discopop_tau: float = 0.05,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> PreferenceLoss:
    """The loss of each pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7, and its descendants, cited at each).

    Args:
        chosen_logps: (pairs,), log-probability of the chosen completion under the policy, summed over its tokens.
        rejected_logps: (pairs,), the same of the rejected completion.
        ref_chosen_logps: (pairs,), of the chosen completion under the reference.
        ref_rejected_logps: (pairs,), of the rejected completion under the reference.
        beta: strength of the tie to the reference, above 0.
        loss_type: one of `LOSS_TYPES`.
        label_smoothing: the share of pairs believed to be labelled the wrong way round, in [0, 0.5); read by
            `LABEL_SMOOTHING_LOSS_TYPES`, and above 0 for `exo_pair`.
        f_divergence_type: one of `F_DIVERGENCE_TYPES`; other than "reverse_kl" only with `F_DIVERGENCE_LOSS_TYPES`.
        f_alpha_divergence_coef: the alpha of "alpha_divergence"; at 1 that is "reverse_kl".
        discopop_tau: temperature of the blend of `discopop`, above 0.
        chosen_lengths: (pairs,), tokens of the chosen completion; needed by `LENGTH_NORMALIZED_LOSS_TYPES`.
        rejected_lengths: (pairs,), tokens of the rejected completion.

    Raises:
        ValueError: an option is unknown, out of its range, or not to be had together with another.
    """
    check_preference_options(
        loss_type,
        beta=beta,
        label_smoothing=label_smoothing,
        f_divergence_type=f_divergence_type,
        discopop_tau=discopop_tau,
    )
    chosen_ratios = chosen_logps - ref_chosen_logps
    rejected_ratios = rejected_logps - ref_rejected_logps
    chosen_rewards, rejected_rewards = beta * chosen_ratios, beta * rejected_ratios
    if loss_type == "aot":
        policy_margins, ref_margins = chosen_logps - rejected_logps, ref_chosen_logps - ref_rejected_logps
        losses = _losses_of_quantiles(policy_margins, ref_margins, beta, label_smoothing)
    elif loss_type == "aot_unpaired":
        losses = _losses_of_quantiles(chosen_ratios, rejected_ratios, beta, label_smoothing)
    elif loss_type not in F_DIVERGENCE_LOSS_TYPES:
        losses = _losses_of_rewards(chosen_rewards, rejected_rewards, beta, loss_type)
    else:
        chosen_scores = f_divergence_scores(chosen_ratios, f_divergence_type, f_alpha_divergence_coef)
        rejected_scores = f_divergence_scores(rejected_ratios, f_divergence_type, f_alpha_divergence_coef)
        if loss_type in LENGTH_NORMALIZED_LOSS_TYPES:
            if chosen_lengths is None or rejected_lengths is None:
                raise ValueError(
                    f"loss_type={loss_type!r} averages over the tokens of a completion; "
                    "pass chosen_lengths and rejected_lengths."
                )
            chosen_scores = chosen_scores / chosen_lengths.clamp(min=1)
            rejected_scores = rejected_scores / rejected_lengths.clamp(min=1)
        differences = chosen_scores - rejected_scores
        losses = _losses_of_differences(differences, beta, loss_type, label_smoothing, discopop_tau)
    return PreferenceLoss(losses, chosen_rewards.detach(), rejected_rewards.detach())


def check_preference_options(
    loss_type: str,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    discopop_tau: float = 0.05,
) -> None:
    """Raise ValueError, naming option, value and remedy, for what `dpo_loss` cannot compute, before any work."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type={loss_type!r} is not a preference loss; use one of {', '.join(LOSS_TYPES)}.")
    if f_divergence_type not in F_DIVERGENCE_TYPES:
        raise ValueError(_unknown_f_divergence(f_divergence_type))
    if f_divergence_type != "reverse_kl" and loss_type not in F_DIVERGENCE_LOSS_TYPES:
        raise ValueError(
            f"f_divergence_type={f_divergence_type!r} has no meaning with loss_type={loss_type!r}, which does not read "
            f"the difference of the scores alone; use 'reverse_kl', or one of {', '.join(F_DIVERGENCE_LOSS_TYPES)}."
        )
    check_beta_and_smoothing(beta, label_smoothing)
    if discopop_tau <= 0:
        raise ValueError(f"discopop_tau={discopop_tau} must be above 0; the paper uses 0.05.")
    if loss_type == "exo_pair" and label_smoothing == 0:
        raise ValueError("loss_type='exo_pair' takes the logarithm of label_smoothing, which is 0; the paper has 1e-3.")


def check_beta_and_smoothing(beta: float, label_smoothing: float) -> None:
    """Raise ValueError for values that no preference loss can take."""
    if beta <= 0:
        raise ValueError(f"beta={beta} must be above 0; TRL's default is 0.1.")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing={label_smoothing} must lie in [0, 0.5): it is the share of pairs labelled the wrong way "
            "round, and at one half the labels say nothing."
        )


def f_divergence_scores(ratios: Tensor, f_divergence_type: str, alpha: float = 0.5) -> Tensor:
    """What takes the place of the log-ratio: f'(exp(ratios)), up to a constant (Wang et al. 2023, arXiv:2309.16240).

    Args:
        ratios: (pairs,), log-probability of a completion under the policy minus that under the reference.
        f_divergence_type: one of `F_DIVERGENCE_TYPES`.
        alpha: of "alpha_divergence".

    Returns:
        (pairs,)
    """
    match f_divergence_type:
        case "reverse_kl":
            return ratios
        case "forward_kl":
            return -torch.expm1(-ratios)
        case "js_divergence":
            return math.log(2) + F.logsigmoid(ratios)
        case "alpha_divergence":
            if abs(alpha - 1) < 1e-6:  # (t^(a-1) - 1) / (a-1) tends to log t
                return ratios
            # exp of more than 88 is infinite in float32; TRL stops at 80 too
            return torch.expm1(((alpha - 1) * ratios).clamp(max=80.0)) / (alpha - 1)
        case _:
            raise ValueError(_unknown_f_divergence(f_divergence_type))


def wpo_weights(logprobs: Tensor, log_sum_sq_probs: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """How likely the policy is to write both completions of a pair itself (Zhou et al. 2024, arXiv:2406.11827, eq. 2).

    The weight of a completion is the geometric mean of its tokens' probabilities, each over the probability that two
    tokens drawn there agree; that of a pair is the product of its two. The loss of a pair is multiplied by it.

    Args:
        logprobs: (targets,), under the policy.
        log_sum_sq_probs: (targets,), log of the sum over the vocabulary of the squared probabilities.
        sequence_ids: (targets,), the sequence of each target; sequences are chosen and rejected in turns.
        num_sequences: twice the number of pairs.

    Returns:
        (pairs,), detached; a completion without targets counts as 1.
    """
    aligned = (logprobs - log_sum_sq_probs).detach()
    sums = aligned.new_zeros(num_sequences).index_add(0, sequence_ids, aligned)
    lengths = torch.bincount(sequence_ids, minlength=num_sequences).clamp(min=1)
    log_weights = sums / lengths
    return torch.exp(log_weights[::2] + log_weights[1::2])


def length_desensitized_logps(logprobs: Tensor, sequence_ids: Tensor, num_sequences: int, ld_alpha: float) -> Tensor:
    """Summed log-probabilities where each token past the length of the shorter of a pair counts `ld_alpha`.

    LD-DPO, Liu et al. 2024, arXiv:2409.06411. At 1 this is the plain sum; at 0 both completions are cut to the shorter.

    Args:
        logprobs: (targets,), the targets of a sequence next to each other and in order.
        sequence_ids: (targets,), the sequence of each target; sequences are chosen and rejected in turns.
        num_sequences: twice the number of pairs.
        ld_alpha: in [0, 1].

    Returns:
        (sequences,)
    """
    lengths = torch.bincount(sequence_ids, minlength=num_sequences)
    starts = lengths.cumsum(0) - lengths
    shared = lengths.view(-1, 2).amin(1).repeat_interleave(2)
    index = torch.arange(len(sequence_ids), device=sequence_ids.device) - starts[sequence_ids]
    weighted = torch.where(index < shared[sequence_ids], logprobs, ld_alpha * logprobs)
    return logprobs.new_zeros(num_sequences).index_add(0, sequence_ids, weighted)


def _losses_of_differences(
    differences: Tensor, beta: float, loss_type: str, label_smoothing: float, discopop_tau: float
) -> Tensor:
    """(pairs,): the losses that read only the scores' differences, (pairs,), chosen minus rejected."""
    logits = beta * differences
    match loss_type:
        case "sigmoid":  # with smoothing: conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences"
            return smoothed_logistic(logits, label_smoothing)
        case "sigmoid_norm":  # scores a token, Lambert et al. 2024, arXiv:2411.15124
            return -F.logsigmoid(logits)
        case "hinge":  # Zhao et al. 2023, arXiv:2305.10425, with the margin of Liu et al. 2023, arXiv:2309.06657
            return F.relu(1 - logits)
        case "ipo":  # Azar et al. 2023, arXiv:2310.12036, eq. 17; scores a token, as its authors ran it
            return (differences - 1 / (2 * beta)).square()
        case "exo_pair":  # Ji et al. 2024, arXiv:2402.00856, eq. 16: KL from the policy's preference to (1 - eps, eps)
            log_chosen, log_rejected = F.logsigmoid(logits), F.logsigmoid(-logits)
            kl_chosen = log_chosen.exp() * (log_chosen - math.log1p(-label_smoothing))
            return kl_chosen + log_rejected.exp() * (log_rejected - math.log(label_smoothing))
        case "robust":  # Chowdhury et al. 2024, arXiv:2403.00409: without bias under random flips
            right, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
            return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
        case "discopop":  # Lu et al. 2024, arXiv:2406.08414, eq. 5: the logistic loss blended with the exponential one
            exponential_share = torch.sigmoid(logits / discopop_tau)
            return -F.logsigmoid(logits) * (1 - exponential_share) + torch.exp(-logits) * exponential_share
    raise AssertionError(loss_type)


def _losses_of_rewards(chosen: Tensor, rejected: Tensor, beta: float, loss_type: str) -> Tensor:
    """(pairs,): the losses that read the implicit reward of each completion, (pairs,), on its own."""
    match loss_type:
        case "nca_pair":  # Chen et al. 2024, arXiv:2402.05369
            return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
        case "bco_pair":  # Jung et al. 2024, arXiv:2404.04656, without the running mean of rewards
            return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
        case "sppo_hard":  # Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with win probabilities of 1 and 0
            return ((chosen - 0.5) / beta).square() + ((rejected + 0.5) / beta).square()
        case "apo_zero":  # D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7
            return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
        case "apo_down":  # the same paper, eq. 8
            return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
    raise AssertionError(loss_type)


def _losses_of_quantiles(upper: Tensor, lower: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """(pairs,): quantiles of `upper` above those of `lower`, both (pairs,) (Melnyk et al. 2024, arXiv:2406.05882)."""
    return smoothed_logistic(beta * (upper.sort().values - lower.sort().values), label_smoothing)


def smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """(pairs,): -log sigmoid(logits), a share of the labels taken for wrong."""
    if not label_smoothing:
        return -F.logsigmoid(logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def _unknown_f_divergence(name: str) -> str:
    return f"f_divergence_type={name!r} is unknown; use one of {', '.join(F_DIVERGENCE_TYPES)}."
