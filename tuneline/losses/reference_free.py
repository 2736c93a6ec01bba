"""Losses over preference pairs that read the policy alone, one value a pair."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tuneline.losses.preference import check_beta_and_smoothing, smoothed_logistic

REFERENCE_FREE_LOSS_TYPES = ("sigmoid", "hinge", "ipo", "simpo", "tpo-l")
# These read the mean over the tokens of a completion where the others read the sum.
LENGTH_NORMALIZED_LOSS_TYPES = ("ipo", "simpo", "tpo-l")
LABEL_SMOOTHING_LOSS_TYPES = ("sigmoid", "simpo", "tpo-l")


class OddsRatioLoss(NamedTuple):
    """The loss of each pair, before its weight, and the logarithm of the odds ratio, detached."""

    losses: Tensor  # (pairs,)
    log_odds_ratios: Tensor  # (pairs,)


class ReferenceFreeLoss(NamedTuple):
    """The loss of each pair, and the implicit rewards: beta times the shaped log-probability, detached."""

    losses: Tensor  # (pairs,)
    chosen_rewards: Tensor  # (pairs,)
    rejected_rewards: Tensor  # (pairs,)


def odds_ratio_loss(chosen_logps: Tensor, rejected_logps: Tensor) -> OddsRatioLoss:
    """-log sigmoid of the log odds ratio (ORPO, Hong et al. 2024, arXiv:2403.07691, eq. 4 and 7).

    Args:
        chosen_logps: (pairs,), log-probability of the chosen completion, the mean over its tokens, below 0.
        rejected_logps: (pairs,), the same of the rejected completion.
    """
    log_odds_ratios = (chosen_logps - _log1mexp(chosen_logps)) - (rejected_logps - _log1mexp(rejected_logps))
    return OddsRatioLoss(-F.logsigmoid(log_odds_ratios), log_odds_ratios.detach())


def reference_free_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    alpha: float = 0.0,
) -> ReferenceFreeLoss:
    """The losses of CPO (Xu et al. 2024, arXiv:2401.08417), SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6), AlphaPO
    (Gupta et al. 2025, arXiv:2501.03884) and TPO (Saeidi et al. 2024, arXiv:2405.16681), without their likelihood.

    Args:
        chosen_logps: (pairs,), log-probability of the chosen completion: with `LENGTH_NORMALIZED_LOSS_TYPES` the mean
            over its tokens, else the sum.
        rejected_logps: (pairs,), the same of the rejected completion.
        beta: scale of the rewards, above 0; with `ipo` the strength of the regularisation.
        loss_type: one of `REFERENCE_FREE_LOSS_TYPES`; `simpo` and `tpo-l` are the same, `sigmoid` with a margin.
        label_smoothing: the share of pairs believed to be labelled the wrong way round, in [0, 0.5); read by
            `LABEL_SMOOTHING_LOSS_TYPES`.
        margin: by how much the chosen reward should win; read by `simpo` and `tpo-l`.
        alpha: of AlphaPO's reward (1 - p^-alpha) / alpha, in place of log p, to which it tends at 0.

    Raises:
        ValueError: an option is unknown or out of its range.
    """
    check_reference_free_options(loss_type, beta=beta, label_smoothing=label_smoothing)
    chosen, rejected = _shaped(chosen_logps, alpha), _shaped(rejected_logps, alpha)
    logits = beta * (chosen - rejected)
    match loss_type:
        case "sigmoid":
            losses = smoothed_logistic(logits, label_smoothing)
        case "simpo" | "tpo-l":
            losses = smoothed_logistic(logits - margin, label_smoothing)
        case "hinge":  # Zhao et al. 2023, arXiv:2305.10425
            losses = F.relu(1 - logits)
        case "ipo":  # Azar et al. 2023, arXiv:2310.12036, eq. 17
            losses = (chosen - rejected - 1 / (2 * beta)).square()
        case _:
            raise AssertionError(loss_type)
    return ReferenceFreeLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def check_reference_free_options(loss_type: str, *, beta: float, label_smoothing: float) -> None:
    """Raise ValueError, naming option, value and remedy, for what `reference_free_loss` cannot compute."""
    if loss_type not in REFERENCE_FREE_LOSS_TYPES:
        raise ValueError(f"loss_type={loss_type!r} is unknown; use one of {', '.join(REFERENCE_FREE_LOSS_TYPES)}.")
    check_beta_and_smoothing(beta, label_smoothing)
    if label_smoothing and loss_type not in LABEL_SMOOTHING_LOSS_TYPES:
        raise ValueError(
            f"label_smoothing={label_smoothing} has no meaning with loss_type={loss_type!r}; set it to 0, or use one "
            f"of {', '.join(LABEL_SMOOTHING_LOSS_TYPES)}."
        )


def _shaped(logps: Tensor, alpha: float) -> Tensor:
    """(pairs,): AlphaPO's reward (1 - p^-alpha) / alpha of log-probabilities, (pairs,)."""
    return logps if alpha == 0 else -torch.expm1(-alpha * logps) / alpha


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0, exact near 0 and far from it (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))")."""
    is_near = x > -math.log(2)
    near, far = torch.where(is_near, x, -1.0), torch.where(is_near, -1.0, x)  # no branch meets what it cannot take
    return torch.where(is_near, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))
