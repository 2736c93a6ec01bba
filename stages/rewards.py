"""The rewards of a config as what an online trainer takes, and the verifier that watches them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from stages.schema import REWARD_MODEL, Reward
from tuneline.models.loading import load_reward_model, load_tokenizer
from tuneline.rewards import get_reward, url_reward

VERIFIER = "verifier"  # its metric is rewards/verifier/mean, its column rewards/verifier


def load_rewards(rewards: Sequence[Reward], dtype: str) -> tuple[list[Any], list[Any]]:
    """Reward functions and models, and for each the tokenizer of a model."""
    functions, tokenizers = zip(*(_load(reward, dtype) for reward in rewards), strict=True)
    return list(functions), list(tokenizers)


def _load(reward: Reward, dtype: str) -> tuple[Any, Any]:
    if reward.name is not None:
        return get_reward(reward.name, **reward.options), None
    if reward.url is not None:
        return url_reward(reward.url, **reward.options), None
    place = REWARD_MODEL if reward.model is True else str(reward.model)
    return load_reward_model(place, dtype=dtype), load_tokenizer(place)


class Verifier:
    """What tells right from wrong, called as any reward function and named `verifier` in metrics and tables.

    Given to a trainer with a weight of 0, it is asked about every rollout and taught by none.
    """

    def __init__(self, judge: Callable[..., Any]):
        self.__name__ = VERIFIER
        self.__signature__ = inspect.signature(judge)  # it is given what the judge reads
        self.judge = judge

    def __call__(self, **arguments: Any) -> Any:
        return self.judge(**arguments)


def find_verifier(name: str | None, prompts: Dataset) -> Verifier | None:
    """The reward of this name; without one, equality with the solution, where the prompts have solutions."""
    if name is None and "solution" not in prompts.column_names:
        return None
    return Verifier(get_reward(name or "exact_match_reward"))
