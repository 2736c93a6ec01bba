"""From scores and values to the advantages of single tokens: rewards, generalised advantage estimation, whitening.

All is flat over targets, the tokens that the policy wrote. What an environment wrote between them is no target, so that
the value of a state is followed by that of the next state in which the policy acts.
"""

# T targets, S sequences

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tuneline.losses.sequences import target_counts

SumOverProcesses = Callable[[Tensor], Tensor]

# Bounds what values that hardly differ are blown up to; the number is TRL's.
_EPSILON = 1e-8


class Gae(NamedTuple):
    """Both (targets,), in the unit of the rewards."""

    advantages: Tensor
    returns: Tensor  # advantages plus values: what a value function is fitted to


def gae(
    rewards: Tensor,
    values: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    gamma: float,
    lam: float | Tensor,
) -> Gae:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16), over each sequence's targets:

        A_t = d_t + gamma * lam * A_{t+1},   d_t = r_t + gamma * V_{t+1} - V_t

    A sequence ends in a state of value 0, also one that was cut off. Nothing is carried from one sequence to another.
    The sum is doubled, in as many rounds as the longest sequence has binary digits, with no loop over tokens.

    Args:
        rewards: (targets,), given for the token.
        values: (targets,), of the state before the token.
        sequence_ids: (targets,), the sequence of each target; a sequence's targets stand in their order.
        gamma: discount a token, in [0, 1].
        lam: in [0, 1], 0 trusts the values and 1 the rewards; or (sequences,), one a sequence.

    Returns:
        Both (targets,), in the precision of `values`.
    """
    order = sequence_ids.argsort(stable=True)
    ids = sequence_ids[order]
    rewards_T, values_T = rewards.double()[order], values.double()[order]
    decay = gamma * torch.as_tensor(lam, dtype=torch.float64, device=ids.device).expand(num_sequences)[ids]
    advantages_T = rewards_T + gamma * _ahead(values_T, ids, 1) - values_T
    longest = int(target_counts(ids, num_sequences).max()) if num_sequences else 0
    distance = 1
    while distance < longest:  # each advantage so far sums `distance` terms, and takes in those of the one behind
        advantages_T = advantages_T + decay * _ahead(advantages_T, ids, distance)
        decay, distance = decay.square(), 2 * distance
    advantages = torch.empty_like(advantages_T)
    advantages[order] = advantages_T
    return Gae(advantages.to(values.dtype), (advantages + values.double()).to(values.dtype))


def length_adaptive_lam(num_targets: Tensor, alpha: float) -> Tensor:
    """lam by the length of a completion: 1 - 1 / (alpha * length) (VAPO, Yue et al. 2025, arXiv:2504.05118, eq. 7).

    A long completion's last reward then reaches its first token. 0 where the formula falls below it.

    Args:
        num_targets: (sequences,)
        alpha: the paper has 0.05.

    Returns:
        (sequences,), float64, in [0, 1).

    Raises:
        ValueError: `alpha` is not above 0.
    """
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} must be above 0; the paper has 0.05.")
    return (1 - 1 / (alpha * num_targets.double().clamp(min=1))).clamp(min=0)


def token_rewards(
    scores: Tensor, kl: Tensor, sequence_ids: Tensor, num_sequences: int, *, kl_coef: float | Tensor
) -> Tensor:
    """Rewards of single tokens: the score where the completion ends, less the KL penalty at each token (Ziegler et al.
    2019, arXiv:1909.08593, eq. 2; Stiennon et al. 2020, arXiv:2009.01325).

    Args:
        scores: (sequences,), in the unit of the reward; that of a sequence without targets is left out.
        kl: (targets,), an estimate of the KL divergence from policy to reference at the token, in nats.
        sequence_ids: (targets,), the sequence of each target; a sequence's targets stand in their order.
        kl_coef: what a nat costs.

    Returns:
        (targets,)
    """
    rewards = -kl_coef * kl
    places = torch.arange(len(sequence_ids), device=sequence_ids.device)
    last = places.new_full((num_sequences,), -1).scatter_reduce(0, sequence_ids, places, "amax")
    has_targets = last >= 0
    return rewards.index_add(0, last[has_targets], scores[has_targets].to(rewards.dtype))


def whiten(values: Tensor, mask: Tensor, *, reduce: SumOverProcesses | None = None, shift_mean: bool = True) -> Tensor:
    """Values brought to a variance of 1 (unbiased) and, with `shift_mean`, a mean of 0, over what counts in all
    processes.

    Args:
        values: (targets,) of this process; may be empty.
        mask: (targets,), 1 where a target counts.
        reduce: sums a small tensor over the processes, every one of which must call; None where there is one.
        shift_mean: False keeps the mean, and with it the sign of a reward.

    Returns:
        (targets,); 0 where a target does not count.
    """
    add_up = reduce or (lambda sums: sums)
    is_counted = mask.bool()
    counted = torch.where(is_counted, values.double(), 0.0)
    total, count = add_up(torch.stack([counted.sum(), is_counted.sum().double()]))
    mean = total / count.clamp(min=1)
    differences = torch.where(is_counted, counted - mean, 0.0)
    squares = add_up(differences.square().sum()[None])[0]
    whitened = differences * (squares / (count - 1).clamp(min=1) + _EPSILON).rsqrt()
    if not shift_mean:
        whitened = torch.where(is_counted, whitened + mean, 0.0)
    return whitened.to(values.dtype)


def _ahead(values_T: Tensor, ids_T: Tensor, distance: int) -> Tensor:
    """(targets,): the value so many targets on, 0 past the end of the sequence; `ids_T` is in order."""
    ahead = torch.zeros_like(values_T)
    ahead[:-distance] = torch.where(ids_T[distance:] == ids_T[:-distance], values_T[distance:], 0.0)
    return ahead
