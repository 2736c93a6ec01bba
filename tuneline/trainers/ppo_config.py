"""Options of `PPOTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from tuneline.errors import ConfigError
from tuneline.losses.policy import check_policy_options
from tuneline.rollout.protocol import Sampling
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_config import OnlineConfig

# What TRL's PPO calls otherwise than its other online trainers.
_SAME_AS = {
    "num_ppo_epochs": "num_iterations",
    "response_length": "max_completion_length",
    "kl_coef": "beta",
    "cliprange": "epsilon",
}
VALUE_FUNCTIONS = ("head", "model", "adapter")


@takes_older_options
@dataclass
class PPOConfig(OnlineConfig):
    """Names and defaults of TRL 1.12's `PPOConfig`, the last release found with one; options of our own stand last.

    A generation has per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches x processes
    completions, and trains for num_mini_batches x num_ppo_epochs optimizer steps.
    """

    _least_generations: ClassVar[int] = 1  # a completion is compared with what the value function expected

    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate."})
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    num_generations: int = field(default=1, metadata={"help": "Completions a prompt."})
    temperature: float = field(default=0.7, metadata={"help": "Divides the logits, in sampling and in training."})
    response_length: int = field(default=53, metadata={"help": "Longest completion, in tokens."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "eos: only the tokenizer's end token ends a completion. None: all that end model or turn."},
    )
    stop_token_id: int | None = field(default=None, metadata={"help": "The one token that ends a completion."})
    total_episodes: int | None = field(
        default=None, metadata={"help": "Completions to learn from, in place of max_steps or num_train_epochs."}
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "Times in a run that samples are printed and written."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Completions that policy, value function and reference are asked about at once."}
    )
    sft_model_path: str | None = field(default=None, metadata={"help": "The policy, where no model is passed."})
    reward_model_path: str | None = field(
        default=None, metadata={"help": "The reward model, where none and no reward_funcs are passed."}
    )

    # Rewards
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion that was cut off."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Cost of a nat of KL divergence. 0: no reference."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1, unbiased, or k3, never negative (Schulman 2020)."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Bring the tokens' rewards to a variance of 1."})

    # Learning
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over the completions of one generation."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps a pass."})
    gamma: float = field(default=1.0, metadata={"help": "Discount a token."})
    lam: float = field(default=0.95, metadata={"help": "0 trusts the values, 1 the rewards (GAE)."})
    cliprange: float = field(default=0.2, metadata={"help": "How far from 1 the probability ratio counts."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "How far a value may go from what it was. None: anywhere."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value function's loss."})

    # Of older TRL
    adap_kl_ctrl: bool = field(default=False, metadata={"help": "Hold the KL divergence at a target."})
    target: float = field(default=6.0, metadata={"help": "adap_kl_ctrl: the target, in nats a completion."})
    horizon: float = field(default=10000.0, metadata={"help": "adap_kl_ctrl: completions for a change by a fifth."})
    target_kl: float | None = field(
        default=None, metadata={"help": "Draw anew once a step's policy/approxkl_avg is over 1.5 times this."}
    )
    use_score_scaling: bool = field(
        default=False, metadata={"help": "Divide scores by the deviation of all that were seen."}
    )
    use_score_norm: bool = field(default=False, metadata={"help": "With use_score_scaling: take off their mean too."})
    score_clip: float | None = field(
        default=None, metadata={"help": "Scores are brought into [-score_clip, score_clip], after scaling."}
    )

    # What TRL has not
    value_function: str | None = field(
        default=None,
        metadata={
            "help": "head on the policy, model of its own, or adapter. None: model where there is a value or reward "
            "model to make it from, adapter beside another adapter, else head."
        },
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Bring advantages to mean 0 and variance 1, over all processes."}
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "What a nat of entropy is worth."})
    delta: float | None = field(
        default=None, metadata={"help": "Bound on the ratio where the advantage is negative (dual clip)."}
    )
    value_lam: float | None = field(
        default=None, metadata={"help": "lam of what the value function learns (VAPO: 1.0). None: lam."}
    )
    length_adaptive_lam: float | None = field(
        default=None,
        metadata={"help": "alpha: lam of the policy is 1 - 1 / (alpha * length) (VAPO: 0.05). None: lam."},
    )
    critic_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps in which the value function alone learns."}
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """The older configuration, where a keyword is given that it alone has: `tuneline.classic` tells."""
        from tuneline.classic.dispatch import classic_config

        older = classic_config(args, kwargs, cls)
        return super().__new__(cls) if older is None else older

    def __post_init__(self) -> None:
        for own, other in _SAME_AS.items():
            default = next(f.default for f in fields(self) if f.name == other)
            if getattr(self, other) not in (default, getattr(self, own)):  # equal when made from a saved config
                raise ConfigError(f"{other}={getattr(self, other)}: this trainer has {own} in its place; set that.")
            setattr(self, other, getattr(self, own))
        self._check()
        batches = self.num_mini_batches * self.gradient_accumulation_steps
        if self.steps_per_generation not in (None, batches):
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation}: a generation of PPO has num_mini_batches x "
                f"gradient_accumulation_steps = {batches} micro-batches; leave it out, or change num_mini_batches."
            )
        self.steps_per_generation = batches
        super().__post_init__()
        if self.total_episodes is not None:
            self._settle_max_steps(self.total_episodes)

    def sampling(self, stop_token_ids: list[int]) -> Sampling:
        return super().sampling(stop_token_ids if self.stop_token_id is None else [self.stop_token_id])

    def _settle_max_steps(self, total_episodes: int) -> None:
        assert self.generation_batch_size is not None
        generations = math.ceil(total_episodes / self.generation_batch_size)
        steps = generations * self.num_mini_batches * self.num_ppo_epochs
        given: Any = self.max_steps
        if given not in (-1, steps):
            raise ConfigError(
                f"max_steps={given} and total_episodes={total_episodes}, which is {steps} optimizer steps, "
                "contradict each other; give one of them."
            )
        self.max_steps: int = steps

    def _check(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "kl_estimator": ("k1", "k3"),
            "stop_token": (None, "eos"),
            "value_function": (None, *VALUE_FUNCTIONS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(str, known))}."
                )
        at_least: dict[str, float] = {
            "num_ppo_epochs": 1, "num_mini_batches": 1, "local_rollout_forward_batch_size": 1, "response_length": 1,
            "kl_coef": 0, "vf_coef": 0, "entropy_coef": 0, "critic_warmup_steps": 0, "num_sample_generations": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}.")
        for name in ("cliprange_value", "target_kl", "score_clip", "length_adaptive_lam", "total_episodes", "target"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be above 0; leave it out to do without.")
        for name in ("gamma", "lam", "value_lam"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} must lie in [0, 1].")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ConfigError(
                f"stop_token={self.stop_token!r} and stop_token_id={self.stop_token_id} both say what ends a "
                "completion; give one of them."
            )
        if self.horizon <= 0:
            raise ConfigError(f"horizon={self.horizon} must be above 0.")
        if self.adap_kl_ctrl and not self.kl_coef:
            raise ConfigError("adap_kl_ctrl=True multiplies kl_coef, and kl_coef=0 stays 0; set a first coefficient.")
        if self.use_score_norm and not self.use_score_scaling:
            raise ConfigError("use_score_norm=True is part of use_score_scaling; set that too.")
        if self.router_aux_loss_coef is not None:
            raise ConfigError("PPO has no load-balancing loss for mixtures of experts; leave router_aux_loss_coef out.")
        try:
            check_policy_options("dapo", epsilon=self.cliprange, delta=self.delta)
        except ValueError as error:
            raise ConfigError(str(error).replace("epsilon", "cliprange")) from error
