"""Options of `RLOOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_config import OnlineConfig


@takes_older_options
@dataclass
class RLOOConfig(OnlineConfig):
    """Names and defaults of TRL 1.16's `RLOOConfig`."""

    num_generations: int = field(default=2, metadata={"help": "Completions a prompt, each the others' baseline."})
    beta: float = field(default=0.05, metadata={"help": "Weight of the KL penalty in the reward. 0: no reference."})
    normalize_advantages: bool = field(
        default=False, metadata={"help": "Bring the advantages of a batch to mean 0 and deviation 1."}
    )
    reward_clip_range: list[float] | None = field(
        default=None, metadata={"help": "Bounds that rewards are clipped to, before the KL penalty."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_clip_range is not None and (
            len(self.reward_clip_range) != 2 or self.reward_clip_range[0] >= self.reward_clip_range[1]
        ):
            raise ConfigError(f"reward_clip_range={self.reward_clip_range} needs a lower and a higher bound.")
