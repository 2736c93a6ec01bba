"""Direct Preference Optimization and its relatives (Rafailov et al. 2023, arXiv:2305.18290; losses/preference.py names
each).

Pairs are prompt trees with two branches, so a prompt is computed once for both completions, by the policy and by the
reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tuneline.data.multimodal_rendering import ProcessingClass
from tuneline.data.tokenize import Tokenized, tokenize_for_preference
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.preference import dpo_loss, length_desensitized_logps, wpo_weights
from tuneline.trainers.base import Rows
from tuneline.trainers.collators import collate_preferences
from tuneline.trainers.dpo_config import DPOConfig
from tuneline.trainers.offline import PairSide, ReferencedTrainer
from tuneline.trees import PromptTrees


class DPOTrainer(ReferencedTrainer):
    """Preference optimization against a reference; the items are pairs.

    Args:
        model: a name or folder, a model, or a PEFT model.
        ref_model: the reference. None: a frozen copy of the model; with a new adapter, the model without it; with an
            adapter that is trained on, a frozen copy of that adapter.
        train_dataset, eval_dataset: preferences (`chosen`, `rejected`, `prompt` if any), standard or conversational;
            those with `images` or `image` need a vision-language model.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    config_class = DPOConfig
    collate = staticmethod(collate_preferences)
    reference_column = "ref_chosen_logps"
    takes_images = True
    args: DPOConfig

    def tokenize(self, rows: Rows, tokenizer: ProcessingClass, args: DPOConfig, is_training: bool) -> Tokenized:
        return tokenize_for_preference(
            rows,
            tokenizer,
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            num_proc=args.dataset_num_proc,
        )

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_sequences // 2

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(
            model,
            trees,
            with_entropy=True,
            with_probability_mass=self.args.use_weighting,
            with_aux_loss=self.args.router_aux_loss_coef is not None,
        )
        logps = self.logps(answers.logprobs, trees)  # (sequences,) chosen and rejected in turns
        ref_logps = self.ref_logps(trees)
        chosen_lengths, rejected_lengths = (
            n.float() for n in (trees.target_counts()[::2], trees.target_counts()[1::2])
        )
        weights = self.args.loss_weights or [1.0] * len(self.args.loss_type)
        losses = torch.zeros_like(logps[::2])
        for loss_type, weight in zip(self.args.loss_type, weights, strict=True):
            if loss_type == "sft":
                losses = losses + weight * self.pooled_nll(-sum_by_sequence(answers.logprobs, trees)[::2])
                continue
            losses = (
                losses
                + weight
                * dpo_loss(
                    logps[::2],
                    logps[1::2],
                    ref_logps[::2],
                    ref_logps[1::2],
                    beta=self.args.beta,
                    loss_type=loss_type,
                    label_smoothing=self.args.label_smoothing,
                    f_divergence_type=self.args.f_divergence_type,
                    f_alpha_divergence_coef=self.args.f_alpha_divergence_coef,
                    discopop_tau=self.args.discopop_tau,
                    chosen_lengths=chosen_lengths,
                    rejected_lengths=rejected_lengths,
                ).losses
            )
        if self.args.use_weighting:
            losses = losses * wpo_weights(
                answers.logprobs.detach(), answers.log_probability_mass, trees.sequence_ids, trees.num_sequences
            )
        self.record({"entropy": answers.entropies})
        rewards = self.args.beta * (logps - ref_logps).detach()
        self.record_pairs(answers, PairSide(logps[::2], rewards[::2]), PairSide(logps[1::2], rewards[1::2]), trees)
        return self.add_aux_loss(losses, answers.aux_loss)

    def logps(self, logprobs: Tensor, trees: PromptTrees) -> Tensor:
        """(sequences,): summed log-probabilities, length-desensitized where `ld_alpha` asks for it."""
        if self.args.ld_alpha is None:
            return sum_by_sequence(logprobs, trees)
        return length_desensitized_logps(logprobs, trees.sequence_ids, trees.num_sequences, self.args.ld_alpha)

    def ref_logps(self, trees: PromptTrees) -> Tensor:
        if "ref_logps" in trees.columns:
            return trees.columns["ref_logps"]
        return self.logps(self.reference.logprobs(trees), trees)

    def num_nll_tokens(self, trees: PromptTrees) -> Tensor | None:
        return trees.target_counts()[::2].sum() if "sft" in self.args.loss_type else None

    def reference_columns(self, model: nn.Module, trees: PromptTrees) -> dict[str, Tensor]:
        logps = self.logps(token_logprobs(model, trees).logprobs, trees)
        return {"ref_chosen_logps": logps[::2], "ref_rejected_logps": logps[1::2]}
