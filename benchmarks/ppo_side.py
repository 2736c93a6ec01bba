"""One side of the PPO benchmark, in a process of its own: `python -m benchmarks.ppo_side trl|tuneline steps|update`.

`steps` are whole: each side draws completions as it does, of the given lengths. In `update` both are handed the same
completions, and what is left is to score, to reward and to learn from them; there the first step learns nothing, so
that it must report no KL and ratios of 1.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.phases import PhasedMeasurement
from benchmarks.rollouts import EngineOfLengths, Script

METRICS = (
    "objective/kl",
    "objective/scores",
    "objective/non_score_reward",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/ratio",
)


@dataclass
class Models:
    """The four that PPO has, without the reference, and the tokenizer."""

    tokenizer: Any
    policy: Any
    value_model: Any
    reward_model: Any

    def reference(self) -> Any:
        return copy.deepcopy(self.policy)


class PPOMeasurement(PhasedMeasurement):
    """Its steps are those of the workload: `updates` calls of `on_step_end` each."""

    updates = 1

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.losses: list[float] = []  # one an update, over all micro-batches since the first
        self.lengths: list[float] = []  # of the completions that were rewarded, in tokens
        self._num_updates = 0

    @property
    def training_arguments(self) -> dict[str, Any]:
        names = ("num_ppo_epochs", "num_mini_batches", "response_length")
        own = {"lr_scheduler_type": "constant", "stop_token": "eos"}
        return self.arguments_of_all_methods | {name: self.workload[name] for name in names} | own

    def models(self) -> Models:
        def load(kind: Any, name: str) -> Any:
            return kind.from_pretrained(self.folder / name, dtype=torch.float32)

        return Models(
            tokenizer=AutoTokenizer.from_pretrained(self.folder / "model", padding_side="left"),  # as TRL wants it
            policy=load(AutoModelForCausalLM, "model"),
            value_model=load(AutoModelForSequenceClassification, "reward_model"),
            reward_model=load(AutoModelForSequenceClassification, "reward_model"),
        )

    def optimizers(self, models: Models, *, updates_a_step: int) -> tuple[Any, Any]:
        """AdamW as both sides have it, with a learning rate of 0 in the first step; the schedule moves so many times
        a step."""
        parameters = [*models.policy.parameters(), *models.value_model.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.workload["learning_rate"], weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: float(n >= updates_a_step))
        return optimizer, schedule

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.phases.watch("optimizer", kwargs["optimizer"], "step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._num_updates += 1
        if self._num_updates % self.updates == 0:
            self.end_step()

    def watch_losses(self, accelerator: Any) -> None:
        """Time the backward passes, and keep the losses that they start from."""
        self.phases.watch("backward", accelerator, "backward")
        backward = accelerator.backward

        def noted(loss: Any, **options: Any) -> Any:
            self.losses.append(loss.item())
            return backward(loss, **options)

        accelerator.backward = noted

    def measured(self, log_history: list[dict[str, float]]) -> dict[str, Any]:
        steps = [line for line in log_history if "objective/kl" in line]
        if not self.lengths:
            self.lengths = [line["completions/mean_length"] for line in steps]
        return self.measured_times() | {
            "losses": self.losses,
            "mean_length": fmean(self.lengths[len(self.lengths) // len(steps) :]),  # without the step that warms up
            **{name: [line[name] for line in steps] for name in METRICS},
        }


def make_tuneline_trainer(measurement: PPOMeasurement, models: Models, script: Script, part: str) -> Any:
    from datasets import Dataset

    from tuneline import PPOConfig, PPOTrainer
    from tuneline.trainers import ppo

    if part == "update":
        ppo.shuffled_mini_batches = in_order
    w = measurement.workload
    measurement.updates = updates = w["num_mini_batches"] * w["num_ppo_epochs"]
    args = PPOConfig(
        **measurement.training_arguments,
        per_device_train_batch_size=w["episodes"] // w["num_mini_batches"],
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=w["rollout_batch_size"],
        max_steps=(w["steps"] + 1) * updates,
        logging_steps=updates,
        shuffle_dataset=False,
        max_grad_norm=0.0,  # TRL's does not clip
        value_function=w["value_function"],
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=models.tokenizer,
        model=models.policy,
        ref_model=models.reference(),
        reward_model=models.reward_model,
        value_model=models.value_model if w["value_function"] == "model" else None,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in script.rows]),
        callbacks=[measurement],
        optimizers=measurement.optimizers(models, updates_a_step=updates) if part == "update" else (None, None),
        rollout_func=script.rollout_func if part == "update" else None,
    )
    if part == "steps":  # not by rollout_engine=, which would have the engine's log-probabilities corrected
        trainer.collector.engine = EngineOfLengths(trainer.collector.engine, script)
    measurement.phases.watch("preparing", trainer, "collect")
    trainer.collector.timed = measurement.phases.timed
    measurement.phases.watch("forward", trainer, "compute_loss")
    return trainer


def in_order(num_rollouts: int, num_mini_batches: int, **options: Any) -> list[list[int]]:
    """In place of tuneline's `shuffled_mini_batches`: neighbours together, as TRL's side has them here."""
    size = num_rollouts // num_mini_batches
    return [list(range(start, start + size)) for start in range(0, num_rollouts, size)]


def main(side: str, part: str) -> None:
    measurement = PPOMeasurement.begin()
    with (measurement.folder / "rows.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row | {"completions": [row["completions"][part]]} for row in rows]
    script = Script(rows, rows[0]["completions"][0][-1])
    models = measurement.models()
    if side == "trl":
        from benchmarks.ppo_trl import make_trl_trainer

        trainer = make_trl_trainer(measurement, models, script, part)
    else:
        trainer = make_tuneline_trainer(measurement, models, script, part)
    measurement.watch_losses(trainer.accelerator)
    trainer.train()
    measurement.finish(trainer.state.log_history)


if __name__ == "__main__":
    main(*sys.argv[1:])
