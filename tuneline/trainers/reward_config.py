"""Configuration of reward modelling."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.trainers.base_config import BaseConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class RewardConfig(BaseConfig):
    """Options of `RewardTrainer`: names and defaults of TRL 1.16."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Pairs with a longer sequence are left out and counted. None: no limit."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A .jinja file, or a tokenizer whose chat template and special tokens to take."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    eos_token: str | None = field(default=None, metadata={"help": "Token that ends a text. None: the tokenizer's."})
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={"help": "Weight of the squared sum of a pair's rewards, which keeps their mean near zero."},
    )
