"""tuneline: trainers that align language models, on one prompt-tree batch format.

Names are imported on first use, so that `import tuneline` and the command line stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.trainers.dpo import DPOTrainer
    from tuneline.trainers.dpo_config import DPOConfig
    from tuneline.trainers.grpo import GRPOTrainer
    from tuneline.trainers.grpo_config import GRPOConfig
    from tuneline.trainers.reward import RewardTrainer
    from tuneline.trainers.reward_config import RewardConfig
    from tuneline.trainers.rloo import RLOOTrainer
    from tuneline.trainers.rloo_config import RLOOConfig
    from tuneline.trainers.sft import SFTTrainer
    from tuneline.trainers.sft_config import SFTConfig

__version__ = "0.1.0"

_HOME_OF = {
    "DPOConfig": "tuneline.trainers.dpo_config",
    "DPOTrainer": "tuneline.trainers.dpo",
    "GRPOConfig": "tuneline.trainers.grpo_config",
    "GRPOTrainer": "tuneline.trainers.grpo",
    "RLOOConfig": "tuneline.trainers.rloo_config",
    "RLOOTrainer": "tuneline.trainers.rloo",
    "RewardConfig": "tuneline.trainers.reward_config",
    "RewardTrainer": "tuneline.trainers.reward",
    "SFTConfig": "tuneline.trainers.sft_config",
    "SFTTrainer": "tuneline.trainers.sft",
}

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tuneline' has no attribute {name!r}; it offers {', '.join(sorted(_HOME_OF))}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
