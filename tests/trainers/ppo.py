"""PPO trainers on a tiny model."""

from pathlib import Path
from typing import Any

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tests.trainers.online import MAX_LENGTH, num_letters, questions
from tests.trainers.rows import character_tokenizer
from tuneline import PPOConfig, PPOTrainer

ARGUMENTS = {
    "ref_model", "reward_model", "reward_funcs", "value_model", "train_dataset", "eval_dataset", "processing_class",
    "peft_config", "rollout_func", "rollout_engine", "callbacks", "data_collator",
}  # fmt: skip


def config(folder: Path, **options: Any) -> PPOConfig:
    settings = {
        **QUIET,
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "response_length": MAX_LENGTH,
        "temperature": 1.0,
        "max_steps": 1,
        "max_grad_norm": 0,
        "gradient_checkpointing": False,
        **options,
    }
    return PPOConfig(**settings)


def build_ppo(folder: Path, *, model: Any = None, **given: Any) -> PPOTrainer:
    """A trainer; of `given`, what the constructor does not take goes to the configuration. Values come from a head."""
    arguments = {name: value for name, value in given.items() if name in ARGUMENTS}
    options = {name: value for name, value in given.items() if name not in ARGUMENTS}
    if "reward_model" not in arguments:
        arguments.setdefault("reward_funcs", num_letters)
    defaults = {"train_dataset": questions(), "processing_class": character_tokenizer()}
    return PPOTrainer(
        model=tiny_causal_lm() if model is None else model,
        args=config(folder, **options),
        **{**defaults, **arguments},
    )
