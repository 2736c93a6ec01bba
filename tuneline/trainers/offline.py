"""What the methods share that train a policy on completions written before, with a reference or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback

from tuneline.data.multimodal_rendering import ProcessingClass
from tuneline.data.tokenize import Tokenized
from tuneline.errors import ConfigError, DataError
from tuneline.logprobs import TargetLogprobs
from tuneline.models.adapters import adapters_off
from tuneline.models.layouts import prepare_for_trees
from tuneline.models.loading import add_adapter, disable_dropout, given_model
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    check_prompt_learning,
    default_args,
    ready_tokenizer,
    reject_compute_metrics,
    tokenize_all,
)
from tuneline.trainers.base_config import OfflineConfig
from tuneline.trainers.collators import Row, reading_images
from tuneline.trainers.reference import Reference, SyncReference, add_reference_adapter, frozen_copy
from tuneline.trees import PromptTrees


class PairSide(NamedTuple):
    """What is logged of the chosen, or of the rejected, completions of a batch."""

    logps: Tensor  # (pairs,)
    rewards: Tensor  # (pairs,)


class OfflineTrainer(BaseTrainer):
    """Base of the methods that train a policy on completions written before.

    A method names its configuration, and says how its rows are tokenised and laid out. A term of negative
    log-likelihood is a mean over all its tokens in the optimizer step: see `pooled_nll`.

    Args:
        model: a name or folder, a model, or a PEFT model; or `model_init`, which makes one.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    config_class: ClassVar[type[OfflineConfig]]
    takes_images: ClassVar[bool] = False
    args: Any

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: Any = None,
        data_collator: Callable[[list[Row]], Any] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: None = None,
        peft_config: PeftConfig | None = None,
        compute_metrics: None = None,
        quantization_config: Any = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        given = only_one(model, model_init)
        if args is None:
            args = default_args(self.config_class, given, self.config_class.__name__.removesuffix("Config"))
        policy = given_model(given, args, quantization_config)
        tokenizer = ready_tokenizer(processing_class, policy, args, takes_images=self.takes_images)
        continues_adapter = isinstance(policy, PeftModel) and peft_config is None
        policy = add_adapter(policy, peft_config)
        check_prompt_learning(policy, args)
        if args.disable_dropout:
            disable_dropout(policy)
        self.take_reference(policy, args, continues_adapter)

        def tokenize(rows: Rows, is_training: bool) -> Tokenized:
            return self.tokenize(rows, tokenizer, args, is_training)

        train_dataset, eval_dataset, reports = tokenize_all(tokenize, train_dataset, eval_dataset)
        self._nll_tokens_per_item: Tensor | None = None
        super().__init__(
            model=policy,
            args=args,
            tokenization_reports=reports,
            data_collator=data_collator or reading_images(self.collate, tokenizer),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    # What a method writes, beside its loss

    def tokenize(self, rows: Rows, tokenizer: ProcessingClass, args: Any, is_training: bool) -> Tokenized:
        """Rows as `collate` takes them."""
        raise NotImplementedError

    def take_reference(self, model: nn.Module, args: Any, continues_adapter: bool) -> None:
        """Make the reference, where the method has one, from a policy that has not trained yet."""

    @staticmethod
    def collate(rows: Sequence[Row]) -> Any:
        raise NotImplementedError

    def num_nll_tokens(self, batch: Any) -> Tensor | None:
        """(): tokens that the term of negative log-likelihood reads; None where there is no such term."""
        return None

    # What all share

    def count_step(self, batches: list[Any]) -> None:
        tokens = [n for batch in batches if (n := self.num_nll_tokens(batch)) is not None]
        if not tokens:
            return
        items = sum(self.num_items(batch) for batch in batches)
        own = torch.stack([torch.as_tensor(n, device=self.args.device) for n in (sum(tokens), items)])
        total_tokens, total_items = self.accelerator.reduce(own, "sum")
        self._nll_tokens_per_item = total_tokens / total_items

    def pooled_nll(self, nll: Tensor) -> Tensor:
        """(items,): from the negative log-likelihood of each item its share of the mean a token over the whole
        optimizer step, in evaluation over the batch."""
        assert self._nll_tokens_per_item is not None
        return nll / self._nll_tokens_per_item

    @torch.no_grad()
    def record_pairs(
        self,
        answers: TargetLogprobs,
        chosen: PairSide,
        rejected: PairSide,
        trees: PromptTrees,
        *,
        stride: int = 2,
        is_completion: Tensor | None = None,
    ) -> None:
        """Record what is logged of pairs.

        Args:
            stride: sequences an item; its first is the chosen one and its second the rejected.
            is_completion: (targets,), bool, where prompts have targets too.
        """
        sides = trees.sequence_ids % stride
        is_chosen, is_rejected = sides == 0, sides == 1
        if is_completion is not None:
            is_chosen, is_rejected = is_chosen & is_completion, is_rejected & is_completion
        self.record(
            {
                "mean_token_accuracy": ((answers.is_top1 * is_chosen).sum(), is_chosen.sum()),
                "logits/chosen": ((answers.mean_logits * is_chosen).sum(), is_chosen.sum()),
                "logits/rejected": ((answers.mean_logits * is_rejected).sum(), is_rejected.sum()),
                "logps/chosen": chosen.logps,
                "logps/rejected": rejected.logps,
                "rewards/chosen": chosen.rewards,
                "rewards/rejected": rejected.rewards,
                "rewards/accuracies": (chosen.rewards > rejected.rewards).float(),
                "rewards/margins": chosen.rewards - rejected.rewards,
            }
        )


class ReferencedTrainer(OfflineTrainer):
    """Base of the methods that hold a policy near a reference.

    The reference is a model of its own, by default a frozen copy of the policy; with a new adapter the policy without
    it; with an adapter that is trained on, a frozen copy of that adapter. Or it is asked once, before training, and
    freed.
    """

    args: Any
    reference: Reference
    reference_column: ClassVar[str]  # rows that have it bring the reference's answers along

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: Any = None,
        data_collator: Callable[[list[Row]], Any] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ):
        if ref_model is not None and ref_model is model:
            raise ConfigError(
                "model and ref_model are the same object, so both would train; leave ref_model out for a copy."
            )
        self._ref_model = ref_model
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
            quantization_config=quantization_config,
        )
        ref_model = self._ref_model
        del self._ref_model  # the reference, or nothing, holds it
        if self.args.precompute_ref_log_probs:
            self._precompute(ref_model)
            return
        self.reference = Reference(ref_model, self)
        if self.args.sync_ref_model:
            assert ref_model is not None
            alpha, every = self.args.ref_model_mixup_alpha, self.args.ref_model_sync_steps
            self.add_callback(SyncReference(ref_model, alpha=alpha, every=every))

    def take_reference(self, model: nn.Module, args: Any, continues_adapter: bool) -> None:
        if args.disable_dropout and self._ref_model is not None:
            disable_dropout(self._ref_model)
        if isinstance(model, PeftModel) and args.sync_ref_model:
            raise ConfigError(
                "sync_ref_model=True moves a reference model of its own; with adapters the reference is the base."
            )
        self._base_is_reference = isinstance(model, PeftModel) and not continues_adapter and self._ref_model is None
        if self._ref_model is None and not args.precompute_ref_log_probs:
            if continues_adapter:
                add_reference_adapter(model)
            elif not isinstance(model, PeftModel):
                self._ref_model = frozen_copy(model)

    def reference_columns(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """What the loss reads of the reference: columns of one value a row, each (rows,)."""
        raise NotImplementedError

    def _precompute(self, ref_model: PreTrainedModel | None) -> None:
        """Ask the reference of every data set once. Without a reference model it is the policy, which has not trained
        yet, without an adapter that is new."""
        model: Any = self.model if ref_model is None else ref_model
        prepare_for_trees(model)
        was_training = model.training
        model.to(self.args.device).eval()
        with adapters_off(model) if self._base_is_reference else nullcontext():
            if isinstance(self.eval_dataset, dict):
                self.eval_dataset = {name: self._with_columns(rows, model) for name, rows in self.eval_dataset.items()}
            elif self.eval_dataset is not None:
                self.eval_dataset = self._with_columns(self.eval_dataset, model)
            if self.train_dataset is not None:
                self.train_dataset = self._with_columns(self.train_dataset, model)
        model.train(was_training)

    @torch.no_grad()
    def _with_columns(self, rows: Any, model: nn.Module) -> Dataset:
        if not isinstance(rows, Dataset):
            raise DataError("precompute_ref_log_probs=True needs data sets of known length; this one streams.")
        if self.reference_column in rows.column_names:
            return rows
        size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        own: list[tuple[int, dict[str, list[float]]]] = []
        starts = list(range(0, len(rows), size))[rank::world]
        for start in tqdm(starts, desc="reference", disable=rank > 0 or self.args.disable_tqdm):
            batch = rows[start : start + size]
            batch = self.data_collator(
                [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            )
            with self.compute_loss_context_manager():
                columns = self.reference_columns(model, batch.to(self.args.device))
            own.append((start, {name: column.tolist() for name, column in columns.items()}))
        found = [columns for _, columns in sorted(gather_object(own), key=lambda part: part[0])]
        for name in found[0]:
            rows = rows.add_column(name, [value for columns in found for value in columns[name]])
        return rows


def only_one(model: Any, model_init: Callable[[], PreTrainedModel] | None) -> Any:
    if (model is None) == (model_init is None):
        given = "neither" if model is None else "both"
        raise ConfigError(f"{given} of model and model_init is given; give one.")
    return model if model_init is None else model_init()
