"""Sums and means over the targets of each sequence, for flat vectors of targets."""

from __future__ import annotations

import torch
from torch import Tensor


def target_counts(sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """(sequences,): the number of targets of each sequence, from `sequence_ids` (targets,)."""
    # not bincount, which makes the host wait for the device
    return sequence_ids.new_zeros(num_sequences).index_add(0, sequence_ids, torch.ones_like(sequence_ids))


def sums_by_sequence(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """(targets,) to (sequences,): the sum over each sequence's targets, in any order; 0 for one without."""
    return values.new_zeros(num_sequences).index_add(0, sequence_ids, values)


def means_by_sequence(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """(targets,) to (sequences,): the mean over each sequence's targets, in any order; 0 for one without."""
    counts = target_counts(sequence_ids, num_sequences).clamp(min=1)
    return sums_by_sequence(values, sequence_ids, num_sequences) / counts
