"""Options of `OnlineDPOTrainer`, and those that it shares with the other methods that compare two completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_config import OnlineConfig

LOSS_TYPES = ("sigmoid", "ipo")


def take_max_new_tokens(config: OnlineConfig, max_new_tokens: int) -> None:
    """Let the older name for the longest completion count.

    Raises:
        ConfigError: the newer name says otherwise.
    """
    if config.max_completion_length not in (None, max_new_tokens):
        raise ConfigError(
            f"max_completion_length={config.max_completion_length} and max_new_tokens={max_new_tokens} contradict each "
            "other; set max_new_tokens alone."
        )
    config.max_completion_length = max_new_tokens


def collapsed(values: list[float] | float) -> list[float] | float:
    """A list of one number as that number."""
    return values[0] if isinstance(values, list) and len(values) == 1 else values


def by_epoch(values: list[float] | float) -> list[float]:
    """One number or several as several."""
    return values if isinstance(values, list) else [values]


@takes_older_options
@dataclass
class OnlineDPOConfig(OnlineConfig):
    """Names and defaults of TRL 1.16's `OnlineDPOConfig`; batch sizes count prompts, each of two completions."""

    _least_generations: ClassVar[int] = 1

    learning_rate: float = field(default=5e-7, metadata={"help": "Initial learning rate."})
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Name or folder of a reward model, where neither judge nor rewards are given."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest completion, in tokens."})
    max_completion_length: int = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Another name for max_new_tokens."}
    )
    max_length: int | None = field(
        default=512, metadata={"help": "Longest prompt with its completion, in tokens. None: what the model can read."}
    )
    temperature: float = field(default=0.9, metadata={"help": "Divides the logits in sampling; the loss has none."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the reward of a completion that was cut off."}
    )
    beta: list[float] = field(  # type: ignore[assignment]
        default_factory=lambda: [0.1],
        metadata={"help": "Strength of the tie to the reference: one number, or one an epoch, the last for the rest."},
    )
    loss_type: str = field(default="sigmoid", metadata={"help": "Loss of a pair: " + ", ".join(LOSS_TYPES)})
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    num_generations: int = field(
        default=1, metadata={"help": "Places of a prompt in a batch: 1, which holds its two completions."}
    )

    def __post_init__(self) -> None:
        take_max_new_tokens(self, self.max_new_tokens)
        self.beta = collapsed(self.beta)  # type: ignore[assignment]
        super().__post_init__()
        if not self.betas or min(self.betas) <= 0:
            raise ConfigError(f"beta={self.beta} must be above 0, in every epoch; TRL's default is 0.1.")
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type={self.loss_type!r} is unknown; use one of {', '.join(LOSS_TYPES)}.")
        if self.num_generations != 1 or self.num_generations_eval not in (None, 1):
            raise ConfigError(
                f"num_generations={self.num_generations}: each prompt has two completions here; leave it out."
            )
        if self.mask_truncated_completions:
            raise ConfigError("mask_truncated_completions=True would tear pairs apart; set missing_eos_penalty.")

    @property
    def betas(self) -> list[float]:
        """One an epoch."""
        return by_epoch(self.beta)
