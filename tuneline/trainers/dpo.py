"""Direct Preference Optimization and its relatives (Rafailov et al. 2023, arXiv:2305.18290; losses/preference.py names
each).

Pairs are prompt trees with two branches, so a prompt is computed once for both completions, by the policy and by the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback

from tuneline.data.tokenize import Tokenized, tokenize_for_preference
from tuneline.errors import ConfigError, DataError
from tuneline.logprobs import TargetLogprobs, sum_by_sequence, token_logprobs
from tuneline.losses.preference import dpo_loss, length_desensitized_logps, wpo_weights
from tuneline.models.layouts import prepare_for_trees
from tuneline.models.loading import add_adapter, disable_dropout, load_causal_lm
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    default_args,
    ready_tokenizer,
    reject_compute_metrics,
    reject_prompt_learning,
    tokenize_all,
)
from tuneline.trainers.collators import collate_preferences
from tuneline.trainers.dpo_config import DPOConfig
from tuneline.trainers.reference import Reference, SyncReference, add_reference_adapter, frozen_copy
from tuneline.trees import PromptTrees


class DPOTrainer(BaseTrainer):
    """Preference optimization against a reference; the items are pairs.

    Args:
        model: a name or folder, a model, or a PEFT model.
        ref_model: the reference. None: a frozen copy of the model; with a new adapter, the model without it; with an
            adapter
            that is trained on, a frozen copy of that adapter.
        train_dataset, eval_dataset: preferences (`chosen`, `rejected`, `prompt` if any), standard or conversational.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: DPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], PromptTrees] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ):
        if args is None:
            args = default_args(DPOConfig, model, "DPO")
        reject_compute_metrics(compute_metrics, None)
        if ref_model is not None and ref_model is model:
            raise ConfigError(
                "model and ref_model are the same object, so both would train; leave ref_model out for a copy."
            )
        if isinstance(model, str):
            quantization = {} if quantization_config is None else {"quantization_config": quantization_config}
            model = load_causal_lm(
                model, args.model_init_kwargs, trust_remote_code=args.trust_remote_code, **quantization
            )
        tokenizer = ready_tokenizer(processing_class, model, args)
        continues_adapter = isinstance(model, PeftModel) and peft_config is None
        model = add_adapter(model, peft_config)
        reject_prompt_learning(model)
        if args.disable_dropout:
            disable_dropout(model)
            if ref_model is not None:
                disable_dropout(ref_model)
        has_own_base = isinstance(model, PeftModel)
        if has_own_base and args.sync_ref_model:
            raise ConfigError(
                "sync_ref_model=True moves a reference model of its own; with adapters the reference is the base."
            )
        if ref_model is None and not args.precompute_ref_log_probs:
            if continues_adapter:
                add_reference_adapter(model)
            elif not has_own_base:
                ref_model = frozen_copy(model)

        def tokenize(rows: Rows, is_training: bool) -> Tokenized:
            return tokenize_for_preference(
                rows,
                tokenizer,
                max_length=args.max_length,
                truncation_mode=args.truncation_mode,
                num_proc=args.dataset_num_proc,
            )

        train_dataset, eval_dataset, reports = tokenize_all(tokenize, train_dataset, eval_dataset)
        super().__init__(
            model=model,
            args=args,
            tokenization_reports=reports,
            data_collator=data_collator or collate_preferences,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._chosen_tokens_per_pair: Tensor | None = None
        if args.precompute_ref_log_probs:
            self._precompute(ref_model)
        else:
            self.reference = Reference(ref_model, self)
            if args.sync_ref_model:
                self.add_callback(
                    SyncReference(
                        ref_model, self.accelerator, alpha=args.ref_model_mixup_alpha, every=args.ref_model_sync_steps
                    )
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
                losses = losses + weight * self.chosen_nll(answers.logprobs, trees)
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
        self.record_pairs(answers, logps, self.args.beta * (logps - ref_logps), trees)
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

    def chosen_nll(self, logprobs: Tensor, trees: PromptTrees) -> Tensor:
        """(pairs,): a pair's share of the negative log-likelihood a chosen token: a mean over the whole optimizer step.

        In evaluation it is a mean over the batch.
        """
        assert self._chosen_tokens_per_pair is not None
        return -sum_by_sequence(logprobs, trees)[::2] / self._chosen_tokens_per_pair

    def count_step(self, batches: list[PromptTrees]) -> None:
        if "sft" not in self.args.loss_type:
            return
        tokens = sum(batch.target_counts()[::2].sum() for batch in batches)
        pairs = sum(self.num_items(batch) for batch in batches)
        counts = torch.stack([torch.as_tensor(n, device=self.args.device) for n in (tokens, pairs)])
        total_tokens, total_pairs = self.accelerator.reduce(counts, "sum")
        self._chosen_tokens_per_pair = total_tokens / total_pairs

    @torch.no_grad()
    def record_pairs(self, answers: TargetLogprobs, logps: Tensor, rewards: Tensor, trees: PromptTrees) -> None:
        chosen, rejected = rewards[::2], rewards[1::2]
        is_chosen = trees.sequence_ids % 2 == 0
        self.record(
            {
                "entropy": answers.entropies,
                "mean_token_accuracy": ((answers.is_top1 * is_chosen).sum(), is_chosen.sum()),
                "logits/chosen": ((answers.mean_logits * is_chosen).sum(), is_chosen.sum()),
                "logits/rejected": ((answers.mean_logits * ~is_chosen).sum(), (~is_chosen).sum()),
                "logps/chosen": logps[::2],
                "logps/rejected": logps[1::2],
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/accuracies": (chosen > rejected).float(),
                "rewards/margins": chosen - rejected,
            }
        )

    def _precompute(self, ref_model: PreTrainedModel | None) -> None:
        """Ask the reference of every data set once. Without a reference model it is the policy, which has not trained
        yet."""
        model = self.model if ref_model is None else ref_model
        prepare_for_trees(model)
        was_training = model.training
        model.to(self.args.device).eval()
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._with_ref_logps(rows, model) for name, rows in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_ref_logps(self.eval_dataset, model)
        if self.train_dataset is not None:
            self.train_dataset = self._with_ref_logps(self.train_dataset, model)
        model.train(was_training)

    @torch.no_grad()
    def _with_ref_logps(self, rows: Any, model: PreTrainedModel) -> Dataset:
        if not isinstance(rows, Dataset):
            raise DataError("precompute_ref_log_probs=True needs data sets of known length; this one streams.")
        if "ref_chosen_logps" in rows.column_names:
            return rows
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        own: list[tuple[int, list[float]]] = []
        for start in tqdm(
            list(self._starts(rows))[rank::world], desc="reference", disable=rank > 0 or self.args.disable_tqdm
        ):
            batch = rows[start : start + self._ref_batch_size]
            trees = collate_preferences(
                [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            )
            trees = trees.to(self.args.device)
            with self.compute_loss_context_manager():
                own.append((start, self.logps(token_logprobs(model, trees).logprobs, trees).tolist()))
        logps = [logp for _, found in sorted(gather_object(own)) for logp in found]
        rows = rows.add_column("ref_chosen_logps", logps[::2])
        return rows.add_column("ref_rejected_logps", logps[1::2])

    @property
    def _ref_batch_size(self) -> int:
        return self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size

    def _starts(self, rows: Dataset) -> Iterator[int]:
        return iter(range(0, len(rows), self._ref_batch_size))
