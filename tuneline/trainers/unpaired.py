"""What KTO and BCO share: rows with one completion and a label, and what is logged of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuneline.data.formats import column_names, maybe_extract_prompt, unpair_preference_dataset
from tuneline.data.multimodal_rendering import ProcessingClass
from tuneline.data.tokenize import Tokenized, tokenize_completions
from tuneline.logprobs import TargetLogprobs, sum_by_sequence
from tuneline.metrics import Recorded
from tuneline.trainers.base import Mode, Rows
from tuneline.trainers.offline import ReferencedTrainer
from tuneline.trees import PromptTrees


class UnpairedTrainer(ReferencedTrainer):
    """Base of the methods whose items are single completions, each labelled desirable or not."""

    reference_column = "ref_logps"

    def tokenize(self, rows: Rows, tokenizer: ProcessingClass, args: Any, is_training: bool) -> Tokenized:
        return tokenize_completions(
            unpaired(rows, args.dataset_num_proc),
            tokenizer,
            ["completion"],
            max_length=args.max_length,
            max_completion_length=args.max_completion_length,
            truncation_mode=args.truncation_mode,
            required_columns=["label"],
            kept_columns=["ref_logps", "ref_KL_logps", "density_ratio"],
            num_proc=args.dataset_num_proc,
        )

    def ref_logps(self, trees: PromptTrees, column: str) -> Tensor:
        """(sequences,): what the reference was asked in advance, or is asked now."""
        if column in trees.columns:
            return trees.columns[column]
        return sum_by_sequence(self.reference.logprobs(trees), trees)

    @torch.no_grad()
    def record_completions(
        self, answers: TargetLogprobs, logps: Tensor, rewards: Tensor, is_desirable: Tensor, trees: PromptTrees
    ) -> None:
        """Record what is logged of labelled completions; logps, rewards and is_desirable are (sequences,)."""
        values: dict[str, Recorded] = {"entropy": answers.entropies}
        for side, is_side in (("chosen", is_desirable), ("rejected", ~is_desirable)):
            is_target = is_side[trees.sequence_ids]
            values[f"logits/{side}"] = ((answers.mean_logits * is_target).sum(), is_target.sum())
            values[f"logps/{side}"] = ((logps * is_side).sum(), is_side.sum())
            values[f"rewards/{side}"] = ((rewards * is_side).sum(), is_side.sum())
        self.record(values)

    def flush_metrics(self, mode: Mode) -> dict[str, float]:
        metrics = super().flush_metrics(mode)
        if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics


def unpaired(rows: Any, num_proc: int | None = None) -> Any:
    """Pairs as rows with `prompt`, `completion` and `label`; other data sets come back as they are."""
    if not {"chosen", "rejected"} <= set(column_names(rows)):
        return rows
    workers: dict[str, Any] = {} if num_proc is None else {"num_proc": num_proc}
    return unpair_preference_dataset(rows.map(maybe_extract_prompt, **workers), **workers)
