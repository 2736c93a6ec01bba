"""Contrastive Preference Optimization (Xu et al. 2024, arXiv:2401.08417), with SimPO and AlphaPO as losses."""

from __future__ import annotations

from torch import Tensor, nn

from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.reference_free import LENGTH_NORMALIZED_LOSS_TYPES, reference_free_loss
from tuneline.trainers.collators import collate_preferences
from tuneline.trainers.cpo_config import CPOConfig
from tuneline.trainers.offline import PairSide
from tuneline.trainers.reference_free import ReferenceFreeTrainer
from tuneline.trees import PromptTrees


class CPOTrainer(ReferenceFreeTrainer):
    """Preference without a reference, plus the likelihood of the chosen completions; see `ReferenceFreeTrainer`."""

    config_class = CPOConfig
    collate = staticmethod(collate_preferences)
    args: CPOConfig

    def num_nll_tokens(self, trees: PromptTrees) -> Tensor | None:
        return trees.target_counts()[::2].sum() if self.args.cpo_alpha else None

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(model, trees, with_aux_loss=self.args.router_aux_loss_coef is not None)
        sums = sum_by_sequence(answers.logprobs, trees)
        is_mean = self.args.loss_type in LENGTH_NORMALIZED_LOSS_TYPES
        logps = sums / trees.target_counts().clamp(min=1) if is_mean else sums
        found = reference_free_loss(
            logps[::2],
            logps[1::2],
            beta=self.args.beta,
            loss_type=self.args.loss_type,
            label_smoothing=self.args.label_smoothing,
            margin=self.args.simpo_gamma,
            alpha=self.args.alpha,
        )
        nll = -sums[::2]
        losses = found.losses
        if self.args.cpo_alpha:
            losses = losses + self.args.cpo_alpha * self.pooled_nll(nll)
        self.record({"nll_loss": (nll.sum(), trees.target_counts()[::2].sum())})
        chosen = PairSide(logps[::2], found.chosen_rewards)
        self.record_pairs(answers, chosen, PairSide(logps[1::2], found.rejected_rewards), trees)
        return self.add_aux_loss(losses, answers.aux_loss)
