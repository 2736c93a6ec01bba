"""Losses of supervised fine-tuning, one value a target; the trainer takes the mean over the whole optimizer step."""

from __future__ import annotations

from torch import Tensor


def nll_loss(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood. `logprobs` and what is returned: (targets,)."""
    return -logprobs


def dft_loss(logprobs: Tensor) -> Tensor:
    """Dynamic fine-tuning: the negative log-likelihood weighted by the token's own probability, which is held constant.

    Wu et al. 2025, arXiv:2508.05629. This takes away the factor 1 / p by which the gradient of the likelihood prefers
    improbable tokens. `logprobs` and what is returned: (targets,).
    """
    return -logprobs.detach().exp() * logprobs
