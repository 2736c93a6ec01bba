"""The loss of outcome reward models over preference pairs (Bradley-Terry), one value a pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def reward_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, center_rewards_coefficient: float | None = None
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

    Args:
        chosen: (pairs,), score of the chosen completion.
        rejected: (pairs,), score of the rejected completion.
        margin: (pairs,), by how much the chosen one should win (Touvron et al. 2023, arXiv:2307.09288, eq. 2).
        center_rewards_coefficient: weight of the squared sum of the two scores, which draws their mean to 0
            (Eisenstein et al. 2023, arXiv:2312.09244).

    Returns:
        (pairs,)
    """
    differences = chosen - rejected
    if margin is not None:
        differences = differences - margin
    losses = -F.logsigmoid(differences)
    if center_rewards_coefficient is not None:
        losses = losses + center_rewards_coefficient * (chosen + rejected).square()
    return losses
