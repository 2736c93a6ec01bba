"""Trainers that learn from a tiny teacher, for the tests of both."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel

import tuneline
from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tests.trainers.online import MAX_LENGTH, questions
from tests.trainers.rows import character_tokenizer

ARGUMENTS = {"teacher_model", "train_dataset", "eval_dataset", "rollout_engine", "peft_config", "processing_class"}


def another_model() -> PreTrainedModel:
    torch.manual_seed(1)
    return tiny_causal_lm()


def student() -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny_causal_lm()
    torch.manual_seed(7)
    for parameter in model.parameters():  # whatever seed a tiny model has of its own
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def build_taught(method: str, folder: Path, *, library: ModuleType = tuneline, model: Any = None, **given: Any) -> Any:
    """A trainer; of `given`, what the constructor does not take goes to the configuration."""
    arguments = {name: value for name, value in given.items() if name in ARGUMENTS}
    options = {name: value for name, value in given.items() if name not in ARGUMENTS}
    length = {"Distillation": "max_completion_length", "GKD": "max_new_tokens"}[method]
    settings = {
        **QUIET,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        length: MAX_LENGTH,
        "max_steps": 1,
        "max_grad_norm": 0,
        "gradient_checkpointing": False,
        "bf16": False,
        **options,
    }
    defaults = {
        "train_dataset": questions(4),
        "processing_class": character_tokenizer(),
        "teacher_model": another_model(),
    }
    return getattr(library, f"{method}Trainer")(
        model=student() if model is None else model,
        args=getattr(library, f"{method}Config")(**settings),
        **{**defaults, **arguments},
    )
