"""Run by the launcher in test_online_processes.py: trains two steps, evaluates and writes what came out."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from tests.models import tiny_reward_model
from tests.processes import leave_outcome
from tests.trainers.build import weights
from tests.trainers.online import build_online, questions
from tests.trainers.ppo import build_ppo
from tuneline.rollout.protocol import Completion
from tuneline.rollout.scripted import ScriptedEngine
from tuneline.trainers.online import OnlineTrainer


def complete(prompt_ids: list[int], seed: int) -> Completion:
    """Decided by the seed alone, as any engine's."""
    ids = [3 + seed // 7**i % 7 for i in range(1 + seed % 6)]
    is_finished = bool(seed % 4)
    return Completion([*ids, 1] if is_finished else ids, [-3.5] * (len(ids) + is_finished), is_finished)


def reward(completion_ids, answer, log_metric, log_extra, **columns):
    log_extra("answers", answer)
    if 1 in answer:  # not on every process
        log_metric("ones", 1.0)
    pairs = zip(completion_ids, answer, strict=True)
    return [None if number == 2 and ids[0] == 9 else float(len(ids)) for ids, number in pairs]


def make(method: str, per_device: str, options: str, folder: str) -> OnlineTrainer:
    given = json.loads(options)
    if given.pop("lora", False):
        given["peft_config"] = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
    if given.pop("value_model", False):
        given["value_model"] = tiny_reward_model()
    settings: dict[str, Any] = dict(
        max_steps=3,
        per_device_train_batch_size=int(per_device),
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2 * int(per_device),
        train_dataset=questions(4),
        eval_dataset=questions(3),
        reward_funcs=reward,
        rollout_engine=ScriptedEngine(complete),
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
    )
    if method == "ppo":
        return build_ppo(Path(folder), **{**settings, **given})
    return build_online(method, Path(folder), **{**settings, **given})


def main(method: str, per_device: str, options: str, folder: str) -> None:
    trainer = make(method, per_device, options, folder)
    asked = []
    trainer.add_rollout_listener(lambda step, table: asked.append(table["prompt"]))
    trainer.train()
    metrics = trainer.evaluate()
    if json.loads(options).get("save_steps"):
        resumed = make(method, per_device, options, folder)
        resumed.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-1"))
        expected = weights(trainer)
        assert all(torch.equal(end, expected[name]) for name, end in weights(resumed).items())
    leave_outcome(trainer, metrics, folder)
    if trainer.is_world_process_zero():
        (Path(folder) / "asked.json").write_text(json.dumps(asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
