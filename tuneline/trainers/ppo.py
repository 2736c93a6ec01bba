"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) of language models, as Ziegler et al. 2019
(arXiv:1909.08593) and Stiennon et al. 2020 (arXiv:2009.01325) have it: a token is an action, a completion an episode.

Deviations from TRL 1.12, whose names these are: every mean is over the tokens of the whole optimizer step, whitening
over all processes, and a completion ends at the token that ends it, which is where its score stands. The module that
is trained holds policy and value function; what is saved is the policy alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from tuneline.advantages import combine_rewards
from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.losses.policy import policy_loss
from tuneline.losses.value import value_loss
from tuneline.models.loading import load_reward_model
from tuneline.rewards.choosing import is_model_name
from tuneline.rollout.protocol import RolloutEngine
from tuneline.trainers.base import Rows
from tuneline.trainers.drawing import Drawn, RolloutFunction
from tuneline.trainers.experience import Experience, ScoredRollout, make_experience
from tuneline.trainers.online import OnlineTrainer
from tuneline.trainers.ppo_batches import shuffled_mini_batches
from tuneline.trainers.ppo_config import PPOConfig
from tuneline.trainers.ppo_credit import CreditAssigner
from tuneline.trainers.ppo_metrics import credit_metrics, score_metrics, update_metrics
from tuneline.trainers.ppo_model import (
    load_value_function,
    policy_parameters,
    read_policies_alone,
    save_policy,
    save_value_function,
    with_reward_model,
    with_value_function,
)
from tuneline.trainers.ppo_steps import PPOStep, Samples
from tuneline.trainers.prompts import with_decoded_prompts
from tuneline.trees import PromptTrees
from tuneline.values import PolicyAndValue, logprobs_and_values

logger = get_logger(__name__)


class PPOTrainer(OnlineTrainer):
    """Each token is weighed by how much better it went than a value function had expected. The items are tokens.

    Args:
        model: the policy: a causal language model, its name or folder, or a PEFT model; None for `sft_model_path`.
        ref_model: the reference; None for the policy as it comes, or with its adapters off.
        reward_model: a sequence classifier that reads the policy's tokens, its name or folder; it counts as the last
            of `reward_funcs`.
        value_model: a sequence classifier that the value function starts from, or the configuration of its adapter;
            None for a copy of the reward model where that can be one. See `value_function`.
        reward_funcs, reward_processing_classes, rollout_func, rollout_engine: see `OnlineTrainer`.
        train_dataset, eval_dataset: rows with a `prompt`, text or messages, or with `input_ids`, tokens taken as they
            are. Their other columns go to the rewards.
        data_collator: accepted from code written for TRL, and not used: prompts are not padded.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: PPOConfig
    config_class = PPOConfig
    method = "PPO"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """The older trainer, where it is given the older configuration: `tuneline.classic` tells."""
        from tuneline.classic.dispatch import classic_trainer

        older = classic_trainer(args, kwargs)
        return super().__new__(cls) if older is None else older

    def __init__(
        self,
        args: PPOConfig | None = None,
        processing_class: Any = None,
        model: str | PreTrainedModel | PeftModel | None = None,
        ref_model: PreTrainedModel | None = None,
        reward_model: Any = None,
        train_dataset: Rows | None = None,
        value_model: str | nn.Module | PeftConfig | None = None,
        data_collator: Any = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        reward_funcs: Any = None,
        reward_processing_classes: Any = None,
        quantization_config: Any = None,
        rollout_engine: RolloutEngine | None = None,
        rollout_func: RolloutFunction | None = None,
    ):
        if args is not None and not isinstance(args, PPOConfig):
            raise ConfigError(
                f"args is a {type(args).__name__}; PPOTrainer takes a PPOConfig first, as TRL's; name arguments."
            )
        if data_collator is not None:
            logger.info("data_collator is not used: prompts are drawn from as they are, and never padded")
        model = args.sft_model_path if model is None and args is not None else model
        if model is None:
            raise ConfigError("there is no policy; pass model, or set sft_model_path.")
        if reward_model is None and reward_funcs is None and args is not None:
            reward_model = args.reward_model_path
        if isinstance(reward_model, str):
            if not is_model_name(reward_model):
                raise ConfigError(
                    f"reward_model={reward_model!r} is no model's name or folder; pass functions as reward_funcs."
                )
            reward_model = load_reward_model(reward_model)
        if reward_model is not None:
            reward_funcs, reward_processing_classes = with_reward_model(
                reward_funcs, reward_processing_classes, reward_model, processing_class
            )
        self._value_model = value_model
        self._reward_model = reward_model if isinstance(reward_model, nn.Module) else None  # not an adapter
        self.num_episodes = 0
        self._begun: tuple[float, int] = (0.0, 0)  # when training began, and the episodes then
        self._approx_kl_of_step = torch.zeros(2)  # sum and count
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
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
            ref_model=ref_model,
        )
        del self._value_model, self._reward_model  # the module holds the one, the rewards the other
        self.credit = CreditAssigner(self.args, self._add_up)
        if self.args.stop_token == "eos":
            self.sampling = replace(self.sampling, stop_token_ids=(self.processing_class.eos_token_id,))
        self.add_callback(PPOStep(self))
        if self.args.num_sample_generations and not self.args.log_completions:
            self.add_rollout_listener(Samples(self))

    # What is trained

    def trained_module(self, policy: Any, args: PPOConfig) -> nn.Module:
        module = with_value_function(policy, args.value_function, self._value_model, self._reward_model)
        read_policies_alone(module)
        return module

    @property
    def module(self) -> PolicyAndValue:
        """Policy and value function, out of all wrappers."""
        return self.accelerator.unwrap_model(self.model_wrapped)

    @property
    def trains_policy(self) -> bool:
        """False while the value function alone learns."""
        return self.state.global_step >= self.args.critic_warmup_steps

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not self.trains_policy:  # what comes down to it through a shared backbone
            for parameter in policy_parameters(self.module):
                parameter.grad = None
        return loss

    # Experience

    @property
    def needs_old_logprobs(self) -> bool:
        return True

    @property
    def reads_every_target(self) -> bool:
        return True

    @property
    def scoring_batch_size(self) -> int:
        return self.args.local_rollout_forward_batch_size

    def ready_rows(self, name: str, rows: Any, tokenizer: Any) -> Any:
        return super().ready_rows(name, with_decoded_prompts(rows, tokenizer), tokenizer)

    def ask_policy(self, policy: nn.Module, trees: PromptTrees, support: Tensor | None) -> dict[str, Tensor]:
        found, values = logprobs_and_values(policy, trees, temperature=self.sampling.temperature, support=support)
        return {"old_logprobs": found.logprobs, "old_values": values.float()}

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        learns = self.mode == "train"
        own = slice(first := self._first_of(scored), first + len(scored))
        scores = combine_rewards(rewards, self.rewards.weights)
        if self.args.missing_eos_penalty is not None:
            is_cut = torch.tensor([0.0 if one.rollout.is_finished else 1.0 for one in scored])
            scores = scores - self.args.missing_eos_penalty * self.collector.of_all(is_cut)
        num_processes = self.accelerator.num_processes
        self.record(score_metrics(scores, scored, self.sampling.stop_token_ids, num_processes))
        self.record({"kl_coef": torch.tensor(self.credit.controller.value)})
        scores = self.credit.scale_scores(scores, learns=learns)[own]
        for one, is_lost in zip(scored, scores.isnan().tolist(), strict=True):
            one.counts_targets = one.counts_targets and not is_lost
        credit = self.credit.assign(scored, scores.nan_to_num(nan=0.0))
        is_counted = torch.tensor([one.counts_targets for one in scored], dtype=torch.bool)
        self.record(credit_metrics(credit, is_counted, self.reference is not None))
        if learns:
            self.credit.adapt(credit.kl[is_counted])
            self.num_episodes += len(rewards)
        counts = [one.num_targets for one in scored]
        for one, advantages, returns in zip(
            scored, credit.advantages.split(counts), credit.returns.split(counts), strict=True
        ):
            kept = {name: one.by_target[name] for name in ("old_logprobs", "old_values")}
            one.by_target = {**kept, "advantages": advantages, "returns": returns}
        means = [one.by_target["advantages"].mean() if one.num_targets else torch.zeros(()) for one in scored]
        return self.collector.of_all(torch.stack(means) if means else torch.empty(0))

    def micro_batches(self, scored: list[ScoredRollout], key: tuple[Any, ...]) -> list[Experience]:
        a, first = self.args, self._first_of(scored)
        batches: list[Experience] = []
        for number in range(a.num_ppo_epochs):
            names = (a.seed, self.state.global_step, *key, "mini-batches", number)
            parts = shuffled_mini_batches(
                len(scored), a.num_mini_batches, group_size=a.num_generations, first=first, key=names
            )
            for part in parts:
                chosen = [scored[i] for i in part]
                if not batches:  # the policy is still the one that was asked: the ratio is 1 by construction
                    chosen = [_without_old_logprobs(one) for one in chosen]
                size = -(-len(chosen) // a.gradient_accumulation_steps)
                batches += [make_experience(chosen[start : start + size]) for start in range(0, len(chosen), size)]
        return batches

    # The loss

    def num_items(self, experience: Experience) -> Any:
        return experience.num_targets

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        a, trees, known = self.args, experience.trees, experience.by_target
        answers, values = logprobs_and_values(
            model, trees, temperature=self.sampling.temperature, with_entropy=True, support=experience.support
        )
        old_logprobs = known.get("old_logprobs", answers.logprobs.detach())
        policy = policy_loss(
            answers.logprobs,
            old_logprobs,
            known["advantages"],
            trees.sequence_ids,
            trees.num_sequences,
            epsilon=a.cliprange,
            delta=a.delta,
        )
        value = value_loss(values.float(), known["old_values"], known["returns"], cliprange_value=a.cliprange_value)
        counted = experience.weights[trees.sequence_ids]
        metrics = update_metrics(policy, value, answers.logprobs - old_logprobs, answers.entropies, counted)
        self.record(metrics)
        if self.mode == "train":
            own = torch.stack(metrics["policy/approxkl_avg"])  # type: ignore[arg-type]
            self._approx_kl_of_step = self._approx_kl_of_step.to(own) + own
        losses = a.vf_coef * value.losses
        if self.trains_policy:
            losses = losses + policy.losses
            if a.entropy_coef:
                losses = losses - a.entropy_coef * answers.entropies
        return losses * counted

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            begun, before = self._begun
            logs["episode"] = self.num_episodes
            logs["eps"] = (self.num_episodes - before) / max(time.time() - begun, 1e-9)
            logs["lr"] = logs.get("learning_rate", 0.0)
        super().log(logs, start_time)

    # Between steps

    def begin(self) -> None:
        self._begun = (time.time(), self.num_episodes)

    def end_step(self) -> None:
        """Leave a generation that the policy has moved too far from."""
        if self.args.target_kl is not None:
            total, count = self._add_up(self._approx_kl_of_step).tolist()
            is_far = total > 1.5 * self.args.target_kl * max(count, 1)
            self.record({"policy/stopped_early": torch.tensor(float(is_far and len(self.queue) > 0))})
            if is_far:
                self.queue.clear()
        self._approx_kl_of_step = torch.zeros_like(self._approx_kl_of_step)

    def _first_of(self, scored: list[ScoredRollout]) -> int:
        """The place of this process's first rollout among those of all."""
        return sum(self.collector.counts(len(scored))[: self.accelerator.process_index])

    def _add_up(self, sums: Tensor) -> Tensor:
        """The sums over all processes."""
        if self.accelerator.num_processes == 1:
            return sums
        return self.accelerator.reduce(sums.to(self.args.device), "sum").to(sums.device)

    # Files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy alone, as a plain causal language model or an adapter, with its tokenizer."""
        folder = Path(output_dir or self.args.output_dir)
        tensors = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            tensors = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            save_policy(self.module, folder, to_resume=_internal_call and tensors is None, tensors=tensors)
            self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / "training_args.bin")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def algorithm_state(self) -> dict[str, Any]:
        return {"credit": self.credit.state_dict(), "num_episodes": self.num_episodes}

    def load_algorithm_state(self, numbers: dict[str, Any]) -> None:
        self.credit.load_state_dict(numbers["credit"])
        self.num_episodes = numbers["num_episodes"]

    def save_algorithm_weights(self, folder: Path) -> None:
        if self.args.should_save and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            save_value_function(self.module, folder)

    def load_algorithm_weights(self, folder: Path) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # which write and read the module whole
            load_value_function(self.module, folder)


def _without_old_logprobs(scored: ScoredRollout) -> ScoredRollout:
    return replace(scored, by_target={name: v for name, v in scored.by_target.items() if name != "old_logprobs"})
