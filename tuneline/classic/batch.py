"""What a call of `step` is given, checked, as token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tuneline.errors import DataError


@dataclass(frozen=True)
class StepBatch:
    """Queries, what the policy answered, and what it was given for it.

    The targets of a batch, the response tokens that the policy wrote, are numbered through, sequence by sequence.
    """

    queries: list[list[int]]
    responses: list[list[int]]
    is_target: list[list[int]]  # one a response token, 1 where the policy wrote it
    scores: Tensor  # (sequences,) float32

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def target_counts(self) -> list[int]:
        return [sum(mask) for mask in self.is_target]

    @property
    def sequence_ids(self) -> Tensor:
        """(targets,): the sequence of each target."""
        return torch.repeat_interleave(torch.arange(len(self)), torch.tensor(self.target_counts))

    def target_numbers(self, sequences: Sequence[int]) -> Tensor:
        """(targets of these,): the numbers of the targets of some sequences, in the order of these."""
        counts = self.target_counts
        starts = [0, *accumulate(counts)]
        return torch.cat([torch.arange(starts[i], starts[i] + counts[i]) for i in sequences])


def checked_batch(
    queries: Any, responses: Any, scores: Any, response_masks: Any, batch_size: int, first_response_token: int = 0
) -> StepBatch:
    """The arguments of `step` as a batch.

    Args:
        queries, responses, response_masks: lists of tensors (length,).
        scores: a list of numbers or of tensors with one value each, or a tensor (sequences,).
        batch_size: most that a batch may have.
        first_response_token: so many tokens at the start of a response are what its decoder begins with, and no
            targets.

    Raises:
        DataError: with the argument, what is wrong with it, and what it takes.
    """
    rows = {"queries": _token_ids("queries", queries), "responses": _token_ids("responses", responses)}
    if response_masks is not None:
        rows["response_masks"] = _token_ids("response_masks", response_masks)
    given = _scores(scores)
    lengths = {name: len(value) for name, value in rows.items()} | {"scores": len(given)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError(f"step got {told}; it takes one of each for every query.")
    if not 0 < len(given) <= batch_size:
        raise DataError(
            f"step got {len(given)} queries, and the configuration says batch_size={batch_size}; give it that many (a "
            "smaller batch is taken too), or change batch_size."
        )
    for i, (query, response) in enumerate(zip(rows["queries"], rows["responses"], strict=True)):
        if not query:
            raise DataError(f"queries[{i}] is empty; it needs at least one token.")
        if len(response) <= first_response_token:
            raise DataError(f"responses[{i}] holds no token that the policy wrote; leave the query out of the batch.")
    masks = rows.get("response_masks") or [[1] * len(response) for response in rows["responses"]]
    for i, (mask, response) in enumerate(zip(masks, rows["responses"], strict=True)):
        if len(mask) != len(response) or not set(mask) <= {0, 1}:
            raise DataError(
                f"response_masks[{i}] has {len(mask)} entries for {len(response)} response tokens; it takes one a "
                "token, 1 where the policy wrote it and 0 where an environment did."
            )
    is_target = [[0] * first_response_token + mask[first_response_token:] for mask in masks]
    return StepBatch(rows["queries"], rows["responses"], is_target, given)


def _token_ids(name: str, values: Any) -> list[list[int]]:
    if not isinstance(values, list | tuple):
        raise DataError(f"{name} is a {type(values).__name__}; step takes a list of tensors, one a query.")
    rows = []
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise DataError(f"{name}[{i}] is a {type(value).__name__}; step takes tensors of token ids (length,).")
        if value.ndim != 1 or value.is_floating_point():
            raise DataError(
                f"{name}[{i}] is a tensor of {value.dtype} with shape {tuple(value.shape)}; step takes whole numbers "
                "(length,)."
            )
        rows.append(value.long().tolist())
    return rows


def _scores(values: Any) -> Tensor:
    """(sequences,) float32"""
    if not isinstance(values, list | tuple | Tensor):
        raise DataError(f"scores is a {type(values).__name__}; step takes a list of tensors, or a tensor (queries,).")
    if isinstance(values, Tensor) and values.ndim != 1:
        raise DataError(f"scores has shape {tuple(values.shape)}; step takes one score a query, (queries,).")
    scores = []
    for i, value in enumerate(values):
        if not isinstance(value, Tensor | float | int) or (isinstance(value, Tensor) and value.numel() != 1):
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise DataError(f"scores[{i}] is {what}; step takes one number a query, or a tensor with one value.")
        score = float(value.item() if isinstance(value, Tensor) else value)
        if not math.isfinite(score):
            raise DataError(f"scores[{i}] is {score}; leave out queries without a score.")
        scores.append(score)
    return torch.tensor(scores)
