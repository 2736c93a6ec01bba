"""What ORPO and CPO share: preference pairs, and no reference."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenize import Tokenized, tokenize_completions
from tuneline.trainers.base import Rows
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
