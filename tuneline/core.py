"""Functions that code written against TRL imports from `trl.core`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from tuneline.classic.length_sampler import LengthSampler
from tuneline.controllers import AdaptiveKLController, FixedKLController
from tuneline.gae import whiten

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "LengthSampler",
    "clip_by_value",
    "entropy_from_logits",
    "logprobs_from_logits",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "respond_to_batch",
    "set_seed",
]


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """The mean of `values` where `mask`, of the same shape, is 1; over one axis, or over all."""
    if axis is None:
        return (values * mask).sum() / mask.sum()
    return (values * mask).sum(axis) / mask.sum(axis)


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """The variance of `values` where `mask`, of the same shape, is 1.

    Raises:
        ValueError: fewer values count than a variance needs.
    """
    count = mask.sum()
    if count < 1 + int(unbiased):
        raise ValueError(f"the mask leaves {int(count)} values, and this variance needs {1 + int(unbiased)}.")
    squares = (values - masked_mean(values, mask)).square()
    return (squares * mask).sum() / (count - int(unbiased))


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """See `tuneline.gae.whiten`; any shape."""
    return whiten(values, mask, shift_mean=shift_mean)


def clip_by_value(x: Tensor, tensor_min: Tensor | float, tensor_max: Tensor | float) -> Tensor:
    """`x` held between two bounds, numbers or tensors."""
    return torch.maximum(torch.minimum(x, torch.as_tensor(tensor_max).to(x)), torch.as_tensor(tensor_min).to(x))


def entropy_from_logits(logits: Tensor) -> Tensor:
    """(..., vocab) to (...): the entropy in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def logprobs_from_logits(logits: Tensor, labels: Tensor, gather: bool = True) -> Tensor:
    """Log-probabilities of `labels` (...) under `logits` (..., vocab); with `gather=False` of every token."""
    log_p = logits.log_softmax(-1)
    return log_p.gather(-1, labels[..., None]).squeeze(-1) if gather else log_p


@torch.no_grad()
def respond_to_batch(model: Any, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(queries, txt_len): tokens drawn after each query, of `txt_len` each, whether or not an end token is among them.

    Args:
        model: a language model, with a value head or without.
        queries: (queries, length), without padding.
    """
    written = model.generate(
        queries,
        attention_mask=torch.ones_like(queries),
        do_sample=True,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=txt_len,
        eos_token_id=None,
        pad_token_id=0,
    )
    return written[:, -txt_len:]
