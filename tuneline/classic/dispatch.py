"""Which of the two generations of `PPOConfig` and `PPOTrainer` is meant, told by the arguments.

The older one is that of TRL up to 0.11, a step interface. A configuration is of it where a keyword is given that it
alone has; a trainer where its configuration is. Each such keyword is said once in the log, with its name of today.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.trainer import StepPPOTrainer
from tuneline.errors import ConfigError
from tuneline.logging import get_logger

logger = get_logger(__name__)

# Of the configuration: what only the older generation takes, or takes with this meaning.
_CONFIG_NAMES_TODAY = {
    "accelerator_kwargs": "accelerator_config",
    "backward_batch_size": "per_device_train_batch_size x gradient_accumulation_steps",
    "batch_size": "per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches",
    "compare_steps": "eval_steps, with load_best_model_at_end",
    "early_stopping": "target_kl alone",
    "exp_name": "run_name",
    "forward_batch_size": "per_device_train_batch_size",
    "global_backward_batch_size": "computed",
    "global_batch_size": "computed",
    "init_kl_coef": "kl_coef",
    "is_encoder_decoder": "read from the model",
    "is_peft_model": "read from the model",
    "kl_penalty": "kl_estimator",
    "log_with": "report_to",
    "mini_batch_size": "per_device_train_batch_size",
    "model_name": "the model argument of PPOTrainer",
    "optimize_cuda_cache": "torch_empty_cache_steps",
    "optimize_device_cache": "torch_empty_cache_steps",
    "ppo_epochs": "num_ppo_epochs",
    "project_kwargs": "logging_dir, output_dir",
    "push_to_hub_if_best_kwargs": "push_to_hub, with load_best_model_at_end",
    "query_dataset": "the train_dataset argument of PPOTrainer",
    "ratio_threshold": "delta, which bounds single ratios",
    "reward_model": "the reward_model argument of PPOTrainer",
    "steps": "total_episodes",
    "task_name": "run_name",
    "tracker_kwargs": "the settings of the tracker itself",
    "tracker_project_name": "project",
}
_TRAINER_NAMES_TODAY = {
    "config": "args",
    "tokenizer": "processing_class",
    "dataset": "train_dataset",
    "optimizer": "optimizers",
    "lr_scheduler": "optimizers",
    "training_data_collator": "data_collator",
    "num_shared_layers": "ref_model=create_reference_model(model, num_shared_layers)",
}

_said: set[str] = set()


def classic_config(args: Collection[Any], keywords: Mapping[str, Any], modern: type) -> ClassicPPOConfig | None:
    """The older configuration, where a keyword asks for it; None where the newer one is meant.

    Args:
        args: given by position, which the older generation never was.
        modern: the newer class, a dataclass.

    Raises:
        ConfigError: keywords of both generations.
    """
    # what the newer class has besides is still its own, however old the name
    new_names = {one.name for one in fields(modern)}
    older = sorted(name for name in keywords if name in _CONFIG_NAMES_TODAY and name not in new_names)
    if not older or args:
        return None
    shared = {one.name for one in fields(ClassicPPOConfig)}
    newer = sorted(set(keywords) - shared)
    if newer:
        raise ConfigError(
            f"PPOConfig: {', '.join(older)} of the older step interface stand beside {', '.join(newer)}, which it does "
            "not have; leave out the ones or the others. The names of today are "
            f"{_translated(older, _CONFIG_NAMES_TODAY)}."
        )
    _say_once("PPOConfig", older, _CONFIG_NAMES_TODAY)
    return ClassicPPOConfig(**keywords)


def classic_trainer(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> StepPPOTrainer | None:
    """The older trainer, where its configuration is given or an argument that it alone has; None otherwise.

    Raises:
        ConfigError: an argument of the older generation with a configuration of the newer one.
    """
    given = [*args[:1], keywords.get("config"), keywords.get("args")]
    older = sorted(name for name in keywords if name in _TRAINER_NAMES_TODAY)
    if not any(isinstance(one, ClassicPPOConfig) for one in given):
        if "config" in keywords:
            raise ConfigError(
                f"PPOTrainer: config= belongs to the older step interface, and this is a "
                f"{type(keywords['config']).__name__} of the newer one; make it with PPOConfig(ppo_epochs=4, ...) or "
                "tuneline.classic.config.ClassicPPOConfig, or pass it as args=."
            )
        return None
    _say_once("PPOTrainer", older, _TRAINER_NAMES_TODAY)
    named = dict(keywords)
    if "args" in named:
        named["config"] = named.pop("args")
    if "processing_class" in named:
        named["tokenizer"] = named.pop("processing_class")
    return StepPPOTrainer(*args, **named)


def _say_once(where: str, older: list[str], today: Mapping[str, str]) -> None:
    news = [name for name in older if f"{where}.{name}" not in _said]
    if not news:
        return
    _said.update(f"{where}.{name}" for name in news)
    logger.warning("%s of the older step interface; the names of today: %s", where, _translated(news, today))


def _translated(names: list[str], today: Mapping[str, str]) -> str:
    return "; ".join(f"{name} is {today[name]}" for name in names)
