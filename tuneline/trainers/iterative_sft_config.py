"""Configuration of fine-tuning step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.sft_config import SFTConfig


@takes_older_options
@dataclass
class IterativeSFTConfig(SFTConfig):
    """Options of `IterativeSFTTrainer`: those of `SFTTrainer`, with the defaults of TRL's trainer, gone from TRL
    since."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens; what is cut is counted. None: no limit."}
    )
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_end", metadata={"help": "Which end of a text over max_length is kept."}
    )
    optimize_device_cache: bool = field(
        default=False, metadata={"help": "Give the GPU's cached memory back after each call of step."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing:
            raise ConfigError("packing=True joins the texts of a data set, and step() gets a few at a time; drop it.")
        if self.max_steps <= 0:
            raise ConfigError(
                "step() is called as often as its caller likes, so the schedule of the learning rate needs its end: "
                "set max_steps, the number of optimizer steps."
            )
