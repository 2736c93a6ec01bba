"""TRL's PPO under the stop-watch: its loop is one function, so its phases are the functions that it calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers import TRL_WITH_PPO
from benchmarks.ppo_side import Models, PPOMeasurement
from benchmarks.rollouts import Script, generate_of_lengths


def make_trl_trainer(measurement: PPOMeasurement, models: Models, script: Script, part: str) -> Any:
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    assert trl.__version__ == TRL_WITH_PPO, trl.__file__
    w = measurement.workload
    args = PPOConfig(
        **measurement.training_arguments,
        # Its accumulate() counts on over mini-batches: with more than one micro-batch each, a mini-batch would be
        # no optimizer step of its own.
        per_device_train_batch_size=w["episodes"],
        gradient_accumulation_steps=1,
        total_episodes=(w["steps"] + 1) * w["episodes"],
        local_rollout_forward_batch_size=w["rollout_batch_size"],
        num_sample_generations=0,
        logging_steps=1,
    )
    rows = Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in script.rows.values()])
    trainer = PPOTrainer(
        args=args,
        processing_class=models.tokenizer,
        model=models.policy,
        ref_model=models.reference(),
        reward_model=models.reward_model,
        value_model=models.value_model,
        train_dataset=rows,
        callbacks=[measurement],
        optimizers=measurement.optimizers(models, updates_a_step=1) if part == "update" else (None, None),
    )
    if w["gradient_checkpointing"]:  # the option alone does nothing here, for the loop is not that of transformers
        trainer.model.gradient_checkpointing_enable()
        models.value_model.gradient_checkpointing_enable()
    in_order = DataLoader(rows, batch_size=w["episodes"], collate_fn=trainer.data_collator)
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    if part == "update":
        ppo_trainer.batch_generation = scripted_generation(script, ppo_trainer.forward)
        ppo_trainer.np.random.permutation = ppo_trainer.np.arange  # mini-batches in order, as on the other side
    else:
        models.policy.generate = generate_of_lengths(models.policy.generate, script)
    _watch(measurement, trainer, ppo_trainer, "rollout" if part == "steps" else "scoring")
    return trainer


def scripted_generation(script: Script, forward: Any) -> Any:
    """In place of TRL's `batch_generation`: the script's completions, and the logits that drew them."""

    def generate(
        model: Any, queries: Tensor, batch_size: int, pad_token_id: int, generation_config: Any
    ) -> tuple[Tensor, Tensor]:
        prompts = [ids[ids != pad_token_id].tolist() for ids in queries]
        completions = torch.tensor([script.next_completion(prompt) for prompt in prompts])
        sequences = torch.cat([queries, completions], dim=1)
        width = queries.shape[1]
        with torch.no_grad():
            logits = [
                forward(model, part, pad_token_id).logits[:, width - 1 : -1] for part in sequences.split(batch_size)
            ]
        return sequences, torch.cat(logits) / generation_config.temperature

    return generate


def _watch(measurement: PPOMeasurement, trainer: Any, module: Any, phase_of_generation: str) -> None:
    phases = measurement.phases
    phases.watch(phase_of_generation, module, "batch_generation")
    forward, get_reward, log_softmax = module.forward, module.get_reward, module.selective_log_softmax

    def timed_forward(model: Any, *args: Any) -> Any:
        with phases.timed("forward" if torch.is_grad_enabled() else "scoring"):
            return forward(model, *args)

    def timed_reward(model: Any, *args: Any) -> Any:
        with phases.timed("rewards" if model is trainer.reward_model else "scoring"):
            found = get_reward(model, *args)
        if model is trainer.reward_model:
            _, context_length = args[-2:]
            measurement.lengths += (found[2] - context_length + 1).tolist()
        return found

    def timed_log_softmax(*args: Any) -> Any:
        with phases.timed("forward" if torch.is_grad_enabled() else "scoring"):
            return log_softmax(*args)

    module.forward, module.get_reward = timed_forward, timed_reward
    module.selective_log_softmax = timed_log_softmax
