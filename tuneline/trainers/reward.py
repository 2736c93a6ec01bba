"""Outcome reward modelling on preference pairs (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq.
1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from tuneline.data.tokenize import Tokenized, tokenize_for_reward
from tuneline.errors import ModelError
from tuneline.losses.reward import reward_loss
from tuneline.models.layouts import pad_token_id
from tuneline.models.loading import add_adapter, disable_dropout, given_model, load_reward_model
from tuneline.models.one_label import score_of_two_labels
from tuneline.scores import sequence_scores
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    default_args,
    ready_tokenizer,
    reject_compute_metrics,
    reject_prompt_learning,
    tokenize_all,
)
from tuneline.trainers.collators import collate_scored_pairs
from tuneline.trainers.reward_config import RewardConfig
from tuneline.trees import PromptTrees


class RewardTrainer(BaseTrainer):
    """Training of a scalar reward model; the items are pairs.

    Args:
        model: a name or folder, a sequence classifier with one label (or two, whose difference is the score), or a PEFT
            model of one. A model by name gets a new score head where it has none.
        train_dataset, eval_dataset: preferences (`chosen`, `rejected`, `prompt` if any, `margin` if any), standard or
            conversational, or tokenised (`chosen_ids`, `rejected_ids`).

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: RewardConfig
    config_class = RewardConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RewardConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], PromptTrees] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ):
        if args is None:
            args = default_args(RewardConfig, model, "Reward")
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        model = given_model(model, args, quantization_config, load_reward_model)
        if model.config.num_labels == 2 and not isinstance(model, PeftModel):
            model = score_of_two_labels(model)
        if model.config.num_labels != 1:
            raise ModelError(
                f"a reward model has one label; {type(model).__name__} has num_labels={model.config.num_labels}. "
                "Load it with AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)."
            )
        tokenizer = ready_tokenizer(processing_class, model, args, args.eos_token, args.chat_template_path)
        if peft_config is not None and peft_config.task_type is None:
            peft_config.task_type = "SEQ_CLS"  # keeps the new head trainable
        model = add_adapter(model, peft_config)
        reject_prompt_learning(model, "a score is read at the last token of a row of trees")
        if args.disable_dropout:
            disable_dropout(model)

        def tokenize(rows: Rows, is_training: bool) -> Tokenized:
            return tokenize_for_reward(
                rows, tokenizer, max_length=args.max_length, eos_token=args.eos_token, num_proc=args.dataset_num_proc
            )

        train_dataset, eval_dataset, reports = tokenize_all(tokenize, train_dataset, eval_dataset)
        super().__init__(
            model=model,
            args=args,
            tokenization_reports=reports,
            data_collator=data_collator or partial(collate_scored_pairs, pad_token_id=pad_token_id(model)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_sequences // 2

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        rewards = sequence_scores(model, trees)  # (sequences,) chosen and rejected in turns
        chosen, rejected = rewards[::2], rewards[1::2]
        self.record(
            {
                "min_reward": rewards,
                "mean_reward": rewards,
                "max_reward": rewards,
                "accuracy": (chosen > rejected).float(),
                "margin": chosen - rejected,
            }
        )
        return reward_loss(
            chosen,
            rejected,
            margin=trees.columns.get("margin"),
            center_rewards_coefficient=self.args.center_rewards_coefficient,
        )
