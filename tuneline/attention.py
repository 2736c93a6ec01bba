"""Attention over prompt trees, registered with transformers under one name, so that its models work unpatched.

The tokens of a segment see those before them in the segment and the whole prompt that it continues, nothing else. On a
CPU this is a call of `scaled_dot_product_attention` for each group of segments of like size; on a GPU it is
FlexAttention with a block mask. Neither builds a (tokens, tokens) mask. Calls that carry no segments (generation,
padded rows) behave as transformers' `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

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


# What one more call costs, in (query, key) pairs that it could have computed; from timings on two CPU cores.
_PAIRS_A_CALL = 20_000


@dataclass(frozen=True)
class _Call:
    """Segments of like size that are computed together, each a row; shorter ones are filled up and masked."""

    num_segments: int
    num_queries: int
    num_seen: int
    mask: Tensor | None  # (segments, 1, queries, seen), 0 where seen, else -inf; None for plain causal attention

    def mask_as(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.mask is None else self.mask.to(dtype)


class Segments:
    """Who sees whom in one row of trees, with the plan and the masks that all layers share."""

    def __init__(self, bounds: Tensor, num_tokens: int, read: Tensor | None = None):
        """`bounds` is `PromptTrees.segments`, (segments, 4), in the order of the row; `read` are the positions whose
        last hidden state the head reads, each once; None for all."""
        self.bounds = bounds
        self.num_tokens = num_tokens
        self.read = read
        self.adapter: str | None = None  # see `again`
        # What each layer's attention gave, for a checkpointed layer's second forward pass, and gone after it. A layer
        # that is not checkpointed keeps nothing here for longer than its graph does.
        self.kept: dict[nn.Module, list[_Attended]] = {}
        self._plans: dict[int | None, _Plan] = {}
        self._block_masks: dict[int | None, Any] = {}

    def again(self, adapter: str | None = None) -> Segments:
        """The same row for another pass through the same layers, whose plan it shares; `adapter` is the one that is
        at work in it, for layers that follow (`tuneline.models.adapters`), or None for those that are active."""
        other = Segments(self.bounds, self.num_tokens, self.read)
        other.adapter = adapter
        other._plans, other._block_masks = self._plans, self._block_masks
        return other

    def plan(self, window: int | None) -> _Plan:
        if window not in self._plans:
            self._plans[window] = _Plan(self.bounds, window)
        return self._plans[window]

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


class _Plan:
    """Which segments are computed together, and which tokens each call reads and writes."""

    def __init__(self, bounds: Tensor, window: int | None):
        spans = [tuple(row) for row in bounds.tolist()]
        queries, seen, written = [], [], []
        self.calls: list[_Call] = []
        offset = 0
        for group in _grouped(spans):
            rows = [_tokens_of(span) for span in group]
            num_queries, num_seen = (max(len(row[k]) for row in rows) for k in (0, 1))
            for own, keys in rows:
                queries.append(_filled(own, num_queries))
                seen.append(_filled(keys, num_seen))
                written.append((own, offset))
                offset += num_queries
            # what rows are filled up with lies behind their tokens, where causal attention does not look
            is_causal = not _continues(group[0]) and (window is None or num_seen <= window)
            mask = None if is_causal else _mask([(len(o), len(k)) for o, k in rows], num_queries, num_seen, window)
            self.calls.append(
                _Call(len(group), num_queries, num_seen, mask if mask is None else mask.to(bounds.device))
            )
        self.queries = torch.cat(queries).to(bounds.device)  # (rows x queries,) tokens of the row
        self.seen = torch.cat(seen).to(bounds.device)
        outputs = torch.empty(sum(len(own) for own, _ in written), dtype=torch.long)
        for own, start in written:
            outputs[own] = torch.arange(start, start + len(own))
        self.outputs = outputs.to(bounds.device)  # (tokens,) where the output of each token lies


def _grouped(spans: list[tuple[int, int, int, int]]) -> Iterator[list[tuple[int, int, int, int]]]:
    """Segments in groups, so that filling up costs less than the calls it saves. Those that continue a prompt are
    apart from those that do not, which need no mask and cost half."""
    by_size = sorted(spans, key=lambda span: (_continues(span), _num_seen(span), span[1] - span[0]))
    group: list[tuple[int, int, int, int]] = []
    widest = 0
    for span in by_size:
        own, seen = span[1] - span[0], _num_seen(span)
        wider = max(widest, own)
        last = _num_seen(group[-1]) if group else 0
        pairs = 1.0 if _continues(span) else 0.5
        together = pairs * (len(group) + 1) * wider * seen
        apart = pairs * (len(group) * widest * last + own * seen) + _PAIRS_A_CALL
        if group and (together > apart or _continues(span) != _continues(group[0])):
            yield group
            group, wider = [], own
        group.append(span)
        widest = wider
    if group:
        yield group


def _continues(span: tuple[int, int, int, int]) -> bool:
    """Whether a segment sees a prompt before itself."""
    start, _, prompt_start, _ = span
    return start != prompt_start


def _num_seen(span: tuple[int, int, int, int]) -> int:
    start, end, prompt_start, prompt_end = span
    return end - start + (prompt_end - prompt_start if _continues(span) else 0)


def _tokens_of(span: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """The tokens of a segment, and those that its last token sees."""
    start, end, prompt_start, prompt_end = span
    own = torch.arange(start, end)
    return own, torch.cat([torch.arange(prompt_start, prompt_end), own]) if _continues(span) else own


def _filled(tokens: Tensor, length: int) -> Tensor:
    return torch.cat([tokens, tokens.new_zeros(length - len(tokens))])


def _mask(sizes: list[tuple[int, int]], num_queries: int, num_seen: int, window: int | None) -> Tensor:
    own, seen = torch.tensor(sizes).T[:, :, None, None]
    query = torch.arange(num_queries)[None, :, None] + seen - own  # place in the sequence
    key = torch.arange(num_seen)[None, None]
    mask = key <= query
    if window is not None:
        mask = mask & (query - key < window)
    return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)[:, None]


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
        return output.transpose(1, 2).contiguous(), None
    kept = segments.kept.pop(module, None) if _in_backward() else None
    output, attended = _attend_by_group(query, key, value, segments.plan(sliding_window), scaling, dropout, kept)
    if torch.is_grad_enabled() and not dropout and not _in_backward():
        segments.kept[module] = attended
    return output, None


def _in_backward() -> bool:
    """Whether this is the second forward pass of a checkpointed layer, which runs within the backward pass."""
    return torch._C._current_graph_task_id() != -1


def _attend_by_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: _Plan,
    scaling: float | None,
    dropout: float,
    kept: list[_Attended] | None,
) -> tuple[Tensor, list[_Attended]]:
    """(1, tokens, heads, head size): one call a group of segments; tokens are gathered once for all calls."""
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    queries, keys, values = (
        x[0].transpose(0, 1).reshape(x.shape[2], -1).index_select(0, tokens)
        for x, tokens in ((query, plan.queries), (key, plan.seen), (value, plan.seen))
    )
    queries_by_call = queries.split([call.num_segments * call.num_queries for call in plan.calls])
    seen_by_call = [call.num_segments * call.num_seen for call in plan.calls]
    outputs, attended = [], []
    for i, (call, q, k, v) in enumerate(
        zip(plan.calls, queries_by_call, keys.split(seen_by_call), values.split(seen_by_call), strict=True)
    ):
        q = q.view(call.num_segments, call.num_queries, heads, size).transpose(1, 2)
        k = k.view(call.num_segments, call.num_seen, kv_heads, size).transpose(1, 2)
        v = v.view(call.num_segments, call.num_seen, kv_heads, size).transpose(1, 2)
        mask = call.mask_as(q.dtype)
        if dropout:
            output = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, mask is None, scale=scaling, enable_gqa=heads != kv_heads
            )
        else:
            output, log_normaliser = _Attend.apply(q, k, v, mask, scaling, kept[i] if kept else None)
            attended.append(_Attended(output.detach(), log_normaliser))
        outputs.append(output.transpose(1, 2).reshape(-1, heads * size))
    return torch.cat(outputs).index_select(0, plan.outputs).view(1, -1, heads, size), attended


class _Attended(NamedTuple):
    output: Tensor  # (segments, heads, queries, head size)
    log_normaliser: Tensor  # (segments, heads, queries)


class _Attend(torch.autograd.Function):
    """`scaled_dot_product_attention` on a CPU, that takes the result of a first forward pass instead of computing it
    again. Without a mask it is causal."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None,
        kept: _Attended | None,
    ) -> tuple[Tensor, Tensor]:
        output, log_normaliser = kept or torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, mask is None, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output, log_normaliser)
        ctx.scale = scale
        ctx.mark_non_differentiable(log_normaliser)
        return output, log_normaliser

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, log_normaliser = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_output,
            query,
            key,
            value,
            output,
            log_normaliser,
            0.0,
            mask is None,
            attn_mask=mask,
            scale=ctx.scale,
        )
        return *grads, None, None, None


@cache
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _tree_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _reads_trees.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, _tree_mask)
