"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tuneline.advantages import combine_rewards, leave_one_out
from tuneline.logprobs import token_logprobs
from tuneline.losses.policy import PolicyLoss, policy_loss, token_weights
from tuneline.losses.sequences import means_by_sequence
from tuneline.trainers.drawing import Drawn
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.online import OnlineTrainer
from tuneline.trainers.rloo_config import RLOOConfig


class RLOOTrainer(OnlineTrainer):
    """A whole completion is one action, and the mean reward of the others of its prompt its baseline. The items are
    completions; the KL penalty (k1, summed over the completion) is part of the reward.

    For the arguments and what is raised see `OnlineTrainer`.
    """

    args: RLOOConfig
    config_class = RLOOConfig
    method = "RLOO"
    takes_learned_prompts = True
    takes_images = True

    @property
    def needs_old_logprobs(self) -> bool:
        return super().needs_old_logprobs or self.args.beta != 0

    @property
    def reads_every_target(self) -> bool:
        return self.args.router_aux_loss_coef is not None

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        total = combine_rewards(rewards, self.rewards.weights)
        if self.args.reward_clip_range is not None:
            total = total.clamp(*self.args.reward_clip_range)
        if self.args.beta:
            total = total - self.args.beta * self.collector.log_ratios(scored)
        for one in scored:
            one.by_target.pop("old_entropies", None)
        return leave_one_out(total, group_ids, normalize=self.args.normalize_advantages)

    def num_items(self, experience: Experience) -> Any:
        return experience.num_sequences

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        trees = experience.trees
        ids, num_sequences = trees.sequence_ids, trees.num_sequences
        answers = token_logprobs(
            model,
            trees,
            temperature=self.sampling.temperature,
            with_entropy=True,
            with_aux_loss=self.args.router_aux_loss_coef is not None,
            support=experience.support,
        )
        found = policy_loss(
            answers.logprobs,
            experience.by_target.get("old_logprobs", answers.logprobs.detach()),
            experience.advantages[ids],
            ids,
            num_sequences,
            loss_type="grpo",
            importance_sampling_level="sequence_sum",
            epsilon=self.args.epsilon,
            epsilon_high=self.args.epsilon_high,
        )
        self._record_policy(answers.entropies, found, experience)
        losses = found.losses * token_weights("grpo", ids, num_sequences) * experience.weights[ids]
        if answers.aux_loss is not None and self.args.router_aux_loss_coef is not None:
            self.record({"aux_loss": answers.aux_loss})
            share = experience.num_sequences / max(len(losses), 1)  # of the batch in the step, over its targets
            losses = losses + self.args.router_aux_loss_coef * answers.aux_loss * share
        return losses

    def _record_policy(self, entropies: Tensor, found: PolicyLoss, experience: Experience) -> None:
        """What is left out of the trees counts too: of advantage 0, it is never clipped."""
        ids, weights, num_sequences = experience.trees.sequence_ids, experience.weights, experience.num_sequences
        counted = weights[ids]
        low, high = (
            means_by_sequence(flags.float(), ids, len(weights)) * weights
            for flags in (found.is_clipped_low, found.is_clipped_high)
        )
        is_whole = weights.sum() == num_sequences
        self.record(
            {
                "entropy": ((entropies * counted).sum(), counted.sum()),
                "clip_ratio/low_mean": (low.sum(), num_sequences),
                "clip_ratio/low_min": torch.where(is_whole, low.amin(), 0.0),
                "clip_ratio/high_mean": (high.sum(), num_sequences),
                "clip_ratio/high_max": high.amax(),
                "clip_ratio/region_mean": ((low + high).sum(), num_sequences),
            }
        )
