"""What the online methods share that draw two completions of a prompt and have them compared."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from tuneline.advantages import combine_rewards
from tuneline.errors import ConfigError
from tuneline.judges.base import BasePairwiseJudge
from tuneline.judges.rewards import JudgedRewards
from tuneline.rollout.protocol import RolloutEngine
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.base import Rows, reject_compute_metrics
from tuneline.trainers.drawing import Drawn, draw, woven
from tuneline.trainers.experience import ScoredRollout
from tuneline.trainers.online import OnlineTrainer
from tuneline.trainers.online_dpo_config import OnlineDPOConfig


class PairedTrainer(OnlineTrainer):
    """Base of the methods that learn from two completions of each prompt. The items are prompts.

    Args:
        ref_model: the reference; None for the policy as it comes, or with its new adapter off.
        reward_funcs: see `OnlineTrainer`; the better completion has the higher sum.
        judge: a judge of pairs instead of reward functions.
        compute_metrics, preprocess_logits_for_metrics: refused, since logits are never made.
        data_collator: accepted from code written for TRL, and not used: prompts are not padded.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: OnlineDPOConfig
    scores_as_drawn = False

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        reward_funcs: Any = None,
        args: OnlineDPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        peft_config: PeftConfig | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
        judge: BasePairwiseJudge | None = None,
        quantization_config: Any = None,
        rollout_engine: RolloutEngine | None = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        if judge is not None and reward_funcs is not None:
            raise ConfigError("both judge and reward_funcs say which completion is better; pass one of them.")
        if judge is None and reward_funcs is None and args is not None:
            reward_funcs = args.reward_model_path
        self.judge = judge
        super().__init__(
            model=model,
            reward_funcs=reward_funcs if judge is None else JudgedRewards(judge),
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
            ref_model=ref_model,
        )

    @property
    def beta(self) -> float:
        return self.of_this_epoch(self.args.betas)

    def of_this_epoch(self, values: list[float]) -> float:
        """One of the values, of which the last counts from its epoch on."""
        return values[min(int(self.state.epoch or 0), len(values) - 1)]

    def with_seconds(
        self, firsts: Drawn, engine: TransformersEngine, rows: list[dict[str, Any]], seeds: list[int]
    ) -> Drawn:
        """Pairs of a first completion and a second by this engine; `rows` and `seeds` hold two entries a pair."""
        a = self.args
        seconds = draw(
            engine,
            self.processing_class,
            rows[1::2],
            seeds[1::2],
            self.sampling,
            chat_template_kwargs=a.template_kwargs,
            max_length=a.max_length,
        )
        places = range(len(rows))
        return woven(rows, [(places[::2], firsts), (places[1::2], seconds)])

    def has_reference(self, args: Any) -> bool:
        return True

    @property
    def needs_old_logprobs(self) -> bool:
        return False

    @property
    def reads_every_target(self) -> bool:
        return False

    def collect(self, rows: list[dict[str, Any]], group_size: int, key: tuple[Any, ...]) -> list[ScoredRollout]:
        return super().collect([row for row in rows for _ in range(2)], 2, key)

    def total_scores(self, rewards: Tensor, drawn: Drawn) -> Tensor:
        """(prompts, 2), over all processes: what the completions were rewarded, NaN where either has no reward."""
        scores = combine_rewards(rewards, self.rewards.weights)
        if self.args.missing_eos_penalty is not None:
            is_cut = torch.tensor([float(not rollout.is_finished) for rollout in drawn.rollouts])
            scores = scores - self.args.missing_eos_penalty * self.collector.of_all(is_cut)
        scores = scores.view(-1, 2)
        is_lost = scores.isnan().any(1, keepdim=True)
        own_finished = torch.tensor([float(rollout.is_finished) for rollout in drawn.rollouts])
        self.record({"val/contain_eos_token": own_finished, "objective/lost_pairs": is_lost.float()})
        return scores.masked_fill(is_lost, torch.nan)


def in_pairs(values: Tensor) -> Tensor:
    """(sequences,) to (pairs, 2); one alone, which stands in where no pair teaches anything, counts for both."""
    return (values.repeat(2) if len(values) == 1 else values).view(-1, 2)
