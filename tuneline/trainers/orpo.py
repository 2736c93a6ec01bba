"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691): fine-tuning on the chosen completions, and
apart from the rejected ones, in one loss and without a reference."""

from __future__ import annotations

from torch import Tensor, nn

from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.reference_free import odds_ratio_loss
from tuneline.trainers.collators import collate_preferences_with_prompts
from tuneline.trainers.offline import PairSide
from tuneline.trainers.orpo_config import ORPOConfig
from tuneline.trainers.reference_free import ReferenceFreeTrainer
from tuneline.trees import PromptTrees


class ORPOTrainer(ReferenceFreeTrainer):
    """Likelihood of the chosen sequences, prompts included, plus the odds ratio; see `ReferenceFreeTrainer`."""

    config_class = ORPOConfig
    collate = staticmethod(collate_preferences_with_prompts)
    args: ORPOConfig

    def num_nll_tokens(self, trees: PromptTrees) -> Tensor:
        return trees.target_counts()[::2].sum()

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(model, trees, with_aux_loss=self.args.router_aux_loss_coef is not None)
        in_completion = is_completion(trees)
        num_tokens = sum_by_sequence(in_completion.float(), trees)
        logps = sum_by_sequence(answers.logprobs * in_completion, trees) / num_tokens.clamp(min=1)  # a token
        nll = -sum_by_sequence(answers.logprobs, trees)[::2]
        ratio = odds_ratio_loss(logps[::2], logps[1::2])
        self.record(
            {
                "nll_loss": (nll.sum(), self.num_nll_tokens(trees)),
                "log_odds_ratio": -ratio.losses,
                "log_odds_chosen": ratio.log_odds_ratios,
            }
        )
        chosen, rejected = (PairSide(side, self.args.beta * side.detach()) for side in (logps[::2], logps[1::2]))
        self.record_pairs(answers, chosen, rejected, trees, is_completion=in_completion)
        return self.add_aux_loss(self.pooled_nll(nll) + self.args.beta * ratio.losses, answers.aux_loss)


def is_completion(trees: PromptTrees) -> Tensor:
    """(targets,), bool: whether a target belongs to a completion, where prompts have targets too."""
    position_in_sequence = trees.position_ids[0, trees.target_positions] + 1
    return position_in_sequence >= trees.columns["prompt_lengths"][trees.tree_ids[trees.sequence_ids]]
