"""Configuration of Odds Ratio Preference Optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.trainers.base_config import OfflineConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class ORPOConfig(OfflineConfig):
    """Options of `ORPOTrainer`: names and defaults of TRL 1.16."""

    beta: float = field(default=0.1, metadata={"help": "Weight of the odds ratio, lambda in the paper."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens; what is cut is counted. None: no limit."}
    )
