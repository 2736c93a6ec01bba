"""Losses over single completions that are labelled desirable or not, one value a completion."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

KTO_LOSS_TYPES = ("kto", "apo_zero_unpaired")


class UnpairedLoss(NamedTuple):
    """The loss of each completion, and its implicit reward: beta times the log-ratio of policy and reference."""

    losses: Tensor  # (sequences,)
    rewards: Tensor  # (sequences,), detached


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    is_desirable: Tensor,
    kl: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "kto",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8).

    With `apo_zero_unpaired` the reference point is 0 instead of the divergence (D'Oosterlinck et al. 2024,
    arXiv:2408.06266, eq. 7, its two terms apart).

    Args:
        logps: (sequences,), log-probability of each completion under the policy, summed over its tokens.
        ref_logps: (sequences,), the same under the reference.
        is_desirable: (sequences,), bool.
        kl: (), the reference point: an estimate of the policy's divergence from the reference, at least 0; see
            `divergence_from_mismatches`.
        beta: aversion to risk: strength of the pull towards the reference, above 0.
        loss_type: one of `KTO_LOSS_TYPES`.
        desirable_weight, undesirable_weight: multiply the losses of either kind.

    Raises:
        ValueError: an unknown loss_type.
    """
    if loss_type not in KTO_LOSS_TYPES:
        raise ValueError(f"loss_type={loss_type!r} is unknown; use one of {', '.join(KTO_LOSS_TYPES)}.")
    rewards = beta * (logps - ref_logps)
    gains = rewards - beta * kl.detach() if loss_type == "kto" else rewards
    # 1 - sigmoid(x) is sigmoid(-x), without the cancellation
    losses = torch.where(
        is_desirable, desirable_weight * torch.sigmoid(-gains), undesirable_weight * torch.sigmoid(gains)
    )
    return UnpairedLoss(losses, rewards.detach())


def divergence_from_mismatches(log_ratio_sum: Tensor, count: Tensor) -> Tensor:
    """(): the estimate of the policy's divergence from the reference that `kto_loss` takes (the same paper).

    Args:
        log_ratio_sum: (), the log-ratios of policy and reference, summed over completions that were each given to the
            prompt of another.
        count: (), their number.

    Returns:
        (), their mean, at least 0.
    """
    return (log_ratio_sum / count.clamp(min=1)).clamp(min=0)


def bco_loss(
    logps: Tensor,
    ref_logps: Tensor,
    is_desirable: Tensor,
    delta: Tensor | float,
    *,
    beta: float = 0.1,
    density_ratios: Tensor | None = None,
) -> UnpairedLoss:
    """Binary Classifier Optimization (Jung et al. 2024, arXiv:2404.04656).

    Args:
        logps: (sequences,), log-probability of each completion under the policy, summed over its tokens.
        ref_logps: (sequences,), the same under the reference.
        is_desirable: (sequences,), bool.
        delta: the reward shift: the mean implicit reward of all completions seen.
        beta: strength of the pull towards the reference, above 0.
        density_ratios: (sequences,), how much likelier each prompt is among the desirable rows than among the
            undesirable ones; weighs the losses of the undesirable.
    """
    rewards = beta * (logps - ref_logps)
    gains = rewards - delta
    losses = -F.logsigmoid(torch.where(is_desirable, gains, -gains))
    if density_ratios is not None:
        losses = torch.where(is_desirable, losses, density_ratios * losses)
    return UnpairedLoss(losses, rewards.detach())
