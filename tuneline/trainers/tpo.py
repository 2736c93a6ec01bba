"""Triple Preference Optimization (Saeidi et al. 2024, arXiv:2405.16681): a preference without a reference model, plus
the likelihood of a third, gold response. All three are branches of one tree, so their prompt is computed once."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenize import Tokenized, tokenize_completions
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.reference_free import LENGTH_NORMALIZED_LOSS_TYPES, reference_free_loss
from tuneline.trainers.base import Rows
from tuneline.trainers.collators import collate_triples
from tuneline.trainers.offline import OfflineTrainer, PairSide
from tuneline.trainers.tpo_config import TPOConfig
from tuneline.trees import PromptTrees


class TPOTrainer(OfflineTrainer):
    """Preference optimization with a gold response; the items are triples.

    Args:
        model: a name or folder, a model, or a PEFT model.
        train_dataset, eval_dataset: preferences with a third column, `reference`, the gold response; `prompt` if any;
            standard or conversational.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    config_class = TPOConfig
    collate = staticmethod(collate_triples)
    args: TPOConfig

    def tokenize(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, args: TPOConfig, is_training: bool) -> Tokenized:
        sides = ["chosen", "rejected", "reference"]
        return tokenize_completions(
            rows,
            tokenizer,
            sides if args.tpo_alpha else sides[:2],
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            num_proc=args.dataset_num_proc,
        )

    @property
    def num_branches(self) -> int:
        """Sequences an item: chosen, rejected and, where its likelihood counts, the gold response."""
        return 3 if self.args.tpo_alpha else 2

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_sequences // self.num_branches

    def num_nll_tokens(self, trees: PromptTrees) -> Tensor | None:
        return trees.target_counts()[2::3].sum() if self.args.tpo_alpha else None

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(
            model, trees, with_entropy=True, with_aux_loss=self.args.router_aux_loss_coef is not None
        )
        sums = sum_by_sequence(answers.logprobs, trees)
        is_mean = self.args.loss_type in LENGTH_NORMALIZED_LOSS_TYPES
        logps = sums / trees.target_counts().clamp(min=1) if is_mean else sums
        chosen, rejected = logps[:: self.num_branches], logps[1 :: self.num_branches]
        found = reference_free_loss(
            chosen,
            rejected,
            beta=self.args.beta,
            loss_type=self.args.loss_type,
            label_smoothing=self.args.label_smoothing,
            margin=self.args.tpo_l_gamma,
        )
        losses = found.losses
        if self.args.tpo_alpha:
            losses = losses + self.args.tpo_alpha * self.pooled_nll(-sums[2::3])
        self.record({"entropy": answers.entropies})
        sides = PairSide(chosen, found.chosen_rewards), PairSide(rejected, found.rejected_rewards)
        self.record_pairs(answers, *sides, trees, stride=self.num_branches)
        return self.add_aux_loss(losses, answers.aux_loss)
