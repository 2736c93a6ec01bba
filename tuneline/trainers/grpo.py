"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its family of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from tuneline.advantages import combine_rewards, has_spread, multi_reward_advantages
from tuneline.environments import Interaction
from tuneline.errors import ConfigError
from tuneline.logprobs import token_logprobs
from tuneline.losses.entropy import AdaptiveEntropyCoefficient, entropy_bonus, entropy_threshold, top_entropy_mask
from tuneline.losses.mismatch import mismatch_weights, off_policy_mask
from tuneline.losses.policy import PolicyLoss, kl_penalty, num_items, policy_loss, token_weights
from tuneline.losses.sequences import means_by_sequence
from tuneline.rewards.calling import Scores
from tuneline.rollout.protocol import RolloutEngine, rollout_seed
from tuneline.trainers.base import Rows, default_args
from tuneline.trainers.collecting import take_over
from tuneline.trainers.drawing import Drawn, RolloutFunction
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.grpo_config import GRPOConfig
from tuneline.trainers.online import OnlineTrainer
from tuneline.trainers.online_state import EntropyStep
from tuneline.trainers.prompts import empty_prompts, with_prompts


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
    takes_learned_prompts = True
    takes_images = True

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
        if environment_factory is not None:
            train_dataset = empty_prompts(config) if train_dataset is None else with_prompts(train_dataset)
            eval_dataset = with_prompts(eval_dataset)

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
            self.add_callback(EntropyStep(self))

    @property
    def needs_old_logprobs(self) -> bool:
        return self._trains_with_old_logprobs or self.args.top_entropy_quantile < 1 or self.args.kl_in_reward

    @property
    def _trains_with_old_logprobs(self) -> bool:
        return super().needs_old_logprobs or self.corrects_mismatch

    @property
    def reads_every_target(self) -> bool:
        a = self.args
        in_loss = a.beta and not a.kl_in_reward
        return bool(in_loss or a.entropy_coef or a.use_adaptive_entropy or a.router_aux_loss_coef)

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        self._keep_uncertain(scored)
        weights = self.rewards.weights
        if self.args.kl_in_reward:
            penalty = -self.args.beta * self.collector.log_ratios(scored).to(rewards)
            for one in scored:  # the loss has no term of it
                del one.by_target["ref_logprobs"]
                if not self._trains_with_old_logprobs:
                    del one.by_target["old_logprobs"]
            penalty = torch.where(rewards.isnan().all(1), torch.nan, penalty)  # alone it is no reward
            rewards, weights = torch.cat([rewards, penalty[:, None]], 1), torch.cat([weights, weights.new_ones(1)])
        return multi_reward_advantages(
            rewards,
            group_ids,
            weights,
            scale_rewards=str(self.args.scale_rewards),
            aggregation=self.args.multi_objective_aggregation,
        )

    def _keep_uncertain(self, scored: list[ScoredRollout]) -> None:
        """Mark the tokens that the policy was least sure of when it wrote them, over the whole generation."""
        if self.args.top_entropy_quantile < 1:
            counted = [one.by_target["old_entropies"] for one in scored if one.counts_targets]
            entropies = torch.cat(counted or [torch.empty(0)])
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

    def count_step(self, batches: Sequence[Experience]) -> None:
        self.step_num_acting = self.step_num_targets  # what an entropy bonus acts on
        if self.args.top_entropy_quantile < 1:
            acting = sum(_acting(one).sum() for one in batches)
            acting = torch.as_tensor(acting, device=self.args.device)
            total = self.accelerator.reduce(acting, "sum") if self.mode == "train" else acting
            self.step_num_acting = total.clamp(min=1)

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        a, trees, known = self.args, experience.trees, experience.by_target
        ids, num_sequences = trees.sequence_ids, trees.num_sequences
        advantages, counted = experience.advantages[ids], experience.weights[ids]
        weights = token_weights(a.loss_type, ids, num_sequences) * counted
        answers = token_logprobs(
            model,
            trees,
            temperature=self.sampling.temperature,
            with_entropy=True,
            with_aux_loss=a.router_aux_loss_coef is not None,
            objective="weighted" if self._knows_its_gradient(known) else None,
            weights=advantages * weights,
            support=experience.support,
        )
        logprobs = answers.logprobs
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
            self._record_mismatch(old_logprobs, corrections, experience)
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
            penalties = kl_penalty(logprobs, known["ref_logprobs"], a.kl_estimator, ratios)
            losses = losses + a.beta * penalties
            self.record({"kl": ((penalties.detach() * counted).sum(), counted.sum())})
        losses = losses * weights
        if self._knows_its_gradient(known):
            losses = answers.losses + (losses - answers.losses).detach()
        losses = self._with_entropy_bonus(losses, answers.entropies, experience)
        self._record_policy(answers.entropies, found, experience)
        if answers.aux_loss is not None and a.router_aux_loss_coef is not None:
            share = experience.num_targets / self.step_num_targets * self.step_num_items
            self.record({"aux_loss": answers.aux_loss})
            losses = losses + a.router_aux_loss_coef * answers.aux_loss * share / max(len(losses), 1)
        return losses

    def _knows_its_gradient(self, known: dict[str, Tensor]) -> bool:
        """Whether the ratio is 1 by construction and nothing else enters: every loss then has the gradient of the
        log-probabilities weighed by advantage, which the head makes on its way forward."""
        a = self.args
        return not (
            "old_logprobs" in known
            or "ref_logprobs" in known
            or a.entropy_coef
            or a.use_adaptive_entropy
            or a.off_policy_mask_threshold is not None
        )

    def _with_entropy_bonus(self, losses: Tensor, entropies: Tensor, experience: Experience) -> Tensor:
        a = self.args
        if not (a.entropy_coef or a.use_adaptive_entropy):
            return losses
        self.record({"policy_loss": (losses.sum(), torch.as_tensor(self.num_items(experience)))})
        acting = _acting(experience)
        if self.mode == "train":
            own = torch.stack([(entropies * acting).sum(), acting.sum()]).detach()
            self._entropy_of_step = self._entropy_of_step.to(own) + own
            if not a.use_adaptive_entropy:
                self.record({"entropy_coef": torch.tensor(a.entropy_coef)})
        coefficient = self.entropy_coefficient.applied if a.use_adaptive_entropy else a.entropy_coef
        bonus = entropy_bonus(
            entropies, coefficient, num_items=self.step_num_items, num_targets=self.step_num_acting, mask=acting
        )
        return losses + bonus

    def _record_policy(self, entropies: Tensor, found: PolicyLoss, experience: Experience) -> None:
        """Shares are of all targets, or sequences where they have one ratio; those left out of the trees are of
        advantage 0 and never clipped."""
        ids, weights = experience.trees.sequence_ids, experience.weights
        counted = weights[ids]
        self.record({"entropy": ((entropies * counted).sum(), counted.sum())})
        is_by_sequence = self.args.importance_sampling_level == "sequence"

        def share(flags: Tensor) -> tuple[Tensor, Tensor]:
            if is_by_sequence:
                return (means_by_sequence(flags, ids, len(weights)) * weights).sum(), experience.num_sequences
            return (flags * counted).sum(), experience.num_targets

        low, high = found.is_clipped_low.float(), found.is_clipped_high.float()
        match self.args.loss_type:
            case "cispo":
                self.record({"cispo_clip_ratio": share(high)})
            case "vespo":
                assert found.phi is not None
                phi = means_by_sequence(found.phi, ids, len(weights))
                self.record({"vespo/phi_seq_mean": ((phi * weights).sum(), weights.sum())})
            case "sapo":
                pass
            case _:
                low_by_sequence, high_by_sequence = (
                    means_by_sequence(flags, ids, len(weights)) * weights for flags in (low, high)
                )
                is_whole = counted.sum() == experience.num_targets
                self.record(
                    {
                        "clip_ratio/low_mean": share(low),
                        "clip_ratio/high_mean": share(high),
                        "clip_ratio/region_mean": share(low + high),
                        "clip_ratio/low_min": torch.where(is_whole, low_by_sequence.amin(), 0.0),
                        "clip_ratio/high_max": high_by_sequence.amax(),
                    }
                )

    def _record_mismatch(self, old_logprobs: Tensor, corrections: Tensor, experience: Experience) -> None:
        ids, is_counted = experience.trees.sequence_ids, experience.weights > 0
        difference = (old_logprobs - experience.by_target["sampler_logprobs"]).abs()[is_counted[ids]]
        difference = difference[~difference.isnan()]
        if self.args.vllm_importance_sampling_mode.startswith("sequence"):
            corrections = means_by_sequence(corrections, ids, len(is_counted))[is_counted]
        else:
            corrections = corrections[is_counted[ids]]
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
        self, drawn: Drawn, scores: Scores, rewards: Tensor, group_ids: Tensor, first: int, key: tuple[Any, ...]
    ) -> Tensor:
        """Draw fresh prompts in the place of groups whose rewards are all alike, a few times over.

        All processes see the same rewards, and so choose the same prompts.
        """
        if not isinstance(self.train_dataset, Dataset):
            raise ConfigError("dynamic_sampling=True needs a dataset that can be read at any row, not a stream.")
        seed = (self.args.seed, self.state.global_step, *key)
        own_groups = group_ids[first : first + len(drawn.rows)].tolist()
        num_replaced = 0
        for attempt in range(1, self.args.max_dynamic_sampling_rounds + 1):
            is_dull = ~has_spread(combine_rewards(rewards, self.rewards.weights), group_ids)
            groups = group_ids[is_dull].unique().tolist()
            if not groups:
                break
            num_replaced += len(groups)
            generator = torch.Generator().manual_seed(rollout_seed(*seed, "fresh prompts", attempt))
            fresh = torch.randint(len(self.train_dataset), (len(groups),), generator=generator).tolist()
            row_of = dict(zip(groups, fresh, strict=True))
            positions = [i for i, group in enumerate(own_groups) if group in row_of]
            rows = [dict(self.train_dataset[row_of[own_groups[i]]]) for i in positions]
            own = rewards[first : first + len(drawn.rows)].clone()
            if rows:
                with self.collector.timed("rollout"):
                    others = self.collector.draw(rows, [rollout_seed(*seed, attempt, first + i) for i in positions])
                drawn.replace(positions, others)
                with self.collector.timed("rewards"):
                    found = self.collector.start_rewards(others).result()
                take_over(scores, positions, found)
                own[positions] = found.values
            rewards = self.collector.of_all(own)
        left = (~has_spread(combine_rewards(rewards, self.rewards.weights), group_ids)).float()
        self.record({"dynamic_sampling/num_replaced": torch.tensor(float(num_replaced))})
        self.record({"dynamic_sampling/frac_left_without_spread": left})
        return rewards

    def algorithm_state(self) -> dict[str, Any]:
        return {"entropy_coefficient": self.entropy_coefficient.state_dict()}

    def load_algorithm_state(self, numbers: dict[str, Any]) -> None:
        self.entropy_coefficient.load_state_dict(numbers["entropy_coefficient"])


def _acting(experience: Experience) -> Tensor:
    """(targets,): 1 where the objective and an entropy bonus act."""
    counted = experience.weights[experience.trees.sequence_ids]
    is_uncertain = experience.by_target.get("is_uncertain")
    return counted if is_uncertain is None else counted * is_uncertain
