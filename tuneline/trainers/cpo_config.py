"""Configuration of Contrastive Preference Optimization, SimPO and AlphaPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.losses.reference_free import check_reference_free_options
from tuneline.trainers.base_config import OfflineConfig
from tuneline.trainers.older_names import takes_older_options

LOSS_TYPES = ("sigmoid", "hinge", "ipo", "simpo", "alphapo")


@takes_older_options
@dataclass
class CPOConfig(OfflineConfig):
    """Options of `CPOTrainer`: names and defaults of TRL 1.16."""

    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens; what is cut is counted. None: no limit."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Assumed share of pairs labelled the wrong way round."}
    )
    loss_type: str = field(
        default="sigmoid",
        metadata={"help": f"One of {', '.join(LOSS_TYPES)}; alphapo is simpo with cpo_alpha=0, and reads alpha."},
    )
    cpo_alpha: float = field(default=1.0, metadata={"help": "Weight of the chosen completions' likelihood."})
    simpo_gamma: float = field(default=0.5, metadata={"help": "By how much the chosen reward should win, in simpo."})
    alpha: float = field(
        default=0.0,
        metadata={"help": "Shape of the reward (1 - p^-alpha) / alpha (arXiv:2501.03884); 0 is the logarithm."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type={self.loss_type!r} is unknown; it can be {', '.join(LOSS_TYPES)}.")
        if self.loss_type == "alphapo":
            self.loss_type, self.cpo_alpha = "simpo", 0.0
        try:
            check_reference_free_options(self.loss_type, beta=self.beta, label_smoothing=self.label_smoothing)
        except ValueError as error:
            raise ConfigError(str(error)) from error
