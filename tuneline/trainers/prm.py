"""Process reward modelling: a token classifier that tells at the end of each step whether it is right (Uesato et al.
2022, arXiv:2211.14275; Lightman et al. 2023, arXiv:2305.20050)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from tuneline.data.steps import tokenize_for_steps
from tuneline.data.tokenize import Tokenized
from tuneline.errors import ModelError
from tuneline.losses.steps import step_loss
from tuneline.models.layouts import base_model
from tuneline.models.loading import add_adapter, disable_dropout, load_process_reward_model
from tuneline.scores import label_logits
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    default_args,
    ready_tokenizer,
    reject_compute_metrics,
    reject_prompt_learning,
    tokenize_all,
)
from tuneline.trainers.collators import Row, collate_steps
from tuneline.trainers.offline import only_one
from tuneline.trainers.prm_config import PRMConfig
from tuneline.trees import PromptTrees


class PRMTrainer(BaseTrainer):
    """Training of a process reward model; the items are labelled steps.

    Args:
        model: a token classifier with two labels, a PEFT model of one, or a name or folder, which gets a new head where
            it has none; or `model_init`, which makes one.
        train_dataset, eval_dataset: rows with `prompt`, `completions` (a list of steps) and `labels` (a bool for each).

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: PRMConfig
    config_class = PRMConfig

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: PRMConfig | None = None,
        data_collator: Callable[[list[Row]], PromptTrees] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: None = None,
        peft_config: PeftConfig | None = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        classifier = only_one(model, model_init)
        if args is None:
            args = default_args(PRMConfig, classifier, "PRM")
        if isinstance(classifier, str):
            classifier = load_process_reward_model(
                classifier, args.model_init_kwargs, trust_remote_code=args.trust_remote_code
            )
        kind, num_labels = type(base_model(classifier)).__name__, classifier.config.num_labels
        if "TokenClassification" not in kind or num_labels != 2:
            raise ModelError(
                f"a process reward model is a token classifier with two labels, and this is a {kind} with "
                f"num_labels={num_labels}. Load it with AutoModelForTokenClassification.from_pretrained(..., "
                "num_labels=2)."
            )
        tokenizer = ready_tokenizer(processing_class, classifier, args)
        if peft_config is not None and peft_config.task_type is None:
            peft_config.task_type = "TOKEN_CLS"  # keeps the new head trainable
        classifier = add_adapter(classifier, peft_config)
        reject_prompt_learning(classifier, "labels are read at places of a row of trees")
        if args.disable_dropout:
            disable_dropout(classifier)

        def tokenize(rows: Rows, is_training: bool) -> Tokenized:
            return tokenize_for_steps(
                rows,
                tokenizer,
                step_separator=args.step_separator,
                max_length=args.max_length,
                max_prompt_length=args.max_prompt_length,
                max_completion_length=args.max_completion_length,
                last_step_only=args.train_on_last_step_only and is_training,
                num_proc=args.dataset_num_proc,
            )

        train_dataset, eval_dataset, reports = tokenize_all(tokenize, train_dataset, eval_dataset)
        super().__init__(
            model=classifier,
            args=args,
            tokenization_reports=reports,
            data_collator=data_collator or collate_steps,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_targets

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        logits = label_logits(model, trees)  # (steps, 2)
        labels = trees.target_ids
        self.record({"accuracy": (logits.argmax(-1) == labels).float()})
        return step_loss(logits, labels)
