"""Entropy of the policy: training on the uncertain tokens alone, and a bonus that keeps it from collapsing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def entropy_threshold(
    entropies: Tensor, top_entropy_quantile: float, sum_over_processes: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The entropy that the given share of all tokens reaches (Wang et al. 2025, arXiv:2506.01939).

    The quantile 1 - `top_entropy_quantile` with linear interpolation, of the entropies of all processes, found by
    bisection over the bits of float32: each of 31 steps sums two counts over the processes, nothing is gathered, and no
    number of tokens is too many (`torch.quantile` stops at 2^24 values).

    Args:
        entropies: (targets,) of this process, in nats; may be empty. No padding.
        top_entropy_quantile: the share to keep, in [0, 1]; 1 keeps all, 0 the highest.
        sum_over_processes: sums an integer tensor over the processes; None where there is one.

    Returns:
        (), float32; infinite where no process has a token.
    """
    if not 0 <= top_entropy_quantile <= 1:
        raise ValueError(
            f"top_entropy_quantile={top_entropy_quantile} must lie in [0, 1]: it is a share of the tokens."
        )
    add_up = sum_over_processes or (lambda counts: counts)
    # the bits of floats that are not negative are ordered as the floats are
    bits = entropies.detach().float().clamp(min=0).contiguous().view(torch.int32)
    num_tokens = add_up(torch.tensor([len(bits)], device=bits.device))
    # rounded, since 1 - 0.9 is not 0.1 and would fall below the rank it means
    rank = ((num_tokens - 1).clamp(min=0).double() * (1 - top_entropy_quantile)).round(decimals=6)
    ranks = torch.cat([rank.floor(), rank.ceil()]).long()
    low = torch.zeros_like(ranks)
    high = torch.full_like(ranks, torch.iinfo(torch.int32).max)
    for _ in range(31):
        middle = (low + high) // 2
        is_reached = add_up(torch.stack([(bits <= bound).sum() for bound in middle])) > ranks
        high = torch.where(is_reached, middle, high)
        low = torch.where(is_reached, low, middle + 1)
    floor, ceiling = low.to(torch.int32).view(torch.float32)
    threshold = torch.lerp(floor, ceiling, (rank - rank.floor()).float()[0])
    return torch.where(num_tokens[0] > 0, threshold, math.inf)


def top_entropy_mask(entropies: Tensor, threshold: Tensor | float) -> Tensor:
    """(targets,), bool: the targets of which `entropies` (targets,) reaches the threshold of `entropy_threshold`."""
    return entropies.detach().float().clamp(min=0) >= threshold


def entropy_bonus(
    entropies: Tensor,
    coefficient: float,
    *,
    num_items: int | Tensor,
    num_targets: int | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """What to add to the weighted losses, so that the step's loss falls by the coefficient times the mean entropy.

    Args:
        entropies: (targets,), in nats, with their gradient.
        coefficient: how much a nat is worth.
        num_items: what the sum of the step's weighted losses is divided by.
        num_targets: the targets of the whole step that the bonus acts on.
        mask: (targets,), 1 where the bonus acts; None for all.

    Returns:
        (targets,): -coefficient * entropy * num_items / num_targets.
    """
    scale = num_items / torch.as_tensor(num_targets, device=entropies.device).clamp(min=1)
    bonus = -coefficient * scale * entropies
    return bonus if mask is None else bonus * mask


class AdaptiveEntropyCoefficient:
    """Holds the policy's entropy at a target (Skywork-OR1, He et al. 2025, arXiv:2505.22312).

    The coefficient rises by `delta` after each optimizer step whose mean entropy was at most the target, and falls by
    it after the others; it acts only while the last entropy was at most the target. Before the first measurement
    it does not act.

    Args:
        coefficient: the first.
        minimum, maximum: its bounds.
        target: in nats a token.
    """

    def __init__(
        self,
        coefficient: float = 0.0,
        *,
        minimum: float = 0.0,
        maximum: float = 1.0,
        delta: float = 0.005,
        target: float = 0.2,
    ) -> None:
        if minimum > maximum:
            raise ValueError(f"minimum={minimum} is above maximum={maximum}.")
        if delta <= 0:
            raise ValueError(f"delta={delta} must be above 0: by this much the coefficient changes at a step.")
        self.coefficient = coefficient
        self.minimum = minimum
        self.maximum = maximum
        self.delta = delta
        self.target = target
        self.last_entropy: float | None = None

    @property
    def applied(self) -> float:
        """The coefficient of this step: 0 while the entropy is above its target."""
        is_low = self.last_entropy is not None and self.last_entropy <= self.target
        return self.coefficient if is_low else 0.0

    def update(self, mean_entropy: float) -> None:
        """Once an optimizer step, with the mean entropy over the targets of all its micro-batches and processes."""
        if mean_entropy <= self.target:
            self.coefficient = min(self.coefficient + self.delta, self.maximum)
        else:
            self.coefficient = max(self.coefficient - self.delta, self.minimum)
        self.last_entropy = mean_entropy

    def state_dict(self) -> dict[str, float | None]:
        return {"coefficient": self.coefficient, "last_entropy": self.last_entropy}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        coefficient = state["coefficient"]
        assert coefficient is not None
        self.coefficient, self.last_entropy = coefficient, state["last_entropy"]
