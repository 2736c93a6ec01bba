"""What ORPO and CPO share: preference pairs, and no reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from tuneline.data.completions import tokenize_completions
from tuneline.data.tokenize import Tokenized
from tuneline.trainers.base import Rows, reject_compute_metrics
from tuneline.trainers.collators import Row
from tuneline.trainers.offline import OfflineTrainer
from tuneline.trees import PromptTrees


class ReferenceFreeTrainer(OfflineTrainer):
    """Base of the methods on preference pairs that hold the policy by a term of likelihood; the items are pairs.

    Args:
        model: a name or folder, a model, or a PEFT model; or `model_init`, which makes one.
        train_dataset, eval_dataset: preferences (`chosen`, `rejected`, `prompt` if any), standard or conversational.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: Any = None,
        data_collator: Callable[[list[Row]], PromptTrees] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: None = None,
        peft_config: PeftConfig | None = None,
        compute_metrics: None = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
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
            model_init=model_init,
        )

    def tokenize(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, args: Any, is_training: bool) -> Tokenized:
        return tokenize_completions(
            rows,
            tokenizer,
            ["chosen", "rejected"],
            max_length=args.max_length,
            max_completion_length=args.max_completion_length,
            num_proc=args.dataset_num_proc,
        )

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_sequences // 2
