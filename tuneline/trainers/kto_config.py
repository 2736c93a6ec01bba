"""Configuration of Kahneman-Tversky Optimization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tuneline.errors import ConfigError
from tuneline.losses.unpaired import KTO_LOSS_TYPES
from tuneline.trainers.base_config import ReferenceConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class KTOConfig(ReferenceConfig):
    """Options of `KTOTrainer`: names and defaults of TRL 1.16."""

    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "Order of the training rows. The loss `kto` needs 'sequential': its divergence is estimated among "
            "the rows of an optimizer step, which are put together before training."
        },
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens; what is cut is counted. None: no limit."}
    )
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a sequence over max_length is kept."}
    )
    loss_type: str = field(default="kto", metadata={"help": "One of " + ", ".join(KTO_LOSS_TYPES) + "."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of the losses of desirable completions."})
    undesirable_weight: float = field(
        default=1.0, metadata={"help": "Weight of the losses of undesirable completions."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in KTO_LOSS_TYPES:
            raise ConfigError(f"loss_type={self.loss_type!r} is unknown; it can be {', '.join(KTO_LOSS_TYPES)}.")
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is below 0, which would turn the loss around.")
        if not self.estimates_divergence:
            return
        if self.train_sampling_strategy != "sequential":
            raise ConfigError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} breaks up the rows among which the loss "
                "'kto' estimates its divergence; use 'sequential' (shuffle the data set before), or "
                "loss_type='apo_zero_unpaired'."
            )
        if self.rows_of_a_step == 1:
            raise ConfigError(
                "the loss 'kto' estimates a divergence from prompts with the completions of other rows, and an "
                "optimizer step has one row; raise per_device_train_batch_size or gradient_accumulation_steps."
            )

    @property
    def estimates_divergence(self) -> bool:
        return self.loss_type == "kto"

    @property
    def rows_of_a_step(self) -> int:
        """Rows of an optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
