"""Attention over prompt trees, registered with transformers under one name, so that its models work unpatched.

The tokens of a segment see those before them in the segment and the whole prompt that it continues, nothing else. On a
CPU
this is a loop of `scaled_dot_product_attention` over segments; on a GPU it is FlexAttention with a block mask. Neither
builds a (tokens, tokens) mask. Calls that carry no segments (generation, padded rows) behave as transformers' `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE_ATTENTION = "prompt_tree"

_reads_trees: ContextVar[bool] = ContextVar("reads_trees", default=False)


@contextmanager
def reading_trees() -> Iterator[None]:
    """While a model reads trees no mask tensor is made: the segments say who sees whom."""
    token = _reads_trees.set(True)
    try:
        yield
    finally:
        _reads_trees.reset(token)


class Segments:
    """Who sees whom in one row of trees, with the masks that all layers share."""

    def __init__(self, bounds: Tensor, num_tokens: int):
        """`bounds` is `PromptTrees.segments`, (segments, 4), in the order of the row."""
        self.bounds = bounds
        self.num_tokens = num_tokens
        self.spans: list[tuple[int, int, int, int]] = [tuple(row) for row in bounds.tolist()]
        self.lengths = [end - start for start, end, _, _ in self.spans]
        self.index_of_span = {(start, end): i for i, (start, end, _, _) in enumerate(self.spans)}
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._block_masks: dict[int | None, Any] = {}

    def mask(self, num_prompt: int, num_own: int, window: int | None, device: torch.device) -> Tensor:
        """(num_own, num_prompt + num_own) bool, True where a token of a branch sees a token of its prompt or itself."""
        key = (num_prompt, num_own, window)
        if key not in self._masks:
            query = torch.arange(num_prompt, num_prompt + num_own, device=device)[:, None]
            seen = torch.arange(num_prompt + num_own, device=device)[None]
            mask = seen <= query
            self._masks[key] = mask if window is None else mask & (query - seen < window)
        return self._masks[key]

    def sees(self, window: int | None = None) -> Callable[[Any, Any, Any, Any], Tensor]:
        """FlexAttention's mask_mod for this row."""
        device = self.bounds.device
        lengths = self.bounds[:, 1] - self.bounds[:, 0]
        segment_of = torch.repeat_interleave(torch.arange(len(self.bounds), device=device), lengths)
        prompt_start, prompt_end = self.bounds[segment_of, 2], self.bounds[segment_of, 3]
        own_start = self.bounds[segment_of, 0]
        is_branch = own_start != prompt_start
        position = torch.arange(self.num_tokens, device=device) - own_start + is_branch * (prompt_end - prompt_start)

        def mask_mod(batch: Any, head: Any, query: Tensor, seen: Tensor) -> Tensor:
            in_own = (seen >= own_start[query]) & (seen <= query)
            in_prompt = (seen >= prompt_start[query]) & (seen < prompt_end[query]) & (seen <= query)
            visible = in_own | in_prompt
            return visible if window is None else visible & (position[query] - position[seen] < window)

        return mask_mod

    def block_mask(self, window: int | None) -> Any:
        if window not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            n = self.num_tokens
            self._block_masks[window] = create_block_mask(
                self.sees(window),
                B=None,
                H=None,
                Q_LEN=n,
                KV_LEN=n,
                device=str(self.bounds.device),
                _compile=self.bounds.is_cuda,
            )
        return self._block_masks[window]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, heads, tokens, head size) to (1, tokens, heads, head size)."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if query.is_cuda and not dropout:
        output = _flex_attention()(
            query, key, value, block_mask=segments.block_mask(sliding_window), scale=scaling, enable_gqa=True
        )
    else:
        output = _attend_by_segment(query, key, value, segments, scaling, dropout, sliding_window)
    return output.transpose(1, 2).contiguous(), None


def _attend_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    gqa = query.shape[1] != key.shape[1]
    # split, not slices: the gradient of a split is one concatenation, that of each slice a row of zeros
    queries, keys, values = (x.split(segments.lengths, dim=2) for x in (query, key, value))
    outputs = []
    for i, (start, end, prompt_start, prompt_end) in enumerate(segments.spans):
        own = end - start
        if start == prompt_start:
            mask = segments.mask(0, own, window, query.device) if window is not None and own > window else None
            k, v, causal = keys[i], values[i], mask is None
        else:
            prompt = segments.index_of_span[prompt_start, prompt_end]
            k, v = torch.cat([keys[prompt], keys[i]], 2), torch.cat([values[prompt], values[i]], 2)
            num_seen = prompt_end - prompt_start + own
            limit = window if window is not None and num_seen > window else None
            mask, causal = segments.mask(num_seen - own, own, limit, query.device), False
        outputs.append(
            F.scaled_dot_product_attention(
                queries[i], k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scaling, enable_gqa=gqa
            )
        )
    return torch.cat(outputs, 2)


@cache
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _tree_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _reads_trees.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, _tree_mask)
