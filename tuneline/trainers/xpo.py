"""Exploratory preference optimization (Xie et al. 2024, arXiv:2405.21046, algorithm 1): online DPO between a completion
of the policy and one of the reference, with a bonus for making the reference's unlikely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.drawing import Drawn
from tuneline.trainers.online_dpo import OnlineDPOTrainer
from tuneline.trainers.xpo_config import XPOConfig


class XPOTrainer(OnlineDPOTrainer):
    """Online DPO of the policy's completion against the reference's, plus alpha times the log-probability that the
    policy gives to the latter. The reference draws by the transformers engine, whatever the policy draws by.

    For the arguments and what is raised see `PairedTrainer`.
    """

    args: XPOConfig
    config_class = XPOConfig
    method = "XPO"

    def draw(self, rows: list[dict[str, Any]], seeds: list[int]) -> Drawn:
        assert self.reference is not None
        model, as_reference = self.reference.callable_model()
        firsts = self.collector.draw(rows[::2], seeds[::2])
        with as_reference(), self.compute_loss_context_manager():
            engine = TransformersEngine(model, max_cached_tokens=self.args.generation_tokens)
            return self.with_seconds(firsts, engine, rows, seeds)

    def record_scores(self, scores: Tensor) -> None:
        super().record_scores(scores)
        self.record({"objective/model_scores": scores[:, 0], "objective/ref_scores": scores[:, 1]})

    def extra_losses(self, logps: Tensor, weights: Tensor) -> Tensor:
        alpha = self.of_this_epoch(self.args.alphas)
        bonuses = alpha * logps[:, 1]
        num_pairs = weights.sum()
        self.record(
            {
                "loss/xpo": ((bonuses.detach() * weights).sum(), num_pairs),
                "alpha": (torch.as_tensor(alpha, device=weights.device) * num_pairs, num_pairs),
            }
        )
        return bonuses
