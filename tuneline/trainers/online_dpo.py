"""Direct preference optimization of completions that the policy draws itself (Guo et al. 2024, arXiv:2402.04792).

Deviations from TRL 1.16: pairs that the judge has no verdict on, or that have no reward, are left out and counted;
means are over the prompts of the whole optimizer step. As there, log-probabilities are the policy's own, of
temperature 1, whichever way completions were drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.preference import dpo_loss
from tuneline.trainers.base import Mode
from tuneline.trainers.drawing import Drawn
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.online_dpo_config import OnlineDPOConfig
from tuneline.trainers.pairs import PairedTrainer, in_pairs


class OnlineDPOTrainer(PairedTrainer):
    """The better of two completions, as a judge or rewards have it, is the chosen one; of equal ones the first.

    For the arguments and what is raised see `PairedTrainer`.
    """

    config_class = OnlineDPOConfig
    method = "OnlineDPO"

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        """1 for the chosen and -1 for the rejected completion of a pair, 0 for both where there is no verdict."""
        scores = self.total_scores(rewards, drawn)
        first_is_better = torch.where(scores[:, 0] >= scores[:, 1], 1.0, -1.0)
        is_known = ~scores.isnan().any(1)
        self.record_scores(scores[is_known])
        first_is_better = first_is_better * is_known
        return torch.stack([first_is_better, -first_is_better], 1).flatten()

    def record_scores(self, scores: Tensor) -> None:
        """`scores` (pairs, 2), of all processes."""
        self.record({"objective/scores": scores.flatten()})
        self.record({"objective/scores_margin": (scores[:, 0] - scores[:, 1]).abs()})

    def num_items(self, experience: Experience) -> Tensor:
        return experience.advantages.abs().sum() / 2

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        trees = experience.trees
        logps = in_pairs(sum_by_sequence(token_logprobs(model, trees).logprobs, trees))
        ref_logps = in_pairs(sum_by_sequence(experience.by_target["ref_logprobs"], trees))
        signs = in_pairs(experience.advantages)[:, :1]
        chosen_logps, rejected_logps = torch.where(signs >= 0, logps, logps.flip(1)).unbind(1)
        ref_chosen_logps, ref_rejected_logps = torch.where(signs >= 0, ref_logps, ref_logps.flip(1)).unbind(1)
        ones = torch.ones_like(chosen_logps)  # TRL's ipo reads sums here, where DPO reads means over tokens
        found = dpo_loss(
            chosen_logps,
            rejected_logps,
            ref_chosen_logps,
            ref_rejected_logps,
            beta=self.beta,
            loss_type=self.args.loss_type,
            chosen_lengths=ones,
            rejected_lengths=ones,
        )
        weights = signs[:, 0].abs()  # 0 where there is no verdict
        self._record_pairs(logps, ref_logps, chosen_logps, rejected_logps, weights)
        rewards = {"rewards/chosen": found.chosen_rewards, "rewards/rejected": found.rejected_rewards}
        margins = found.chosen_rewards - found.rejected_rewards
        rewards |= {"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}
        self.record({name: ((values * weights).sum(), weights.sum()) for name, values in rewards.items()})
        return (found.losses + self.extra_losses(logps, weights)) * weights

    def extra_losses(self, logps: Tensor, weights: Tensor) -> Tensor | float:
        """(pairs,), added to the losses: none here.

        Args:
            logps: (pairs, 2), of the first and second completion drawn.
            weights: (pairs,), 0 where nothing is learned from a pair.
        """
        return 0.0

    def _record_pairs(
        self, logps: Tensor, ref_logps: Tensor, chosen_logps: Tensor, rejected_logps: Tensor, weights: Tensor
    ) -> None:
        num_pairs = weights.sum()
        kl = ((logps - ref_logps).detach() * weights[:, None]).sum() / 2
        self.record(
            {
                "logps/chosen": ((chosen_logps.detach() * weights).sum(), num_pairs),
                "logps/rejected": ((rejected_logps.detach() * weights).sum(), num_pairs),
                "objective/kl": (kl, num_pairs),
                "objective/non_score_reward": (-self.beta * kl, num_pairs),
                "objective/entropy": (-(logps.detach() * weights[:, None]).sum() / 2, num_pairs),
                "beta": (torch.as_tensor(self.beta, device=logps.device) * num_pairs, num_pairs),
            }
        )

    def flush_metrics(self, mode: Mode) -> dict[str, float]:
        found = super().flush_metrics(mode)
        if "objective/scores" in found and "objective/non_score_reward" in found:
            found["objective/rlhf_reward"] = found["objective/scores"] + found["objective/non_score_reward"]
        return found
