"""What an online trainer is given, checked and made ready: rows with prompts, reward functions, a rollout engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset

from tuneline.data.images import check_images_are_read
from tuneline.environments import Interaction
from tuneline.errors import ConfigError, DataError
from tuneline.models.layouts import policy_of
from tuneline.rewards.calling import RewardFunctions
from tuneline.rollout.protocol import RolloutEngine
from tuneline.rollout.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from tuneline.trainers.online import OnlineTrainer


def default_engine(trainer: OnlineTrainer) -> RolloutEngine:
    """vLLM where the configuration says so, else the model in training."""
    args = trainer.args
    if args.use_vllm:
        from tuneline.rollout.vllm_config import make_vllm_engine

        longest = args.max_length or args.max_completion_length + 1
        return make_vllm_engine(args, policy_of(trainer.model), trainer.processing_class, min_length=longest)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "the transformers engine draws with the model in training, whose weights are spread over processes "
            "here; set use_vllm=True, or train with DDP."
        )
    return TransformersEngine(policy_of(trainer.model), max_cached_tokens=args.generation_tokens)


def reward_functions(
    functions: Any, tokenizers: Any, interaction: Interaction | None, args: Any, is_needed: bool = True
) -> RewardFunctions:
    functions = list(functions) if isinstance(functions, list | tuple) else [] if functions is None else [functions]
    own = [] if interaction is None else interaction.reward_functions
    if is_needed and not functions and not own:
        raise ConfigError("there is nothing to reward with; pass reward_funcs, or environments that have get_reward.")
    weights = args.reward_weights
    if weights is not None and len(weights) != len(functions):
        raise ConfigError(f"reward_weights has {len(weights)} values for {len(functions)} reward_funcs; give one each.")
    if isinstance(tokenizers, list | tuple):
        tokenizers = [*tokenizers, *[None] * len(own)]
    return RewardFunctions(
        [*functions, *own],
        weights=None if weights is None else [*weights, *[1.0] * len(own)],
        tokenizers=tokenizers,
        timeout=args.reward_timeout,
        on_error=args.on_reward_error,
    )


def check_rows(name: str, rows: Any) -> None:
    if isinstance(rows, dict):
        for key, part in rows.items():
            check_rows(f"{name}[{key!r}]", part)
    elif rows is not None:
        if not isinstance(rows, Dataset | IterableDataset):
            raise DataError(f"{name} is a {type(rows).__name__}; pass a datasets.Dataset or IterableDataset.")
        names = rows.column_names
        if names is not None and "prompt" not in names:
            raise DataError(f"{name} has the columns {names} and no 'prompt'; rename the one that holds the prompts.")


def check_images(processing_class: Any, datasets: Iterable[Any], uses_vllm: bool, interacts: bool) -> None:
    """Raises:
    DataError: rows with images, and a tokenizer alone.
    ConfigError: rows with images, and what draws or answers reads text alone.
    """
    parts = [part for rows in datasets for part in (rows.values() if isinstance(rows, dict) else [rows])]
    if not any(check_images_are_read(processing_class, rows, "the data set") for rows in parts):
        return
    if uses_vllm:
        raise ConfigError(
            "use_vllm=True, and the data set has images, which are not sent to vLLM; leave it at False, and the model "
            "in training draws the completions."
        )
    if interacts:
        raise ConfigError("tools and environments answer in text, and the data set has images; use one without.")
