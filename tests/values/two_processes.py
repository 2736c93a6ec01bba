"""Run by the launcher in test_processes.py: PPO with a value function of one form, and what came out of it."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.online import by_position, questions
from tests.trainers.ppo import build_ppo
from tests.values.build import with_lora
from tuneline import PPOTrainer


def build(form: str, per_device: int, folder: Path) -> PPOTrainer:
    policy = with_lora(tiny_causal_lm()) if form == "adapter" else tiny_causal_lm()
    torch.manual_seed(5)
    return build_ppo(
        folder,
        model=policy,
        value_function=form,
        value_model=tiny_reward_model(seed=3) if form == "model" else None,
        train_dataset=questions(2),
        rollout_engine=by_position(),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        num_generations=4,
        max_steps=4,
        num_ppo_epochs=4,
        critic_warmup_steps=1,
        learning_rate=1e-2,
        optim="sgd",
        eval_dataset=questions(2).select([0]),
        per_device_eval_batch_size=4,
    )


def main(form: str, per_device: str, folder: str) -> None:
    trainer = build(form, int(per_device), Path(folder))
    trainer.train()
    if form == "adapter":
        trainer.evaluate()  # a process has less to ask the reference than the other
    if trainer.is_world_process_zero():
        learned = {n: p.detach().clone() for n, p in trainer.module.named_parameters() if p.requires_grad}
        save_file(learned, Path(folder) / "weights.safetensors")
        logs = [line for line in trainer.state.log_history if "loss" in line]
        (Path(folder) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
