"""Configuration of Triple Preference Optimization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tuneline.errors import ConfigError
from tuneline.losses.reference_free import check_reference_free_options
from tuneline.trainers.base_config import OfflineConfig
from tuneline.trainers.older_names import takes_older_options

LOSS_TYPES = ("sigmoid", "hinge", "ipo", "tpo-l")


@takes_older_options
@dataclass
class TPOConfig(OfflineConfig):
    """Options of `TPOTrainer`: names and defaults of TRL 1.16."""

    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate of AdamW."})
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a sequence over max_length is kept."}
    )
    loss_type: str = field(default="sigmoid", metadata={"help": f"One of {', '.join(LOSS_TYPES)}."})
    beta: float = field(default=0.01, metadata={"help": "Scale of the implicit rewards."})
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Assumed share of pairs labelled the wrong way round."}
    )
    tpo_alpha: float = field(
        default=1.0, metadata={"help": "Weight of the gold response's likelihood; at 0 it is not computed."}
    )
    tpo_l_gamma: float = field(default=0.5, metadata={"help": "By how much the chosen reward should win, in tpo-l."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type={self.loss_type!r} is unknown; it can be {', '.join(LOSS_TYPES)}.")
        try:
            check_reference_free_options(self.loss_type, beta=self.beta, label_smoothing=self.label_smoothing)
        except ValueError as error:
            raise ConfigError(str(error)) from error
