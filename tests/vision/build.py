"""One way to build each trainer on a tiny vision-language model."""

from pathlib import Path
from typing import Any

from tests.trainers.build import QUIET
from tests.vision.models import tiny_processor, tiny_vlm
from tests.vision.rows import demonstrations, judged, preferences, questions
from tuneline import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from tuneline.trainers.base import BaseTrainer

ROWS = {"sft": demonstrations, "dpo": preferences, "kto": judged, "grpo": questions, "rloo": questions}
TRAINERS: dict[str, Any] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
}
ONLINE = {"num_generations": 4, "max_completion_length": 6, "per_device_train_batch_size": 8}


def num_letters(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(sum(token > 40 for token in ids)) for ids in completion_ids]


def build(
    method: str,
    folder: Path,
    architecture: str = "qwen",
    *,
    options: dict[str, Any] | None = None,
    model: Any = None,
    **given: Any,
) -> BaseTrainer:
    """`options` go to the configuration, what else is given to the trainer."""
    trainer, config = TRAINERS[method]
    is_online = method in ("grpo", "rloo")
    settings = {
        **QUIET,
        "output_dir": str(folder),
        "max_steps": 1,
        "gradient_checkpointing": False,
        **(ONLINE if is_online else {"per_device_train_batch_size": 4}),
        **(options or {}),
    }
    arguments = {"train_dataset": ROWS[method](), "processing_class": tiny_processor(architecture), **given}
    if is_online:
        arguments = {"reward_funcs": num_letters, **arguments}
    return trainer(tiny_vlm(architecture) if model is None else model, args=config(**settings), **arguments)
