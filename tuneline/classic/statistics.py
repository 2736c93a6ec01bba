"""What `step` reports, under the names of TRL 0.11. Means are over what counts: tokens, sequences, processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuneline.losses.sequences import sums_by_sequence

Summed = Callable[[Tensor], Tensor]


class Before(NamedTuple):
    """What is known of a batch before its first update. All (targets,), float32."""

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    kl: Tensor  # of the kind that `kl_penalty` names, in nats


class Credit(NamedTuple):
    """What the targets of a batch are worth."""

    before: Before
    rewards: Tensor  # (targets,)
    advantages: Tensor  # (targets,) whitened
    returns: Tensor  # (targets,)
    scores: Tensor  # (sequences,) as they entered the rewards
    sequence_ids: Tensor  # (targets,)
    num_sequences: int


@dataclass
class Updates:
    """Sums over the targets of all passes of a batch, on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    ratios: list[Tensor] = field(default_factory=list)
    num_skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))

    def add(self, **values: Tensor) -> None:
        """Each (targets,), all of the same targets."""
        some = next(iter(values.values()))
        count = torch.tensor(float(len(some)), dtype=torch.float64, device=some.device)
        for name, value in {**{n: v.detach().double().sum() for n, v in values.items()}, "count": count}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value


def statistics(credit: Credit, updates: Updates, kl_coef: float, vf_coef: float, reduce: Summed) -> dict[str, Any]:
    """Numbers over all processes; arrays of this one, `objective/*` and `ppo/policy/advantages` one a target of the
    batch, `ppo/policy/ratio` one a target of every pass.

    Args:
        kl_coef: what entered the rewards.
        reduce: sums a small tensor over the processes.
    """
    before = credit.before
    kl_by_sequence = sums_by_sequence(before.kl, credit.sequence_ids, credit.num_sequences)
    surprise = sums_by_sequence(-before.logprobs, credit.sequence_ids, credit.num_sequences)
    mean_kl, _ = moments(kl_by_sequence, reduce)
    mean_score, std_score = moments(credit.scores, reduce)
    mean_return, std_return = moments(credit.returns, reduce)
    mean_value, std_value = moments(before.values, reduce)
    names = sorted(updates.sums)
    total = dict(zip(names, reduce(torch.stack([updates.sums[name].cpu() for name in names])).tolist(), strict=True))
    passed = {name: value / total["count"] for name, value in total.items()}
    var_return = std_return**2
    return {
        "objective/kl": mean_kl,
        "objective/kl_dist": _array(kl_by_sequence),
        "objective/logprobs": _array(before.logprobs),
        "objective/ref_logprobs": _array(before.ref_logprobs),
        "objective/kl_coef": kl_coef,
        "objective/entropy": moments(surprise, reduce)[0],
        "ppo/mean_non_score_reward": -kl_coef * moments(before.kl, reduce)[0],
        "ppo/mean_scores": mean_score,
        "ppo/std_scores": std_score,
        "ppo/loss/policy": passed["policy_loss"],
        "ppo/loss/value": passed["value_loss"],
        "ppo/loss/total": passed["policy_loss"] + vf_coef * passed["value_loss"],
        "ppo/policy/entropy": passed["entropy"],
        "ppo/policy/approxkl": passed["approxkl"],
        "ppo/policy/policykl": passed["policykl"],
        "ppo/policy/clipfrac": passed["policy_clipped"],
        "ppo/policy/advantages": _array(credit.advantages),
        "ppo/policy/advantages_mean": moments(credit.advantages, reduce)[0],
        "ppo/policy/ratio": _array(torch.cat(updates.ratios)),
        "ppo/returns/mean": mean_return,
        "ppo/returns/var": var_return,
        "ppo/val/vpred": passed["value"],
        "ppo/val/error": passed["value_error"],
        "ppo/val/clipfrac": passed["value_clipped"],
        "ppo/val/mean": mean_value,
        "ppo/val/var": std_value**2,
        "ppo/val/var_explained": 1 - passed["value_error"] / var_return if var_return else 0.0,
    }


def lengths(name: str, values: list[int], reduce: Summed) -> dict[str, Any]:
    """Mean, deviation and all of the lengths of queries or responses, in tokens."""
    all_lengths = torch.tensor(values, dtype=torch.float32)
    mean, std = moments(all_lengths, reduce)
    return {
        f"tokens/{name}_len_mean": mean,
        f"tokens/{name}_len_std": std,
        f"tokens/{name}_dist": all_lengths.numpy(),
    }


def moments(values: Tensor, reduce: Summed) -> tuple[float, float]:
    """Mean and standard deviation (unbiased; 0 for one value) over all processes."""
    numbers = values.detach().double().cpu()
    total, count = reduce(torch.stack([numbers.sum(), torch.tensor(float(len(numbers)), dtype=torch.float64)])).tolist()
    mean = total / max(count, 1)
    squares = reduce((numbers - mean).square().sum()[None]).item()
    return mean, math.sqrt(squares / (count - 1)) if count > 1 else 0.0


def scalars(stats: Mapping[str, Any]) -> dict[str, float]:
    """Those of the statistics that are single numbers."""
    return {name: value for name, value in stats.items() if isinstance(value, float | int)}


def _array(values: Tensor) -> Any:
    return values.detach().float().cpu().numpy()
