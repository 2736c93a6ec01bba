"""Supervised fine-tuning of causal language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from tuneline.chat_templates.masking import masking_template
from tuneline.data.images import check_images_are_read
from tuneline.data.packing import pack_dataset
from tuneline.data.tokenize import Tokenized, tokenize_for_sft
from tuneline.errors import ConfigError
from tuneline.logprobs import token_logprobs
from tuneline.models.loading import add_adapter, given_model
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    check_prompt_learning,
    default_args,
    ready_tokenizer,
    reject_compute_metrics,
    tokenize_all,
)
from tuneline.trainers.collators import collate_texts, reading_images
from tuneline.trainers.sft_config import SFTConfig
from tuneline.trees import PromptTrees


class SFTTrainer(BaseTrainer):
    """Supervised fine-tuning; the items are target tokens.

    Args:
        model: a name or folder, a model, or a PEFT model.
        args: `SFTConfig`; plain `TrainingArguments` take the rest from its defaults.
        train_dataset, eval_dataset: language modelling (`text`, `messages`, ShareGPT `conversations`),
            prompt-completion
            (`prompt`, `completion`), standard or conversational, or tokenised (`input_ids` and masks or `labels`).
            Rows with `images` or `image` need a vision-language model.
        processing_class: a tokenizer; for a vision-language model its processor.
        formatting_func: makes a text of a row.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: SFTConfig
    config_class = SFTConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], PromptTrees] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        compute_loss_func: None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ):
        if args is None:
            args = default_args(SFTConfig, model, "SFT")
        elif not isinstance(args, SFTConfig):
            args = SFTConfig(**{k: v for k, v in args.to_dict().items() if k in SFTConfig.__dataclass_fields__})
        assert isinstance(args, SFTConfig)
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        if compute_loss_func is not None:
            raise ConfigError(
                "compute_loss_func needs logits, which are never made; override `loss` in a subclass instead."
            )
        model = given_model(model, args, quantization_config)
        tokenizer = ready_tokenizer(
            processing_class, model, args, args.eos_token, args.chat_template_path, takes_images=True
        )
        chat_template = masking_template(tokenizer) if args.assistant_only_loss else None
        model = add_adapter(model, peft_config)
        check_prompt_learning(model, args)

        def tokenize(rows: Rows, is_training: bool) -> Tokenized:
            packs = args.packing if is_training or args.eval_packing is None else args.eval_packing
            if packs and check_images_are_read(tokenizer, rows, "the data set"):
                raise ConfigError("packing=True joins texts, and the data set has images beside them; set it to False.")
            assert not isinstance(args.dataset_kwargs, str)  # parsed by TrainingArguments
            as_they_are = bool((args.dataset_kwargs or {}).get("skip_prepare_dataset"))
            keeps_overflow = packs and args.packing_strategy != "bfd"
            tokenized = tokenize_for_sft(
                rows,
                tokenizer,
                max_length=None if as_they_are or keeps_overflow else args.max_length,
                truncation_mode=args.truncation_mode,
                dataset_text_field=args.dataset_text_field,
                completion_only_loss=args.completion_only_loss,
                assistant_only_loss=args.assistant_only_loss,
                formatting_func=formatting_func,
                eos_token=args.eos_token,
                chat_template=chat_template,
                num_proc=args.dataset_num_proc,
            )
            dataset = tokenized.dataset
            if is_training and args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            if packs:
                assert args.max_length is not None
                dataset = pack_dataset(dataset, args.max_length, args.packing_strategy)
            return tokenized._replace(dataset=dataset)

        train_dataset, eval_dataset, reports = tokenize_all(tokenize, train_dataset, eval_dataset)
        collate = reading_images(collate_texts, tokenizer)
        super().__init__(
            model=model,
            args=args,
            tokenization_reports=reports,
            data_collator=data_collator or collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_targets

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(
            model,
            trees,
            with_entropy=True,
            with_aux_loss=self.args.router_aux_loss_coef is not None,
            objective=self.args.loss_type,
        )
        self.record({"entropy": answers.entropies, "mean_token_accuracy": answers.is_top1})
        return self.add_aux_loss(answers.losses, answers.aux_loss)
