"""Options of `ServerDistillationTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuneline.errors import ConfigError
from tuneline.trainers.distillation_config import DistillationConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class ServerDistillationConfig(DistillationConfig):
    """Names and defaults of TRL 1.16's `ServerDistillationConfig`."""

    teacher_model_server_url: str | None = field(
        default=None, metadata={"help": "Address of the vLLM server with the teacher, such as http://127.0.0.1:8000."}
    )
    vllm_server_port: int = field(
        default=8001, metadata={"help": "Port of the student's own vLLM server; the teacher's is often on 8000."}
    )
    loss_top_k: int = field(
        default=1,
        metadata={"help": "How many of the teacher's likeliest tokens are compared at a target; 1 where beta > 0."},
    )
    loss_add_tail: bool = field(
        default=True, metadata={"help": "All other tokens count as one more; otherwise as if there were none."}
    )
    reverse_kl_top_1_mode: str = field(
        default="sampled", metadata={"help": "Which token the reverse KL reads: the one that was written."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.teacher_model_server_url or "").strip():
            raise ConfigError("teacher_model_server_url is not set; name the address of the teacher's vLLM server.")
        if self.reverse_kl_top_1_mode != "sampled":
            raise ConfigError(
                f"reverse_kl_top_1_mode={self.reverse_kl_top_1_mode!r}: a server gives the log-probability of the "
                "token that was written, and of no other that the student names; use 'sampled'."
            )
        if self.loss_top_k < 1 or (self.beta > 0 and self.loss_top_k != 1):
            raise ConfigError(
                f"loss_top_k={self.loss_top_k} with beta={self.beta}: with beta=0 it is 1 or more, otherwise 1."
            )
        if self.temperature != 1:
            raise ConfigError(
                f"temperature={self.temperature}: a server gives the teacher's log-probabilities at temperature 1 "
                "only, and the student's would be at another; use 1, or DistillationTrainer with the teacher itself."
            )
        if self.teacher_model_name_or_path is not None:
            raise ConfigError("teacher_model_name_or_path and teacher_model_server_url name two teachers; set one.")
