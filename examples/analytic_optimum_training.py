"""Training on the enumerable task with the trainers of the library, and what each setting should end at."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from examples.analytic_optimum_fixed_points import Targets, follow
from examples.analytic_optimum_settings import Setting
from examples.analytic_optimum_task import Task, all_logps, optimum, total_variation
from tuneline import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

COMMON: dict[str, Any] = dict(
    lr_scheduler_type="linear",
    max_grad_norm=0,  # a clipped mean is not the mean of what was clipped
    gradient_checkpointing=False,
    report_to="none",
    save_strategy="no",
    logging_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
TRAINERS: dict[str, Any] = {
    "ppo": (PPOTrainer, PPOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
}
# Fewer, and the rounding of near certain preferences shows in where DPO ends.
COPIES_OF_A_PAIR = 64


@dataclass
class Outcome:
    """Where a setting ended."""

    setting: Setting
    logps: Tensor  # (prompts, completions) of the trained policy, as all four
    ref_logps: Tensor
    best_logps: Tensor  # the optimum
    expected_logps: Tensor  # the fixed point of the loss
    seconds: float  # of training
    curve: list[tuple[float, float]]  # share of the run, total variation from the optimum over the prompts

    @property
    def distances(self) -> Tensor:
        """(prompts,): total variation from the optimum."""
        return total_variation(self.logps, self.best_logps)

    @property
    def expected_distances(self) -> Tensor:
        """(prompts,): of the fixed point from the optimum."""
        return total_variation(self.expected_logps, self.best_logps)


def predicted(setting: Setting) -> Tensor:
    """(prompts, completions): log-probabilities of the fixed point that the setting's loss leads to."""
    task = setting.task
    targets, ref_logps = Targets(task), all_logps(task.make_reference(), task)
    return follow(setting.expected(targets, ref_logps), targets, ref_logps)


def run(setting: Setting, seed: int = 0) -> Outcome:
    """Train as the setting says, from the reference on."""
    task = setting.task
    model = task.make_reference()
    ref_logps = all_logps(model, task)
    best_logps = optimum(ref_logps, task.rewards, task.beta)
    curve = [(0.0, total_variation(ref_logps, best_logps).mean().item())]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, model, output_dir=folder, seed=seed)
        trainer.add_callback(_Curve(model, task, best_logps, curve))
        begun = time.perf_counter()
        with _one_thread():
            trainer.train()
            seconds = time.perf_counter() - begun
            expected_logps = predicted(setting)
    return Outcome(setting, all_logps(model, task), ref_logps, best_logps, expected_logps, seconds, curve)


def make_trainer(setting: Setting, model: PreTrainedModel, **options: Any) -> Any:
    """The trainer of a setting; `options` go to its configuration."""
    task = setting.task
    if setting.method == "dpo":
        args: Any = DPOConfig(**COMMON, **setting.options, **options)
        return DPOTrainer(
            model, args=args, train_dataset=pairs(task, setting.hard_labels), processing_class=task.tokenizer
        )
    trainer_class, config_class = TRAINERS[setting.method]
    args = config_class(**COMMON, **setting.options, **options)
    rows = Dataset.from_list([{"prompt": prompt} for prompt in task.prompts] * 64)
    trainer = trainer_class(
        model=model, reward_funcs=task.reward, args=args, train_dataset=rows, processing_class=task.tokenizer
    )
    trainer.collector.engine.batch_size = args.per_device_train_batch_size  # completions are short: write all at once
    return trainer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads wait for each other longer than these products take, ten times where the cores are shared."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def pairs(task: Task, hard_labels: bool = False) -> Dataset:
    """Every pair of completions of every prompt, `COPIES_OF_A_PAIR` times: the one is chosen as often as Bradley and
    Terry have it, to the nearest whole number."""
    rows = []
    for prompt, rewards in zip(task.prompt_ids, task.rewards, strict=True):
        for i, one in enumerate(task.completions):
            for j, other in enumerate(task.completions[:i]):
                share = float(rewards[i] > rewards[j]) if hard_labels else (rewards[i] - rewards[j]).sigmoid().item()
                num_wins = round(share * COPIES_OF_A_PAIR)
                for copy in range(COPIES_OF_A_PAIR):
                    chosen, rejected = (one, other) if copy < num_wins else (other, one)
                    rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(rows)


class _Curve(TrainerCallback):
    """Measures the distance from the optimum over the run, exactly."""

    def __init__(self, model: PreTrainedModel, task: Task, best_logps: Tensor, curve: list[tuple[float, float]]):
        self.model, self.task, self.best_logps, self.curve = model, task, best_logps, curve

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, state.max_steps // 50) == 0:
            distance = total_variation(all_logps(self.model, self.task), self.best_logps).mean().item()
            self.curve.append((state.global_step / state.max_steps, distance))
