"""What to do where completions were not drawn from the policy that is trained: the sampler computes in another
precision or with other kernels, or has older weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tuneline.losses.sequences import means_by_sequence, sums_by_sequence

MISMATCH_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def mismatch_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    mode: str = "sequence_mask",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """Importance weights of old policy over sampler, bounded (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"; the masks after Liu et al. 2025, "When speed kills stability").

    The ratio of a sequence is the product over its targets: with `sequence_*` long completions meet the bounds more
    often, and without `clip_min` nothing keeps their weight from 0.

    Args:
        old_logprobs: (targets,), under the policy that the step began with, computed by the trainer.
        sampler_logprobs: (targets,), as the sampler gave them; NaN where it gave none, which counts as agreement.
        sequence_ids: (targets,), the sequence of each target, in any order.
        mode: one of `MISMATCH_MODES`: the ratio of each token or of the whole sequence; a ratio beyond a bound is set
            to it (`truncate`) or to 0 (`mask`).
        clip_max: at least 1; None for no bound.
        clip_min: in [0, 1]; None for no bound.

    Returns:
        (targets,), detached; that of a sequence stands at each of its targets.

    Raises:
        ValueError: the mode is unknown, or the bounds are out of range.
    """
    check_mismatch_options(mode, clip_max=clip_max, clip_min=clip_min)
    differences = (old_logprobs - sampler_logprobs).detach()
    differences = torch.where(differences.isnan(), 0.0, differences)
    level, how = mode.split("_")
    if level == "sequence":
        differences = sums_by_sequence(differences, sequence_ids, num_sequences)[sequence_ids]
    ratios = differences.exp()
    if how == "truncate":
        return ratios.clamp(clip_min, clip_max)
    if clip_min is not None:
        ratios = torch.where(ratios < clip_min, 0.0, ratios)
    if clip_max is not None:
        ratios = torch.where(ratios > clip_max, 0.0, ratios)
    return ratios


def check_mismatch_options(mode: str, *, clip_max: float | None = 3.0, clip_min: float | None = None) -> None:
    """Raise ValueError, naming option, value and remedy, for what `mismatch_weights` cannot compute."""
    if mode not in MISMATCH_MODES:
        raise ValueError(f"mode={mode!r} is no correction of the mismatch; use one of {', '.join(MISMATCH_MODES)}.")
    if clip_max is None and clip_min is None:
        raise ValueError(
            "clip_max and clip_min are both None, so that the weights have no bound; clip_max=3.0 is usual."
        )
    if clip_max is not None and clip_max < 1:
        raise ValueError(f"clip_max={clip_max} must be at least 1, the ratio where sampler and policy agree.")
    if clip_min is not None and not 0 <= clip_min <= 1:
        raise ValueError(f"clip_min={clip_min} must lie in [0, 1]: at 1 sampler and policy agree.")


def off_policy_mask(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    threshold: float,
) -> Tensor:
    """Leaves out sequences that are both unwanted and far from what the policy would write now (DeepSeek-V3.2,
    arXiv:2512.02556, eq. 9).

    Args:
        logprobs: (targets,), under the policy.
        sampler_logprobs: (targets,), as the sampler gave them, NaN where it gave none; or those of the old policy.
        advantages: (targets,), those of a rollout repeated at each of its targets.
        sequence_ids: (targets,), the sequence of each target, in any order.
        threshold: the largest mean over a sequence of sampler minus policy log-probability, in nats a token. A token
            without a sampler's log-probability counts as 0.

    Returns:
        (targets,), bool: True where the advantage is not negative, or the mean is at most `threshold`.
    """
    differences = (sampler_logprobs - logprobs).detach()
    differences = torch.where(differences.isnan(), 0.0, differences)
    divergences = means_by_sequence(differences, sequence_ids, num_sequences)
    return (advantages >= 0) | (divergences <= threshold)[sequence_ids]
