"""Draws a token for each row by two races of exponentials: one of blocks of tokens, one inside the block that won.

The first of independent exponentials to ring, each with its weight as its rate, is i with probability w_i / sum w: the
Gumbel-max trick (Maddison, Tarlow and Minka 2014, arXiv:1411.0030) on another scale. With blocks a token needs some
hundred random numbers in place of a vocabulary of them. Unlike a walk along the cumulative distribution, whose steps
are narrow where the vocabulary is large, rounding changes the outcome only where the two fastest are that close.

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

BLOCK = 128  # tokens of one block
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


def num_blocks(vocab_size: int) -> int:
    return -(-vocab_size // BLOCK)


def draw(logits: Tensor, exponentials: Tensor, sampling: Sampling) -> Draw:
    """A token a row; rows do not influence each other.

    Args:
        logits: (rows, vocab) float32, penalties applied.
        exponentials: (rows, num_blocks(vocab) + BLOCK) float64, above 0, standard exponential. Not read at temperature
            0, whose log-probabilities are those at temperature 1.

    Raises:
        RolloutError: logits that are not finite.
    """
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    top_R1 = logits.amax(-1, keepdim=True)
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
    missing = -weights.shape[1] % BLOCK
    blocks = (F.pad(weights, (0, missing)) if missing else weights).view(len(weights), -1, BLOCK)
    masses_RB = blocks.sum(-1).double()
    if sampling.temperature == 0:
        ids_R1 = logits.argmax(-1, keepdim=True)
    else:
        block_R1 = (masses_RB / exponentials[:, :-BLOCK]).argmax(-1, keepdim=True)
        inside = blocks.gather(1, block_R1[:, :, None].expand(-1, -1, BLOCK))[:, 0].double()
        ids_R1 = block_R1 * BLOCK + (inside / exponentials[:, -BLOCK:]).argmax(-1, keepdim=True)
    logprobs_R1 = (logits.gather(1, ids_R1) - top_R1).double() - masses_RB.sum(-1, keepdim=True).log()
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
