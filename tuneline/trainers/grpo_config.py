"""Options of `GRPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.advantages import AGGREGATIONS, SCALE_REWARDS
from tuneline.errors import ConfigError
from tuneline.losses.mismatch import check_mismatch_options
from tuneline.losses.policy import KL_ESTIMATORS, check_policy_options
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_config import OnlineConfig


@takes_older_options
@dataclass
class GRPOConfig(OnlineConfig):
    """Names and defaults of TRL 1.16's `GRPOConfig`; options of our own stand last."""

    loss_type: str = field(
        default="dapo",
        metadata={"help": "dapo, grpo, dr_grpo, bnpo, cispo, sapo, luspo, vespo or gmpo; see tuneline.losses.policy."},
    )
    delta: float | None = field(default=None, metadata={"help": "Bound on the ratio where the advantage is negative."})
    sapo_temperature_neg: float = field(default=1.05, metadata={"help": "sapo: where the advantage is not positive."})
    sapo_temperature_pos: float = field(default=1.0, metadata={"help": "sapo: where the advantage is positive."})
    vespo_k_pos: float = field(default=2.0, metadata={"help": "vespo: power, where the advantage is not negative."})
    vespo_lambda_pos: float = field(default=3.0, metadata={"help": "vespo: decay, where it is not negative."})
    vespo_k_neg: float = field(default=3.0, metadata={"help": "vespo: power, where the advantage is negative."})
    vespo_lambda_neg: float = field(default=2.0, metadata={"help": "vespo: decay, where it is negative."})
    importance_sampling_level: str = field(
        default="token", metadata={"help": "token, or sequence (GSPO, arXiv:2507.18071)."}
    )
    multi_objective_aggregation: str = field(
        default="sum_then_normalize",
        metadata={"help": "sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242)."},
    )
    scale_rewards: str = field(  # a bool too: in a union the command line would read nothing but bools
        default="group", metadata={"help": "Deviation that advantages are divided by: of the group, the batch, none."}
    )
    top_entropy_quantile: float = field(
        default=1.0, metadata={"help": "Learn from this share of the tokens, the most uncertain (arXiv:2506.01939)."}
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "What a nat of entropy is worth."})
    use_adaptive_entropy: bool = field(
        default=False, metadata={"help": "Hold the entropy at entropy_target (Skywork-OR1, arXiv:2505.22312)."}
    )
    entropy_coef_min: float = field(default=0.0, metadata={"help": "Least adaptive coefficient."})
    entropy_coef_max: float = field(default=1.0, metadata={"help": "Largest adaptive coefficient."})
    entropy_coef_delta: float = field(default=0.005, metadata={"help": "Change of the adaptive coefficient a step."})
    entropy_target: float = field(default=0.2, metadata={"help": "Entropy to hold, in nats a token."})
    max_tool_calling_iterations: int | None = field(
        default=None, metadata={"help": "Rounds of tool calls a conversation. None: no limit but its length."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=True, metadata={"help": "Weigh losses by policy over sampler, where another engine draws."}
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={"help": "token_truncate, token_mask, sequence_truncate or sequence_mask."},
    )
    vllm_importance_sampling_clip_max: float | None = field(default=3.0, metadata={"help": "Largest such weight."})
    vllm_importance_sampling_clip_min: float | None = field(default=None, metadata={"help": "Least such weight."})
    off_policy_mask_threshold: float | None = field(
        default=None,
        metadata={"help": "Leave out unwanted completions further than this from the policy (arXiv:2512.02556)."},
    )
    use_bias_correction_kl: bool = field(
        default=True, metadata={"help": "Weigh the KL estimate by the ratio (arXiv:2512.02556, eq. 7)."}
    )

    vllm_importance_sampling_cap: float | None = field(
        default=None, metadata={"help": "Older name of vllm_importance_sampling_clip_max."}
    )
    cast_lm_head_to_fp32: bool = field(default=False, metadata={"help": "No effect: the head sums in float32."})
    log_completions_hub_repo: str | None = field(
        default=None, metadata={"help": "No effect: nothing is sent anywhere; see log_completions."}
    )

    # What TRL has not
    kl_in_reward: bool = field(
        default=False,
        metadata={"help": "Take beta x KL (k1, of the whole completion) off its reward, and none into the loss."},
    )
    kl_estimator: str = field(default="k3", metadata={"help": "k1, k2 or k3 of Schulman 2020."})
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "Replace groups whose rewards are all alike by fresh prompts (DAPO, arXiv:2503.14476)."},
    )
    max_dynamic_sampling_rounds: int = field(default=3, metadata={"help": "Times that a batch is filled up so."})
    max_tool_output_tokens: int | None = field(default=1024, metadata={"help": "Longer outputs of tools are cut."})
    tool_timeout: float | None = field(default=60.0, metadata={"help": "Seconds that a tool may take."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vllm_importance_sampling_cap is not None:
            self.vllm_importance_sampling_clip_max = self.vllm_importance_sampling_cap
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        choices = {
            "scale_rewards": SCALE_REWARDS,
            "multi_objective_aggregation": AGGREGATIONS,
            "kl_estimator": KL_ESTIMATORS,
            "importance_sampling_level": ("token", "sequence"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}.")
        try:
            check_policy_options(
                self.loss_type,
                importance_sampling_level=self.importance_sampling_level,
                epsilon=self.epsilon,
                epsilon_high=self.epsilon_high,
                delta=self.delta,
                sapo_temperature_pos=self.sapo_temperature_pos,
                sapo_temperature_neg=self.sapo_temperature_neg,
            )
            if self.vllm_importance_sampling_correction:
                check_mismatch_options(
                    self.vllm_importance_sampling_mode,
                    clip_max=self.vllm_importance_sampling_clip_max,
                    clip_min=self.vllm_importance_sampling_clip_min,
                )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.multi_objective_aggregation == "normalize_then_sum" and self.scale_rewards != "group":
            raise ConfigError(
                f"scale_rewards={self.scale_rewards!r} has no effect with multi_objective_aggregation="
                "'normalize_then_sum', which scales by group and by batch; leave it at 'group'."
            )
        if self.kl_in_reward and not self.beta:
            raise ConfigError("kl_in_reward=True takes beta x KL off the reward, and beta is 0; set it above 0.")
        if self.kl_in_reward and self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError(
                "kl_in_reward=True with multi_objective_aggregation='normalize_then_sum' would normalise the KL term, "
                "so that beta meant nothing; leave it at 'sum_then_normalize'."
            )
        if self.entropy_coef_min > self.entropy_coef_max:
            raise ConfigError(
                f"entropy_coef_min={self.entropy_coef_min} is above entropy_coef_max={self.entropy_coef_max}; they "
                "are the bounds of the adaptive coefficient."
            )
        if self.entropy_coef_delta <= 0:
            raise ConfigError(
                f"entropy_coef_delta={self.entropy_coef_delta} must be above 0: by this much the coefficient changes."
            )
        if self.max_dynamic_sampling_rounds < 1:
            raise ConfigError(
                f"max_dynamic_sampling_rounds={self.max_dynamic_sampling_rounds} must be at least 1; to replace "
                "nothing, set dynamic_sampling to False."
            )
        if not 0 <= self.top_entropy_quantile <= 1:
            raise ConfigError(f"top_entropy_quantile={self.top_entropy_quantile} is a share; use a value in [0, 1].")
