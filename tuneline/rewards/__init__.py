"""Reward functions: TRL's by their names, more of their kind, and what calls several of them.

Names are imported on first use; most need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.rewards.accuracy import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
    from tuneline.rewards.adapters import RewardAdapter
    from tuneline.rewards.calling import Pending, RewardFunction, RewardFunctions, Scores, reward_name
    from tuneline.rewards.choosing import get_reward
    from tuneline.rewards.code import get_code_execution_reward, protections
    from tuneline.rewards.formats import get_json_schema_reward, get_regex_reward, think_format_reward
    from tuneline.rewards.lengths import get_repetition_penalty_reward, get_soft_overlong_punishment
    from tuneline.rewards.matching import exact_match_reward, numeric_match_reward
    from tuneline.rewards.models import RewardModel
    from tuneline.rewards.urls import url_reward

_HOME_OF = {
    "Pending": "calling",
    "RewardAdapter": "adapters",
    "RewardFunction": "calling",
    "RewardFunctions": "calling",
    "RewardModel": "models",
    "Scores": "calling",
    "accuracy_reward": "accuracy",
    "exact_match_reward": "matching",
    "get_code_execution_reward": "code",
    "get_cosine_scaled_reward": "accuracy",
    "get_json_schema_reward": "formats",
    "get_regex_reward": "formats",
    "get_repetition_penalty_reward": "lengths",
    "get_reward": "choosing",
    "get_soft_overlong_punishment": "lengths",
    "numeric_match_reward": "matching",
    "protections": "code",
    "reasoning_accuracy_reward": "accuracy",
    "reward_name": "calling",
    "think_format_reward": "formats",
    "url_reward": "urls",
}

__all__ = [
    "Pending",
    "RewardAdapter",
    "RewardFunction",
    "RewardFunctions",
    "RewardModel",
    "Scores",
    "accuracy_reward",
    "exact_match_reward",
    "get_code_execution_reward",
    "get_cosine_scaled_reward",
    "get_json_schema_reward",
    "get_regex_reward",
    "get_repetition_penalty_reward",
    "get_reward",
    "get_soft_overlong_punishment",
    "numeric_match_reward",
    "protections",
    "reasoning_accuracy_reward",
    "reward_name",
    "think_format_reward",
    "url_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tuneline.rewards' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"tuneline.rewards.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
