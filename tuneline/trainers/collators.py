"""From tokenised rows to the prompt trees of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

import torch
from transformers import ProcessorMixin

from tuneline.data.images import column_images, image_inputs
from tuneline.tree_images import TreeImages
from tuneline.trees import Branch, PromptTrees, Tree, lay_out

Row = dict[str, Any]


@dataclass(frozen=True)
class WithImages:
    """A collator of batches with a tree a row, that gives each tree the images of its row."""

    collate: Callable[[Sequence[Row]], Any]
    processor: ProcessorMixin

    def __call__(self, rows: Sequence[Row]) -> Any:
        by_tree = [image_inputs(self.processor, column_images(row)) for row in rows]
        batch = self.collate(rows)
        assert len(batch) == len(rows)
        return batch.with_images(TreeImages(by_tree)) if any(by_tree) else batch


def reading_images(collate: Callable[[Sequence[Row]], Any], processing_class: Any) -> Callable[[Sequence[Row]], Any]:
    """A collator that gives each tree the images of its row, where a processor can read them."""
    return WithImages(collate, processing_class) if isinstance(processing_class, ProcessorMixin) else collate


def collate_texts(rows: Sequence[Row]) -> PromptTrees:
    """Rows of `input_ids` and `is_target`, and `seq_lengths` where several texts were packed in a row: a tree a
    text."""
    trees = []
    for row in rows:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            end = start + length
            trees.append(Tree([], [Branch(row["input_ids"][start:end], row["is_target"][start:end])]))
            start = end
    return lay_out(trees)


def collate_preferences(rows: Sequence[Row]) -> PromptTrees:
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`: a tree a pair, chosen and rejected in turns."""
    trees = [Tree(row["prompt_ids"], [Branch(row["chosen_ids"]), Branch(row["rejected_ids"])]) for row in rows]
    columns = {}
    if "ref_chosen_logps" in rows[0]:
        interleaved = [logp for row in rows for logp in (row["ref_chosen_logps"], row["ref_rejected_logps"])]
        columns["ref_logps"] = torch.tensor(interleaved, dtype=torch.float32)
    return lay_out(trees, columns)


def collate_preferences_with_prompts(rows: Sequence[Row]) -> PromptTrees:
    """As `collate_preferences`, with the tokens of the prompt as targets of the chosen sequence; column
    `prompt_lengths` (trees,)."""
    trees = [
        Tree(row["prompt_ids"], [Branch(row["chosen_ids"]), Branch(row["rejected_ids"])], prompt_is_target=True)
        for row in rows
    ]
    return lay_out(trees, {"prompt_lengths": torch.tensor([len(row["prompt_ids"]) for row in rows])})


def collate_triples(rows: Sequence[Row]) -> PromptTrees:
    """Rows of `prompt_ids`, `chosen_ids`, `rejected_ids` and, where the loss reads it, `reference_ids`: a tree a
    row."""
    sides = [side for side in ("chosen_ids", "rejected_ids", "reference_ids") if side in rows[0]]
    return lay_out([Tree(row["prompt_ids"], [Branch(row[side]) for side in sides]) for row in rows])


def collate_completions(rows: Sequence[Row], completion: str = "completion_ids") -> PromptTrees:
    """Rows of `prompt_ids` and one completion: a tree a row, with what else the rows have of one number each."""
    numbers = ("label", "ref_logps", "ref_KL_logps", "density_ratio")
    columns = {name: torch.tensor([row[name] for row in rows]) for name in numbers if name in rows[0]}
    return lay_out([Tree(row["prompt_ids"], [Branch(row[completion])]) for row in rows], columns)


def collate_steps(rows: Sequence[Row]) -> PromptTrees:
    """Rows of `input_ids`, `step_ends` and `step_labels`: the targets are the labels, each read where its step ends."""
    no_targets = [Tree([], [Branch(row["input_ids"], [0] * len(row["input_ids"]))]) for row in rows]
    starts = accumulate((len(row["input_ids"]) for row in rows), initial=0)
    positions = [start + end for start, row in zip(starts, rows, strict=False) for end in row["step_ends"]]
    return replace(
        lay_out(no_targets),
        target_positions=torch.tensor(positions),
        target_ids=torch.tensor([label for row in rows for label in row["step_labels"]]),
        sequence_ids=torch.tensor([i for i, row in enumerate(rows) for _ in row["step_ends"]]),
    )


def collate_scored_pairs(rows: Sequence[Row], pad_token_id: int | None = None) -> PromptTrees:
    """Rows of whole sequences `chosen_ids` and `rejected_ids`, and `margin` if any: what both begin with is shared.

    transformers' classifiers read the score at the last token that is no padding, so padding tokens at an end are left
    off; that is the end token, where it pads too.
    """
    trees = []
    for row in rows:
        chosen, rejected = (_without_padding(row[name], pad_token_id) for name in ("chosen_ids", "rejected_ids"))
        # the last token of each is where its score is read, so it is never shared
        ends = min(len(chosen), len(rejected)) - 1
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:ends], rejected[:ends], strict=True))
        )
        no_targets = [Branch(ids[shared:], [0] * (len(ids) - shared)) for ids in (chosen, rejected)]
        trees.append(Tree(chosen[:shared], no_targets))
    columns = {}
    if "margin" in rows[0]:
        columns["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
    return lay_out(trees, columns)


def _without_padding(ids: list[int], pad_token_id: int | None) -> list[int]:
    end = len(ids)
    while end > 1 and ids[end - 1] == pad_token_id:
        end -= 1
    return ids[:end]
