"""What PPO does beside its steps: notice their end, and show samples a few times in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tuneline.trainers.completions_log import CompletionsLog, RolloutTable

if TYPE_CHECKING:
    from tuneline.trainers.ppo import PPOTrainer


class PPOStep(TrainerCallback):
    """Tells the trainer when training begins and when a step is over, before a checkpoint is written."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step()


class Samples:
    """Prints and writes the completions of `num_sample_generations` generations, evenly over a run."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer, self.show = trainer, CompletionsLog.of(trainer.args)

    def __call__(self, step: int, table: RolloutTable) -> None:
        args = self.trainer.args
        steps = args.num_mini_batches * args.num_ppo_epochs
        num_generations = self.trainer.state.max_steps // steps
        if step // steps % max(1, num_generations // args.num_sample_generations) == 0:
            self.show(step, table)
