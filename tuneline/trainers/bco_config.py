"""Configuration of Binary Classifier Optimization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tuneline.errors import ConfigError
from tuneline.trainers.base_config import ReferenceConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class BCOConfig(ReferenceConfig):
    """Options of `BCOTrainer`: names and defaults of TRL's, which has no such trainer any more in 1.16."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens; what is cut is counted. None: no limit."}
    )
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_end", metadata={"help": "Which end of a sequence over max_length is kept."}
    )
    prompt_sample_size: int = field(
        default=1024,
        metadata={"help": "Prompts of either label that the classifier of density ratios is fitted to."},
    )
    min_density_ratio: float = field(default=0.5, metadata={"help": "Least weight of an undesirable row."})
    max_density_ratio: float = field(default=10.0, metadata={"help": "Greatest weight of an undesirable row."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_sample_size < 1:
            raise ConfigError(f"prompt_sample_size={self.prompt_sample_size} leaves no prompts; the paper uses 512.")
        if not 0 < self.min_density_ratio <= self.max_density_ratio:
            raise ConfigError(
                f"min_density_ratio={self.min_density_ratio} has to be above 0 and not above "
                f"max_density_ratio={self.max_density_ratio}."
            )
