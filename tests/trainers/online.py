"""GRPO and RLOO trainers on a tiny model, for the tests of both."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tests.trainers.rows import character_tokenizer
from tuneline import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tuneline.rollout.scripted import ScriptedEngine
from tuneline.trainers.online import OnlineTrainer

EOS, MAX_LENGTH = 1, 8
TRAINERS: dict[str, Any] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def questions(num_rows: int = 8) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"what is {i}" + " or so" * (i % 3) + "?", "answer": i} for i in range(num_rows)]
    )


def written(prompt_ids: list[int], seed: int) -> list[int]:
    """A completion that its prompt and seed decide; some are cut off."""
    generator = torch.Generator().manual_seed(seed % 2**40 + sum(prompt_ids))
    length = int(torch.randint(1, MAX_LENGTH + 3, (), generator=generator))
    return [*torch.randint(3, 12, (length,), generator=generator).tolist(), EOS]


def by_position(num_prompts: int = 2) -> ScriptedEngine:
    """Completions that do not depend on seeds, which name a completion by its place: for batches cut otherwise."""
    tokenizer = character_tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in questions(num_prompts)]
    return ScriptedEngine(
        {tuple(ids): [written(ids, 17 * i + 5) for i in range(8)] for ids in prompts},
        logprobs=lambda prompt, ids: [-4.0 - 0.2 * (token % 4) for token in ids],
    )


def num_letters(completion_ids, **columns):
    return [float(sum(token < 7 for token in ids)) for ids in completion_ids]


def build_online(method: str, folder: Path, *, model: Any = None, **given: Any) -> OnlineTrainer:
    """A trainer; of `given`, what the constructor does not take goes to the configuration."""
    trainer, config = TRAINERS[method]
    names = {
        "reward_funcs", "train_dataset", "eval_dataset", "processing_class", "peft_config", "tools", "rollout_func",
        "environment_factory", "rollout_engine", "callbacks",
    }  # fmt: skip
    arguments = {name: value for name, value in given.items() if name in names}
    options = {name: value for name, value in given.items() if name not in names}
    settings = {
        **QUIET,
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": MAX_LENGTH,
        "max_steps": 1,
        "max_grad_norm": 0,
        "gradient_checkpointing": False,
        **options,
    }
    defaults = {"reward_funcs": num_letters, "train_dataset": questions(), "processing_class": character_tokenizer()}
    return trainer(
        model=tiny_causal_lm() if model is None else model, args=config(**settings), **{**defaults, **arguments}
    )
