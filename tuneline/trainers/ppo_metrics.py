"""What PPO logs, under the names of TRL 1.12; as `BaseTrainer.record` takes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tuneline.losses.policy import PolicyLoss
from tuneline.losses.value import ValueLoss
from tuneline.metrics import Recorded
from tuneline.trainers.experience import ScoredRollout
from tuneline.trainers.ppo_credit import Credit


def score_metrics(
    scores: Tensor, scored: Sequence[ScoredRollout], stop_token_ids: Sequence[int], num_processes: int
) -> dict[str, Recorded]:
    """Of a generation.

    Args:
        scores: (rollouts,) of all processes, less the penalty of those cut off, not scaled; NaN where there is none.
        scored: those of this process.
    """
    stops = set(stop_token_ids)
    num_stops = sum(token in stops for one in scored for token in one.rollout.completion_ids)
    return {
        "objective/scores": scores[~scores.isnan()],
        # what the processes add up is of one generation
        "val/num_eos_tokens": (torch.tensor(float(num_stops)), torch.tensor(1 / num_processes)),
    }


def credit_metrics(credit: Credit, is_counted: Tensor, has_reference: bool) -> dict[str, Recorded]:
    """Sums over each completion, which `is_counted` (sequences,) chooses; means over completions."""
    values = {
        "objective/entropy": credit.surprisals,
        "objective/rlhf_reward": credit.scores + credit.kl_rewards,
    }
    if has_reference:
        values |= {"objective/kl": credit.kl, "objective/non_score_reward": credit.kl_rewards}
    return {name: found[is_counted] for name, found in values.items()}


def update_metrics(
    policy: PolicyLoss, value: ValueLoss, log_ratios: Tensor, entropies: Tensor, counted: Tensor
) -> dict[str, Recorded]:
    """Means over the tokens of an update; `counted` (targets,) weighs them. The variance of the ratio is taken about 1,
    which it has in the mean."""
    ratios = policy.ratios.detach()
    values = {
        "policy/approxkl_avg": log_ratios.square() / 2,
        "policy/clipfrac_avg": (policy.is_clipped_low | policy.is_clipped_high).float(),
        "policy/entropy_avg": entropies,
        "loss/policy_avg": policy.losses,
        "loss/value_avg": value.losses,
        "val/clipfrac_avg": value.is_clipped.float(),
        "val/ratio": ratios,
        "val/ratio_var": (ratios - 1).square(),
    }
    num_counted = counted.sum()
    return {name: ((found.detach() * counted).sum(), num_counted) for name, found in values.items()}
