"""Options of `NashMDTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_dpo_config import OnlineDPOConfig, by_epoch, collapsed


@takes_older_options
@dataclass
class NashMDConfig(OnlineDPOConfig):
    """Names and defaults that TRL's `NashMDConfig` had; `loss_type` is not read."""

    mixture_coef: list[float] = field(
        default_factory=lambda: [0.5],
        metadata={
            "help": "The reference's share in the mixture that is played against: one number, or one an epoch, the "
            "last for the rest."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixture_coef = collapsed(self.mixture_coef)  # type: ignore[assignment]
        if not self.mixture_coefs or not 0 <= min(self.mixture_coefs) <= max(self.mixture_coefs) <= 1:
            raise ConfigError(f"mixture_coef={self.mixture_coef} must lie in [0, 1], in every epoch.")

    @property
    def mixture_coefs(self) -> list[float]:
        """One an epoch."""
        return by_epoch(self.mixture_coef)
