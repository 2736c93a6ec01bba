"""One way to build each trainer on a tiny model, for tests that hold for all of them."""

from pathlib import Path
from typing import Any

import torch

from tests.models import tiny_causal_lm, tiny_reward_model, tiny_step_classifier
from tests.trainers.rows import character_tokenizer, demonstrations, judged, preferences, solutions, triples
from tuneline import (
    BCOConfig,
    BCOTrainer,
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    ORPOConfig,
    ORPOTrainer,
    PRMConfig,
    PRMTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    TPOConfig,
    TPOTrainer,
)
from tuneline.trainers.base import BaseTrainer

QUIET: dict[str, Any] = dict(report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", logging_steps=1)


def build(
    method: str, folder: Path, *, options: dict[str, Any] | None = None, model: Any = None, **kwargs: Any
) -> BaseTrainer:
    """A trainer for `method`, such as sft or dpo; `options` go to its configuration."""
    settings = {**QUIET, "output_dir": str(folder), **(options or {})}
    match method:
        case "sft":
            trainer, config, rows, make = SFTTrainer, SFTConfig, demonstrations(), tiny_causal_lm
        case "reward":
            trainer, config, rows, make = RewardTrainer, RewardConfig, preferences(margin=True), tiny_reward_model
        case "dpo":
            trainer, config, rows, make = DPOTrainer, DPOConfig, preferences(), tiny_causal_lm
        case "kto":
            trainer, config, rows, make = KTOTrainer, KTOConfig, judged(), tiny_causal_lm
        case "bco":
            trainer, config, rows, make = BCOTrainer, BCOConfig, judged(), tiny_causal_lm
        case "orpo":
            trainer, config, rows, make = ORPOTrainer, ORPOConfig, preferences(), tiny_causal_lm
        case "cpo":
            trainer, config, rows, make = CPOTrainer, CPOConfig, preferences(), tiny_causal_lm
        case "prm":
            trainer, config, rows, make = PRMTrainer, PRMConfig, solutions(), tiny_step_classifier
            settings = {"step_separator": "?", **settings}
        case "tpo":
            trainer, config, rows, make = TPOTrainer, TPOConfig, triples(), tiny_causal_lm
        case _:
            raise ValueError(method)
    arguments = {"train_dataset": rows, "processing_class": character_tokenizer(), **kwargs}
    return trainer(model=make() if model is None else model, args=config(**settings), **arguments)


def with_plain_descent(trainer: BaseTrainer, learning_rate: float = 1.0) -> BaseTrainer:
    """Plain gradient descent, so that the change of a weight is its gradient."""
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=learning_rate)
    trainer.optimizer = optimizer
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return trainer


def weights(trainer: BaseTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
