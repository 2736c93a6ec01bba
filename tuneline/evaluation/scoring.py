"""Reward-model scores of sequences that share beginnings: the sides of a pair, policies' answers to one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tuneline.data.rendering import Rows, require_eos, tokenize_values
from tuneline.scores import sequence_scores, tree_of_whole
from tuneline.trees import lay_out

Group = Sequence[Sequence[int]]  # token ids of the sequences of one prompt
_TOKENS_AT_ONCE = 8192


def encode_answers(tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, list], side: str) -> list[list[int]]:
    """Token ids of each `prompt` and the answer in a column behind it, whole and ended, as a reward model learns them.

    Answers are read as text again: what ends a turn in training also ends it here, even one that was cut off.
    """
    rows = Rows(columns, range(len(columns["prompt"])))
    values = rows.joined("prompt", side)
    eos = require_eos(tokenizer, None) if any(isinstance(value, str) for value in values) else None
    return tokenize_values(tokenizer, rows, values, eos_token=eos)


@torch.inference_mode()
def score_groups(model: nn.Module, groups: Sequence[Group]) -> list[list[float]]:
    """The score of every sequence, group by group. Equal sequences of a group have equal scores, to the last bit.

    Args:
        model: a sequence classifier with one label that went through `prepare_for_trees`, in eval mode.
        groups: sequences of at least one token, whole: their prompt included.
    """
    scores: list[list[float]] = []
    device = next(model.parameters()).device
    for batch in _batches(groups):
        trees, places = [], []
        for group in batch:
            different = sorted({tuple(ids) for ids in group})
            places.append([different.index(tuple(ids)) for ids in group])
            trees.append(tree_of_whole(different))
        values = iter(sequence_scores(model, lay_out(trees).to(device)).tolist())
        for tree, place in zip(trees, places, strict=True):
            of_tree = [next(values) for _ in tree.branches]
            scores.append([of_tree[i] for i in place])
    return scores


def _batches(groups: Sequence[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    taken = 0
    for group in groups:
        length = sum(map(len, group))
        if batch and taken + length > _TOKENS_AT_ONCE:
            yield batch
            batch, taken = [], 0
        batch.append(group)
        taken += length
    if batch:
        yield batch
