"""Losses of policies on their own rollouts, one value a target: GRPO and its family.

The loss of an optimizer step is

    sum over targets of  token_weights * (losses + beta * kl_penalty)   /   num_items

with both parts taken over the whole step. What tells `grpo` from `dapo`, `bnpo`, `dr_grpo` and `luspo` is these weights
alone, so that no result depends on how the step was cut into micro-batches. (`luspo`: Liu et al. 2026,
arXiv:2602.05261; `dapo`: Yu et al. 2025, arXiv:2503.14476.)

Deviations from TRL 1.16, whose names these are: `bnpo` divides by the targets of the step, where TRL divides by those
of each micro-batch; the cap of `cispo` is 5.0 where none is given, where TRL caps the ratio at `epsilon`; `delta` is
refused by the losses that do not read it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tuneline.losses.sequences import means_by_sequence, sums_by_sequence, target_counts

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "gmpo")
CLIPPED_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence", "sequence_sum")

KL_ESTIMATORS = ("k1", "k2", "k3")

# The recommendation of ScaleRL, Khatri et al. 2025, arXiv:2510.13786.
CISPO_CAP = 5.0

# Past this a ratio is cut, and its gradient with it. Its exponential could be infinite in float32, and what is infinite
# has a gradient that is no number even where a clip throws it away.
_MAX_LOG_RATIO = 20.0
# The log of the least weight that VESPO gives a sequence.
_MIN_LOG_WEIGHT = math.log(1e-8)


class PolicyLoss(NamedTuple):
    """The loss of each target before its weight, with its gradient, and what to log of it."""

    losses: Tensor  # (targets,)
    ratios: Tensor  # (targets,) policy over old policy at the importance sampling level, unclipped, with its gradient
    is_clipped_low: Tensor  # (targets,) bool; a sequence's ratio stands at each of its targets
    is_clipped_high: Tensor  # (targets,) bool
    phi: Tensor | None = None  # (targets,) the sequence weights of `vespo`, detached


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    mask: Tensor | None = None,
    sampler_ratios: Tensor | None = None,
    sampler_ratio_level: str = "token",
) -> PolicyLoss:
    """The loss of each target, to be multiplied by `token_weights` and divided by `num_items`.

    Args:
        logprobs: (targets,), under the policy.
        old_logprobs: (targets,), under the policy that the step began with; `logprobs.detach()` in its first update.
        advantages: (targets,), those of a rollout repeated at each of its targets.
        sequence_ids: (targets,), the sequence of each target, in any order.
        loss_type: one of `LOSS_TYPES`, each cited where it is computed.
        importance_sampling_level: "token"; "sequence", the geometric mean over the sequence (GSPO, Zheng et al. 2025,
            arXiv:2507.18071); "sequence_sum", the product over it (RLOO's clip: with `loss_type="grpo"` the mean
            over sequences of one clipped loss each). `vespo` and `gmpo` have a ratio of their own, and for them this
            is the level of `ratios` alone.
        epsilon: how far below 1 the ratio counts; of the log-ratio for `gmpo`, whose paper has 0.4.
        epsilon_high: how far above 1; `epsilon` where it is None. For `cispo` the largest ratio itself, at least 1, and
            `CISPO_CAP` where it is None.
        delta: a bound on the ratio where the advantage is negative, at least 1 (two-sided clipping, Prime Intellect
            2025, arXiv:2505.07291); read by `CLIPPED_LOSS_TYPES`.
        sapo_temperature_pos, sapo_temperature_neg: of `sapo`, where the advantage is positive and where it is not.
        vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: of the weight of `vespo`, by the advantage's sign.
        mask: (targets,), 1 where the objective reads the target (`off_policy_mask`, `top_entropy_mask`, or their
            product); the KL penalty is not subject to it. For `gmpo` a masked target leaves the geometric mean.
        sampler_ratios: (targets,), from `mismatch_weights`; multiplies the losses, and for `vespo` enters its weight.
        sampler_ratio_level: "sequence" where `sampler_ratios` holds the ratio of a sequence at each of its targets.

    Raises:
        ValueError: an option is unknown, out of its range, or not to be had together with another.
    """
    check_policy_options(
        loss_type,
        importance_sampling_level=importance_sampling_level,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        sapo_temperature_pos=sapo_temperature_pos,
        sapo_temperature_neg=sapo_temperature_neg,
    )
    if sampler_ratio_level not in ("token", "sequence"):
        raise ValueError(_unknown("sampler_ratio_level", sampler_ratio_level, ("token", "sequence")))
    log_ratios = logprobs - old_logprobs
    ratios = importance_ratios(logprobs, old_logprobs, sequence_ids, num_sequences, importance_sampling_level)
    is_low = is_high = torch.zeros_like(advantages, dtype=torch.bool)
    phi = None
    match loss_type:
        case "cispo":
            cap = CISPO_CAP if epsilon_high is None else epsilon_high
            losses = -ratios.detach().clamp(max=cap) * advantages * logprobs  # MiniMax 2025, arXiv:2506.13585
            is_high = (ratios > cap) & (advantages > 0)
        case "sapo":  # Gao et al. 2025, arXiv:2511.20347
            temperatures = torch.where(advantages > 0, sapo_temperature_pos, sapo_temperature_neg)
            losses = -4 / temperatures * torch.sigmoid(temperatures * (ratios - 1)) * advantages
        case "vespo":  # Shen et al. 2026, arXiv:2602.10693
            log_weights = _vespo_log_weights(
                log_ratios.detach(), sequence_ids, num_sequences, sampler_ratios, sampler_ratio_level
            )
            is_positive = advantages >= 0
            k = torch.where(is_positive, vespo_k_pos, vespo_k_neg)
            scale = torch.where(is_positive, vespo_lambda_pos, vespo_lambda_neg).clamp(min=1e-4)
            # 1 at a weight of 1, where the policy is the sampler, and falling off to both sides
            phi = torch.exp(k * log_weights - scale * torch.expm1(log_weights))
            losses = -phi * advantages * logprobs
        case "gmpo":
            high = epsilon if epsilon_high is None else epsilon_high
            is_low, is_high = _outside(log_ratios, advantages, -epsilon, high)
            losses = _gmpo_losses(log_ratios, advantages, sequence_ids, num_sequences, -epsilon, high, mask)
        case _:
            low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
            is_low, is_high = _outside(ratios, advantages, low, high)
            bounded = ratios if delta is None else ratios.clamp(max=delta)
            losses = -torch.minimum(bounded * advantages, ratios.clamp(low, high) * advantages)
    if mask is not None and loss_type != "gmpo":
        losses = losses * mask
    if sampler_ratios is not None and loss_type != "vespo":
        losses = losses * sampler_ratios
    return PolicyLoss(losses, ratios, is_low, is_high, phi)


def importance_ratios(
    logprobs: Tensor, old_logprobs: Tensor, sequence_ids: Tensor, num_sequences: int, level: str = "token"
) -> Tensor:
    """(targets,): policy over old policy, with its gradient; exactly 1 where the two agree.

    Args:
        logprobs, old_logprobs, sequence_ids: (targets,)
        level: one of `IMPORTANCE_SAMPLING_LEVELS`, as in `policy_loss`.
    """
    log_ratios = logprobs - old_logprobs
    match level:
        case "token":
            levelled = log_ratios
        case "sequence":
            levelled = means_by_sequence(log_ratios, sequence_ids, num_sequences)[sequence_ids]
        case "sequence_sum":
            levelled = sums_by_sequence(log_ratios, sequence_ids, num_sequences)[sequence_ids]
        case _:
            raise ValueError(_unknown("importance_sampling_level", level, IMPORTANCE_SAMPLING_LEVELS))
    return levelled.clamp(max=_MAX_LOG_RATIO).exp()


def token_weights(loss_type: str, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """(targets,), float32: what the loss of each target counts.

    One over the number of its sequence's targets for `grpo`, `sapo` and `gmpo`, which average over sequences; 1 for the
    others.
    """
    match loss_type:
        case "grpo" | "sapo" | "gmpo":
            return target_counts(sequence_ids, num_sequences)[sequence_ids].float().reciprocal()
        case "dapo" | "bnpo" | "cispo" | "vespo" | "dr_grpo" | "luspo":
            return torch.ones_like(sequence_ids, dtype=torch.float32)
        case _:
            raise ValueError(_unknown("loss_type", loss_type, LOSS_TYPES))


def num_items(loss_type: str, num_targets: int, num_sequences: int, max_completion_length: int) -> int:
    """What the sum of the weighted losses of an optimizer step is divided by.

    Args:
        num_targets: of the whole step, over all micro-batches and processes.
        num_sequences: of the whole step, those without targets among them.
        max_completion_length: what `dr_grpo` takes every completion to be as long as (Liu et al. 2025,
            arXiv:2503.20783).
    """
    match loss_type:
        case "dapo" | "bnpo" | "cispo" | "vespo":
            return num_targets
        case "grpo" | "sapo" | "luspo" | "gmpo":
            return num_sequences
        case "dr_grpo":
            return num_sequences * max_completion_length
        case _:
            raise ValueError(_unknown("loss_type", loss_type, LOSS_TYPES))


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k3", ratios: Tensor | None = None) -> Tensor:
    """Estimates of the KL divergence from the policy to the reference, one a target (Schulman 2020, "Approximating KL
    divergence"); exactly 0 where the two agree.

    With d = log policy - log reference: k1 is d, k2 d^2 / 2, k3 exp(-d) - 1 + d. As a term of a loss their gradients
    differ from that of the divergence: without `ratios` that of k1 is zero in expectation, that of k2 right as long as
    the policy is the one that sampled, and that of k3 the forward divergence's. With `ratios` those of k1 and k3 are
    right (DeepSeek-V3.2, arXiv:2512.02556, eq. 7).

    Args:
        logprobs: (targets,), under the policy, of tokens drawn from the old policy.
        ref_logprobs: (targets,), under the reference.
        estimator: one of `KL_ESTIMATORS`.
        ratios: (targets,), policy over old policy with its gradient, such as `PolicyLoss.ratios`; None for no
            correction.

    Returns:
        (targets,)
    """
    differences = logprobs - ref_logprobs
    match estimator:
        case "k1":
            penalties = differences
        case "k2":
            penalties = differences.square() / 2
        case "k3":
            penalties = torch.expm1(-differences) + differences
        case _:
            raise ValueError(_unknown("estimator", estimator, KL_ESTIMATORS))
    return penalties if ratios is None else penalties * ratios


def check_policy_options(
    loss_type: str,
    *,
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
) -> None:
    """Raise ValueError, naming option, value and remedy, for what `policy_loss` cannot compute, before any work."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(_unknown("loss_type", loss_type, LOSS_TYPES))
    if importance_sampling_level not in IMPORTANCE_SAMPLING_LEVELS:
        raise ValueError(_unknown("importance_sampling_level", importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS))
    if epsilon < 0 or (loss_type in CLIPPED_LOSS_TYPES and epsilon > 1):
        raise ValueError(f"epsilon={epsilon} must lie in [0, 1]: the ratio is clipped below 1 - epsilon.")
    if loss_type == "cispo" and epsilon_high is not None and epsilon_high < 1:
        raise ValueError(
            f"epsilon_high={epsilon_high} is the largest ratio itself with loss_type='cispo', and below 1 it would "
            f"scale down every update; use {CISPO_CAP}, or leave it out."
        )
    if epsilon_high is not None and epsilon_high < 0:
        raise ValueError(f"epsilon_high={epsilon_high} must not be negative; leave it out to use epsilon.")
    if delta is not None and loss_type not in CLIPPED_LOSS_TYPES:
        raise ValueError(
            f"delta={delta} is not read with loss_type={loss_type!r}; leave it out, or use one of "
            f"{', '.join(CLIPPED_LOSS_TYPES)}."
        )
    if delta is not None and delta < 1:
        raise ValueError(f"delta={delta} must be at least 1: it bounds the ratio, which is 1 for an unchanged policy.")
    if min(sapo_temperature_pos, sapo_temperature_neg) <= 0:
        raise ValueError(
            f"sapo_temperature_pos={sapo_temperature_pos} and sapo_temperature_neg={sapo_temperature_neg} must be "
            "above 0; the paper has 1.0 and 1.05."
        )


def _outside(ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(targets,) twice, bool: the target no longer moves the policy, since its ratio went far enough down, or up."""
    return (ratios < low) & (advantages < 0), (ratios > high) & (advantages > 0)


def _gmpo_losses(
    log_ratios: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    low: float,
    high: float,
    mask: Tensor | None,
) -> Tensor:
    """(targets,): minus the advantage times the geometric mean of the sequence's clipped ratios, at each of its targets
    (Zhao et al. 2025, arXiv:2507.20673). A sequence that is masked as a whole gives 0.
    """
    clipped = log_ratios.clamp(low, high)
    # the bound holds only on the side to which the advantage pushes
    clipped = torch.where(advantages > 0, torch.minimum(log_ratios, clipped), torch.maximum(log_ratios, clipped))
    counted = torch.ones_like(log_ratios) if mask is None else mask.to(log_ratios.dtype)
    num_counted = sums_by_sequence(counted, sequence_ids, num_sequences)
    means = sums_by_sequence(clipped * counted, sequence_ids, num_sequences) / num_counted.clamp(min=1)
    sequence_ratios = means.clamp(max=_MAX_LOG_RATIO).exp() * (num_counted > 0)
    return -sequence_ratios[sequence_ids] * advantages


def _vespo_log_weights(
    log_ratios: Tensor, sequence_ids: Tensor, num_sequences: int, sampler_ratios: Tensor | None, level: str
) -> Tensor:
    """(targets,): log of policy over sampler, of the whole sequence, bounded."""
    bounded = log_ratios.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    sums = sums_by_sequence(bounded, sequence_ids, num_sequences)
    if sampler_ratios is not None:
        logs = sampler_ratios.log().clamp(_MIN_LOG_WEIGHT, _MAX_LOG_RATIO)
        reduce = means_by_sequence if level == "sequence" else sums_by_sequence
        sums = sums + reduce(logs, sequence_ids, num_sequences)
    return sums.clamp(_MIN_LOG_WEIGHT, _MAX_LOG_RATIO)[sequence_ids]


def _unknown(option: str, value: str, known: tuple[str, ...]) -> str:
    return f"{option}={value!r} is unknown; use one of {', '.join(known)}."
