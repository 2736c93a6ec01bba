"""Keys and values of the completions in flight, and how one new token of each attends to them.

Every completion has a row of its own, allocated once: nothing is copied as it grows, its tokens begin at column 0
whatever stands in the other rows, and a row that is done is overwritten by another. The heads of a query group are
handed to attention as if they were query positions, so keys and values are never repeated for them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROW_ATTENTION = "rollout_rows"

_COLUMNS = 16  # widths are multiples of this: fused attention kernels want aligned masks


class RowCache(Cache):
    """A preallocated cache whose rows differ in length.

    The rows in use are the first ones. A step is announced with `begin_step`, then the model writes one token a row.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int):
        """`capacity` is in tokens a row."""
        capacity = -(-capacity // _COLUMNS) * _COLUMNS
        super().__init__(layers=[_Rows(num_rows, capacity) for _ in range(num_layers)])
        self.capacity = capacity
        self.num_finite = [0] * num_rows  # columns of each row that hold numbers, if only stale ones or zeros

    def fill(self, row: int, prompt: list[tuple[Tensor, Tensor]]) -> None:
        """Put a prompt's keys and values, a layer each (kv heads, tokens, head size), at the start of a row."""
        for layer, (keys, values) in zip(self.layers, prompt, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys[row, :, : keys.shape[1]] = keys
            layer.values[row, :, : values.shape[1]] = values
        self.num_finite[row] = max(self.num_finite[row], prompt[0][0].shape[1])

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` columns of rows to others."""
        for layer in self.layers:
            layer.keys[targets, :, :width] = layer.keys[sources, :, :width]
            layer.values[targets, :, :width] = layer.values[sources, :, :width]

    def begin_step(self, lengths: Tensor) -> Tensor:
        """Each of the first rows gets a token at the column that is its length.

        Args:
            lengths: (rows,), tokens already there.

        Returns:
            (rows, 1, 1, columns) bool: what the new token sees, itself included.
        """
        width = -(-(int(lengths.max()) + 1) // _COLUMNS) * _COLUMNS
        rows = torch.arange(len(lengths), device=lengths.device)
        rows_by_start: dict[int, list[int]] = {}
        for row, start in enumerate(self.num_finite[: len(lengths)]):
            if start < width:
                rows_by_start.setdefault(start, []).append(row)
                self.num_finite[row] = width
        for layer in self.layers:
            layer.step = rows, lengths, width
            layer.rows_by_start = rows_by_start
        return (torch.arange(width, device=lengths.device) <= lengths[:, None])[:, None, None]


class _Rows(CacheLayerMixin):
    """One layer of a `RowCache`."""

    is_sliding = False
    step: tuple[Tensor, Tensor, int]
    rows_by_start: dict[int, list[int]]  # rows that are read for the first time from these columns on

    def __init__(self, num_rows: int, capacity: int):
        super().__init__()
        self.is_initialized = False
        self.num_rows, self.capacity = num_rows, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        if self.is_initialized:
            return
        heads, _, size = key_states.shape[-3:]
        # The system gives memory only to pages that are written, so that room never reached costs none.
        self.keys = key_states.new_empty(self.num_rows, heads, self.capacity, size)
        self.values = value_states.new_empty(self.num_rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(rows, kv heads, 1, head size) in; all columns up to the widest row out."""
        rows, columns, width = self.step
        self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        for start, fresh in self.rows_by_start.items():  # what is masked must still be finite
            self.keys[fresh, :, start:width] = 0
            self.values[fresh, :, start:width] = 0
        self.keys[rows, :, columns] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, columns] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]

    def get_seq_length(self) -> int:
        return self.step[2] - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.step[2], 0

    def get_max_length(self) -> int:
        return self.capacity


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (rows, heads, tokens, head size) to (rows, tokens, heads, head size)."""
    rows, heads, num_queries, size = query.shape
    kv_heads = key.shape[1]
    if num_queries != 1 or attention_mask is None:  # a prompt
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query.view(rows, kv_heads, heads // kv_heads, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(ROW_ATTENTION, row_attention)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
