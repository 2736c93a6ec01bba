"""Prompt trees: the one batch format. A prompt and its continuations, each token once; trees lie end to end in one row.

A *sequence* is a prompt followed by one of its branches. A *target* is a token whose log-probability is asked for;
what the user or an environment wrote is simply no target. There is no padding anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from tuneline.tree_images import TreeImages


@dataclass(frozen=True)
class Branch:
    """One continuation of a prompt.

    `is_target` has one entry a token, 1 where the token is a target; None makes targets of all.
    """

    ids: Sequence[int]
    is_target: Sequence[int] | None = None


@dataclass(frozen=True)
class Tree:
    """A prompt and its branches. With an empty prompt the first token of a branch has no predecessor and is no
    target."""

    prompt_ids: Sequence[int]
    branches: Sequence[Branch]
    prompt_is_target: bool = False  # its tokens, but for the first, are then targets of the first branch's sequence


@dataclass(frozen=True)
class PromptTrees:
    """The trees of one forward pass, laid end to end: every prompt once, no padding."""

    input_ids: Tensor  # (1, tokens)
    position_ids: Tensor  # (1, tokens)   restart at 0 in each tree; a branch goes on from its prompt's end
    segments: (
        Tensor  # (segments, 4) start, end, and the start and end of the prompt it continues (its own, for a prompt)
    )
    target_positions: Tensor  # (targets,)    where the hidden state that predicts each target lies
    target_ids: Tensor  # (targets,)
    sequence_ids: Tensor  # (targets,)    the sequence each target belongs to
    sequence_ends: Tensor  # (sequences,)  position of the last token of each sequence
    sequence_lengths: Tensor  # (sequences,)  tokens of each sequence, its prompt included
    tree_ids: Tensor  # (sequences,)  the tree each sequence belongs to
    columns: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # what else travels with the batch, one value a tree or sequence
    images: TreeImages | None = None  # beside the text, for models that read padded rows

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_ends)

    @property
    def num_targets(self) -> int:
        return len(self.target_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens computed: each prompt counts once."""
        return self.input_ids.shape[1]

    def __len__(self) -> int:
        """Trees in the row."""
        return int(self.tree_ids[-1]) + 1 if len(self.tree_ids) else 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptTrees:
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.layout().items()}
        columns = {name: column.to(device, non_blocking=non_blocking) for name, column in self.columns.items()}
        images = None if self.images is None else self.images.to(device, non_blocking=non_blocking)
        return replace(self, **moved, columns=columns, images=images)

    def pin_memory(self) -> PromptTrees:
        pinned = {name: tensor.pin_memory() for name, tensor in self.layout().items()}
        columns = {name: column.pin_memory() for name, column in self.columns.items()}
        images = None if self.images is None else self.images.pin_memory()
        return replace(self, **pinned, columns=columns, images=images)

    def with_images(self, images: TreeImages) -> PromptTrees:
        """The same trees with images beside the text."""
        return replace(self, images=images)

    def layout(self) -> dict[str, Tensor]:
        """The tensors that lay out the text, by name: all but `columns` and `images`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("columns", "images")}

    def first(self, num_trees: int) -> PromptTrees:
        """The first trees of the row, at least one; columns must have one value a tree or sequence."""
        num_sequences = int((self.tree_ids < num_trees).sum())
        num_tokens = int(self.sequence_ends[:num_sequences].max()) + 1
        num_targets = int((self.sequence_ids < num_sequences).sum())
        kept = {len(self): num_trees, self.num_sequences: num_sequences}
        return PromptTrees(
            input_ids=self.input_ids[:, :num_tokens],
            position_ids=self.position_ids[:, :num_tokens],
            segments=self.segments[self.segments[:, 1] <= num_tokens],
            target_positions=self.target_positions[:num_targets],
            target_ids=self.target_ids[:num_targets],
            sequence_ids=self.sequence_ids[:num_targets],
            sequence_ends=self.sequence_ends[:num_sequences],
            sequence_lengths=self.sequence_lengths[:num_sequences],
            tree_ids=self.tree_ids[:num_sequences],
            columns={name: column[: kept[len(column)]] for name, column in self.columns.items()},
            images=None if self.images is None else self.images.first(num_trees),
        )

    def filled_to(self, num_tokens: int) -> PromptTrees:
        """The same trees in a longer row, with a segment behind them that nothing reads."""
        missing = num_tokens - self.num_tokens
        if missing <= 0:
            return self
        filler = self.input_ids.new_zeros(1, missing)
        start, end = self.num_tokens, num_tokens
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, filler], 1),
            position_ids=torch.cat([self.position_ids, filler], 1),
            segments=torch.cat([self.segments, self.segments.new_tensor([[start, end, start, end]])]),
        )

    def target_counts(self) -> Tensor:
        """(sequences,): the number of targets of each sequence."""
        return torch.bincount(self.sequence_ids, minlength=self.num_sequences)


def lay_out(trees: Sequence[Tree], columns: Mapping[str, Tensor] | None = None) -> PromptTrees:
    """Lay trees end to end.

    A tree with one branch is one segment: sharing begins with the second branch.

    Args:
        trees: at least one, each with at least one branch and one token.
        columns: tensors that travel with the batch, such as margins (trees,) or reference log-probabilities
            (sequences,).
    """
    ids: list[int] = []
    position_ids: list[Tensor] = []
    segments: list[tuple[int, int, int, int]] = []
    target_positions: list[Tensor] = []
    target_ids: list[Tensor] = []
    sequence_ids: list[Tensor] = []
    sequence_ends: list[int] = []
    sequence_lengths: list[int] = []
    tree_ids: list[int] = []

    for tree_id, tree in enumerate(trees):
        start = len(ids)
        prompt_length = len(tree.prompt_ids)
        prompt_end = start + prompt_length
        ids.extend(tree.prompt_ids)
        alone = len(tree.branches) == 1
        if not alone and prompt_length:
            segments.append((start, prompt_end, start, prompt_end))
            position_ids.append(torch.arange(prompt_length))
        if tree.prompt_is_target and prompt_length:
            target_positions.append(torch.arange(start, prompt_end - 1))
            target_ids.append(torch.tensor(tree.prompt_ids[1:], dtype=torch.long))
            sequence_ids.append(torch.full((prompt_length - 1,), len(sequence_ends)))
        for branch in tree.branches:
            branch_start, length = len(ids), len(branch.ids)
            ids.extend(branch.ids)
            end = len(ids)
            if alone:
                segments.append((start, end, start, end))
                position_ids.append(torch.arange(prompt_length + length))
            elif length:
                prompt = (start, prompt_end) if prompt_length else (branch_start, end)
                segments.append((branch_start, end, *prompt))
                position_ids.append(torch.arange(prompt_length, prompt_length + length))
            positions = torch.arange(branch_start - 1, end - 1)
            positions[:1] = prompt_end - 1
            keep = torch.ones(length, dtype=torch.bool)
            if branch.is_target is not None:
                keep = torch.tensor(branch.is_target, dtype=torch.bool)
            if not prompt_length:
                keep[:1] = False
            target_positions.append(positions[keep])
            target_ids.append(torch.tensor(branch.ids, dtype=torch.long)[keep])
            sequence_ids.append(torch.full((len(target_ids[-1]),), len(sequence_ends)))
            sequence_ends.append(end - 1 if length else prompt_end - 1)
            sequence_lengths.append(prompt_length + length)
            tree_ids.append(tree_id)

    if not ids:
        raise ValueError("lay_out got no tokens; a batch needs at least one tree with one token.")
    return PromptTrees(
        input_ids=torch.tensor(ids, dtype=torch.long)[None],
        position_ids=torch.cat(position_ids)[None],
        segments=torch.tensor(segments, dtype=torch.long),
        target_positions=torch.cat(target_positions),
        target_ids=torch.cat(target_ids),
        sequence_ids=torch.cat(sequence_ids),
        sequence_ends=torch.tensor(sequence_ends),
        sequence_lengths=torch.tensor(sequence_lengths),
        tree_ids=torch.tensor(tree_ids),
        columns=dict(columns or {}),
    )


@dataclass(frozen=True)
class PaddedRows:
    """The sequences of trees as right-padded rows, for models that cannot read trees."""

    input_ids: Tensor  # (sequences, length)
    attention_mask: Tensor  # (sequences, length) 1 where a token is
    target_rows: Tensor  # (targets,) the row of each target
    target_columns: Tensor  # (targets,) the column whose output predicts it


def pad_out(trees: PromptTrees, pad_token_id: int) -> PaddedRows:
    """Every sequence on a row of its own, its prompt repeated."""
    device = trees.input_ids.device
    ends = trees.sequence_ends.tolist()
    segment_of = {end - 1: (start, end, p_start, p_end) for start, end, p_start, p_end in trees.segments.tolist()}
    width = int(trees.sequence_lengths.max())
    input_ids = torch.full((trees.num_sequences, width), pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, last in enumerate(ends):
        start, end, prompt_start, prompt_end = segment_of[last]
        parts = [trees.input_ids[0, start:end]]
        if (start, end) != (prompt_start, prompt_end):
            parts.insert(0, trees.input_ids[0, prompt_start:prompt_end])
        tokens = torch.cat(parts)
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    return PaddedRows(input_ids, attention_mask, trees.sequence_ids, trees.position_ids[0, trees.target_positions])
