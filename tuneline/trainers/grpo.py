"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its family of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.advantages import combine_rewards, has_spread, multi_reward_advantages
from tuneline.environments import Interaction
from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.logprobs import TargetLogprobs, token_logprobs
from tuneline.losses.entropy import AdaptiveEntropyCoefficient, entropy_bonus, entropy_threshold, top_entropy_mask
from tuneline.losses.mismatch import mismatch_weights, off_policy_mask
from tuneline.losses.policy import PolicyLoss, kl_penalty, num_items, policy_loss, token_weights
from tuneline.losses.sequences import means_by_sequence
from tuneline.rollout.protocol import RolloutEngine, rollout_seed
from tuneline.trainers.base import Rows, default_args
from tuneline.trainers.drawing import Drawn, RolloutFunction
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.grpo_config import GRPOConfig
from tuneline.trainers.online import OnlineTrainer

logger = get_logger(__name__)


class GRPOTrainer(OnlineTrainer):
    """Learning from groups of completions, each compared with the others of its prompt. The items are what
    `loss_type` averages over: tokens, or completions.

    Args:
        tools: plain or async functions with type hints and a docstring, that the policy may call.
        environment_factory: makes an environment for a rollout, or several by name; see `tuneline.environments`.
        train_dataset: may be left out where environments bring their own tasks, with `max_steps` set.

    For the other arguments and what is raised see `OnlineTrainer`.
    """

    args: GRPOConfig
    config_class = GRPOConfig
    method = "GRPO"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        tools: Iterable[Callable[..., Any]] | None = None,
        rollout_func: RolloutFunction | None = None,
        environment_factory: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None,
        rollout_engine: RolloutEngine | None = None,
    ):
        config: GRPOConfig = default_args(GRPOConfig, model, self.method) if args is None else args
        if train_dataset is None and environment_factory is not None:
            train_dataset = _tasks_of_environments(config)

        def interaction(tokenizer: Any, stop_token_ids: Sequence[int]) -> Interaction:
            return Interaction(
                tokenizer,
                stop_token_ids,
                tools=tools,
                environment_factory=environment_factory,
                max_tool_calling_iterations=config.max_tool_calling_iterations,
                max_tool_output_tokens=config.max_tool_output_tokens,
                tool_timeout=config.tool_timeout,
                chat_template_kwargs=config.template_kwargs,
            )

        self.entropy_coefficient = AdaptiveEntropyCoefficient(
            config.entropy_coef,
            minimum=config.entropy_coef_min,
            maximum=config.entropy_coef_max,
            delta=config.entropy_coef_delta,
            target=config.entropy_target,
        )
        self._entropy_of_step = torch.zeros(2, dtype=torch.float64)  # sum and count
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            rollout_engine=rollout_engine,
            rollout_func=rollout_func,
            make_interaction=interaction if tools or environment_factory is not None else None,
        )
        self.corrects_mismatch = config.vllm_importance_sampling_correction and (
            config.use_vllm or rollout_engine is not None
        )
        if config.use_adaptive_entropy:
            self.add_callback(_EntropyStep(self))

    @property
    def needs_old_logprobs(self) -> bool:
        return super().needs_old_logprobs or self.corrects_mismatch or self.args.top_entropy_quantile < 1

    @property
    def reads_every_target(self) -> bool:
        a = self.args
        return bool(a.beta or a.entropy_coef or a.use_adaptive_entropy or a.router_aux_loss_coef)

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        self._keep_uncertain(scored)
        return multi_reward_advantages(
            rewards,
            group_ids,
            self.rewards.weights,
            scale_rewards=str(self.args.scale_rewards),
            aggregation=self.args.multi_objective_aggregation,
        )

    def _keep_uncertain(self, scored: list[ScoredRollout]) -> None:
        """Mark the tokens that the policy was least sure of when it wrote them, over the whole generation."""
        if self.args.top_entropy_quantile < 1:
            entropies = torch.cat([one.by_target["old_entropies"] for one in scored] or [torch.empty(0)])
            threshold = entropy_threshold(
                entropies.to(self.args.device),
                self.args.top_entropy_quantile,
                lambda counts: self.accelerator.reduce(counts, "sum"),
            ).cpu()
            for one in scored:
                one.by_target["is_uncertain"] = top_entropy_mask(one.by_target["old_entropies"], threshold)
        for one in scored:
            one.by_target.pop("old_entropies", None)

    def num_items(self, experience: Experience) -> Any:
        targets: Any = experience.num_targets
        sequences: Any = experience.num_sequences
        return num_items(self.args.loss_type, targets, sequences, self.args.max_completion_length)

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        a, trees, known = self.args, experience.trees, experience.by_target
        ids, num_sequences = trees.sequence_ids, trees.num_sequences
        answers = token_logprobs(
            model,
            trees,
            temperature=self.sampling.temperature,
            with_entropy=True,
            with_aux_loss=a.router_aux_loss_coef is not None,
            support=experience.support,
        )
        logprobs, advantages = answers.logprobs, experience.advantages[ids]
        old_logprobs = known.get("old_logprobs", logprobs.detach())
        mask = known.get("is_uncertain")
        if a.off_policy_mask_threshold is not None:
            drew = known["sampler_logprobs"] if self.corrects_mismatch else old_logprobs
            near = off_policy_mask(
                logprobs, drew, advantages, ids, num_sequences, threshold=a.off_policy_mask_threshold
            )
            mask = near if mask is None else near & mask
        corrections = None
        if self.corrects_mismatch:
            corrections = mismatch_weights(
                old_logprobs,
                known["sampler_logprobs"],
                ids,
                num_sequences,
                mode=a.vllm_importance_sampling_mode,
                clip_max=a.vllm_importance_sampling_clip_max,
                clip_min=a.vllm_importance_sampling_clip_min,
            )
            self._record_mismatch(old_logprobs, known["sampler_logprobs"], corrections)
        found = policy_loss(
            logprobs,
            old_logprobs,
            advantages,
            ids,
            num_sequences,
            loss_type=a.loss_type,
            importance_sampling_level=a.importance_sampling_level,
            epsilon=a.epsilon,
            epsilon_high=a.epsilon_high,
            delta=a.delta,
            sapo_temperature_pos=a.sapo_temperature_pos,
            sapo_temperature_neg=a.sapo_temperature_neg,
            vespo_k_pos=a.vespo_k_pos,
            vespo_lambda_pos=a.vespo_lambda_pos,
            vespo_k_neg=a.vespo_k_neg,
            vespo_lambda_neg=a.vespo_lambda_neg,
            mask=mask,
            sampler_ratios=corrections,
            sampler_ratio_level=a.vllm_importance_sampling_mode.split("_")[0],
        )
        losses = found.losses
        if "ref_logprobs" in known:
            ratios = found.ratios if a.use_bias_correction_kl else None
            losses = losses + a.beta * kl_penalty(logprobs, known["ref_logprobs"], a.kl_estimator, ratios)
            self.record({"kl": kl_penalty(logprobs.detach(), known["ref_logprobs"], a.kl_estimator)})
        counted = experience.weights[ids]
        losses = losses * token_weights(a.loss_type, ids, num_sequences) * counted
        losses = self._with_entropy_bonus(losses, answers.entropies, mask, counted)
        self._record_policy(answers, found, ids, num_sequences)
        if answers.aux_loss is not None and a.router_aux_loss_coef is not None:
            share = experience.num_targets / self.step_num_targets * self.step_num_items
            self.record({"aux_loss": answers.aux_loss})
            losses = losses + a.router_aux_loss_coef * answers.aux_loss * share / max(len(losses), 1)
        return losses

    def _with_entropy_bonus(self, losses: Tensor, entropies: Tensor, mask: Tensor | None, counted: Tensor) -> Tensor:
        a = self.args
        if not (a.entropy_coef or a.use_adaptive_entropy):
            return losses
        self.record({"policy_loss": (losses.sum(), self.step_num_items)})
        acts = counted if mask is None else counted * mask
        if self.mode == "train":
            own = torch.stack([(entropies * acts).sum(), acts.sum()]).detach()
            self._entropy_of_step = self._entropy_of_step.to(own) + own
            self.record({"entropy_coef": torch.tensor(self.entropy_coefficient.coefficient)})
        coefficient = self.entropy_coefficient.applied if a.use_adaptive_entropy else a.entropy_coef
        bonus = entropy_bonus(
            entropies, coefficient, num_items=self.step_num_items, num_targets=self.step_num_targets, mask=acts
        )
        return losses + bonus

    def _record_policy(self, answers: TargetLogprobs, found: PolicyLoss, ids: Tensor, num_sequences: int) -> None:
        self.record({"entropy": answers.entropies})
        low, high = found.is_clipped_low.float(), found.is_clipped_high.float()
        match self.args.loss_type:
            case "cispo":
                self.record({"cispo_clip_ratio": high})
            case "vespo":
                assert found.phi is not None
                self.record({"vespo/phi_seq_mean": means_by_sequence(found.phi, ids, num_sequences)})
            case "sapo":
                pass
            case _:
                self.record(
                    {
                        "clip_ratio/low_mean": low,
                        "clip_ratio/high_mean": high,
                        "clip_ratio/region_mean": low + high,
                        "clip_ratio/low_min": means_by_sequence(low, ids, num_sequences),
                        "clip_ratio/high_max": means_by_sequence(high, ids, num_sequences),
                    }
                )

    def _record_mismatch(self, old_logprobs: Tensor, sampler_logprobs: Tensor, corrections: Tensor) -> None:
        difference = (old_logprobs - sampler_logprobs).abs()
        difference = difference[~difference.isnan()]
        self.record(
            {
                **{f"sampling/sampling_logp_difference/{name}": difference for name in ("mean", "max")},
                **{f"sampling/importance_sampling_ratio/{name}": corrections for name in ("min", "mean", "max")},
            }
        )

    # Dynamic sampling (Yu et al. 2025, arXiv:2503.14476, eq. 11)

    @property
    def _may_replace(self) -> bool:
        return self.args.dynamic_sampling and self.mode == "train"

    def _replace(
        self,
        drawn: Drawn,
        rewards: Tensor,
        group_ids: Tensor,
        key: tuple[Any, ...],
    ) -> Tensor:
        """Draw fresh prompts in the place of groups whose rewards are all alike, a few times over.

        All processes see the same rewards, and so choose the same prompts.
        """
        if not isinstance(self.train_dataset, Dataset):
            raise ConfigError("dynamic_sampling=True needs a dataset that can be read at any row, not a stream.")
        first = self.accelerator.process_index * len(drawn.rows)
        num_replaced = 0
        for attempt in range(1, self.args.max_dynamic_sampling_rounds + 1):
            total = combine_rewards(rewards, self.rewards.weights)
            dull = ~has_spread(total, group_ids)
            groups = group_ids[dull].unique().tolist()
            if not groups:
                break
            num_replaced += len(groups)
            seed = rollout_seed(self.args.seed, self.state.global_step, *key, "fresh prompts", attempt)
            generator = torch.Generator().manual_seed(seed)
            fresh = torch.randint(len(self.train_dataset), (len(groups),), generator=generator).tolist()
            row_of = dict(zip(groups, fresh, strict=True))
            own_groups = group_ids[first : first + len(drawn.rows)].tolist()
            positions = [i for i, group in enumerate(own_groups) if group in row_of]
            rows = [dict(self.train_dataset[row_of[own_groups[i]]]) for i in positions]
            seeds = [rollout_seed(self.args.seed, self.state.global_step, *key, attempt, first + i) for i in positions]
            own = rewards[first : first + len(drawn.rows)].clone()
            if rows:
                with self.collector.timed("rollout"):
                    others = self.collector.draw(rows, seeds)
                drawn.replace(positions, others)
                with self.collector.timed("rewards"):
                    own[positions] = self.collector.start_rewards(others).result().values
            rewards = self.collector.of_all(own)
        left = (~has_spread(combine_rewards(rewards, self.rewards.weights), group_ids)).float()
        self.record({"dynamic_sampling/num_replaced": torch.tensor(float(num_replaced))})
        self.record({"dynamic_sampling/frac_left_without_spread": left})
        return rewards

    def algorithm_state(self) -> dict[str, Any]:
        return {"entropy_coefficient": self.entropy_coefficient.state_dict()}

    def load_algorithm_state(self, numbers: dict[str, Any]) -> None:
        self.entropy_coefficient.load_state_dict(numbers["entropy_coefficient"])


class _EntropyStep(TrainerCallback):
    """Adapts the entropy coefficient once an optimizer step, by the entropy over all of it."""

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        total, count = self.trainer.accelerator.reduce(self.trainer._entropy_of_step, "sum").tolist()
        self.trainer.entropy_coefficient.update(total / max(count, 1.0))
        self.trainer._entropy_of_step = torch.zeros_like(self.trainer._entropy_of_step)


def _tasks_of_environments(args: GRPOConfig) -> Dataset:
    """As many empty prompts as a run of `max_steps` asks; the environments' resets fill them."""
    if args.max_steps <= 0:
        raise ConfigError("without a train_dataset the length of the run is unknown; set max_steps.")
    total = args.generation_batch_size
    assert total is not None
    return Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * (total // args.num_generations))
