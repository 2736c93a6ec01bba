"""From what was scored to what PPO learns from: rewards, advantages and returns of single tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuneline.controllers import AdaptiveKLController, FixedKLController
from tuneline.gae import gae, length_adaptive_lam, token_rewards, whiten
from tuneline.logging import get_logger
from tuneline.losses.policy import kl_penalty
from tuneline.losses.sequences import sums_by_sequence, target_counts
from tuneline.running_moments import RunningMoments
from tuneline.trainers.experience import ScoredRollout
from tuneline.trainers.ppo_config import PPOConfig

logger = get_logger(__name__)

# In nats a completion. An estimate is now and then below 0 by chance; older TRL warned from here on.
_CLEARLY_NEGATIVE = -1.0


class Credit(NamedTuple):
    """Of a process's completions of a generation."""

    advantages: Tensor  # (targets,)
    returns: Tensor  # (targets,)
    scores: Tensor  # (sequences,) with penalty, scaled; 0 where there is none
    kl: Tensor  # (sequences,) nats a completion; 0 without a reference
    kl_rewards: Tensor  # (sequences,) what the KL divergence cost
    surprisals: Tensor  # (sequences,) minus the log-probability


class CreditAssigner:
    """Scores, KL penalties and values, made into what each token is worth; and what is adapted on the way.

    Args:
        add_up: sums a small tensor over the processes.
    """

    def __init__(self, args: PPOConfig, add_up: Callable[[Tensor], Tensor]):
        self.args, self.add_up = args, add_up
        self.controller: AdaptiveKLController | FixedKLController = (
            AdaptiveKLController(args.kl_coef, args.target, args.horizon)
            if args.adap_kl_ctrl
            else FixedKLController(args.kl_coef)
        )
        self.moments = RunningMoments()
        self.has_warned = False

    def scale_scores(self, scores: Tensor, *, learns: bool) -> Tensor:
        """(rollouts,): those of all processes, NaN where there is none, in the unit that the losses see.

        Args:
            learns: whether they count in the running statistics; in evaluation they do not.
        """
        if self.args.use_score_scaling:
            if learns:
                self.moments.update(scores)
            mean = self.moments.mean if self.args.use_score_norm else 0.0
            scores = (scores - mean) / self.moments.std
        if self.args.score_clip is not None:
            scores = scores.clamp(-self.args.score_clip, self.args.score_clip)
        return scores

    def assign(self, scored: Sequence[ScoredRollout], scores: Tensor) -> Credit:
        """Advantages and returns of this process's rollouts; every process must call it.

        Args:
            scored: with `old_logprobs`, `old_values` and perhaps `ref_logprobs`.
            scores: (sequences,), no NaN.
        """
        a, num_sequences = self.args, len(scored)
        counts = torch.tensor([one.num_targets for one in scored], dtype=torch.long)
        ids = torch.repeat_interleave(torch.arange(num_sequences), counts)
        is_counted = torch.tensor([one.counts_targets for one in scored], dtype=torch.bool)[ids]
        logprobs, values = _together(scored, "old_logprobs"), _together(scored, "old_values")
        kl = torch.zeros_like(logprobs)
        if any("ref_logprobs" in one.by_target for one in scored):
            kl = kl_penalty(logprobs, _together(scored, "ref_logprobs"), a.kl_estimator)
        rewards = token_rewards(scores, kl, ids, num_sequences, kl_coef=self.controller.value)
        if a.whiten_rewards:
            rewards = whiten(rewards, is_counted, reduce=self.add_up, shift_mean=False)
        lam: float | Tensor = a.lam
        if a.length_adaptive_lam is not None:
            lam = length_adaptive_lam(target_counts(ids, num_sequences), a.length_adaptive_lam)
        advantages = gae(rewards, values, ids, num_sequences, gamma=a.gamma, lam=lam).advantages
        value_lam = a.lam if a.value_lam is None else a.value_lam
        returns = gae(rewards, values, ids, num_sequences, gamma=a.gamma, lam=value_lam).returns
        if a.whiten_advantages:
            advantages = whiten(advantages, is_counted, reduce=self.add_up)
        sums = sums_by_sequence(kl, ids, num_sequences)
        surprisals = -sums_by_sequence(logprobs, ids, num_sequences)
        return Credit(advantages, returns, scores, sums, -self.controller.value * sums, surprisals)

    def adapt(self, kl: Tensor) -> None:
        """Take in the KL divergence of a generation, (sequences,) of this process, in nats a completion; every process
        must call it."""
        known = kl.double()
        sums = torch.stack([known.sum(), known.square().sum(), known.new_tensor(float(len(known)))])
        total, squares, count = self.add_up(sums).tolist()
        if not count:
            return
        mean = total / count
        self.controller.update(mean, int(count))
        variance = max(squares / count - mean**2, 0.0) / count  # of the mean
        if mean < _CLEARLY_NEGATIVE and mean**2 > 4 * variance and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "objective/kl is %.2f nats a completion, and a KL divergence is never negative: the completions were "
                "not drawn from the policy as it is scored. Look at what bends the sampling (repetition_penalty, a "
                "logits processor, a rollout_func or an engine with weights of its own), at dropout that is still on, "
                "and at the temperature of both. Said once.",
                mean,
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "kl_controller": self.controller.state_dict(),
            "score_moments": self.moments.state_dict(),
            "has_warned": self.has_warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["kl_controller"])
        self.moments.load_state_dict(state["score_moments"])
        self.has_warned = state["has_warned"]


def _together(scored: Sequence[ScoredRollout], name: str) -> Tensor:
    """(targets,), in the order of the rollouts."""
    return torch.cat([one.by_target[name] for one in scored] or [torch.empty(0)])
