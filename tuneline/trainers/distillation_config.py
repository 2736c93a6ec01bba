"""Options of `DistillationTrainer`, and those that it shares with `GKDTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tuneline.errors import ConfigError
from tuneline.trainers.older_names import takes_older_options
from tuneline.trainers.online_config import OnlineConfig


@dataclass
class TeacherConfig(OnlineConfig):
    """What the methods share that learn from a teacher's next-token distributions."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*OnlineConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]
    _least_generations: ClassVar[int] = 1  # nothing is compared with others of its prompt

    teacher_model_name_or_path: str | None = field(default=None, metadata={"help": "Name or folder of the teacher."})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for `from_pretrained`, when the teacher is given by name."}
    )
    num_generations: int = field(default=1, metadata={"help": "Completions a prompt."})
    beta: float = field(
        default=1.0,
        metadata={"help": "0: KL(teacher || student). 1: KL(student || teacher). Between: Jensen-Shannon."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta={self.beta} must lie in [0, 1]: it is the teacher's share of the mixture.")
        if self.sync_ref_model:
            raise ConfigError("sync_ref_model=True moves a reference, and a distillation has none, only a teacher.")


@takes_older_options
@dataclass
class DistillationConfig(TeacherConfig):
    """Names and defaults of TRL 1.16's `DistillationConfig`."""

    teacher_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    max_tool_calling_iterations: int | None = field(
        default=None, metadata={"help": "Rounds of tool calls a completion may have. None: no limit but its length."}
    )
