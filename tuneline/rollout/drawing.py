"""Draws a token for each row by inverting its distribution at one given number: no vocabulary of noise is made.

Temperature, top-k, top-p, min-p and repetition penalty mean what they mean in transformers, in its order: penalty,
temperature, top-k, top-p, min-p. Tokens that tie with the last one kept are kept as well.
"""

# R rows, V vocabulary, B blocks

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tuneline.errors import ConfigError, RolloutError
from tuneline.rollout.protocol import Sampling

_BLOCK = 128  # tokens summed at once in float32; sums of blocks are added up in float64
_LIKELIEST = 1024  # where top-p looks first, before it sorts more


class Draw(NamedTuple):
    """Tokens drawn.

    Attributes:
        ids: (rows,)
        logprobs: (rows,) float32, of the distribution that was drawn from.
        kept: (rows, vocab) bool, what could be drawn; None where the support is whole.
    """

    ids: Tensor
    logprobs: Tensor
    kept: Tensor | None


def check_sampling(sampling: Sampling) -> None:
    """Raises:
    ConfigError: a value out of its range.
    """
    ranges = [
        ("max_new_tokens", sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < math.inf, "at least 0"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1, which leaves all"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0, which leaves all"),
        ("min_p", sampling.min_p, sampling.min_p is None or 0 <= sampling.min_p <= 1, "from 0 to 1, or None"),
        ("repetition_penalty", sampling.repetition_penalty, sampling.repetition_penalty > 0, "above 0; 1 is none"),
    ]
    for name, value, is_valid, wanted in ranges:
        if not is_valid:
            raise ConfigError(f"{name}={value} must be {wanted}.")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens that stand in prompt or completion (Keskar et al. 2019, arXiv:1909.05858, sec. 4.1).

    Args:
        logits: (rows, vocab), before the temperature.
        seen: (rows, vocab) bool.
        penalty: divides positive logits, multiplies negative ones.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Draw:
    """A token a row; rows do not influence each other.

    Args:
        logits: (rows, vocab) float32, penalties applied.
        uniforms: (rows,) float64 in [0, 1), where the cumulative distribution is inverted. Not read at temperature 0,
            whose log-probabilities are those at temperature 1.

    Raises:
        RolloutError: logits that are not finite.
    """
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    top_R1, likeliest_R1 = logits.max(-1, keepdim=True)
    if not torch.isfinite(top_R1).all():
        raise RolloutError(
            "transformers engine: the model's logits are not finite, so nothing can be drawn; its weights have "
            "diverged, or overflow in this precision."
        )
    kept = None
    weights = (logits - top_R1).exp_()
    if sampling.cuts_support:
        kept = logits >= support_threshold(logits, weights, sampling)
        weights = weights.masked_fill_(~kept, 0.0)
    blocks_RB, cumulative_RB = _blocks(weights)
    ids_R1 = likeliest_R1
    if sampling.temperature > 0:
        ids_R1 = _invert(blocks_RB, cumulative_RB, uniforms[:, None])
    log_total_R1 = cumulative_RB[:, -1:].log()
    logprobs_R1 = (logits.gather(1, ids_R1) - top_R1).double() - log_total_R1
    return Draw(ids_R1[:, 0], logprobs_R1[:, 0].float(), kept)


def support_threshold(logits: Tensor, weights: Tensor, sampling: Sampling) -> Tensor:
    """(rows, 1): the smallest logit that top-k, top-p and min-p leave.

    Args:
        logits: (rows, vocab), at the temperature.
        weights: (rows, vocab), their exponentials, 1 for the likeliest.
    """
    threshold = torch.full_like(logits[:, :1], -torch.inf)
    vocab = logits.shape[1]
    if 0 < sampling.top_k < vocab:
        threshold = logits.topk(sampling.top_k).values[:, -1:]
    if sampling.top_p < 1:
        total = (weights * (logits >= threshold)).sum(-1, keepdim=True, dtype=torch.float64)
        width = min(vocab, _LIKELIEST)
        while True:
            values = logits.topk(width).values  # in falling order
            masses = (values - values[:, :1]).exp_().double() / total
            above = masses.cumsum(-1) - masses  # what is likelier than each
            if width == vocab or bool((above[:, -1] >= sampling.top_p).all()):
                break
            width = min(vocab, 8 * width)
        nucleus = values.masked_fill(above >= sampling.top_p, torch.inf)
        threshold = torch.maximum(threshold, nucleus.amin(-1, keepdim=True))
    if sampling.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        threshold = torch.maximum(threshold, least)
    return threshold


def _blocks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights as (rows, blocks, tokens), and (rows, blocks) float64, the sums up to the end of each block."""
    missing = -weights.shape[1] % _BLOCK
    if missing:
        weights = F.pad(weights, (0, missing))
    blocks = weights.view(len(weights), -1, _BLOCK)
    return blocks, blocks.sum(-1).double().cumsum(-1)


def _invert(blocks: Tensor, cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """(rows, 1): the first token whose cumulative weight is above the given share of the total.

    Rounding can put that share at the end of a block or of the vocabulary; the last token of positive weight before
    it is taken then, so nothing outside the support is ever drawn.
    """
    shares = uniforms * cumulative[:, -1:]
    before = F.pad(cumulative[:, :-1], (1, 0))
    block = _first(cumulative > shares, cumulative > before)
    weights = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double()
    inside = _first(weights.cumsum(-1) > shares - before.gather(1, block), weights > 0)
    return block * _BLOCK + inside


def _first(is_above: Tensor, is_possible: Tensor) -> Tensor:
    """(rows, 1): the first column that is above, else the last possible one."""
    size = is_above.shape[1]
    last = size - 1 - is_possible.flip(-1).int().argmax(-1, keepdim=True)
    return torch.where(is_above[:, -1:], is_above.int().argmax(-1, keepdim=True), last)
