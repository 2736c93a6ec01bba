"""Where a method leads, without drawing anything: its loss averaged over all completions, followed to rest.

The policy is a table here, with a logit for each token after each beginning of a completion, so that no network and no
noise stand between a loss and its fixed point. The losses are the library's own functions, given every completion
weighed by how likely the policy writes it. What is found is what a trainer with that loss can reach at best.
"""

# P prompts, C completions, T targets: the tokens of all completions of all prompts

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from examples.analytic_optimum_task import Task
from tuneline.losses.policy import kl_penalty, policy_loss, token_weights
from tuneline.losses.preference import dpo_loss
from tuneline.losses.sequences import sums_by_sequence

ExpectedLoss = Callable[[Tensor], Tensor]  # of log-probabilities (targets,)


class Targets:
    """The tokens of all completions, laid end to end.

    Attributes:
        sequence_ids: (targets,), the completion of each, those of the first prompt first.
        num_sequences: prompts times completions.
    """

    def __init__(self, task: Task):
        self.task = task
        beginnings = sorted({c[:i] for c in task.completions for i in range(len(c))})
        place = {beginning: i for i, beginning in enumerate(beginnings)}
        self.num_beginnings = len(beginnings)
        self._beginnings = torch.tensor([place[c[:i]] for c in task.completions for i in range(len(c))])
        self._tokens = torch.tensor([token for c in task.completions for token in c])
        numbers = torch.tensor([i for i, c in enumerate(task.completions) for _ in c])
        num_completions, num_prompts = len(task.completions), len(task.prompts)
        self.num_sequences = num_prompts * num_completions
        self.sequence_ids = torch.cat([numbers + i * num_completions for i in range(num_prompts)])
        self.lengths = torch.tensor([len(c) for c in task.completions] * num_prompts)  # (sequences,)

    def logprobs(self, logits: Tensor) -> Tensor:
        """(targets,) of logits (prompts, beginnings, vocab)."""
        return logits.log_softmax(-1)[:, self._beginnings, self._tokens].flatten()

    def logps(self, logprobs: Tensor) -> Tensor:
        """(targets,) to (prompts, completions)."""
        sums = sums_by_sequence(logprobs, self.sequence_ids, self.num_sequences)
        return sums.view(len(self.task.prompts), -1)

    def logits(self, logps: Tensor) -> Tensor:
        """(prompts, beginnings, vocab): the table of the policy whose log-probabilities are these."""
        mass = torch.zeros(len(logps), self.num_beginnings, self.task.vocab_size, dtype=logps.dtype)
        each = logps.exp().flatten()[self.sequence_ids].view(len(logps), -1)
        for prompt, row in enumerate(each):
            mass[prompt].index_put_((self._beginnings, self._tokens), row, accumulate=True)
        return mass.log()


def follow(loss: ExpectedLoss, targets: Targets, start: Tensor, num_steps: int = 3000) -> Tensor:
    """(prompts, completions): log-probabilities where the expected update comes to rest, beginning from `start`."""
    logits = targets.logits(start).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(targets.logprobs(logits)).backward()
        optimizer.step()
        schedule.step()
    return targets.logps(targets.logprobs(logits.detach()))


def expected_policy_loss(
    targets: Targets,
    ref_logps: Tensor,
    *,
    kl_in_reward: bool,
    beta: float,
    num_generations: int | None = None,
    loss_type: str = "dapo",
    level: str = "token",
    kl_estimator: str = "k3",
    corrects_kl: bool = True,
    scales_rewards: bool = False,
) -> ExpectedLoss:
    """The loss of GRPO and RLOO over all completions, each as often as the policy writes it.

    Args:
        ref_logps: (prompts, completions)
        kl_in_reward: the whole log-ratio as part of the reward, not a penalty on each token in the loss.
        beta: of the configuration.
        num_generations: of a group whose mean, the completion itself in it, is the baseline; None for a baseline that
            knows nothing of the completion.
        level: the importance sampling level.
        scales_rewards: divide by the deviation of the rewards, as large groups have it.
    """
    ids, num = targets.sequence_ids, targets.num_sequences
    ref_logprobs = targets.logprobs(targets.logits(ref_logps))
    weights = token_weights(loss_type, ids, num)

    def loss(logprobs: Tensor) -> Tensor:
        logps = targets.logps(logprobs.detach())
        probabilities, rewards = logps.exp(), targets.task.rewards
        if kl_in_reward:
            rewards = rewards - beta * (logps - ref_logps)
        advantages = rewards - (probabilities * rewards).sum(-1, keepdim=True)
        if scales_rewards:
            advantages = advantages / (probabilities * advantages.square()).sum(-1, keepdim=True).sqrt()
        if num_generations is not None:
            advantages = advantages * (1 - 1 / num_generations)
        advantages = advantages.flatten()[ids]
        found = policy_loss(
            logprobs, logprobs.detach(), advantages, ids, num, loss_type=loss_type, importance_sampling_level=level
        )
        losses = found.losses
        if not kl_in_reward:
            ratios = found.ratios if corrects_kl else None
            losses = losses + beta * kl_penalty(logprobs, ref_logprobs, kl_estimator, ratios)
        return (losses * weights * probabilities.flatten()[ids]).sum()

    return loss


def expected_token_reward_loss(
    targets: Targets, ref_logps: Tensor, *, beta: float, kl_estimator: str = "k1"
) -> ExpectedLoss:
    """The loss of PPO's first update: a token is credited with the reward and the penalties from it on.

    A value function lowers the noise and, once it is right, changes nothing in the mean, at any lambda.
    """
    ids, num = targets.sequence_ids, targets.num_sequences
    ref_logprobs = targets.logprobs(targets.logits(ref_logps))

    def loss(logprobs: Tensor) -> Tensor:
        known = logprobs.detach()
        penalties = beta * kl_penalty(known, ref_logprobs, kl_estimator)
        before = penalties.cumsum(0) - penalties  # those of all targets in front, of other completions too
        first = torch.cat([torch.zeros(1, dtype=ids.dtype), targets.lengths.cumsum(0)[:-1]])
        spent = before - before[first][ids]
        totals = sums_by_sequence(penalties, ids, num)
        probabilities = targets.logps(known).exp()
        returns = targets.task.rewards.flatten()[ids] - (totals[ids] - spent)
        found = policy_loss(logprobs, known, returns, ids, num)
        return (found.losses * probabilities.flatten()[ids]).sum()

    return loss


def expected_preference_loss(
    targets: Targets, ref_logps: Tensor, *, beta: float, hard_labels: bool = False, **options: object
) -> ExpectedLoss:
    """DPO over all ordered pairs, each as often as Bradley and Terry have the first preferred.

    Args:
        hard_labels: the better one is always preferred.
        options: of `dpo_loss`.
    """
    num_completions = len(targets.task.completions)
    chosen, rejected = (~torch.eye(num_completions, dtype=torch.bool)).nonzero().unbind(1)
    margins = targets.task.rewards[:, chosen] - targets.task.rewards[:, rejected]  # (prompts, pairs)
    weights = (margins > 0).double() if hard_labels else margins.sigmoid()
    lengths = targets.lengths[:num_completions].double().expand(len(margins), -1)

    def loss(logprobs: Tensor) -> Tensor:
        logps = targets.logps(logprobs)
        pairs = [values[:, side].flatten() for values in (logps, ref_logps) for side in (chosen, rejected)]
        sides = {"chosen_lengths": lengths[:, chosen].flatten(), "rejected_lengths": lengths[:, rejected].flatten()}
        losses = dpo_loss(*pairs, beta=beta, **sides, **options).losses  # type: ignore[arg-type]
        return (losses * weights.flatten()).sum() / num_completions

    return loss
