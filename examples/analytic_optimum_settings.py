"""The rows of the table: settings of the trainers, and the losses that say where each leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from examples.analytic_optimum_fixed_points import (
    ExpectedLoss,
    Targets,
    expected_policy_loss,
    expected_preference_loss,
    expected_token_reward_loss,
)
from examples.analytic_optimum_task import ENDING, ONE_LENGTH, ONE_TOKEN, Task

BETA, MAX_TOKENS = ENDING.beta, ENDING.max_tokens
GROUP = 64
LIMIT = 0.05  # total variation that a setting whose fixed point is the optimum has to end within

ONLINE: dict[str, Any] = dict(
    learning_rate=3e-3,
    per_device_train_batch_size=len(ENDING.prompts) * GROUP,
    num_generations=GROUP,
    max_steps=300,
    shuffle_dataset=False,  # each batch has all prompts equally often
)
GROUPED: dict[str, Any] = dict(**ONLINE, max_completion_length=MAX_TOKENS)
PPO: dict[str, Any] = dict(
    **ONLINE,
    response_length=MAX_TOKENS,
    temperature=1.0,
    local_rollout_forward_batch_size=ONLINE["per_device_train_batch_size"],
)
OFFLINE: dict[str, Any] = dict(
    learning_rate=3e-3,
    per_device_train_batch_size=210,
    num_train_epochs=5,
    precompute_ref_log_probs=True,
    precompute_ref_batch_size=420,
)


@dataclass(frozen=True)
class Setting:
    """A method, how it is configured, and where its loss leads.

    Attributes:
        options: of the trainer's configuration, over those that all have.
        expected: makes the loss averaged over all completions, from targets and the reference's log-probabilities
            (prompts, completions).
        hard_labels: of two completions the better is always the chosen one.
        is_exact: its fixed point is the optimum, and training should end there.
    """

    name: str
    method: str
    title: str
    reason: str
    options: dict[str, Any]
    expected: Callable[[Targets, Tensor], ExpectedLoss]
    task: Task = ENDING
    hard_labels: bool = False
    is_exact: bool = False


def _in_reward(**options: Any) -> Callable[[Targets, Tensor], ExpectedLoss]:
    return lambda targets, ref: expected_policy_loss(targets, ref, kl_in_reward=True, beta=BETA, **options)


def _in_loss(num_generations: int = GROUP, beta: float = BETA, **options: Any) -> Callable[..., ExpectedLoss]:
    return lambda targets, ref: expected_policy_loss(
        targets, ref, kl_in_reward=False, beta=beta, num_generations=num_generations, **options
    )


def _by_token(**options: Any) -> Callable[[Targets, Tensor], ExpectedLoss]:
    return lambda targets, ref: expected_token_reward_loss(targets, ref, beta=BETA, **options)


def _of_pairs(**options: Any) -> Callable[[Targets, Tensor], ExpectedLoss]:
    return lambda targets, ref: expected_preference_loss(targets, ref, beta=BETA, **options)


# The mean of a group has the completion itself in it, which makes advantages smaller by this; the penalty it leaves.
_SHRINKAGE = 1 - 1 / GROUP
# The ratio of a sequence is the geometric mean over its tokens, which divides the penalty's gradient by their number.
_SEQUENCE_BETA = BETA * MAX_TOKENS * _SHRINKAGE
_SEQUENCE = dict(
    **GROUPED, scale_rewards="none", importance_sampling_level="sequence", kl_estimator="k1", beta=_SEQUENCE_BETA
)

SETTINGS = [
    Setting(
        "ppo",
        "ppo",
        "defaults, `temperature=1`",
        "a token answers for its own penalty and those of all tokens after it, as it does for the reward",
        dict(**{**PPO, "max_steps": 400}, kl_coef=BETA),
        _by_token(),
        is_exact=True,
    ),
    Setting(
        "ppo-plain",
        "ppo",
        "`num_ppo_epochs=1`, `whiten_advantages=False`",
        "the same",
        dict(**PPO, kl_coef=BETA, num_ppo_epochs=1, whiten_advantages=False),
        _by_token(),
        is_exact=True,
    ),
    Setting(
        "rloo",
        "rloo",
        "defaults",
        "the log-ratio of the whole completion is part of its reward; the baseline leaves the completion out",
        dict(**GROUPED, beta=BETA),
        _in_reward(loss_type="grpo", level="sequence_sum"),
        is_exact=True,
    ),
    Setting(
        "rloo-normalized",
        "rloo",
        "`normalize_advantages=True`",
        "the same",
        dict(**GROUPED, beta=BETA, normalize_advantages=True),
        _in_reward(loss_type="grpo", level="sequence_sum"),
        is_exact=True,
    ),
    Setting(
        "grpo-reward",
        "grpo",
        "`kl_in_reward=True`, `scale_rewards=none`",
        "as RLOO; the mean of the group scales reward and penalty alike",
        dict(**GROUPED, beta=BETA, kl_in_reward=True, scale_rewards="none"),
        _in_reward(num_generations=GROUP),
        is_exact=True,
    ),
    Setting(
        "grpo-one-token",
        "grpo",
        "KL in the loss, `scale_rewards=none`, beta x (1 - 1/G)",
        "one token has no others to answer for; the mean of the group makes advantages smaller, and not the penalty",
        dict(**{**GROUPED, "max_completion_length": 1}, beta=BETA * _SHRINKAGE, scale_rewards="none"),
        _in_loss(beta=BETA * _SHRINKAGE),
        task=ONE_TOKEN,
        is_exact=True,
    ),
    Setting(
        "dpo",
        "dpo",
        "defaults",
        "labels by Bradley and Terry from the reward: all margins are right at the optimum alone",
        dict(**OFFLINE, beta=BETA),
        _of_pairs(),
        is_exact=True,
    ),
    Setting(
        "ppo-k3",
        "ppo",
        "`kl_estimator=k3`",
        "to be less likely than under the reference costs as well as to be more likely; collapse is at rest too",
        dict(**PPO, kl_coef=BETA, kl_estimator="k3", num_ppo_epochs=1, whiten_advantages=False),
        _by_token(kl_estimator="k3"),
    ),
    Setting(
        "grpo-token",
        "grpo",
        "KL in the loss by token, `scale_rewards=none`",
        "a token answers for its own divergence and not for what it leads to",
        dict(**GROUPED, beta=BETA, scale_rewards="none"),
        _in_loss(),
    ),
    Setting(
        "grpo-defaults",
        "grpo",
        "defaults (G = 8, `scale_rewards=group`)",
        "rewards in units of their deviation, as if beta were multiplied by it; and the above",
        dict(**{**GROUPED, "num_generations": 8}, beta=BETA),
        _in_loss(num_generations=8, scales_rewards=True),
    ),
    Setting(
        "grpo-uncorrected",
        "grpo",
        "KL by token, `use_bias_correction_kl=False`",
        "k3 without the ratio has the gradient of the forward divergence, token by token",
        dict(**GROUPED, beta=BETA, scale_rewards="none", use_bias_correction_kl=False),
        _in_loss(corrects_kl=False),
    ),
    Setting(
        "grpo-k1-uncorrected",
        "grpo",
        "KL by token, `kl_estimator=k1`, `use_bias_correction_kl=False`",
        "the gradient of k1 is zero in the mean: whatever beta is, the policy collapses on one completion",
        dict(**GROUPED, beta=BETA, scale_rewards="none", kl_estimator="k1", use_bias_correction_kl=False),
        _in_loss(corrects_kl=False, kl_estimator="k1"),
    ),
    Setting(
        "rloo-one-length",
        "rloo",
        "defaults, to compare the next row with",
        "as above",
        dict(**GROUPED, beta=BETA),
        _in_reward(loss_type="grpo", level="sequence_sum"),
        task=ONE_LENGTH,
    ),
    Setting(
        "grpo-sequence",
        "grpo",
        "KL by sequence: `importance_sampling_level=sequence`, `kl_estimator=k1`, beta x 3 x (1 - 1/G)",
        "every token answers for all: the same fixed point, but the penalty has no baseline, and its noise stays",
        _SEQUENCE,
        _in_loss(beta=_SEQUENCE_BETA, level="sequence", kl_estimator="k1"),
        task=ONE_LENGTH,
    ),
    Setting(
        "grpo-sequence-lengths",
        "grpo",
        "KL by sequence, lengths that differ",
        "the penalty is the mean over the tokens: long completions go further from the reference than short ones",
        _SEQUENCE,
        _in_loss(beta=_SEQUENCE_BETA, level="sequence", kl_estimator="k1"),
    ),
    Setting(
        "dpo-smoothed",
        "dpo",
        "`label_smoothing=0.1`",
        "labels that are right are taken for wrong a tenth of the time, and margins come out smaller",
        dict(**OFFLINE, beta=BETA, label_smoothing=0.1),
        _of_pairs(label_smoothing=0.1),
    ),
    Setting(
        "dpo-hard-labels",
        "dpo",
        "the better one is always chosen",
        "no fixed point: every margin grows for as long as training goes on",
        dict(**{**OFFLINE, "num_train_epochs": 2}, beta=BETA),
        _of_pairs(hard_labels=True),
        hard_labels=True,
    ),
]
