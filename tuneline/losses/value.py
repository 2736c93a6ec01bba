"""The loss of a value function, one value a target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLoss(NamedTuple):
    """What each target costs, with its gradient, and what to log of it."""

    losses: Tensor  # (targets,)
    is_clipped: Tensor  # (targets,) bool, the target does not move the value function: it has come far enough


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float | None = None
) -> ValueLoss:
    """Half the squared error against the returns, and where it is larger that of the value held near the old one
    (Schulman et al. 2017, arXiv:1707.06347, as its authors' code has it):

        0.5 * max((V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2)

    Args:
        values: (targets,), with their gradient.
        old_values: (targets,), before the first update on this experience.
        returns: (targets,), in the unit of the rewards.
        cliprange_value: how far a value may go from the old one, in the same unit; None for no bound.

    Raises:
        ValueError: `cliprange_value` is not above 0.
    """
    if cliprange_value is not None and cliprange_value <= 0:
        raise ValueError(f"cliprange_value={cliprange_value} must be above 0; None leaves values unbounded.")
    errors = (values - returns).square()
    if cliprange_value is None:
        return ValueLoss(errors / 2, torch.zeros_like(values, dtype=torch.bool))
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    errors_near = (near - returns).square()
    return ValueLoss(torch.maximum(errors, errors_near) / 2, errors_near > errors)
