"""Scores of whole sequences by a reward model, by whichever layout the model can read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tuneline.attention import Segments, reading_trees
from tuneline.data.formats import common_prefix_length
from tuneline.heads import LabelHead, ScoreHead
from tuneline.models.layouts import pad_token_id, score_head
from tuneline.products import fill_up
from tuneline.trees import Branch, PromptTrees, Tree, pad_out


def tree_of_whole(sequences: Sequence[Sequence[int]]) -> Tree:
    """Whole sequences to score: what all begin with is shared, except the last token of each, where its score is
    read."""
    shared = min(common_prefix_length(sequences[0][:-1], ids[:-1]) for ids in sequences)
    return Tree(sequences[0][:shared], [Branch(ids[shared:], [0] * (len(ids) - shared)) for ids in sequences])


def sequence_scores(model: nn.Module, trees: PromptTrees) -> Tensor:
    """(sequences,), float32: the score at each sequence's last token.

    Args:
        model: `AutoModelForSequenceClassification` with one label that went through `prepare_for_trees`.
    """
    head = score_head(model)
    if not isinstance(head, ScoreHead):
        rows = pad_out(trees, pad_token_id(model))
        return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, 0].float()
    trees = fill_up(trees)
    segments = Segments(trees.segments, trees.num_tokens, read=trees.sequence_ends.unique())
    with head.asked(trees.sequence_ends), reading_trees():
        output = model(input_ids=trees.input_ids, position_ids=trees.position_ids, segments=segments, use_cache=False)
    return output.logits[0].float()


def label_logits(model: nn.Module, trees: PromptTrees) -> Tensor:
    """(targets, labels), float32: what a token classifier says at the position of each target.

    Args:
        model: `AutoModelForTokenClassification` that went through `prepare_for_trees`.
        trees: their targets are labels, and `target_positions` where these are read.
    """
    head = score_head(model)
    if not isinstance(head, LabelHead):
        rows = pad_out(trees, pad_token_id(model))
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        return logits[rows.target_rows, rows.target_columns].float()
    trees = fill_up(trees)
    segments = Segments(trees.segments, trees.num_tokens, read=trees.target_positions)
    with head.asked(trees.target_positions), reading_trees():
        output = model(input_ids=trees.input_ids, position_ids=trees.position_ids, segments=segments, use_cache=False)
    return output.logits[0].float()
