"""Configuration of process reward modelling."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.trainers.base_config import BaseConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class PRMConfig(BaseConfig):
    """Options of `PRMTrainer`: names and defaults of TRL's, which has no such trainer any more in 1.16."""

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_prompt_length: int | None = field(
        default=512, metadata={"help": "Longest prompt in tokens, which loses its beginning. None: no limit."}
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest solution in tokens, all steps together. None: no limit."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    step_separator: str = field(
        default="\n", metadata={"help": "Text that ends a step; its last token bears the step's label."}
    )
    train_on_last_step_only: bool = field(
        default=False, metadata={"help": "Train on the last step's label alone; evaluation reads all."}
    )
