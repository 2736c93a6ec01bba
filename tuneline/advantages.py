"""From rewards to advantages: how much better a rollout did than others of its prompt.

Groups may have any size and order; give the rollouts of all processes, for a group may be spread over them. A NaN
reward is one that no function could give: it is left out of every mean and deviation, and its advantage is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_REWARDS = ("group", "batch", "none")

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")

# Bounds what a group whose rewards hardly differ is blown up to; the value is TRL's.
_EPSILON = 1e-4


def combine_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the rewards that a rollout was given.

    Args:
        rewards: (rollouts, functions), NaN where a function gave none.
        weights: (functions,)

    Returns:
        (rollouts,); NaN where no function gave a reward.
    """
    sums = (rewards * weights.to(rewards)).nansum(1)
    return torch.where(rewards.isnan().all(1), torch.nan, sums)


def group_advantages(rewards: Tensor, group_ids: Tensor, *, scale_rewards: str = "group") -> Tensor:
    """Reward minus the mean of its group, over a standard deviation (Shao et al. 2024, arXiv:2402.03300, eq. 4).

    Args:
        rewards: (rollouts,), in the unit of the reward function; NaN for none.
        group_ids: (rollouts,), equal for rollouts of one prompt.
        scale_rewards: what deviation: of the "group"; of the whole "batch" (Liu et al. 2025, arXiv:2508.08221); or
            "none", which leaves the reward's unit (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783).

    Returns:
        (rollouts,); exactly 0 for every rollout of a group without spread.

    Raises:
        ValueError: `scale_rewards` is unknown.
    """
    if scale_rewards not in SCALE_REWARDS:
        raise ValueError(f"scale_rewards={scale_rewards!r} is unknown; use one of {', '.join(SCALE_REWARDS)}.")
    values = rewards.double()
    advantages = values - _group_means(values, group_ids)
    if scale_rewards == "group":
        advantages = advantages / (group_deviations(values, group_ids) + _EPSILON)
    elif scale_rewards == "batch":
        advantages = advantages / (group_deviations(values, torch.zeros_like(group_ids)) + _EPSILON)
    # a mean of equal numbers may miss them by a rounding error, which the division would blow up
    return torch.where(has_spread(rewards, group_ids), advantages, 0.0).nan_to_num(nan=0.0).to(rewards.dtype)


def multi_reward_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    weights: Tensor,
    *,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
) -> Tensor:
    """Advantages of rollouts that several functions rewarded.

    Args:
        rewards: (rollouts, functions), NaN where a function gave none.
        group_ids: (rollouts,), equal for rollouts of one prompt.
        weights: (functions,)
        scale_rewards: as in `group_advantages`; "group" with "normalize_then_sum", which has a scale of its own.
        aggregation: "sum_then_normalize": `group_advantages` of `combine_rewards`. "normalize_then_sum": each function
            normalised in its groups, the weighted sum normalised over the batch (GDPO, Liu et al. 2026,
            arXiv:2601.05242), so that no function drowns another.

    Returns:
        (rollouts,); 0 where no function gave a reward.

    Raises:
        ValueError: an option is unknown, or not to be had together with the other.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r} is unknown; use one of {', '.join(AGGREGATIONS)}.")
    if aggregation == "sum_then_normalize":
        return group_advantages(combine_rewards(rewards, weights), group_ids, scale_rewards=scale_rewards)
    if scale_rewards != "group":
        raise ValueError(
            f"scale_rewards={scale_rewards!r} has no effect with aggregation='normalize_then_sum', which scales by "
            "group and by batch; leave it at 'group', or use 'sum_then_normalize'."
        )
    normalized = torch.stack([group_advantages(column, group_ids) for column in rewards.double().unbind(1)], 1)
    sums = (normalized * weights.to(normalized)).sum(1)
    scored = torch.where(rewards.isnan().all(1), torch.nan, sums)
    return group_advantages(scored, torch.zeros_like(group_ids)).to(rewards.dtype)


def leave_one_out(rewards: Tensor, group_ids: Tensor, *, normalize: bool = False) -> Tensor:
    """Reward minus the mean reward of the other rollouts of the same prompt (Ahmadian et al. 2024, arXiv:2402.14740).

    Args:
        rewards: (rollouts,), in the unit of the reward function; NaN for none.
        group_ids: (rollouts,), equal for rollouts of one prompt.
        normalize: brings the advantages of the batch to mean 0 and deviation 1 (REINFORCE++, Hu et al. 2025,
            arXiv:2501.03262), those left out that are 0 for want of a baseline.

    Returns:
        (rollouts,); zero for a rollout that is alone in its group.
    """
    values = rewards.double()
    counts = _group_sums((~values.isnan()).double(), group_ids)
    sums = _group_sums(values.nan_to_num(nan=0.0), group_ids)
    is_compared = ~values.isnan() & (counts > 1)
    others = (sums - values) / (counts - 1).clamp(min=1)
    is_spread = has_spread(rewards, group_ids)
    advantages = torch.where(is_compared, torch.where(is_spread, values - others, 0.0), torch.nan)
    if normalize:
        advantages = group_advantages(advantages, torch.zeros_like(group_ids))
    return advantages.nan_to_num(nan=0.0).to(rewards.dtype)


def has_spread(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(rollouts,), bool: the rewards of the rollout's group, (rollouts,) in all, are not all one value or NaN.

    Groups without spread have no advantage, and teach nothing.
    """
    groups, num_groups = _numbered(group_ids)
    is_scored = ~rewards.isnan()
    lowest = rewards.new_full((num_groups,), torch.inf)
    lowest = lowest.scatter_reduce(0, groups, torch.where(is_scored, rewards, torch.inf), "amin")
    highest = rewards.new_full((num_groups,), -torch.inf)
    highest = highest.scatter_reduce(0, groups, torch.where(is_scored, rewards, -torch.inf), "amax")
    return (highest > lowest)[groups]


def group_deviations(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(rollouts,): the standard deviation (unbiased) of the rewards, (rollouts,), of the rollout's group.

    0 where the group has fewer than two rewards.
    """
    counts = _group_sums((~rewards.isnan()).to(rewards.dtype), group_ids)
    squares = (rewards - _group_means(rewards, group_ids)).square().nan_to_num(nan=0.0)
    return (_group_sums(squares, group_ids) / (counts - 1).clamp(min=1)).sqrt()


def _group_means(values: Tensor, group_ids: Tensor) -> Tensor:
    """(rollouts,): the mean of the rollout's group, NaN left out; 0 where all are NaN."""
    counts = _group_sums((~values.isnan()).to(values.dtype), group_ids)
    return _group_sums(values.nan_to_num(nan=0.0), group_ids) / counts.clamp(min=1)


def _group_sums(values: Tensor, group_ids: Tensor) -> Tensor:
    """(rollouts,): the sum over the rollout's group."""
    groups, num_groups = _numbered(group_ids)
    return values.new_zeros(num_groups).index_add(0, groups, values)[groups]


def _numbered(group_ids: Tensor) -> tuple[Tensor, int]:
    """(rollouts,) and their number: groups counted from 0."""
    names, groups = torch.unique(group_ids, return_inverse=True)
    return groups, len(names)
