"""The loss of process reward models, one value a step."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def step_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each step's label (Lightman et al. 2023, arXiv:2305.20050).

    Args:
        logits: (steps, labels), where each step ends.
        labels: (steps,), 1 for a right step and 0 for a wrong one.

    Returns:
        (steps,)
    """
    return F.cross_entropy(logits, labels, reduction="none")
