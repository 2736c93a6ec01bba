"""Options of `GKDTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.trainers.distillation_config import TeacherConfig
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_dpo_config import take_max_new_tokens


@takes_older_options
@dataclass
class GKDConfig(TeacherConfig):
    """Names and defaults of TRL 1.16's `GKDConfig`."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Initial learning rate."})
    temperature: float = field(default=0.9, metadata={"help": "Divides the logits in sampling; the loss has none."})
    lmbda: float = field(default=0.5, metadata={"help": "Share of completions that the student writes itself."})
    beta: float = field(
        default=0.5,
        metadata={"help": "0: KL(teacher || student). 1: KL(student || teacher). Between: Jensen-Shannon."},
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion that is drawn, in tokens."})
    max_completion_length: int = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Another name for max_new_tokens."}
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest prompt with its completion, in tokens. None: what the model can read."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    seq_kd: bool = field(
        default=False, metadata={"help": "Let the teacher write the other completions, not the data set."}
    )

    completion_only_loss: bool | None = field(
        default=None, metadata={"help": "No effect: only completions are learned from."}
    )
    assistant_only_loss: bool = field(default=False, metadata={"help": "No effect, as completion_only_loss."})
    packing: bool = field(default=False, metadata={"help": "No effect: rows of prompt trees have no padding."})
    packing_strategy: str = field(default="bfd", metadata={"help": "No effect, as packing."})
    eval_packing: bool | None = field(default=None, metadata={"help": "No effect, as packing."})
    padding_free: bool = field(default=False, metadata={"help": "No effect: rows of prompt trees have no padding."})

    def __post_init__(self) -> None:
        take_max_new_tokens(self, self.max_new_tokens)
        super().__post_init__()
        if not 0 <= self.lmbda <= 1:
            raise ConfigError(f"lmbda={self.lmbda} must lie in [0, 1]: it is the share of the student's completions.")
