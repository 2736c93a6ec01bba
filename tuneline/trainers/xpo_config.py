"""Options of `XPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_dpo_config import OnlineDPOConfig, by_epoch, collapsed


@takes_older_options
@dataclass
class XPOConfig(OnlineDPOConfig):
    """Names and defaults that TRL's `XPOConfig` had."""

    alpha: list[float] = field(
        default_factory=lambda: [1e-5],
        metadata={"help": "Weight of the bonus for exploring: one number, or one an epoch, the last for the rest."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alpha = collapsed(self.alpha)  # type: ignore[assignment]
        if not self.alphas or min(self.alphas) < 0:
            raise ConfigError(f"alpha={self.alpha} must be at least 0, in every epoch; the default is 1e-5.")

    @property
    def alphas(self) -> list[float]:
        """One an epoch."""
        return by_epoch(self.alpha)
